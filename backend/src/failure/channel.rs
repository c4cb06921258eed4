// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of the server channel: events and coordination.

use rustix::io::Errno;

use super::{Failure, failure};

/// The server channel.
impl Failure {
    /// The loop cannot watch the socket.
    pub fn channel_not_set_up(error: &std::io::Error) -> Self {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        failure(
            "channel-not-set-up",
            errno,
            "the server channel was refused",
            format!("its socket cannot be watched: {error}"),
            "raise the server's limit of open files, or see the kernel's log",
        )
    }

    /// There is nothing to tell events on.
    pub fn no_server_channel() -> Self {
        failure(
            "no-server-channel",
            Errno::NOTCONN,
            "the request was refused",
            "this connection has no server channel",
            "send SET_BACKEND_REQ_FD first",
        )
    }

    /// There is a broker.
    pub fn already_coordinated() -> Self {
        failure(
            "already-coordinated",
            Errno::BUSY,
            "the coordination was refused",
            "another client coordinates the resets of this server",
            "let that one end first",
        )
    }

    /// Only the broker may say that.
    pub fn not_the_broker() -> Self {
        failure(
            "not-the-broker",
            Errno::PERM,
            "the request was refused",
            "this client does not coordinate the resets of this server",
            "send COORDINATE first",
        )
    }
}
