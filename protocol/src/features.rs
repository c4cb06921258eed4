// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two sets of feature bits that vhost-user negotiates.

use std::ops::BitOr;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio feature bits (`GET_FEATURES`, `SET_FEATURES`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct VirtioFeatures(pub u64);

impl VirtioFeatures {
    /// Bit 30, `VHOST_USER_F_PROTOCOL_FEATURES`: there are protocol features to negotiate.
    pub const PROTOCOL_FEATURES: Self = Self(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits());
    /// Bit 32, `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: Self = Self(1 << 32);
    /// What the control face offers.
    pub const OFFERED: Self = Self(Self::PROTOCOL_FEATURES.0 | Self::VERSION_1.0);

    /// Whether all of `features` are in this set.
    pub fn contains(self, features: Self) -> bool {
        self.0 & features.0 == features.0
    }
}

/// Protocol feature bits (`GET_PROTOCOL_FEATURES`, `SET_PROTOCOL_FEATURES`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ProtocolFeatures(pub u64);

impl ProtocolFeatures {
    /// Bit 3: a request with `need_reply` is acknowledged.
    pub const REPLY_ACK: Self = Self(VhostUserProtocolFeatures::REPLY_ACK.bits());
    /// Bit 5: the client can hand over a socket on which the server sends its requests.
    pub const BACKEND_REQ: Self = Self(VhostUserProtocolFeatures::BACKEND_REQ.bits());
    /// Bit 15: memory regions can be added and removed one by one.
    pub const CONFIGURE_MEM_SLOTS: Self = Self(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits());
    /// Bit 62: the VFIO extension. Far from the bits that the vhost-user specification hands out; frontends that do
    /// not know it mask it.
    pub const VFIO: Self = Self(1 << 62);
    /// What the control face offers.
    pub const OFFERED: Self =
        Self(Self::REPLY_ACK.0 | Self::BACKEND_REQ.0 | Self::CONFIGURE_MEM_SLOTS.0 | Self::VFIO.0);

    /// Whether all of `features` are in this set.
    pub fn contains(self, features: Self) -> bool {
        self.0 & features.0 == features.0
    }
}

impl BitOr for ProtocolFeatures {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_takes_no_bit_that_vhost_user_gives_a_meaning() {
        assert_eq!(VhostUserProtocolFeatures::all().bits() & ProtocolFeatures::VFIO.0, 0);
    }

    #[test]
    fn the_offered_bits_are_those_of_the_specification() {
        assert_eq!(VirtioFeatures::OFFERED.0, 1 << 30 | 1 << 32);
        assert_eq!(ProtocolFeatures::OFFERED.0, 1 << 3 | 1 << 5 | 1 << 15 | 1 << 62);
    }

    #[test]
    fn a_set_contains_its_parts_and_no_more() {
        let some = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::VFIO;
        assert!(some.contains(ProtocolFeatures::VFIO));
        assert!(!some.contains(ProtocolFeatures::OFFERED));
    }
}
