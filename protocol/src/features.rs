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
    /// Bit 33, `VIRTIO_F_ACCESS_PLATFORM`: between the server and the hardware. On the vhost-user face it would mean
    /// that addresses are translated on demand, which hardware cannot wait for.
    pub const ACCESS_PLATFORM: Self = Self(1 << 33);
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
    /// Bit 0: the device may have more than one ring, and tells how many.
    pub const MQ: Self = Self(VhostUserProtocolFeatures::MQ.bits());
    /// Bit 3: a request with `need_reply` is acknowledged.
    pub const REPLY_ACK: Self = Self(VhostUserProtocolFeatures::REPLY_ACK.bits());
    /// Bit 5: the client can hand over a socket on which the server sends its requests.
    pub const BACKEND_REQ: Self = Self(VhostUserProtocolFeatures::BACKEND_REQ.bits());
    /// Bit 9: the configuration space is the backend's.
    pub const CONFIG: Self = Self(VhostUserProtocolFeatures::CONFIG.bits());
    /// Bit 10: requests on the backend channel may carry descriptors.
    pub const BACKEND_SEND_FD: Self = Self(VhostUserProtocolFeatures::BACKEND_SEND_FD.bits());
    /// Bit 11: the backend can have the guest write to doorbells by itself.
    pub const HOST_NOTIFIER: Self = Self(VhostUserProtocolFeatures::HOST_NOTIFIER.bits());
    /// Bit 13: the device can be reset.
    pub const RESET_DEVICE: Self = Self(VhostUserProtocolFeatures::RESET_DEVICE.bits());
    /// Bit 15: memory regions can be added and removed one by one.
    pub const CONFIGURE_MEM_SLOTS: Self = Self(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits());
    /// Bit 16: the device status is the backend's.
    pub const STATUS: Self = Self(VhostUserProtocolFeatures::STATUS.bits());
    /// Bit 21: ring addresses are guest physical, not those of the frontend's process.
    pub const GPA_ADDRESSES: Self = Self(VhostUserProtocolFeatures::GPA_ADDRESSES.bits());
    /// Bit 62: the VFIO extension. Far from the bits that the vhost-user specification hands out; frontends that do
    /// not know it mask it.
    pub const VFIO: Self = Self(1 << 62);
    /// What the control face offers.
    pub const OFFERED: Self =
        Self(Self::REPLY_ACK.0 | Self::BACKEND_REQ.0 | Self::CONFIGURE_MEM_SLOTS.0 | Self::VFIO.0);

    /// What the vhost-user face can offer: a face offers those of them that it implements for its device.
    pub const OF_DEVICES: Self = Self(
        Self::MQ.0
            | Self::REPLY_ACK.0
            | Self::BACKEND_REQ.0
            | Self::CONFIG.0
            | Self::BACKEND_SEND_FD.0
            | Self::HOST_NOTIFIER.0
            | Self::RESET_DEVICE.0
            | Self::CONFIGURE_MEM_SLOTS.0
            | Self::STATUS.0
            | Self::GPA_ADDRESSES.0,
    );

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
    fn the_vhost_user_face_offers_what_hardware_rings_can_do() {
        let bits = [0, 3, 5, 9, 10, 11, 13, 15, 16, 21].map(|bit| 1_u64 << bit);
        assert_eq!(ProtocolFeatures::OF_DEVICES.0, bits.iter().sum::<u64>());
    }

    #[test]
    fn a_set_contains_its_parts_and_no_more() {
        let some = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::VFIO;
        assert!(some.contains(ProtocolFeatures::VFIO));
        assert!(!some.contains(ProtocolFeatures::OFFERED));
    }
}
