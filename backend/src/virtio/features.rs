// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits (Virtio 1.3, chapter 6): what of the device's the guest is shown, and what the device is told.

use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_ADMIN_VQ, VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_ORDER_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_SR_IOV, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

/// The device is none for legacy drivers only.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// The device's accesses are translated, by an IOMMU for one.
pub const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;
/// Rings are packed ones.
pub const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
/// Memory accesses are ordered as a device of the platform demands, not as another processor does.
pub const ORDER_PLATFORM: u64 = 1 << VIRTIO_F_ORDER_PLATFORM;
/// A ring can be reset alone.
pub const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;
/// A network device's: it has several queue pairs (`VIRTIO_NET_F_MQ`).
pub const NET_QUEUE_PAIRS: u64 = 1 << VIRTIO_NET_F_MQ;
/// A network device's: it takes commands on a ring (`VIRTIO_NET_F_CTRL_VQ`).
pub const NET_CONTROL_RING: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
/// vhost's: every write to guest memory is logged (`VHOST_F_LOG_ALL`, linux/vhost.h).
pub const LOG_ALL: u64 = 1 << 26;
/// vhost-user's: there are protocol features (`VHOST_USER_F_PROTOCOL_FEATURES`, QEMU's docs/interop/vhost-user.rst).
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What is no affair of the guest. Addresses that the guest uses are the device's, so that nothing is to be translated
/// in between. Virtual functions and administration are the host's. A doorbell that carries data cannot be rung for a kick,
/// which says only that it came.
const HIDDEN: u64 = LOG_ALL
    | PROTOCOL_FEATURES
    | ACCESS_PLATFORM
    | (1 << VIRTIO_F_SR_IOV)
    | (1 << VIRTIO_F_NOTIFICATION_DATA)
    | (1 << VIRTIO_F_NOTIF_CONFIG_DATA)
    | (1 << VIRTIO_F_ADMIN_VQ);

/// What the guest may be shown of what the device offers.
pub const fn for_guest(device: u64) -> u64 {
    device & !HIDDEN
}

/// What the device is told when the guest wants `guest`: that, and what the way to guest memory demands.
pub const fn for_device(device: u64, guest: u64) -> u64 {
    ((guest & !HIDDEN) | ACCESS_PLATFORM | ORDER_PLATFORM | VERSION_1) & device
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn translation_is_the_devices_affair() {
        let device = VERSION_1 | ACCESS_PLATFORM | ORDER_PLATFORM | RING_PACKED | 0x55;
        assert_eq!(for_guest(device), VERSION_1 | ORDER_PLATFORM | RING_PACKED | 0x55);
        assert_eq!(for_device(device, VERSION_1 | 0x15), VERSION_1 | ACCESS_PLATFORM | ORDER_PLATFORM | 0x15);
    }

    #[test]
    fn a_device_that_does_not_know_of_translation_is_not_told_of_it() {
        assert_eq!(for_device(VERSION_1, VERSION_1), VERSION_1);
    }

    proptest! {
        #[test]
        fn the_device_hears_only_what_it_offers_and_nothing_of_vhost(device: u64, guest: u64) {
            let told = for_device(device, guest);
            prop_assert_eq!(told & !device, 0);
            prop_assert_eq!(told & (LOG_ALL | PROTOCOL_FEATURES), 0);
            let shown = for_guest(device);
            prop_assert_eq!(shown & (LOG_ALL | PROTOCOL_FEATURES | ACCESS_PLATFORM), 0);
            prop_assert_eq!(shown & guest & !told, 0);
        }
    }
}
