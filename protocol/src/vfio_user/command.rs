// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers of vfio-user's commands.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number in a vfio-user header that tells what is asked (QEMU's vfio-user.rst, "Commands").
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Command(pub u16);

/// Declares a constant for each command and the table of their names.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Command {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The command's name in the specification, if there is such a command.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

commands! {
    /// Agrees on version and capabilities; must come first.
    VERSION = 1;
    /// Makes guest memory reachable for the device.
    DMA_MAP = 2;
    /// Takes guest memory away from the device.
    DMA_UNMAP = 3;
    /// Describes the device.
    DEVICE_GET_INFO = 4;
    /// Describes a region.
    DEVICE_GET_REGION_INFO = 5;
    /// Asks for descriptors that stand for parts of a region.
    DEVICE_GET_REGION_IO_FDS = 6;
    /// Describes an interrupt index.
    DEVICE_GET_IRQ_INFO = 7;
    /// Sets up, masks or triggers interrupts.
    DEVICE_SET_IRQS = 8;
    /// Reads from a region.
    REGION_READ = 9;
    /// Writes to a region.
    REGION_WRITE = 10;
    /// From the server: reads guest memory.
    DMA_READ = 11;
    /// From the server: writes guest memory.
    DMA_WRITE = 12;
    /// Resets the device.
    DEVICE_RESET = 13;
    /// Retired: dirty page tracking.
    DIRTY_PAGES = 14;
    /// Several writes to regions in one message.
    REGION_WRITE_MULTI = 15;
    /// Gets, sets or probes a feature of the device.
    DEVICE_FEATURE = 16;
    /// Reads migration data.
    MIG_DATA_READ = 17;
    /// Writes migration data.
    MIG_DATA_WRITE = 18;
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "{}", self.0),
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
