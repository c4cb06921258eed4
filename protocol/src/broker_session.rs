// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A broker's session with one of its servers: what it tells and hears about coordinated resets.
//!
//! Beginning it waits for the server; after that nothing here does, so that a server that hangs does not keep its broker from
//! the others.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use thiserror::Error;

use crate::client::{self, ClientError, ControlClient};
use crate::connection::{Connection, ReceiveError, SendError};
use crate::extension::{BrokerMessage, EventKinds, Failure, MemberName};
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;
use crate::server_channel::{ChannelError, ServerChannel};
use crate::server_request::ServerRequest;

/// Most messages that a server may leave unacknowledged: those of many resets that it does not take part in.
pub const MAX_UNACKNOWLEDGED: usize = 256;

/// Why a session is over.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The server has refused a message, or the connection has ended or failed.
    #[error(transparent)]
    Connection(#[from] ClientError),
    /// The server channel has ended or failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The server has left too many messages unacknowledged.
    #[error("the server has not acknowledged {MAX_UNACKNOWLEDGED} messages")]
    Unresponsive,
}

/// A session that is used for nothing but coordination and events.
#[derive(Debug)]
pub struct BrokerSession {
    connection: Connection<VhostUserHeader>,
    channel: ServerChannel,
    unsent: VecDeque<(RequestNumber, Vec<u8>)>,
    /// Told, in this order, and not acknowledged yet.
    unacknowledged: VecDeque<RequestNumber>,
}

impl BrokerSession {
    /// Makes the client the broker of its server, which it calls `name` and which tells of `events` too. The client must have
    /// [negotiated](ControlClient::negotiate). Waits for the server, as long as the client does.
    pub fn begin(
        mut client: ControlClient,
        name: MemberName,
        events: EventKinds,
    ) -> Result<Self, ClientError> {
        let channel = client.open_server_channel()?;
        client.subscribe(events, None)?;
        client.coordinate(name)?;
        Ok(Self {
            connection: client.into_connection(),
            channel,
            unsent: VecDeque::new(),
            unacknowledged: VecDeque::new(),
        })
    }

    /// Tells the server something about a coordinated reset: now, or with [`Self::flush`] when it reads again.
    pub fn tell(&mut self, message: &BrokerMessage) -> Result<(), SessionError> {
        if self.unacknowledged.len() >= MAX_UNACKNOWLEDGED {
            return Err(SessionError::Unresponsive);
        }
        let (request, body) = message.encode();
        self.unacknowledged.push_back(request);
        self.unsent.push_back((request, body));
        self.flush()
    }

    /// Sends what the server takes of what it has been told.
    pub fn flush(&mut self) -> Result<(), SessionError> {
        let request = self.oldest();
        self.connection.flush().map_err(|source| ClientError::Send { request, source })?;
        while !self.connection.has_unsent()
            && let Some((request, body)) = self.unsent.pop_front()
        {
            let header = VhostUserHeader::request(request, true);
            self.connection
                .send(header, &body, &[])
                .map_err(|source| ClientError::Send { request, source })?;
        }
        Ok(())
    }

    /// Whether something waits until the server reads.
    pub fn has_unsent(&self) -> bool {
        self.connection.has_unsent() || !self.unsent.is_empty()
    }

    /// Takes the acknowledgements that have come.
    pub fn take_acknowledgements(&mut self) -> Result<(), SessionError> {
        loop {
            let request = self.oldest();
            let received = self.connection.receive();
            let Some(frame) = received.map_err(|source| ClientError::Receive { request, source })? else {
                return Ok(());
            };
            // The final reply before the server closes may answer something else, and has words whatever it answers.
            if let Some((errno, failure)) = Failure::from_refusal(&frame.body) {
                return Err(ClientError::Refused { request: frame.header.request, errno, failure }.into());
            }
            let is_awaited = self.unacknowledged.pop_front() == Some(frame.header.request);
            if !is_awaited || !client::payload(request, &frame.body)?.is_empty() {
                return Err(ClientError::Malformed { request: frame.header.request }.into());
            }
        }
    }

    /// What the server acknowledges next.
    fn oldest(&self) -> RequestNumber {
        self.unacknowledged.front().copied().unwrap_or(RequestNumber::NONE)
    }

    /// The server's next request, if it is there.
    pub fn receive(&mut self) -> Result<Option<ServerRequest>, SessionError> {
        Ok(self.channel.receive()?)
    }

    /// The connection: acknowledgements come on it, and it is to be watched for room while [`Self::has_unsent`].
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// The server channel: requests come on it.
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl SessionError {
    /// Whether the server has just gone, as opposed to having said something wrong.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Connection(
                ClientError::Receive { source: ReceiveError::Closed | ReceiveError::Truncated, .. }
                    | ClientError::Send { source: SendError::Closed, .. }
            ) | Self::Channel(ChannelError::Receive(ReceiveError::Closed | ReceiveError::Truncated))
        )
    }
}

#[cfg(test)]
mod tests;
