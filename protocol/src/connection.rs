// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A framed Unix stream socket: a fixed header, a body whose size the header tells, descriptors on the first byte.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use crate::frame::{Descriptors, Endpoint, Frame, Header, HeaderError, MAX_DESCRIPTORS};

/// Room for a control message; rustix pads it, so a few descriptors more than asked for may fit.
const CONTROL_SPACE: usize = cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Why no further message can be received. Every variant but [`ReceiveError::TimedOut`] ends the connection.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The peer closed the socket between two messages: a normal end.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed the socket in the middle of a message.
    #[error("the peer closed the connection in the middle of a message")]
    Truncated,
    /// Descriptors came with other bytes than the first of a message.
    #[error("descriptors came after the first byte of a message")]
    LateDescriptors,
    /// The header is not acceptable; see [`Connection::partial_header`] for what it was.
    #[error("the message header is malformed")]
    Header(#[from] HeaderError),
    /// Nothing (complete) came within the time allowed.
    #[error("no complete message came in time")]
    TimedOut,
    /// The socket failed.
    #[error("cannot receive from the socket")]
    Io(#[source] Errno),
}

impl ReceiveError {
    /// The errno a final reply carries.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Closed => Errno::CONNRESET,
            Self::Header(HeaderError::TooLarge { .. }) => Errno::MSGSIZE,
            Self::Truncated | Self::LateDescriptors | Self::Header(_) => Errno::PROTO,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Io(errno) => *errno,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, Error)]
pub enum SendError {
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer has not yet taken what was sent before; nothing of this message was sent.
    #[error("the peer does not read")]
    Backlog,
    /// Body or descriptors are beyond the protocol's limits; nothing was sent.
    #[error("a message of {body} bytes and {descriptors} descriptors is too large")]
    TooLarge {
        /// Size of the body in bytes.
        body: usize,
        /// Number of descriptors.
        descriptors: usize,
    },
    /// The peer did not take the message within the time allowed.
    #[error("the peer did not take the message in time")]
    TimedOut,
    /// The socket failed.
    #[error("cannot send to the socket")]
    Io(#[source] Errno),
}

/// The message that is being received.
#[derive(Debug)]
struct Incoming<H> {
    header: H,
    /// `None` until the header is complete and checked.
    body: Option<Vec<u8>>,
    descriptors: Descriptors,
    /// Bytes of header and body so far.
    received: usize,
    since: Option<Instant>,
}

impl<H: Header> Incoming<H> {
    fn new() -> Self {
        let descriptors = Descriptors::Complete(Vec::new());
        Self { header: H::new_zeroed(), body: None, descriptors, received: 0, since: None }
    }
}

/// What is left to send of a message, and its descriptors, which travel with the first byte.
#[derive(Debug)]
struct Unsent {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A connected socket on which messages with header `H` travel.
///
/// Nothing here blocks but [`Connection::receive_within`] and [`Connection::send_within`]. A half message in either
/// direction is remembered; the memory for it is bounded by one largest message each way.
#[derive(Debug)]
pub struct Connection<H> {
    stream: UnixStream,
    endpoint: Endpoint,
    incoming: Incoming<H>,
    unsent: VecDeque<Unsent>,
}

impl<H: Header> Connection<H> {
    /// Takes over one end of a connected stream socket.
    pub fn new(stream: UnixStream, endpoint: Endpoint) -> Self {
        Self { stream, endpoint, incoming: Incoming::new(), unsent: VecDeque::new() }
    }

    /// The next message if it is complete; `None` when more has to come first.
    pub fn receive(&mut self) -> Result<Option<Frame<H>>, ReceiveError> {
        while self.incoming.received < size_of::<H>() {
            if !self.receive_header()? {
                return Ok(self.note_unfinished());
            }
        }
        // Only a header that passed its checks decides how much memory to take. One that failed them stays, so that
        // asking again gives the same error.
        if self.incoming.body.is_none() {
            let size = self.incoming.header.body_size(self.endpoint)?;
            self.incoming.body = Some(vec![0; size]);
        }
        if !self.receive_body()? {
            return Ok(self.note_unfinished());
        }
        let Incoming { header, body, descriptors, .. } =
            std::mem::replace(&mut self.incoming, Incoming::new());
        Ok(Some(Frame { header, body: body.unwrap_or_default(), descriptors }))
    }

