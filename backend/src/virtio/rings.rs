// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings (virtqueues) as the frontend describes them, piece by piece, and as the device gets them.

use std::fmt;

use vfio::Iova;

use super::eventfd::Eventfd;
use crate::failure::Failure;
use crate::memory::{GuestAddress, GuestRange, MemoryView};

/// Most rings of a device: vhost-user names a ring with kick and call by 8 bits.
pub const MAX_RINGS: u16 = 256;
/// Most entries of a ring (Virtio 1.3, 2.7 and 2.8).
const MAX_SIZE: u32 = 1 << 15;

/// The number of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingIndex(pub u16);

impl fmt::Display for RingIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ring {}", self.0)
    }
}

/// Where the parts of a ring are for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAreas {
    /// Descriptors.
    pub descriptors: Iova,
    /// What the driver writes: the available ring, or the driver's event suppression of a packed one.
    pub driver: Iova,
    /// What the device writes: the used ring, or the device's event suppression.
    pub device: Iova,
}

impl RingAreas {
    /// Whether each is aligned as a ring of this kind demands (Virtio 1.3, 2.7 and 2.8.10.1).
    pub const fn are_aligned(&self, is_packed: bool) -> bool {
        let (driver, device) = if is_packed { (4, 4) } else { (2, 4) };
        self.descriptors.0.is_multiple_of(16)
            && self.driver.0.is_multiple_of(driver)
            && self.device.0.is_multiple_of(device)
    }
}

/// A ring as the device gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Number of entries.
    pub size: u16,
    /// Where it is.
    pub areas: RingAreas,
}

impl Placement {
    /// A ring that a device with room for `largest` entries can be given.
    ///
    /// # Errors
    ///
    /// Size or addresses are none that virtio allows.
    pub fn new(
        ring: RingIndex,
        size: u16,
        areas: RingAreas,
        largest: u16,
        is_packed: bool,
    ) -> Result<Self, Failure> {
        if size == 0 || size > largest || !(is_packed || size.is_power_of_two()) {
            return Err(Failure::ring_size(ring, size.into(), largest));
        }
        if !areas.are_aligned(is_packed) {
            return Err(Failure::ring_unaligned(ring));
        }
        Ok(Self { size, areas })
    }

    /// Where its parts are: descriptors, what the driver writes, what the device writes (Virtio 1.3, 2.7 and 2.8).
    pub fn parts(&self, is_packed: bool) -> Vec<GuestRange> {
        let size = u64::from(self.size);
        // Of a split ring with the words for the other side's event index, of a packed one the suppression structures.
        let (driver, device) = if is_packed { (4, 4) } else { (6 + 2 * size, 6 + 8 * size) };
        let RingAreas { descriptors: first, driver: second, device: third } = self.areas;
        let parts = [(first, 16 * size), (second, driver), (third, device)];
        let range = |(Iova(address), length)| {
            GuestRange::new(GuestAddress(address), length)
                // An end beyond all addresses lies in no memory.
                .or_else(|| GuestRange::between(u64::MAX - 1, u64::MAX))
        };
        parts.into_iter().filter_map(range).collect()
    }

    /// Whether a device has given back all that a split ring has for it, by the two indexes. Where they cannot be read it has
    /// nothing to give back.
    pub fn is_drained(&self, memory: &MemoryView) -> bool {
        const INDEX: u64 = 2;
        let index = |area: Iova| memory.read::<2>(GuestAddress(area.0.checked_add(INDEX)?));
        index(self.areas.driver) == index(self.areas.device)
    }
}

/// Where in a ring a device begins, in vhost-user's encoding: the next available entry of a split ring; of a packed one
/// the next available and the next used entry, 15 bits each with a wrap counter above.
///
/// A device in hardware cannot be told to begin anywhere but at the beginning, and does not tell where it is. So what a
/// stopped ring answers with is a token for this stop, which only says: as it was left. It is never a beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base(pub u32);

impl Base {
    /// The token of a stop. Its 15 bits survive in a frontend that takes it for an index of either kind of ring.
    pub const fn token(stop: u64) -> Self {
        let bytes = (stop % 0x7fff + 1).to_le_bytes();
        Self(u16::from_le_bytes([bytes[0], bytes[1]]) as u32)
    }

    /// Whether a new device begins there. A packed ring's wrap counters are 1 at first; not every frontend tells the
    /// used one.
    pub const fn is_beginning(self, is_packed: bool) -> bool {
        if is_packed { matches!(self.0, 0x8000_8000 | 0x8000) } else { self.0 == 0 }
    }
}

/// What the frontend has said about a ring.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Number of entries.
    pub size: Option<u16>,
    /// Where it is.
    pub areas: Option<RingAreas>,
    /// Where to begin.
    pub base: Base,
    /// Written to when there is something to do; the ring is started while it is there.
    pub kick: Option<Eventfd>,
    /// Written to when something is done.
    pub call: Option<Eventfd>,
    /// Whether the frontend enabled it.
    pub is_enabled: bool,
    /// With what it was stopped since the device has it.
    pub stopped: Option<Base>,
    /// What was wrong with what the frontend said, until it stops the ring.
    pub fault: Option<Failure>,
}

impl Ring {
    /// Whether all is known that the device needs.
    pub const fn is_started(&self) -> bool {
        self.size.is_some() && self.areas.is_some() && self.kick.is_some()
    }

    /// Whether kicks are passed on.
    pub const fn is_served(&self) -> bool {
        self.is_started() && self.is_enabled
    }

    /// What the frontend said of its place goes, because the device has lost it: it has to be said again, with a base
    /// that is none the device could have told.
    pub fn forget(&mut self, lost: Base) {
        let Self { call, is_enabled, .. } = std::mem::take(self);
        *self = Self { call, is_enabled, base: lost, ..Self::default() };
    }
}

/// The size that a frontend gives.
///
/// # Errors
///
/// It is more than virtio allows, or nothing.
pub fn ring_size(ring: RingIndex, size: u32, largest: u16) -> Result<u16, Failure> {
    let size = if size > MAX_SIZE { None } else { u16::try_from(size).ok() };
    size.filter(|size| (1..=largest).contains(size))
        .ok_or_else(|| Failure::ring_size(ring, size.map_or(u32::MAX, u32::from), largest))
}
