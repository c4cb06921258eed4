// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The backend channel, on which a vhost-user backend sends requests to its frontend: both ends (QEMU's vhost-user.rst,
//! "Back-end message types").

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;
use vhost::vhost_user::message::BackendReq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::vring::VringDescriptor;
use crate::connection::{Connection, ReceiveError, SendError};
use crate::frame::{Descriptors, Endpoint, Frame};
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;

/// Most requests of a backend that its frontend may leave unacknowledged: a doorbell given and taken away for each ring.
pub const MAX_UNACKNOWLEDGED: usize = 512;

/// What the backend asks for. These numbers have nothing to do with those of the frontend's requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BackendRequestNumber(pub u32);

impl BackendRequestNumber {
    /// The configuration space has changed.
    pub const CONFIG_CHANGE: Self = Self(BackendReq::CONFIG_CHANGE_MSG as u32);
    /// The guest may write to a ring's doorbell by itself, or may not any more.
    pub const VRING_HOST_NOTIFIER: Self = Self(BackendReq::VRING_HOST_NOTIFIER_MSG as u32);

    /// The number as it stands in a header.
    fn in_header(self) -> RequestNumber {
        RequestNumber(self.0)
    }
}

impl fmt::Display for BackendRequestNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CONFIG_CHANGE => formatter.write_str("CONFIG_CHANGE_MSG"),
            Self::VRING_HOST_NOTIFIER => formatter.write_str("VRING_HOST_NOTIFIER_MSG"),
            Self(number) => write!(formatter, "{number}"),
        }
    }
}

