// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One line of output: a figure, the figure it is compared with, the ratio of the two, the goal.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A measured quantity.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Figure {
    /// How long.
    Time(Duration),
    /// How many bytes.
    Memory(u64),
}

impl Figure {
    /// In microseconds or bytes. All that is measured here is far below 2⁵³ of them.
    #[allow(clippy::cast_precision_loss)]
    fn number(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64() * 1e6,
            Self::Memory(bytes) => bytes as f64,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Time(time) if *time >= Duration::from_millis(1) => format!("{:.2} ms", self.number() / 1e3),
            Self::Time(_) => format!("{:.1} us", self.number()),
            Self::Memory(_) => format!("{:.2} MiB", self.number() / f64::from(1 << 20)),
        };
        f.pad(&text)
    }
}

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// A ratio of at most so much.
    Ratio(f64),
    /// A time longer by at most that.
    Difference(Duration),
    /// A figure of at most so many MiB.
    Mebibytes(u32),
    /// A figure of at most so many milliseconds.
    Milliseconds(u32),
    /// Nothing: the comparison is there to understand the others.
    None,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(ratio) => write!(f, "ratio <= {ratio}"),
            Self::Difference(time) => write!(f, "difference <= {}", Figure::Time(*time)),
            Self::Mebibytes(size) => write!(f, "figure <= {size} MiB"),
            Self::Milliseconds(time) => write!(f, "figure <= {time} ms"),
            Self::None => f.write_str("-"),
        }
    }
}

/// The server's figure and another one.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) figure: Figure,
    pub(crate) other_name: Cow<'static, str>,
    pub(crate) other: Figure,
    pub(crate) goal: Goal,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figure, other_name, other, goal } = self;
        let ratio = figure.number() / other.number();
        write!(f, "{figure:>10}  {other_name:<26} {other:>10}  {ratio:>6.2}  {goal}")?;
        match (goal, figure, other) {
            (Goal::Difference(_), Figure::Time(figure), Figure::Time(other)) => {
                let sign = if figure < other { "-" } else { "" };
                write!(f, " (it is {sign}{})", Figure::Time(figure.abs_diff(*other)))
            }
            _ => Ok(()),
        }
    }
}

/// The heading of the lines that were measured at `place`.
pub(crate) fn print_heading(place: &str) {
    println!(
        "{:<16} {:>10}  {:<26} {:>10}  {:>6}  goal",
        place, "figure", "compared with", "figure", "ratio"
    );
}
