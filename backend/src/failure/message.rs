// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of messages, on either kind of socket.

use protocol::vfio_user::RequestError;
use protocol::{RequestError as ControlRequestError, RequestNumber};
use rustix::io::Errno;

use super::{Failure, failure};

/// Messages.
impl Failure {
    /// An extension request before the negotiation.
    pub fn not_negotiated(request: RequestNumber) -> Self {
        failure(
            "not-negotiated",
            Errno::PROTO,
            format!("{request} was refused"),
            "the VFIO extension has not been negotiated on this connection",
            "acknowledge protocol feature bit 62, then send VERSION first",
        )
    }

    /// A request that does not exist in the version agreed on.
    pub fn unknown_request(request: RequestNumber) -> Self {
        let error = ControlRequestError::Unknown { request };
        Self { errno: error.errno(), sentences: error.failure() }
    }

    /// A feature bit that was not offered.
    pub fn feature_not_offered(bits: u64) -> Self {
        failure(
            "feature-not-offered",
            Errno::INVAL,
            format!("feature bits {bits:#x} were refused"),
            "they have not been offered",
            "acknowledge only bits that the server offers",
        )
    }
}

/// vhost-user requests of a data face.
impl Failure {
    /// A malformed or unknown one.
    pub fn vhost_user(error: &ControlRequestError) -> Self {
        Self { errno: error.errno(), sentences: error.failure() }
    }
}

/// vfio-user requests.
impl Failure {
    /// `VERSION` is the first message, and comes once.
    pub fn version_comes_first() -> Self {
        failure(
            "version-comes-first",
            Errno::PROTO,
            "the vfio-user request was refused",
            "VERSION must be the first message, and come once",
            "connect again and begin with VERSION",
        )
    }

    /// A malformed or unknown vfio-user message.
    pub fn vfio_user(error: &RequestError) -> Self {
        failure(
            "vfio-user-request",
            error.errno(),
            error.to_string(),
            "the message is not one of those that docs/protocol.md lists for this face",
            "use a client for vfio-user 0.1",
        )
    }

    /// Outside the device's regions.
    pub fn no_such_region(index: u32) -> Self {
        failure(
            "no-such-region",
            Errno::INVAL,
            format!("an access to region {index} was refused"),
            "the device has no such region, or it is smaller than that",
            "ask for the region's size with DEVICE_GET_REGION_INFO",
        )
    }

    /// One of several writes would take its time.
    pub fn slow_write_among_others(offset: u64) -> Self {
        failure(
            "slow-write",
            Errno::OPNOTSUPP,
            format!("writes that include config register {offset:#x} were refused, none was done"),
            "the kernel takes its time over that register, and does not do so among others",
            "write it with REGION_WRITE",
        )
    }

    /// Not an interrupt index of PCI.
    pub fn no_such_irq(index: u32) -> Self {
        failure(
            "no-such-irq",
            Errno::INVAL,
            format!("interrupt index {index} was refused"),
            "a PCI device has the indexes 0 to 4",
            "ask for the number of indexes with DEVICE_GET_INFO",
        )
    }
}
