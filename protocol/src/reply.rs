// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control face's replies, typed.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::extension::{
    Cookie, DeviceInfo, Failure, LastFailure, ListDevicesReply, ReplyStatus, ResetGroupPage, ResetReport,
    SetIommufdReply, VersionReply, wire_errno,
};
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::request_number::RequestNumber;

/// What a request on the control face is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlReply {
    /// The request was done and there is nothing to tell.
    Done,
    /// To `GET_FEATURES`.
    Features(VirtioFeatures),
    /// To `GET_PROTOCOL_FEATURES`.
    ProtocolFeatures(ProtocolFeatures),
    /// To `GET_MAX_MEM_SLOTS`.
    MaxMemorySlots(u64),
    /// To `VERSION`.
    Version(VersionReply),
    /// To `SET_IOMMUFD`.
    Iommufd(SetIommufdReply),
    /// To `ADD_DEVICE` and `GET_DEVICE_INFO`.
    Device(DeviceInfo),
    /// To `LIST_DEVICES`: the names of all devices, at most [`MAX_DEVICES`](crate::extension::MAX_DEVICES).
    Devices(Vec<Cookie>),
    /// To `GET_RESET_GROUP`.
    ResetGroup(ResetGroupPage),
    /// To `RESET`.
    Reset(ResetReport),
    /// To `LAST_FAILURE`.
    LastFailure(Option<LastFailure>),
    /// The request was not done.
    Refused {
        /// The errno, for the program.
        errno: Errno,
        /// Why, for the person.
        failure: Failure,
    },
}

impl ControlReply {
    /// The body of this reply to `request`: for the extension's requests a status and what follows it, for base
    /// requests a number, as vhost-user has it.
    pub fn encode(&self, request: RequestNumber) -> Vec<u8> {
        let extension = request.is_extension();
        // Most replies are shorter.
        let mut body = Vec::with_capacity(128);
        if extension {
            body.extend(ReplyStatus::DONE.as_bytes());
        }
        match self {
            Self::Done if extension => {}
            Self::Done => body.extend(0_u64.as_bytes()),
            Self::Features(features) => body.extend(features.as_bytes()),
            Self::ProtocolFeatures(features) => body.extend(features.as_bytes()),
            Self::MaxMemorySlots(slots) => body.extend(slots.as_bytes()),
            Self::Version(reply) => body.extend(reply.as_bytes()),
            Self::Iommufd(reply) => body.extend(reply.as_bytes()),
            Self::Device(info) => body.extend(info.as_bytes()),
            Self::Devices(cookies) => ListDevicesReply::encode(cookies, &mut body),
            Self::ResetGroup(page) => page.encode(&mut body),
            Self::Reset(report) => report.encode(&mut body),
            Self::LastFailure(last) => LastFailure::encode(last.as_ref(), &mut body),
            Self::Refused { errno, failure } if extension => return failure.refusal(*errno),
            // Whoever asks for a number would take an errno for it.
            Self::Refused { .. } if request.is_always_answered() => {}
            Self::Refused { errno, .. } => body.extend(u64::from(wire_errno(*errno)).as_bytes()),
        }
        body
    }
}
