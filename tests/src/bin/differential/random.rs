// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers that mean the same for ever: splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
//! 2014), so that a recorded seed can be replayed with every later version.

/// What the generator's state grows by with each number.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of one sequence of a run. Sequences do not depend on one another, so each can be replayed alone.
    pub(crate) fn of_sequence(seed: u64, sequence: u64) -> Self {
        Self(mixed(seed ^ mixed(sequence.wrapping_add(GOLDEN_GAMMA))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mixed(self.0)
    }

    /// A number below `end`, which is not 0. (The bias for a small `end` is below 2^-50.)
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u128::try_from(end).expect("a length fits 128 bits");
        let scaled = (u128::from(self.next()) * end) >> u64::BITS;
        usize::try_from(scaled).expect("it is below `end`")
    }

    /// True in so many cases of a hundred.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, of which there is at least one.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// One of the choices, each as probable as its weight; `None` where all weights are 0.
    pub(crate) fn weighted<T>(&mut self, choices: Vec<(T, usize)>) -> Option<T> {
        let sum: usize = choices.iter().map(|(_, weight)| weight).sum();
        let mut rest = if sum == 0 { return None } else { self.below(sum) };
        for (choice, weight) in choices {
            if rest < weight {
                return Some(choice);
            }
            rest -= weight;
        }
        None
    }
}

const fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut random = Random(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(expected.map(|_| random.next()), expected);
    }

    #[test]
    fn sequences_of_one_seed_differ() {
        let first: Vec<_> = (0..100).map(|sequence| Random::of_sequence(1, sequence).next()).collect();
        assert!((1..100).all(|sequence| !first[..sequence].contains(&first[sequence])));
    }

    #[test]
    fn weights_of_zero_are_never_chosen() {
        let mut random = Random(1);
        assert!((0..100).all(|_| random.weighted(vec![('a', 0), ('b', 3), ('c', 0)]) == Some('b')));
        assert_eq!(random.weighted(vec![('a', 0)]), None);
    }
}
