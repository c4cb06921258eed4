// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Timing several things side by side, so that whatever else the machine does hits them alike.

use std::time::{Duration, Instant};

/// Does its thing once and tells how long it took.
pub(crate) type Contender<'a> = &'a mut dyn FnMut() -> Duration;

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contest {
    /// How often it is each contender's turn.
    pub(crate) rounds: usize,
    /// Laps at the beginning of a turn that do not count: what the turn before left in the caches differs.
    pub(crate) warm_up: usize,
    /// Laps of a turn that count.
    pub(crate) laps: usize,
}

impl Contest {
    /// The median time of each contender, over all laps of all rounds.
    pub(crate) fn medians<const N: usize>(self, mut contenders: [Contender<'_>; N]) -> [Duration; N] {
        let mut times = [const { Vec::new() }; N];
        for round in 0..self.rounds {
            for turn in 0..N {
                // Back and forth: a steady drift hits the first as much as the last.
                let number = if round % 2 == 0 { turn } else { N - 1 - turn };
                let contender = &mut contenders[number];
                for _ in 0..self.warm_up {
                    contender();
                }
                times[number].extend((0..self.laps).map(|_| contender()));
            }
        }
        times.map(median)
    }
}

/// How long `action` takes.
pub(crate) fn timed(action: impl FnOnce()) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

/// The one in the middle.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_has_its_median_without_the_laps_that_do_not_count() {
        let contest = Contest { rounds: 2, warm_up: 1, laps: 2 };
        let mut slow = [90, 3, 1, 90, 2, 2].into_iter().map(Duration::from_secs);
        let mut quick = std::iter::repeat(Duration::from_secs(1));
        let medians = contest.medians([&mut || slow.next().unwrap(), &mut || quick.next().unwrap()]);
        assert_eq!(medians, [Duration::from_secs(2), Duration::from_secs(1)]);
    }
}
