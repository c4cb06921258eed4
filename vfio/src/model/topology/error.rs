// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is wrong with a file that does not describe a machine.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::pci_address::PciAddress;

/// Why a file does not describe a machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, `{text}`: {problem}")]
pub struct TopologyError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The line itself, which shows the field.
    pub text: String,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No TOML, or a field that is unknown, missing or has no such value.
    #[error("{0}")]
    Syntax(String),
    /// Two things at one address.
    #[error("this `address` is also that of line {0}")]
    AddressTaken(usize),
    /// Two bridges that lead to one bus.
    #[error("this `bus` is also that of line {0}; every bridge has its own")]
    BusTaken(usize),
    /// A bridge that leads towards the root.
    #[error("the `bus` behind a bridge has a greater number than the one that the bridge is on, here {0}")]
    BusNotGreater(u8),
    /// A bus that is nowhere.
    #[error(
        "no bridge of segment {segment:04x} has `bus = {number}`, which this `address` is on; only bus 0 needs none"
    )]
    BusMissing {
        /// The segment of the address.
        segment: u16,
        /// The number of the bus.
        number: u8,
    },
    /// A bridge where there can be none of its kind.
    #[error("a bridge of this `kind` is {0}")]
    BridgeOutOfPlace(&'static str),
    /// Another thing than a downstream port behind an upstream port.
    #[error("behind an upstream-port there are only bridges of kind downstream-port")]
    InsideSwitch,
    /// A second device at the end of an Express link.
    #[error(
        "a root-port or downstream-port leads to one device, so the `address` ends in 00.0 to 00.7; with `ari = true` at \
         the port the device has more functions"
    )]
    SecondDevice,
    /// A device without its first function.
    #[error("a device has a function 0, but there is nothing at {0}")]
    FunctionZeroMissing(PciAddress),
    /// A property of Express ports at another bridge.
    #[error("`{0}` is for bridges of kind root-port or downstream-port")]
    NoExpressPort(&'static str),
    /// An IOMMU group in two segments.
    #[error("this `group` is in segment {segment:04x} on line {line}; a group is in one segment")]
    GroupInTwoSegments {
        /// Where it is already.
        segment: u16,
        /// The line that says so.
        line: usize,
    },
    /// Another group than the bridge's on a conventional bus, where the IOMMU cannot tell devices apart.
    #[error(
        "behind a bridge of kind express-to-pci or pci everything has the `group` of the bridge, line {0}"
    )]
    GroupNotOfBridge(usize),
    /// A virtual function of nothing.
    #[error("`virtual-function-of` is the address of another function; there is none at {0}")]
    PhysicalFunctionMissing(PciAddress),
    /// A virtual function of a virtual function.
    #[error("`virtual-function-of` is the address of a physical function; that at {0} is virtual")]
    PhysicalFunctionVirtual(PciAddress),
    /// A virtual function where its physical function cannot have it.
    #[error(
        "a virtual function is on the bus of its physical function, or on a greater one to which no bridge leads"
    )]
    VirtualFunctionElsewhere,
    /// A demand on an IOMMU that is not there.
    #[error("`firmware-mapping` is a demand on the IOMMU, so it needs a `group`")]
    FirmwareMappingWithoutGroup,
}

/// Why a file could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It describes no machine.
    #[error("{}: {source}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: TopologyError,
    },
}

impl TopologyError {
    pub(super) fn new(text: &str, place: Range<usize>, problem: Problem) -> Self {
        let line = line_of(text, &place);
        let line_text = text.lines().nth(line - 1).unwrap_or_default().trim().to_owned();
        Self { line, text: line_text, problem }
    }
}

/// The number of the line that a place of the text is on.
pub(super) fn line_of(text: &str, place: &Range<usize>) -> usize {
    1 + text.bytes().take(place.start).filter(|byte| *byte == b'\n').count()
}
