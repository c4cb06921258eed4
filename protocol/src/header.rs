// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user message header (QEMU's vhost-user.rst, "Header").

use vhost::vhost_user::message::MAX_MSG_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::features::ProtocolFeatures;
use crate::frame::{Endpoint, Header, HeaderError};
use crate::request_number::RequestNumber;

/// Bits 0-1: the version of the framing.
const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// The 12 bytes, in host byte order, that begin every message of the control face and of the vhost-user face.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VhostUserHeader {
    /// What is asked, or what is answered.
    pub request: RequestNumber,
    /// Bits 0-1: version, 1. Bit 2: reply. Bit 3: `need_reply`. The others are 0.
    pub flags: u32,
    /// Size of the body in bytes, without the header.
    pub size: u32,
}

impl VhostUserHeader {
    /// Header of a request. With `need_reply` a base request is acknowledged (`REPLY_ACK`).
    pub fn request(request: RequestNumber, need_reply: bool) -> Self {
        let flags = if need_reply { VERSION | NEED_REPLY } else { VERSION };
        Self { request, flags, size: 0 }
    }

    /// Header of the reply to `request`. Its flags are 0x5: QEMU accepts no others.
    pub fn reply(request: RequestNumber) -> Self {
        Self { request, flags: VERSION | REPLY, size: 0 }
    }

    /// Whether this request is answered once `features` are agreed on: it has a reply of its own, or it wants to be
    /// acknowledged.
    pub fn is_answered(&self, features: ProtocolFeatures) -> bool {
        self.request.is_always_answered()
            || self.needs_reply() && features.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Whether the sender wants this request acknowledged. Counts only once `REPLY_ACK` is negotiated.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

impl Header for VhostUserHeader {
    const MAX_BODY: usize = MAX_MSG_SIZE;
    const MAX_FDS: usize = 8;

    fn body_size(&self, receiver: Endpoint) -> Result<usize, HeaderError> {
        if self.flags & VERSION_MASK != VERSION || self.flags & !(VERSION_MASK | REPLY | NEED_REPLY) != 0 {
            return Err(HeaderError::Flags(self.flags));
        }
        let expected = match receiver {
            Endpoint::Server => self.flags & REPLY == 0,
            Endpoint::Client => self.flags == VERSION | REPLY,
        };
        if !expected {
            return Err(HeaderError::Direction(self.flags));
        }
        usize::try_from(self.size)
            .ok()
            .filter(|size| *size <= Self::MAX_BODY)
            .ok_or(HeaderError::TooLarge { size: self.size, limit: Self::MAX_BODY })
    }

    fn with_body_size(self, size: u32) -> Self {
        Self { size, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: u32, receiver: Endpoint) -> Result<usize, HeaderError> {
        VhostUserHeader { request: RequestNumber::VERSION, flags, size: 8 }.body_size(receiver)
    }

    #[test]
    fn a_server_takes_requests_with_and_without_need_reply() {
        assert_eq!(check(0x1, Endpoint::Server), Ok(8));
        assert_eq!(check(0x9, Endpoint::Server), Ok(8));
    }

    #[test]
    fn a_server_takes_no_reply() {
        assert_eq!(check(0x5, Endpoint::Server), Err(HeaderError::Direction(0x5)));
    }

    #[test]
    fn a_client_takes_nothing_but_plain_replies() {
        assert_eq!(check(0x5, Endpoint::Client), Ok(8));
        for flags in [0x1, 0x9, 0xd] {
            assert_eq!(check(flags, Endpoint::Client), Err(HeaderError::Direction(flags)));
        }
    }

    #[test]
    fn versions_and_bits_that_do_not_exist_are_refused() {
        for flags in [0x0, 0x2, 0x3, 0x11, 0x8000_0001] {
            assert_eq!(check(flags, Endpoint::Server), Err(HeaderError::Flags(flags)));
        }
    }

    #[test]
    fn acknowledgements_are_wanted_agreed_on_and_no_second_reply() {
        let is_answered = |request, need_reply, features| {
            VhostUserHeader::request(request, need_reply).is_answered(features)
        };
        let (agreed, not) = (ProtocolFeatures::REPLY_ACK, ProtocolFeatures::default());
        assert!(is_answered(RequestNumber::SET_VRING_ENABLE, true, agreed));
        assert!(!is_answered(RequestNumber::SET_VRING_ENABLE, false, agreed));
        assert!(!is_answered(RequestNumber::SET_VRING_ENABLE, true, not));
        assert!(is_answered(RequestNumber::GET_VRING_BASE, false, not));
    }

    #[test]
    fn a_body_of_4096_bytes_is_the_largest() {
        let header = VhostUserHeader::request(RequestNumber::VERSION, false);
        assert_eq!(header.with_body_size(4096).body_size(Endpoint::Server), Ok(4096));
        for size in [4097, u32::MAX] {
            let outcome = header.with_body_size(size).body_size(Endpoint::Server);
            assert_eq!(outcome, Err(HeaderError::TooLarge { size, limit: 4096 }));
        }
    }
}
