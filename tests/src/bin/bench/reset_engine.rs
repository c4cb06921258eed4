// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What engine, wire and broker add to a hot reset that takes no time: the model's does not.

use std::cell::RefCell;
use std::time::Duration;

use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::Contest;
use crate::modelled_slot::{self, ModelledSlot};
use crate::processor::OneProcessor;
use crate::reset_set::ResetSet;

const CONTEST: Contest = Contest { rounds: 5, warm_up: 2, laps: 6 };
/// Servers, and for each number of them how many functions they share.
const CASES: [(usize, [usize; 3]); 3] = [(1, [2, 8, 32]), (2, [2, 8, 32]), (8, [8, 16, 32])];

/// Processors' time of a reset: all but the calls, the calls, and the same calls done bare.
fn measure(servers: usize, functions: usize) -> [Duration; 3] {
    let slot = ModelledSlot::start(functions);
    let set = ResetSet::new(&slot.host, slot.functions.clone(), servers, modelled_slot::SERVER);
    let set = RefCell::new(set);
    CONTEST.medians([
        &mut || set.borrow_mut().served().cost_of_hot_reset().rest,
        &mut || set.borrow_mut().served().cost_of_hot_reset().calls,
        &mut || set.borrow_mut().bare().cost_of_hot_reset(),
    ])
}

/// The value at `x` of the line through two points.
fn line(points: [(usize, Duration); 2], x: usize) -> Duration {
    let [(x0, y0), (x1, y1)] = points;
    let number = |x: usize| f64::from(u32::try_from(x).expect("a small number"));
    let slope = (y1.as_secs_f64() - y0.as_secs_f64()) / (number(x1) - number(x0));
    Duration::from_secs_f64((y0.as_secs_f64() + slope * (number(x) - number(x0))).max(0.0))
}

/// For each number of servers and functions what comes on top of the calls, and what the calls cost here and there; for each
/// number of servers whether the former grows faster than the number of functions.
pub(crate) fn reset_engine() -> Vec<Comparison> {
    let _pinned = OneProcessor::pin();
    let compare = |figure, other_name: String, other, goal| Comparison {
        figure: Figure::Time(figure),
        other_name: other_name.into(),
        other: Figure::Time(other),
        goal,
    };
    let mut comparisons = Vec::new();
    for (servers, sizes) in CASES {
        let [first, second, (functions, last)] = sizes.map(|functions| {
            let [rest, calls, bare] = measure(servers, functions);
            let name = format!("bare, {functions} in {servers}");
            comparisons.push(compare(rest, name, bare, Goal::Milliseconds(1)));
            comparisons.push(compare(calls, "its calls: bare".into(), bare, Goal::None));
            (functions, rest)
        });
        let expected = line([first, second], functions);
        let name = format!("line to {functions} in {servers}");
        comparisons.push(compare(last, name, expected, Goal::Ratio(1.2)));
    }
    comparisons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_on_beyond_its_points() {
        let milliseconds = Duration::from_millis;
        assert_eq!(line([(2, milliseconds(3)), (8, milliseconds(6))], 32), milliseconds(18));
    }
}
