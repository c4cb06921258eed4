// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VERSION: which version of the extension both ends speak, and the server's limits.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::frame::Header;
use crate::header::VhostUserHeader;

/// Major version of the extension. Ends with different ones cannot talk.
pub const MAJOR: u16 = 1;
/// Minor version of the extension. The smaller one of both ends counts.
pub const MINOR: u16 = 1;
/// Most devices of a server.
pub const MAX_DEVICES: u16 = 64;
/// Most memory regions that the memory table may have.
pub const MAX_MEMORY_SLOTS: u16 = 256;

/// Payload of the VERSION request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionRequest {
    /// The client's major version.
    pub major: u16,
    /// The client's newest minor version.
    pub minor: u16,
    /// 0.
    pub flags: u32,
}

/// Payload of the reply to VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionReply {
    /// The major version of both ends.
    pub major: u16,
    /// The minor version that both ends speak from now on.
    pub minor: u16,
    /// Largest message body in bytes, in both directions.
    pub max_payload: u32,
    /// Most descriptors in one message.
    pub max_descriptors: u32,
    /// Most devices of the server.
    pub max_devices: u32,
    /// Most regions in the memory table.
    pub max_memory_slots: u32,
    /// 0.
    pub reserved: u32,
}

impl VersionReply {
    /// The answer to a client whose newest minor version is `minor`.
    #[must_use]
    pub fn to(minor: u16) -> Self {
        Self {
            major: MAJOR,
            minor: minor.min(MINOR),
            max_payload: u32::try_from(VhostUserHeader::MAX_BODY).unwrap_or(u32::MAX),
            max_descriptors: u32::try_from(VhostUserHeader::MAX_FDS).unwrap_or(u32::MAX),
            max_devices: MAX_DEVICES.into(),
            max_memory_slots: MAX_MEMORY_SLOTS.into(),
            reserved: 0,
        }
    }
}
