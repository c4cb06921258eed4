// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connected client of a face: its socket, its session, and the request that waits for its turn.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::{Connection, Endpoint, Frame, Header, ReceiveError, SendError};
use rustix::io::Errno;

use super::poller::{Interest, Poller, Token, Watched};
use super::refusals::Refusals;

/// How long a message may take from its first byte to its last.
pub const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);

/// A client that speaks messages with header `H`, in the state `S`.
#[derive(Debug)]
pub struct Peer<H: Header, S, R> {
    connection: Watched<Connection<H>>,
    /// What the face knows about the client.
    pub session: S,
    /// A request that needs what the job in flight has taken along.
    pub held: Option<R>,
    /// Whether a job works for this client; nothing is received meanwhile, so that requests are answered in order.
    pub is_served_by_job: bool,
    /// What it was refused.
    pub refusals: Refusals,
}

impl<H: Header, S, R> Peer<H, S, R> {
    /// A client that has just connected. It is not watched yet.
    pub fn new(poller: &Poller, token: Token, stream: UnixStream, session: S) -> Self {
        let connection = poller.watched(Connection::new(stream, Endpoint::Server), token);
        Self { connection, session, held: None, is_served_by_job: false, refusals: Refusals::default() }
    }

    /// The next request, if it is complete. What waits to be sent goes first.
    pub fn receive(&mut self) -> Result<Option<Frame<H>>, ReceiveError> {
        if self.connection.source.has_unsent() {
            self.connection.source.flush().map_err(|_| ReceiveError::Closed)?;
            return Ok(None);
        }
        self.connection.source.receive()
    }

    /// Sends a reply; what the socket does not take now is sent when it does.
    pub fn send(&mut self, header: H, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        self.connection.source.send_behind(header, body, descriptors)
    }

    /// The header of the message that cannot be received, if that much of it came.
    pub fn partial_header(&self) -> Option<H> {
        self.connection.source.partial_header()
    }

    /// When the message that has begun must be complete.
    pub fn deadline(&self) -> Option<Instant> {
        self.connection.source.partial_since().map(|since| since + MESSAGE_DEADLINE)
    }

    /// Has the poller look out for what this client can do next.
    pub fn watch(&mut self) -> Result<(), Errno> {
        let next = if self.connection.source.has_unsent() {
            Interest::Write
        } else if self.held.is_some() || self.is_served_by_job {
            Interest::Nothing
        } else {
            Interest::Read
        };
        self.connection.watch_for(next)
    }
}
