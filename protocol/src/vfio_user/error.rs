// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a vfio-user command by itself. The connection lives on: the whole message was read.

use rustix::io::Errno;
use thiserror::Error;

use super::command::Command;

/// Why a command is refused before the device is even looked at.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// There is no such command, or this server does not have it.
    #[error("command {command} is not supported")]
    Unsupported {
        /// The command.
        command: Command,
    },
    /// The payload does not have the size that it must have.
    #[error("{command} came with a payload of {actual} bytes instead of {expected}")]
    Size {
        /// The command.
        command: Command,
        /// The size it must have, in bytes.
        expected: usize,
        /// The size it has, in bytes.
        actual: usize,
    },
    /// The command came with too few or too many descriptors.
    #[error("{command} came with {actual} descriptors")]
    Descriptors {
        /// The command.
        command: Command,
        /// How many came.
        actual: usize,
    },
    /// More descriptors came than any message may carry.
    #[error("{command} came with more descriptors than could be received")]
    TooManyDescriptors {
        /// The command.
        command: Command,
    },
    /// A field has a value, or a bit, that has no meaning.
    #[error("{command} came with {value:#x} in the field `{field}`")]
    Field {
        /// The command.
        command: Command,
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// `DEVICE_FEATURE` is about a feature that the server does not have.
    #[error("the device has no feature {feature:#x}")]
    Feature {
        /// Its number.
        feature: u32,
    },
    /// The other end speaks another major version.
    #[error("the other end speaks version {major} of vfio-user")]
    Major {
        /// Its major version.
        major: u16,
    },
    /// The JSON of VERSION is malformed.
    #[error("the capabilities in VERSION are malformed")]
    Capabilities,
}

impl RequestError {
    /// The errno that the command is answered with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unsupported { .. } => Errno::OPNOTSUPP,
            Self::Feature { .. } => Errno::NOTTY,
            Self::Major { .. } => Errno::PROTONOSUPPORT,
            Self::TooManyDescriptors { .. } => Errno::TOOBIG,
            Self::Size { .. } | Self::Descriptors { .. } | Self::Field { .. } | Self::Capabilities => {
                Errno::INVAL
            }
        }
    }
}
