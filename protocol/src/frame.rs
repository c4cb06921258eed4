// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a message of either protocol is made of.

use std::fmt::Debug;
use std::os::fd::OwnedFd;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which end of the socket a connection is, hence which messages it may receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Receives requests, sends replies.
    Server,
    /// Sends requests, receives replies.
    Client,
}

/// The fixed-size header that begins every message of a protocol.
pub trait Header: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Debug {
    /// Largest body in bytes.
    const MAX_BODY: usize;
    /// Most descriptors that one message may carry; at most [`MAX_DESCRIPTORS`].
    const MAX_FDS: usize;

    /// Size in bytes of the body that follows, once the header is found to be one that `receiver` may get.
    fn body_size(&self, receiver: Endpoint) -> Result<usize, HeaderError>;

    /// This header for a body of `size` bytes.
    #[must_use]
    fn with_body_size(self, size: u32) -> Self;
}

/// Most descriptors in one message of any protocol here.
pub const MAX_DESCRIPTORS: usize = 16;

/// Why a header is not acceptable. The stream cannot be trusted after it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The version, the type or a reserved bit is wrong.
    #[error("the header's flags {0:#x} are not a known version and type")]
    Flags(u32),
    /// A server got a reply, or a client got a request.
    #[error("the header's flags {0:#x} have the wrong direction")]
    Direction(u32),
    /// The body is larger than the protocol allows.
    #[error("the header announces a body of {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Size of the body in bytes.
        size: u32,
        /// Largest size allowed, in bytes.
        limit: usize,
    },
    /// The size, in bytes, does not even cover the header (for protocols that count it).
    #[error("the header announces {0} bytes, less than the header has")]
    TooSmall(u32),
}

/// The descriptors that came with a message.
#[derive(Debug)]
pub enum Descriptors {
    /// All that were sent, in order.
    Complete(Vec<OwnedFd>),
    /// More were sent than a message may carry (or than this process may have open). None was kept.
    Truncated,
}

/// One message as it came.
#[derive(Debug)]
pub struct Frame<H> {
    /// The header, checked.
    pub header: H,
    /// The body, as long as the header tells.
    pub body: Vec<u8>,
    /// The descriptors that came with the header.
    pub descriptors: Descriptors,
}
