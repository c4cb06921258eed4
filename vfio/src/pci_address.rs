// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The address of a PCI function: segment, bus, device, function.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function sits, printed and parsed as sysfs does: `0000:01:00.0`.
///
/// Ordered by segment, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "model", derive(serde::Serialize), serde(into = "String"))]
pub struct PciAddress {
    segment: u16,
    bus: u8,
    devfn: u8,
}

impl PciAddress {
    /// The address with the device and function numbers packed as the kernel does: device in bits 3-7, function in
    /// bits 0-2 (`struct vfio_pci_dependent_device`).
    pub const fn from_devfn(segment: u16, bus: u8, devfn: u8) -> Self {
        Self { segment, bus, devfn }
    }

    /// PCI segment (domain).
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Whether both functions are on one bus.
    pub const fn is_on_bus_of(self, other: Self) -> bool {
        self.segment == other.segment && self.bus == other.bus
    }

    /// Device in bits 3-7, function in bits 0-2.
    pub const fn devfn(self) -> u8 {
        self.devfn
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.devfn >> 3, self.devfn & 7)
    }
}

#[cfg(feature = "model")]
impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

/// The text is not `SSSS:BB:DD.F`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address like 0000:01:00.0")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (segment, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let segment = hexadecimal(segment, 4)?;
    let bus = u8::try_from(hexadecimal(bus, 2)?).ok()?;
    let device = u8::try_from(hexadecimal(device, 2)?).ok().filter(|device| *device < 32)?;
    let function = u8::try_from(hexadecimal(function, 1)?).ok().filter(|function| *function < 8)?;
    Some(PciAddress::from_devfn(segment, bus, device << 3 | function))
}

fn hexadecimal(digits: &str, length: usize) -> Option<u16> {
    let valid = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_reads_as_sysfs_writes_it() {
        assert_eq!("0001:af:1f.7".parse(), Ok(PciAddress::from_devfn(1, 0xaf, 0xff)));
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "01:00.0",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "0000:01:00.0 ",
            "+000:01:00.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_round_trip(segment: u16, bus: u8, devfn: u8) {
            let address = PciAddress::from_devfn(segment, bus, devfn);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
