// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often a client was refused something. It could fill a disk with that, so that not all of it is logged.

use super::poller::Token;

/// The refusals of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    count: u64,
}

impl Refusals {
    /// So many are logged each.
    pub const LOGGED: u64 = 32;

    /// Counts one more. Gives which it is if it is to be logged: of those beyond the first only every one whose number is a
    /// power of two.
    pub const fn note(&mut self) -> Option<u64> {
        self.count = self.count.saturating_add(1);
        if self.count <= Self::LOGGED || self.count.is_power_of_two() { Some(self.count) } else { None }
    }

    /// Says how many there were in the end, unless each is in the log.
    pub fn log_the_rest(self, connection: Token) {
        if self.count > Self::LOGGED {
            log::warn!("event=refusals-not-logged connection={} refused={}", connection.0, self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_cannot_flood_the_log() {
        let mut refusals = Refusals::default();
        let logged = (0..1_000_000).filter(|_| refusals.note().is_some()).count();
        assert_eq!(logged, 32 + 14, "the first, and 2^6 to 2^19");
    }

    #[test]
    fn a_few_refusals_are_all_logged() {
        let mut refusals = Refusals::default();
        assert!((1..=Refusals::LOGGED).all(|number| refusals.note() == Some(number)));
    }
}
