// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which MSI-X vector tells of what. The kernel writes to one eventfd for each vector: with enough of them it is the
//! frontend's own, and nobody is in between. With fewer, rings share vectors, and the relay passes their interrupts on.

use super::rings::RingIndex;

/// The vectors of a function, shared out among its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    count: u16,
    rings: u16,
}

impl Vectors {
    /// So many vectors for so many rings; `None` without any.
    pub fn new(count: u32, rings: u16) -> Option<Self> {
        // With one for each ring and one for the configuration there are enough.
        let count = u16::try_from(count).unwrap_or(u16::MAX).min(rings.saturating_add(1));
        (count > 0).then_some(Self { count, rings })
    }

    /// How many are used, from 0.
    pub const fn count(self) -> u16 {
        self.count
    }

    /// Whether rings have to share.
    pub const fn are_short(self) -> bool {
        self.count <= self.rings
    }

    /// That of the configuration. Where there is but one vector the rings have it, and nobody is told of changes of the
    /// configuration: each interrupt would have to be taken for one.
    pub const fn config(self) -> Option<u16> {
        if self.count > 1 || self.rings == 0 { Some(0) } else { None }
    }

    /// That of a ring.
    pub fn ring(self, ring: RingIndex) -> u16 {
        let first = self.config().map_or(0, |config| config + 1);
        ring.0.checked_rem(self.count - first).map_or(0, |place| first + place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_rings(count: u32, rings: u16) -> Vec<u16> {
        let vectors = Vectors::new(count, rings).unwrap();
        (0..rings).map(|ring| vectors.ring(RingIndex(ring))).collect()
    }

    #[test]
    fn with_enough_vectors_each_ring_has_its_own() {
        assert_eq!(of_rings(4, 3), [1, 2, 3]);
        assert_eq!(of_rings(2048, 3), [1, 2, 3]);
        assert!(!Vectors::new(4, 3).unwrap().are_short());
    }

    #[test]
    fn with_too_few_rings_share_what_is_left_by_the_configuration() {
        assert_eq!(of_rings(3, 5), [1, 2, 1, 2, 1]);
        let vectors = Vectors::new(3, 5).unwrap();
        assert!(vectors.are_short());
        assert_eq!(vectors.config(), Some(0));
    }

    #[test]
    fn a_single_vector_is_the_rings() {
        assert_eq!(of_rings(1, 2), [0, 0]);
        assert_eq!(Vectors::new(1, 2).unwrap().config(), None);
        assert_eq!(Vectors::new(0, 2), None);
    }

    proptest! {
        #[test]
        fn no_ring_has_a_vector_that_is_not_there_or_the_configurations(count in 1_u32..70_000, rings in 1_u16..=256) {
            let vectors = Vectors::new(count, rings).unwrap();
            for ring in 0..rings {
                let vector = vectors.ring(RingIndex(ring));
                prop_assert!(vector < vectors.count() && Some(vector) != vectors.config());
            }
        }
    }
}
