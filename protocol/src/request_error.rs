// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a request by itself. The connection lives on: the whole message was read.

use rustix::io::Errno;
use thiserror::Error;

use crate::connection::ReceiveError;
use crate::extension::{Failure, MAJOR, MINOR};
use crate::request_number::RequestNumber;
use crate::vhost_user::MemoryRegion;

/// Why a request on the control face or on the vhost-user face is refused before the server's state is even looked at.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// The face has no such request.
    #[error("{request} is no request of this protocol")]
    Unknown {
        /// The request.
        request: RequestNumber,
    },
    /// The payload does not have the size that it must have.
    #[error("{request} came with a payload of {actual} bytes instead of {expected}")]
    Size {
        /// The request.
        request: RequestNumber,
        /// The size it must have, in bytes.
        expected: usize,
        /// The size it has, in bytes.
        actual: usize,
    },
    /// The request came with too few or too many descriptors.
    #[error("{request} came with {actual} descriptors instead of {expected}")]
    Descriptors {
        /// The request.
        request: RequestNumber,
        /// How many must come.
        expected: usize,
        /// How many came.
        actual: usize,
    },
    /// More descriptors came than any message may carry.
    #[error("{request} came with more descriptors than could be received")]
    TooManyDescriptors {
        /// The request.
        request: RequestNumber,
    },
    /// A field has a value, or a bit, that has no meaning.
    #[error("{request} came with {value:#x} in the field `{field}`")]
    Field {
        /// The request.
        request: RequestNumber,
        /// The field's name in the specification.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A memory region is empty or wraps around.
    #[error("{request} came with a region that is empty or wraps around: {region}")]
    Region {
        /// The request.
        request: RequestNumber,
        /// The region.
        region: MemoryRegion,
    },
    /// The client speaks another major version of the extension.
    #[error("VERSION asked for major version {major}")]
    Major {
        /// The client's major version.
        major: u16,
    },
}

impl RequestError {
    /// The errno that the request is answered with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unknown { .. } => Errno::OPNOTSUPP,
            Self::Major { .. } => Errno::PROTONOSUPPORT,
            Self::TooManyDescriptors { .. } => Errno::TOOBIG,
            Self::Size { .. } | Self::Descriptors { .. } | Self::Field { .. } | Self::Region { .. } => {
                Errno::INVAL
            }
        }
    }

    /// The failure that the request is answered with.
    pub fn failure(&self) -> Failure {
        let (id, why, fix) = match self {
            Self::Unknown { .. } => (
                "unknown-request",
                format!("This server speaks version {MAJOR}.{MINOR} of the VFIO extension."),
                "Use only requests of the version that VERSION agreed on.",
            ),
            Self::Size { .. } => (
                "wrong-payload-size",
                "Every request has the size that the specification gives.".to_owned(),
                "Report this as a fault of the client.",
            ),
            Self::Descriptors { .. } => (
                "wrong-descriptor-count",
                "Every request carries as many descriptors as the specification says.".to_owned(),
                "Send the descriptors with the first byte of the request.",
            ),
            Self::TooManyDescriptors { .. } => (
                "too-many-descriptors",
                "More came than a message may carry, or the server may not open more files.".to_owned(),
                "Send at most 8, or raise the server's limit of open files.",
            ),
            Self::Field { .. } => (
                "unknown-value",
                "The value has no meaning in the version agreed on, or the field must be 0.".to_owned(),
                "Use only values of the version that VERSION agreed on.",
            ),
            Self::Region { .. } => (
                "malformed-memory-region",
                "Start and size must not exceed 64 bits together, and the size must not be 0.".to_owned(),
                "Report this as a fault of the client.",
            ),
            Self::Major { .. } => (
                "unsupported-version",
                format!(
                    "This server speaks version {MAJOR}.{MINOR}; other major versions are different protocols."
                ),
                "Use a client and a server of the same major version.",
            ),
        };
        Failure::new(id, format!("{self}."), why, fix)
    }
}

impl From<&ReceiveError> for Failure {
    /// The failure of the final reply after which the server closes the connection.
    fn from(error: &ReceiveError) -> Self {
        let (id, why, fix) = match error {
            ReceiveError::Closed => {
                ("connection-closed", "The client has ended the session.", "Connect again.")
            }
            ReceiveError::Truncated => (
                "truncated-message",
                "A message must be sent whole before the connection is closed.",
                "Report this as a fault of the client.",
            ),
            ReceiveError::LateDescriptors => (
                "late-descriptors",
                "Descriptors travel with the first byte of a message.",
                "Send header, payload and descriptors with one sendmsg.",
            ),
            ReceiveError::Header(_) => (
                "malformed-header",
                "Version, direction and size must be as the specification says.",
                "Check that the client speaks the protocol of this socket.",
            ),
            ReceiveError::TimedOut => (
                "message-timeout",
                "A message must be complete soon after its first byte.",
                "Send header and payload with one sendmsg.",
            ),
            ReceiveError::Io(_) => ("socket-error", "The socket failed.", "Connect again."),
        };
        let what = match error {
            ReceiveError::Header(header) => format!("The message cannot be read: {header}."),
            other => format!("The message cannot be read: {other}."),
        };
        Self::new(id, what, why, fix)
    }
}
