// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a sequence consists of.

use std::fmt;

use serde::{Deserialize, Serialize};
use vfio::PciAddress;

use crate::name::{ActorName, CdevName, FileName, GroupName, HwptName, IoasName, IommufdName, TableName};

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A process does something.
    Act(ActorName, Operation),
    /// A process hands a copy of a file to another.
    Hand { file: FileName, from: ActorName, to: ActorName },
    /// A process is killed, and a new one takes its place.
    Kill(ActorName),
    /// The host's administrator has a driver drive a function.
    BindDriver { function: PciAddress, driver: &'static str },
    /// The host's administrator takes a function's driver away. Nobody has the function open, so nothing waits.
    UnbindDriver { function: PciAddress },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Act(actor, operation) => write!(f, "{actor} {operation}"),
            Self::Hand { file, from, to } => write!(f, "{from} hand {file} {to}"),
            Self::Kill(actor) => write!(f, "host kill {actor}"),
            Self::BindDriver { function, driver } => write!(f, "host bind-driver {function} {driver}"),
            Self::UnbindDriver { function } => write!(f, "host unbind-driver {function}"),
        }
    }
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    OpenIommufd(IommufdName),
    OpenCdev(CdevName, #[serde(with = "address")] PciAddress),
    /// Opens the legacy group that the function is in.
    OpenGroup(GroupName, #[serde(with = "address")] PciAddress),
    Bind(CdevName, IommufdName),
    /// Closes the descriptor that the device was bound with, but keeps another copy: it stays bound.
    Release(CdevName),
    /// Closes every copy this process has, an iommufd's address spaces and page tables with it.
    Close(FileName),
    AllocateIoas(IoasName, IommufdName),
    /// Uses somebody else's IOAS by the id that it had, whatever that stands for in this iommufd by now.
    AdoptIoas {
        ioas: IoasName,
        iommufd: IommufdName,
        id: u32,
    },
    /// Destroys an IOAS, or forgets an adopted one.
    DropIoas(IoasName),
    AllocateHwpt(HwptName, IoasName, CdevName),
    DropHwpt(HwptName),
    Attach(CdevName, TableName),
    Detach(CdevName),
    Map {
        ioas: IoasName,
        start: u64,
        length: u64,
        iova: u64,
        writable: bool,
    },
    Unmap {
        ioas: IoasName,
        iova: u64,
        length: u64,
    },
    IovaRanges(IoasName),
    HotResetInfo(CdevName),
    HotReset(CdevName),
    Reset(CdevName),
    ReadCommand(CdevName),
    WriteCommand(CdevName, u16),
    /// Reads the first register of BAR 0; what it says is the device's affair.
    ReadBar(CdevName),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenIommufd(iommufd) => write!(f, "open-iommufd {iommufd}"),
            Self::OpenCdev(cdev, function) => write!(f, "open-cdev {cdev} {function}"),
            Self::OpenGroup(group, function) => write!(f, "open-group {group} {function}"),
            Self::Bind(cdev, iommufd) => write!(f, "bind {cdev} {iommufd}"),
            Self::Release(cdev) => write!(f, "release {cdev}"),
            Self::Close(file) => write!(f, "close {file}"),
            Self::AllocateIoas(ioas, iommufd) => write!(f, "allocate-ioas {ioas} {iommufd}"),
            Self::AdoptIoas { ioas, iommufd, .. } => write!(f, "adopt-ioas {ioas} {iommufd}"),
            Self::DropIoas(ioas) => write!(f, "drop-ioas {ioas}"),
            Self::AllocateHwpt(hwpt, ioas, cdev) => write!(f, "allocate-hwpt {hwpt} {ioas} {cdev}"),
            Self::DropHwpt(hwpt) => write!(f, "drop-hwpt {hwpt}"),
            Self::Attach(cdev, table) => write!(f, "attach {cdev} {table}"),
            Self::Detach(cdev) => write!(f, "detach {cdev}"),
            Self::Map { ioas, start, length, iova, writable } => {
                let access = if *writable { "read-write" } else { "read" };
                write!(f, "map {ioas} {iova:#x}+{length:#x} {start:#x} {access}")
            }
            Self::Unmap { ioas, iova, length } => write!(f, "unmap {ioas} {iova:#x}+{length:#x}"),
            Self::IovaRanges(ioas) => write!(f, "iova-ranges {ioas}"),
            Self::HotResetInfo(cdev) => write!(f, "hot-reset-info {cdev}"),
            Self::HotReset(cdev) => write!(f, "hot-reset {cdev}"),
            Self::Reset(cdev) => write!(f, "reset {cdev}"),
            Self::ReadCommand(cdev) => write!(f, "read-command {cdev}"),
            Self::WriteCommand(cdev, value) => write!(f, "write-command {cdev} {value:#06x}"),
            Self::ReadBar(cdev) => write!(f, "read-bar {cdev}"),
        }
    }
}

/// A PCI address between processes: as sysfs writes it.
pub(crate) mod address {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use vfio::PciAddress;

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(crate) fn serialize<S: Serializer>(address: &PciAddress, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PciAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
