// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client's end of the server channel, on which the server sends its own requests.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

use crate::connection::{Connection, ReceiveError};
use crate::frame::{Endpoint, Frame};
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;
use crate::server_request::ServerRequest;

/// Why no request of the server's is there. Nothing further can be relied on, except after [`ReceiveError::TimedOut`].
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The channel has ended or failed.
    #[error("the server channel has ended")]
    Receive(#[from] ReceiveError),
    /// A request is not what the specification says.
    #[error("{0} on the server channel is malformed")]
    Malformed(RequestNumber),
}

/// The socket on which a server tells of events and, to its broker, of resets.
///
/// A server closes it when its client does not read.
#[derive(Debug)]
pub struct ServerChannel {
    connection: Connection<VhostUserHeader>,
}

impl ServerChannel {
    /// A channel on a connected socket, whose other end the server has got.
    pub fn new(stream: UnixStream) -> Self {
        Self { connection: Connection::new(stream, Endpoint::Server) }
    }

    /// The next request if it is there; does not block if the socket does not.
    pub fn receive(&mut self) -> Result<Option<ServerRequest>, ChannelError> {
        self.connection.receive()?.as_ref().map(parse).transpose()
    }

    /// The next request, waited for as long as `timeout`.
    pub fn receive_within(&mut self, timeout: Duration) -> Result<ServerRequest, ChannelError> {
        parse(&self.connection.receive_within(timeout)?)
    }
}

impl AsFd for ServerChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn parse(frame: &Frame<VhostUserHeader>) -> Result<ServerRequest, ChannelError> {
    ServerRequest::parse(frame).ok_or(ChannelError::Malformed(frame.header.request))
}