    /// When the first byte of a message came whose last byte is still missing.
    pub fn partial_since(&self) -> Option<Instant> {
        self.incoming.since
    }

    /// The header of the message that is being received, or that was found to be malformed, once all of it is there.
    pub fn partial_header(&self) -> Option<H> {
        (self.incoming.received >= size_of::<H>()).then_some(self.incoming.header)
    }

    /// Sends one message: as much as the socket takes now, the rest with [`Connection::flush`].
    ///
    /// The size in `header` is filled in. [`SendError::Backlog`] while something is unsent, or when the socket could
    /// not even take the first byte, with which `descriptors` have to travel.
    pub fn send(&mut self, header: H, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        if self.has_unsent() {
            return Err(SendError::Backlog);
        }
        let too_large = SendError::TooLarge { body: body.len(), descriptors: descriptors.len() };
        let (Ok(size), true) = (u32::try_from(body.len()), body.len() <= H::MAX_BODY) else {
            return Err(too_large);
        };
        let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if descriptors.len() > H::MAX_FDS
            || !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(too_large);
        }
        let header = header.with_body_size(size);
        let message = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        let sent = send_some(&self.stream, &message, &mut control)?;
        if sent == 0 && !descriptors.is_empty() {
            return Err(SendError::Backlog);
        }
        if sent < size_of::<H>() + body.len() {
            let bytes = header.as_bytes().iter().chain(body).skip(sent).copied().collect();
            self.unsent.push_back(Unsent { bytes, descriptors: Vec::new() });
        }
        Ok(())
    }

    /// Sends one message behind what is unsent, of which the caller keeps within bounds how much there is.
    pub fn send_behind(
        &mut self,
        header: H,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), SendError> {
        match self.send(header, body, descriptors) {
            Err(SendError::Backlog) => {}
            result => return result,
        }
        let too_large = SendError::TooLarge { body: body.len(), descriptors: descriptors.len() };
        let fits = body.len() <= H::MAX_BODY && descriptors.len() <= H::MAX_FDS;
        let size = u32::try_from(body.len()).ok().filter(|_| fits).ok_or(too_large)?;
        let copies = descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect::<Result<_, _>>();
        let descriptors =
            copies.map_err(|error| SendError::Io(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)))?;
        let bytes = [header.with_body_size(size).as_bytes(), body].concat();
        self.unsent.push_back(Unsent { bytes, descriptors });
        Ok(())
    }

    /// Sends what an earlier [`Connection::send`] left over, as much as the socket takes now.
    pub fn flush(&mut self) -> Result<(), SendError> {
        while let Some(next) = self.unsent.front_mut() {
            let descriptors: Vec<_> = next.descriptors.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            match send_some(&self.stream, &[IoSlice::new(&next.bytes)], &mut control)? {
                0 => break,
                sent if sent == next.bytes.len() => drop(self.unsent.pop_front()),
                sent => {
                    next.descriptors.clear();
                    next.bytes.drain(..sent);
                }
            }
        }
        Ok(())
    }

