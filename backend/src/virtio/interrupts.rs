// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which MSI-X vector tells of what. The kernel writes to one eventfd for each vector: with enough of them it is the
//! frontend's own, and nobody is in between. With fewer, rings share vectors, and the relay passes their interrupts on.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::eventfd::Eventfd;
use super::kick::{Line, Relay, Target};
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

/// The vectors that several rings share: each has an eventfd of ours, from which the relay writes to the calls of the rings.
#[derive(Debug, Default)]
pub struct SharedVectors(BTreeMap<u16, (Line, Vec<Eventfd>)>);

impl SharedVectors {
    /// What a vector is to be armed with to reach these calls.
    pub fn route(
        &mut self,
        relay: &Relay,
        vector: u16,
        calls: Vec<Eventfd>,
    ) -> Result<Option<Eventfd>, Errno> {
        let before = self.0.remove(&vector);
        if calls.len() < 2 {
            return Ok(calls.into_iter().next());
        }
        let line = match before {
            Some((line, same)) if same == calls => line,
            Some((line, _)) => {
                let source = line.source().clone();
                drop(line);
                relay.connect(&source, Target::Calls(calls.clone()))?
            }
            None => relay.connect(&Eventfd::new()?, Target::Calls(calls.clone()))?,
        };
        let source = line.source().clone();
        self.0.insert(vector, (line, calls));
        Ok(Some(source))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

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

    #[test]
    fn a_ring_that_shares_a_vector_is_reached_by_way_of_the_relay() {
        let relay = Relay::start(|| {}).unwrap();
        let mut shared = SharedVectors::default();
        let [first, second, third] = [(); 3].map(|()| Eventfd::new().unwrap());
        assert_eq!(shared.route(&relay, 1, vec![]), Ok(None));
        assert_eq!(shared.route(&relay, 1, vec![first.clone()]), Ok(Some(first.clone())));
        let armed = shared.route(&relay, 1, vec![first.clone(), second.clone()]).unwrap().unwrap();
        armed.signal();
        assert!(arrives(&first) && arrives(&second));
        // One of them is replaced: what the kernel writes to stays.
        assert_eq!(shared.route(&relay, 1, vec![first.clone(), third.clone()]), Ok(Some(armed.clone())));
        armed.signal();
        assert!(arrives(&first) && arrives(&third));
        assert_eq!(shared.route(&relay, 1, vec![third.clone()]), Ok(Some(third)));
    }

    /// Waits until it has been written to, and takes that.
    fn arrives(eventfd: &Eventfd) -> bool {
        let time = Timespec { tv_sec: 20, tv_nsec: 0 };
        poll(&mut [PollFd::new(eventfd, PollFlags::IN)], Some(&time)) == Ok(1)
            && rustix::io::read(eventfd, &mut [0; 8]).is_ok()
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
