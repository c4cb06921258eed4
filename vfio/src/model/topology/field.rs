// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The values of a file's fields. What is no value of its field is refused with what would be one.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::{BridgeKind, ControlQueue, Driver, FunctionReset, KernelVersion, Link, Part};
use crate::pci_address::PciAddress;

/// The number of a bus that a bridge leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BusNumber(pub(super) u8);

/// The number of an IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group(pub(super) u32);

/// What a field may be: how to say it, and how to read it.
struct Allowed<W, F> {
    what: W,
    read: F,
}

impl<T, W: fmt::Display, F: Fn(Unexpected<'_>) -> Option<T>> Visitor<'_> for Allowed<W, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let found = Unexpected::Str(text);
        (self.read)(found).ok_or_else(|| E::invalid_value(found, &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        let found = Unexpected::Signed(number);
        (self.read)(found).ok_or_else(|| E::invalid_value(found, &self))
    }
}

fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: impl fmt::Display,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let read = |found: Unexpected<'_>| if let Unexpected::Str(text) = found { read(text) } else { None };
    deserializer.deserialize_any(Allowed { what, read })
}

fn number<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: impl fmt::Display,
    read: impl Fn(i64) -> Option<T>,
) -> Result<T, D::Error> {
    let read =
        |found: Unexpected<'_>| if let Unexpected::Signed(number) = found { read(number) } else { None };
    deserializer.deserialize_any(Allowed { what, read })
}

fn one_of<'de, D: Deserializer<'de>, T: Copy>(deserializer: D, words: &[(&str, T)]) -> Result<T, D::Error> {
    let quoted: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let read = |text: &str| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    text(deserializer, format!("one of {}", quoted.join(", ")), read)
}

impl<'de> Deserialize<'de> for BusNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = |number| u8::try_from(number).ok().filter(|number| *number > 0).map(Self);
        number(deserializer, "the number of a bus, 1 to 255", read)
    }
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read =
            |number| i32::try_from(number).ok().and_then(|number| u32::try_from(number).ok()).map(Self);
        number(deserializer, "the number of an IOMMU group, 0 to 2147483647", read)
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "an address like \"0000:01:00.0\"", |text| text.parse().ok())
    }
}

impl<'de> Deserialize<'de> for Driver {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what =
            "the name of a driver, of letters, digits, - and _ (without a driver, leave the field out)";
        text(deserializer, what, |text| Self::from_name(text).filter(|_| text != "none"))
    }
}

impl<'de> Deserialize<'de> for KernelVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(deserializer, &[("7.3", Self::Linux7_3), ("6.12", Self::Linux6_12)])
    }
}

impl<'de> Deserialize<'de> for BridgeKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kinds = [
            ("root-port", Self::RootPort),
            ("upstream-port", Self::UpstreamPort),
            ("downstream-port", Self::DownstreamPort),
            ("express-to-pci", Self::ExpressToPci),
            ("pci", Self::Pci),
        ];
        one_of(deserializer, &kinds)
    }
}

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(deserializer, &[("trains", Self::Trains), ("unconfirmed", Self::Unconfirmed)])
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = [
            ("edu", Self::Edu),
            ("igb", Self::Igb),
            ("e1000e", Self::E1000e),
            ("i82559er", Self::I82559er),
            ("nvme", Self::Nvme),
            ("virtio-blk", Self::VirtioBlock),
            ("virtio-net", Self::VirtioNet),
            ("virtio-net-mq", Self::VirtioQueues(ControlQueue::Answers)),
            ("virtio-net-mq-refusing", Self::VirtioQueues(ControlQueue::Refuses)),
            ("virtio-net-mq-silent", Self::VirtioQueues(ControlQueue::Silent)),
            ("virtio-rng", Self::VirtioEntropy),
        ];
        one_of(deserializer, &parts)
    }
}

impl<'de> Deserialize<'de> for FunctionReset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(
            deserializer,
            &[("flr", Self::FunctionLevel), ("pm", Self::PowerManagement), ("none", Self::Missing)],
        )
    }
}
