// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio device's status, by which it and its driver agree how far they are.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// Bits of the device's status (Virtio 1.3, 2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatus(pub u8);

impl DeviceStatus {
    /// The device was noticed.
    pub const ACKNOWLEDGE: Self = Self(bit(VIRTIO_CONFIG_S_ACKNOWLEDGE));
    /// Somebody knows how to drive it.
    pub const DRIVER: Self = Self(bit(VIRTIO_CONFIG_S_DRIVER));
    /// It may begin.
    pub const DRIVER_OK: Self = Self(bit(VIRTIO_CONFIG_S_DRIVER_OK));
    /// Features are agreed on.
    pub const FEATURES_OK: Self = Self(bit(VIRTIO_CONFIG_S_FEATURES_OK));
    /// It cannot go on.
    pub const NEEDS_RESET: Self = Self(bit(VIRTIO_CONFIG_S_NEEDS_RESET));

    /// Whether all bits of `other` are there.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the bits of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The headers have them as words.
const fn bit(constant: u32) -> u8 {
    let [bits, ..] = constant.to_le_bytes();
    bits
}
