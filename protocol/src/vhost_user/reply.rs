// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user face's replies, typed.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::config::ConfigAccess;
use super::vring::VringState;
use crate::extension::wire_errno;
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::request_number::RequestNumber;

/// What a request on the vhost-user face is answered with, if [it is](crate::VhostUserHeader::is_answered).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceReply {
    /// The request was done and there is nothing to tell.
    Done,
    /// To `GET_FEATURES`.
    Features(VirtioFeatures),
    /// To `GET_PROTOCOL_FEATURES`.
    ProtocolFeatures(ProtocolFeatures),
    /// To `GET_QUEUE_NUM`.
    QueueNumber(u64),
    /// To `GET_MAX_MEM_SLOTS`.
    MaxMemorySlots(u64),
    /// To `GET_VRING_BASE`.
    VringBase {
        /// Which ring.
        queue: u8,
        /// How far the device has come.
        base: u32,
    },
    /// To `GET_CONFIG`.
    Config {
        /// What the request began with; `size` is the size of `data`.
        access: ConfigAccess,
        /// What was read.
        data: Vec<u8>,
    },
    /// To `GET_STATUS`.
    Status(u8),
    /// The request was not done, and this is why.
    Refused(Errno),
}

impl DeviceReply {
    /// The body of this reply to `request`.
    pub fn encode(&self, request: RequestNumber) -> Vec<u8> {
        match self {
            Self::Done => 0_u64.as_bytes().to_vec(),
            Self::Features(features) => features.as_bytes().to_vec(),
            Self::ProtocolFeatures(features) => features.as_bytes().to_vec(),
            Self::QueueNumber(number) | Self::MaxMemorySlots(number) => number.as_bytes().to_vec(),
            Self::VringBase { queue, base } => {
                VringState { index: (*queue).into(), num: *base }.as_bytes().to_vec()
            }
            Self::Config { access, data } => [access.as_bytes(), data].concat(),
            Self::Status(status) => u64::from(*status).as_bytes().to_vec(),
            // Whoever asks for a number would take an errno for it. Of GET_CONFIG the specification has it so.
            Self::Refused(_) if request.is_always_answered() => Vec::new(),
            Self::Refused(errno) => u64::from(wire_errno(*errno)).as_bytes().to_vec(),
        }
    }
}