impl fmt::Debug for BackendRequestNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Payload of `VRING_HOST_NOTIFIER_MSG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringArea {
    /// Which ring, and whether a descriptor comes.
    pub vring: VringDescriptor,
    /// In bytes; a page of the host.
    pub size: u64,
    /// Where to map it in the descriptor, in bytes.
    pub offset: u64,
}

/// A page with a ring's doorbell, in a file that can be mapped.
#[derive(Debug)]
pub struct NotifierArea<File> {
    /// The file.
    pub file: File,
    /// Size in bytes; a page of the host.
    pub size: u64,
    /// Where the page is in the file, in bytes.
    pub offset: u64,
}

impl NotifierArea<OwnedFd> {
    /// The same, to be sent.
    pub fn borrowed(&self) -> NotifierArea<BorrowedFd<'_>> {
        let Self { file, size, offset } = self;
        NotifierArea { file: file.as_fd(), size: *size, offset: *offset }
    }
}

/// Why the channel is of no use any more, except after [`ReceiveError::TimedOut`].
#[derive(Debug, Error)]
pub enum ChannelError {
    /// It has ended or failed.
    #[error("the backend channel has ended")]
    Receive(#[from] ReceiveError),
    /// A request or an acknowledgement is not what the specification says, or nothing was asked that it acknowledges.
    #[error("{0} on the backend channel is malformed")]
    Malformed(BackendRequestNumber),
}

/// The backend's end of the channel. Nothing here blocks: a frontend that waits for the backend's answer on the other socket
/// reads nothing here meanwhile.
#[derive(Debug)]
pub struct BackendChannel {
    connection: Connection<VhostUserHeader>,
    unacknowledged: VecDeque<BackendRequestNumber>,
}

impl BackendChannel {
    /// The channel on the socket that came with `SET_BACKEND_REQ_FD`.
    pub fn new(stream: UnixStream) -> Self {
        Self { connection: Connection::new(stream, Endpoint::Client), unacknowledged: VecDeque::new() }
    }

    /// Tells that the configuration space has changed. [`SendError::Backlog`]: not sent, the frontend does not read.
    pub fn config_changed(&mut self) -> Result<(), SendError> {
        // Nothing could be done about it if the frontend did not look.
        self.send(BackendRequestNumber::CONFIG_CHANGE, &[], None, false)
    }

    /// Gives the guest a ring's doorbell, in place of any before, or takes it away. With `needs_reply` the frontend
    /// tells whether it could; `REPLY_ACK` must have been agreed on for that, and `HOST_NOTIFIER` and `BACKEND_SEND_FD`
    /// in any case.
    pub fn set_host_notifier(
        &mut self,
        queue: u8,
        area: Option<&NotifierArea<BorrowedFd<'_>>>,
        needs_reply: bool,
    ) -> Result<(), SendError> {
        let index = u64::from(queue);
        let body = match area {
            Some(NotifierArea { size, offset, .. }) => {
                VringArea { vring: VringDescriptor(index), size: *size, offset: *offset }
            }
            None => VringArea {
                vring: VringDescriptor(index | VringDescriptor::NO_DESCRIPTOR),
                size: 0,
                offset: 0,
            },
        };
        let file = area.map(|area| area.file);
        self.send(BackendRequestNumber::VRING_HOST_NOTIFIER, body.as_bytes(), file, needs_reply)
    }

    /// The next acknowledgement, if it is there: of what, and whether the frontend did it. They come in the order of the
    /// requests.
    pub fn receive(&mut self) -> Result<Option<(BackendRequestNumber, bool)>, ChannelError> {
        let Some(Frame { header, body, .. }) = self.connection.receive()? else { return Ok(None) };
        let number = BackendRequestNumber(header.request.0);
        let malformed = ChannelError::Malformed(number);
        match (self.unacknowledged.pop_front(), u64::read_from_bytes(&body)) {
            (Some(awaited), Ok(outcome)) if awaited == number => Ok(Some((number, outcome == 0))),
            _ => Err(malformed),
        }
    }

    /// Sends what is left of an earlier request, as much as the socket takes now.
    pub fn flush(&mut self) -> Result<(), SendError> {
        self.connection.flush()
    }

    /// Whether a part of the last request still waits for the frontend.
    pub fn has_unsent(&self) -> bool {
        self.connection.has_unsent()
    }

    fn send(
        &mut self,
        number: BackendRequestNumber,
        body: &[u8],
        file: Option<BorrowedFd<'_>>,
        needs_reply: bool,
    ) -> Result<(), SendError> {
        if needs_reply && self.unacknowledged.len() >= MAX_UNACKNOWLEDGED {
            return Err(SendError::Backlog);
        }
        let header = VhostUserHeader::request(number.in_header(), needs_reply);
        self.connection.send(header, body, file.as_slice())?;
        if needs_reply {
            self.unacknowledged.push_back(number);
        }
        Ok(())
    }
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// What came on the frontend's end of the channel.
#[derive(Debug)]
pub enum BackendRequest {
    /// `CONFIG_CHANGE_MSG`.
    ConfigChange,
    /// `VRING_HOST_NOTIFIER_MSG`.
    HostNotifier {
        /// Which ring.
        queue: u8,
        /// Its doorbell; `None`: it is taken away.
        area: Option<NotifierArea<OwnedFd>>,
    },
}

impl BackendRequest {
    /// Reads a request.
    fn parse(frame: Frame<VhostUserHeader>) -> Result<Self, ChannelError> {
        let number = BackendRequestNumber(frame.header.request.0);
        let malformed = || ChannelError::Malformed(number);
        let Descriptors::Complete(mut files) = frame.descriptors else { return Err(malformed()) };
        let file = files.pop();
        match number {
            BackendRequestNumber::CONFIG_CHANGE if frame.body.is_empty() && file.is_none() => {
                Ok(Self::ConfigChange)
            }
            BackendRequestNumber::VRING_HOST_NOTIFIER if files.is_empty() => {
                let VringArea { vring: VringDescriptor(word), size, offset } =
                    VringArea::read_from_bytes(&frame.body).map_err(|_| malformed())?;
                let index = word & !VringDescriptor::NO_DESCRIPTOR;
                let queue = u8::try_from(index).map_err(|_| malformed())?;
                let area = file.map(|file| NotifierArea { file, size, offset });
                if area.is_none() == (index == word) {
                    return Err(malformed());
                }
                Ok(Self::HostNotifier { queue, area })
            }
            _ => Err(malformed()),
        }
    }

    fn number(&self) -> BackendRequestNumber {
        match self {
            Self::ConfigChange => BackendRequestNumber::CONFIG_CHANGE,
            Self::HostNotifier { .. } => BackendRequestNumber::VRING_HOST_NOTIFIER,
        }
    }
}

/// The frontend's end of the channel.
#[derive(Debug)]
pub struct FrontendChannel {
    connection: Connection<VhostUserHeader>,
}

impl FrontendChannel {
    /// A channel on a connected socket, whose other end the backend has got.
    pub fn new(stream: UnixStream) -> Self {
        Self { connection: Connection::new(stream, Endpoint::Server) }
    }

    /// The next request, waited for as long as `timeout`, and whether it wants to be acknowledged.
    pub fn receive_within(&mut self, timeout: Duration) -> Result<(BackendRequest, bool), ChannelError> {
        let frame = self.connection.receive_within(timeout)?;
        let needs_reply = frame.header.needs_reply();
        BackendRequest::parse(frame).map(|request| (request, needs_reply))
    }

    /// Acknowledges a request: whether it was done.
    pub fn acknowledge(&mut self, request: &BackendRequest, is_done: bool) -> Result<(), SendError> {
        let header = VhostUserHeader::reply(request.number().in_header());
        self.connection.send(header, u64::from(!is_done).as_bytes(), &[])
    }
}

impl AsFd for FrontendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests;
