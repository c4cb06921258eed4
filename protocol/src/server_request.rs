// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The server's requests on the server channel, typed. None of them is answered there, and none carries descriptors.

use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

use crate::extension::{Cookie, CoordinationRequest, GroupEvent, MemberMessage, ResetEvent};
use crate::frame::Frame;
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerRequest {
    /// `RESET_EVENT`.
    Reset(ResetEvent),
    /// `DEVICE_ERROR`.
    DeviceError(Cookie),
    /// `UNPLUG_REQUEST`.
    UnplugRequest(Cookie),
    /// `GROUP_CHANGED`.
    GroupChanged(GroupEvent),
    /// `RESET_REQUEST` and `RESET_ANSWER`: to the broker.
    Member(MemberMessage),
}

impl ServerRequest {
    /// The request's number and payload.
    pub fn encode(&self) -> (RequestNumber, Vec<u8>) {
        match self {
            Self::Reset(event) => (RequestNumber::RESET_EVENT, event.encode()),
            Self::DeviceError(cookie) => (RequestNumber::DEVICE_ERROR, cookie.as_bytes().to_vec()),
            Self::UnplugRequest(cookie) => (RequestNumber::UNPLUG_REQUEST, cookie.as_bytes().to_vec()),
            Self::GroupChanged(event) => (RequestNumber::GROUP_CHANGED, event.as_bytes().to_vec()),
            Self::Member(message) => message.encode(),
        }
    }

    /// Reads a request; `None` if it is malformed, or none that a client knows. Descriptors that came with it are closed.
    pub fn parse(frame: &Frame<VhostUserHeader>) -> Option<Self> {
        let body = frame.body.as_slice();
        Some(match frame.header.request {
            RequestNumber::RESET_EVENT => Self::Reset(ResetEvent::decode(body)?),
            RequestNumber::DEVICE_ERROR => Self::DeviceError(Cookie::read_from_bytes(body).ok()?),
            RequestNumber::UNPLUG_REQUEST => Self::UnplugRequest(Cookie::read_from_bytes(body).ok()?),
            RequestNumber::GROUP_CHANGED => Self::GroupChanged(GroupEvent::try_read_from_bytes(body).ok()?),
            RequestNumber::RESET_REQUEST => {
                Self::Member(MemberMessage::Request(CoordinationRequest::decode(body)?))
            }
            RequestNumber::RESET_ANSWER => Self::Member(MemberMessage::decode_answer(body)?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
