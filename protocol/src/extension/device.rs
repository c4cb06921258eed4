// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `ADD_DEVICE` and `GET_DEVICE_INFO` tell about a device.

use std::fmt;
use std::ops::BitOr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Cookie, MAX_DEVICES, read_all, split};

/// Address of a PCI function.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PciAddress {
    /// Segment (domain).
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device in bits 3-7, function in bits 0-2.
    pub devfn: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, bus, devfn } = self;
        write!(formatter, "{segment:04x}:{bus:02x}:{:02x}.{}", devfn >> 3, devfn & 7)
    }
}

/// Number of an IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct IommuGroup(pub u32);

impl IommuGroup {
    /// The function has no group, or the server does not know it.
    pub const NONE: Self = Self(u32::MAX);

    /// The number, if there is one.
    pub fn number(self) -> Option<u32> {
        (self != Self::NONE).then_some(self.0)
    }
}

/// A name of at most `SIZE - 1` bytes, padded with NUL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Name<const SIZE: usize>(pub [u8; SIZE]);

impl<const SIZE: usize> Name<SIZE> {
    /// The name, cut at a character boundary if it is too long. Empty: unknown, or there is none.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; SIZE];
        let end = name.floor_char_boundary(SIZE.saturating_sub(1));
        for (byte, character) in bytes.iter_mut().zip(name.bytes().take(end)) {
            *byte = character;
        }
        Self(bytes)
    }

    /// The name up to the first NUL, or up to the first byte that is not UTF-8.
    pub fn as_str(&self) -> &str {
        let text = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        text.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

impl<const SIZE: usize> fmt::Debug for Name<SIZE> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

/// What is so about a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DeviceFlags(pub u32);

impl DeviceFlags {
    /// Bit 0: the function can be reset alone (`VFIO_DEVICE_RESET`).
    pub const FUNCTION_RESET: Self = Self(1);
    /// Bit 1: a data face is set up.
    pub const SERVED: Self = Self(2);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for DeviceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Payload of the replies to `ADD_DEVICE` and `GET_DEVICE_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// The client's name for the device.
    pub cookie: Cookie,
    /// Where it is.
    pub address: PciAddress,
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// PCI class code in bits 0-23, base class highest.
    pub class: u32,
    /// The IOMMU group.
    pub iommu_group: IommuGroup,
    /// What is so about it.
    pub flags: DeviceFlags,
    /// Number of regions (`vfio_device_info.num_regions`).
    pub regions: u32,
    /// Number of interrupt indexes (`vfio_device_info.num_irqs`).
    pub irqs: u32,
    /// 0.
    pub reserved: u32,
    /// Name of the VFIO character device, as `vfio3`.
    pub vfio_device: Name<16>,
    /// Name of the kernel driver, as `vfio-pci`.
    pub driver: Name<32>,
}

/// Payload of the reply to `LIST_DEVICES`, before the cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ListDevicesReply {
    /// Number of cookies that follow, at most [`MAX_DEVICES`].
    pub count: u32,
    /// 0.
    pub reserved: u32,
}

impl ListDevicesReply {
    /// Appends the reply's payload to `body`, for at most [`MAX_DEVICES`] cookies.
    pub(crate) fn encode(cookies: &[Cookie], body: &mut Vec<u8>) {
        let cookies = cookies.get(..usize::from(MAX_DEVICES)).unwrap_or(cookies);
        let count = u32::try_from(cookies.len()).unwrap_or(u32::MAX);
        body.extend(Self { count, reserved: 0 }.as_bytes());
        body.extend(cookies.as_bytes());
    }

    /// Reads the reply's payload; `None` if it is malformed.
    pub(crate) fn decode(payload: &[u8]) -> Option<Vec<Cookie>> {
        let (Self { count, .. }, rest) = split(payload)?;
        read_all(rest).filter(|cookies| usize::try_from(count) == Ok(cookies.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_everywhere() {
        let address = PciAddress { segment: 1, bus: 0xaf, devfn: 0x1f << 3 | 7 };
        assert_eq!(address.to_string(), "0001:af:1f.7");
    }

    #[test]
    fn a_name_survives_the_wire() {
        assert_eq!(Name::<16>::new("vfio3").as_str(), "vfio3");
        assert_eq!(Name::<16>::new("").as_str(), "");
    }

    #[test]
    fn a_long_name_is_cut_between_characters_and_ends_with_nul() {
        assert_eq!(Name::<4>::new("vfio").as_str(), "vfi");
        assert_eq!(Name::<4>::new("ab\u{e9}").as_str(), "ab");
        assert_eq!(Name::<4>::new("vfio").0, *b"vfi\0");
    }

    #[test]
    fn a_name_from_a_peer_is_read_as_far_as_it_is_text() {
        assert_eq!(Name(*b"vfio").as_str(), "vfio");
        assert_eq!(Name(*b"vf\xffo").as_str(), "vf");
        assert_eq!(Name(*b"\0fio").as_str(), "");
    }

    #[test]
    fn a_list_of_devices_survives_the_wire() {
        for list in [vec![], vec![Cookie(1)], (0..64).map(Cookie).collect()] {
            let mut payload = Vec::new();
            ListDevicesReply::encode(&list, &mut payload);
            assert_eq!(ListDevicesReply::decode(&payload), Some(list));
        }
    }

    #[test]
    fn a_list_of_another_length_than_it_says_is_malformed() {
        let mut payload = Vec::new();
        ListDevicesReply::encode(&[Cookie(1), Cookie(2)], &mut payload);
        for size in (0..payload.len()).filter(|size| *size != 24) {
            assert_eq!(ListDevicesReply::decode(&payload[..size]), None, "{size} bytes");
        }
        assert_eq!(ListDevicesReply::decode(&[payload.as_slice(), &[0; 8]].concat()), None);
    }

    #[test]
    fn no_group_has_no_number() {
        assert_eq!(IommuGroup::NONE.number(), None);
        assert_eq!(IommuGroup(12).number(), Some(12));
    }
}
