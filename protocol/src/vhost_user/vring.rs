// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Payloads about rings (QEMU's vhost-user.rst, "A vring state description" and what follows).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most descriptors of a ring: virtio's own limit for split and packed rings.
pub const MAX_VRING_SIZE: u16 = 1 << 15;

/// A ring and a number: its size, its base, or whether it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// Which ring, at most 255.
    pub index: u32,
    /// What the request is about.
    pub num: u32,
}

/// Payload of `SET_VRING_ADDR`. Addresses are those of the frontend's process, or guest physical with `GPA_ADDRESSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddress {
    /// Which ring, at most 255.
    pub index: u32,
    /// 0. (Bit 0 would have writes to the used ring logged.)
    pub flags: u32,
    /// Where the descriptors are.
    pub descriptor: u64,
    /// Where the used ring is; of a packed ring the device's event suppression.
    pub used: u64,
    /// Where the available ring is; of a packed ring the driver's event suppression.
    pub available: u64,
    /// Where the used ring's log is. Means nothing without the flag.
    pub log: u64,
}

/// Payload of `SET_VRING_KICK`, `SET_VRING_CALL` and `SET_VRING_ERR`: which ring, and whether an eventfd came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct VringDescriptor(pub u64);

impl VringDescriptor {
    /// Bits 0-7: which ring.
    pub const INDEX: u64 = 0xff;
    /// Bit 8: no eventfd comes.
    pub const NO_DESCRIPTOR: u64 = 1 << 8;
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use vhost::vhost_user::message::{VhostUserVringAddr, VhostUserVringState};

    use super::*;

    #[test]
    fn payloads_have_the_layout_of_the_vhost_crate() {
        assert_eq!(size_of::<VringState>(), size_of::<VhostUserVringState>());
        assert_eq!(size_of::<VringAddress>(), size_of::<VhostUserVringAddr>());
        for (ours, theirs) in [
            (offset_of!(VringState, index), offset_of!(VhostUserVringState, index)),
            (offset_of!(VringState, num), offset_of!(VhostUserVringState, num)),
            (offset_of!(VringAddress, index), offset_of!(VhostUserVringAddr, index)),
            (offset_of!(VringAddress, flags), offset_of!(VhostUserVringAddr, flags)),
            (offset_of!(VringAddress, descriptor), offset_of!(VhostUserVringAddr, descriptor)),
            (offset_of!(VringAddress, used), offset_of!(VhostUserVringAddr, used)),
            (offset_of!(VringAddress, available), offset_of!(VhostUserVringAddr, available)),
            (offset_of!(VringAddress, log), offset_of!(VhostUserVringAddr, log)),
        ] {
            assert_eq!(ours, theirs);
        }
    }
}
