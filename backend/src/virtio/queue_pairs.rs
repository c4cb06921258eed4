// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue pairs of a network device (Virtio 1.3, 5.1.2): the first rings are a receiving and a sending one by turns, and
//! behind the last pair is the control ring, by which the driver says how many pairs the device is to use.
//!
//! A frontend may keep the control ring for itself, as QEMU's `-netdev vhost-user` does: it has the data rings only, and says
//! by enabling them which pairs are in use. **A frontend that acknowledges `VIRTIO_NET_F_MQ` and not `VIRTIO_NET_F_CTRL_VQ`
//! has the control ring driven here.** One that acknowledges both drives it itself.

use super::features::{NET_CONTROL_RING, NET_QUEUE_PAIRS};
use super::rings::RingIndex;

/// Most pairs of a device (Virtio 1.3, 5.1.4).
const MAX_PAIRS: u16 = 0x8000;

/// The pairs of a device that offers several, and a control ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairs {
    most: u16,
}

impl QueuePairs {
    /// So many pairs at most, of a network device that offers `features` and has so many rings; `None` where their number
    /// cannot be changed.
    pub fn new(features: u64, most: u16, rings: u16) -> Option<Self> {
        let needed = NET_QUEUE_PAIRS | NET_CONTROL_RING;
        let has_control = most <= MAX_PAIRS && u32::from(most) * 2 < u32::from(rings);
        (features & needed == needed && most > 0 && has_control).then_some(Self { most })
    }

    /// The ring behind the last pair.
    pub const fn control_ring(self) -> RingIndex {
        RingIndex(self.most * 2)
    }

    /// Whether a frontend that acknowledged these features has the control ring driven here.
    pub const fn are_set_here(features: u64) -> bool {
        features & NET_QUEUE_PAIRS != 0 && features & NET_CONTROL_RING == 0
    }

    /// How many pairs are in use when these rings are: those from the first on without a gap. A device uses at least one.
    pub fn in_use(self, is_used: impl Fn(RingIndex) -> bool) -> u16 {
        let is_pair_used = |pair: &u16| is_used(RingIndex(pair * 2)) && is_used(RingIndex(pair * 2 + 1));
        let gap = (0..self.most).find(|pair| !is_pair_used(pair));
        gap.unwrap_or(self.most).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = NET_QUEUE_PAIRS | NET_CONTROL_RING;

    fn in_use(rings: &[u16]) -> u16 {
        QueuePairs::new(OFFERED, 4, 9).unwrap().in_use(|RingIndex(ring)| rings.contains(&ring))
    }

    #[test]
    fn pairs_count_from_the_first_on_and_as_a_whole() {
        assert_eq!(in_use(&[0, 1]), 1);
        assert_eq!(in_use(&[0, 1, 2, 3, 4]), 2);
        assert_eq!(in_use(&[0, 1, 4, 5, 6, 7]), 1, "behind a gap");
        assert_eq!(in_use(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), 4, "the control ring is no pair's");
        assert_eq!(in_use(&[]), 1, "a device uses at least one");
    }

    #[test]
    fn the_control_ring_is_behind_the_pairs() {
        assert_eq!(QueuePairs::new(OFFERED, 4, 9).unwrap().control_ring(), RingIndex(8));
    }

    #[test]
    fn a_device_that_does_not_have_what_it_says_has_no_pairs() {
        for (most, rings) in [(0, 9), (4, 8), (1, 2), (0x8001, u16::MAX)] {
            assert_eq!(QueuePairs::new(OFFERED, most, rings), None, "{most} pairs, {rings} rings");
        }
        for features in [0, NET_QUEUE_PAIRS, NET_CONTROL_RING] {
            assert_eq!(QueuePairs::new(features, 2, 5), None);
        }
    }

    #[test]
    fn only_who_leaves_the_control_ring_has_it_driven() {
        assert!(QueuePairs::are_set_here(NET_QUEUE_PAIRS));
        assert!(!QueuePairs::are_set_here(OFFERED) && !QueuePairs::are_set_here(NET_CONTROL_RING));
    }
}