    /// Whether a part of the last message still waits for the peer. Whoever stops receiving until this is false
    /// needs no other bound on memory.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Waits for the next message, at most `timeout`.
    pub fn receive_within(&mut self, timeout: Duration) -> Result<Frame<H>, ReceiveError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if let Some(frame) = self.receive()? {
                return Ok(frame);
            }
            if !wait(&self.stream, PollFlags::IN, deadline).map_err(ReceiveError::Io)? {
                return Err(ReceiveError::TimedOut);
            }
        }
    }

    /// Sends one message whole, waiting for the peer at most `timeout`.
    pub fn send_within(
        &mut self,
        header: H,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(), SendError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            self.flush()?;
            match self.send(header, body, descriptors) {
                Err(SendError::Backlog) => self.wait_writable(deadline)?,
                result => break result?,
            }
        }
        while self.has_unsent() {
            self.wait_writable(deadline)?;
            self.flush()?;
        }
        Ok(())
    }

    fn wait_writable(&self, deadline: Option<Instant>) -> Result<(), SendError> {
        let ready = wait(&self.stream, PollFlags::OUT, deadline).map_err(SendError::Io)?;
        if ready { Ok(()) } else { Err(SendError::TimedOut) }
    }

    /// Notes when it was seen that a message has begun and not ended. One that comes in one piece needs no clock.
    fn note_unfinished(&mut self) -> Option<Frame<H>> {
        if self.incoming.received > 0 {
            self.incoming.since.get_or_insert_with(Instant::now);
        }
        None
    }

    /// Receives a piece of the header; false when there is nothing to receive now.
    fn receive_header(&mut self) -> Result<bool, ReceiveError> {
        let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
        // Whatever is not taken out of the buffer is closed when it is dropped.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let first = self.incoming.received == 0;
        let room = self.incoming.header.as_mut_bytes().get_mut(self.incoming.received..).unwrap_or_default();
        let Some(message) = receive_some(&self.stream, room, &mut control, first)? else {
            return Ok(false);
        };
        let descriptors = take_descriptors::<H>(&message, &mut control);
        if first {
            self.incoming.descriptors = descriptors;
        } else if !matches!(descriptors, Descriptors::Complete(fds) if fds.is_empty()) {
            return Err(ReceiveError::LateDescriptors);
        }
        self.incoming.received += message.bytes;
        Ok(true)
    }

    /// Receives what is there of the body; true once it is complete.
    fn receive_body(&mut self) -> Result<bool, ReceiveError> {
        let body = self.incoming.body.as_deref_mut().unwrap_or_default();
        loop {
            let done = self.incoming.received - size_of::<H>();
            let room = body.get_mut(done..).unwrap_or_default();
            if room.is_empty() {
                return Ok(true);
            }
            // No room for descriptors: the kernel closes those that come and says so.
            let mut control = RecvAncillaryBuffer::default();
            let Some(message) = receive_some(&self.stream, room, &mut control, false)? else {
                return Ok(false);
            };
            if message.flags.contains(ReturnFlags::CTRUNC) {
                return Err(ReceiveError::LateDescriptors);
            }
            self.incoming.received += message.bytes;
        }
    }
}

impl<H> AsFd for Connection<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// One `recvmsg` into `room`, which is not empty; `None` when it would block. `first` says that no byte of the
/// message came before.
///
/// `MSG_DONTWAIT` rather than `O_NONBLOCK`: the latter belongs to the open file description, and whoever handed the
/// socket over may still hold that and clear it.
fn receive_some(
    stream: &UnixStream,
    room: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
    first: bool,
) -> Result<Option<RecvMsg>, ReceiveError> {
    loop {
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        return match recvmsg(stream, &mut [IoSliceMut::new(room)], control, flags) {
            Ok(RecvMsg { bytes: 0, .. }) | Err(Errno::CONNRESET) if first => Err(ReceiveError::Closed),
            Ok(RecvMsg { bytes: 0, .. }) | Err(Errno::CONNRESET) => Err(ReceiveError::Truncated),
            Ok(message) => Ok(Some(message)),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(ReceiveError::Io(errno)),
        };
    }
}

/// Takes the descriptors out of `control`, unless there were too many.
fn take_descriptors<H: Header>(message: &RecvMsg, control: &mut RecvAncillaryBuffer<'_>) -> Descriptors {
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > H::MAX_FDS {
        return Descriptors::Truncated;
    }
    Descriptors::Complete(descriptors)
}

/// One `sendmsg`; 0 when it would block.
fn send_some(
    stream: &UnixStream,
    message: &[IoSlice<'_>],
    control: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> Result<usize, SendError> {
    loop {
        return match sendmsg(stream, message, control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => Ok(sent),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(0),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(SendError::Closed),
            Err(errno) => Err(SendError::Io(errno)),
        };
    }
}

/// Waits until `stream` is ready for `events` or has failed; false when `deadline`, if there is one, passed first.
fn wait(stream: &UnixStream, events: PollFlags, deadline: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Even if the stream is ready: a peer that sends byte by byte does not put the deadline off.
        if rest.is_some_and(|rest| rest.is_zero()) {
            return Ok(false);
        }
        let timeout = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match poll(&mut [PollFd::new(stream, events)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests;
