// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stream that comes in pieces, with descriptors, and the messages that are found in it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use protocol::extension::Failure;
use protocol::frame::Descriptors;
use protocol::{Connection, Endpoint, Frame, Header, ReceiveError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Most descriptors that come with a piece: more than any message may have.
const MAX_DESCRIPTORS: usize = 24;

/// What is sent with one call.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Piece {
    /// How many of the bytes.
    length: u16,
    descriptors: u8,
    head: Head,
}

/// What is done so that the bytes of a piece are a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Head {
    /// Nothing.
    AsItCame,
    /// If they begin with a header, its size is made right.
    Sized,
    /// They are the body of a message that there is, given by its place in the table.
    Known(u8),
}

/// Makes the header of the message at a place in the table, given how many pieces came before.
pub(super) type MakeHeader<H> = fn(u8, u16) -> H;

/// The near end of a socket, at whose far end somebody receives.
pub(super) struct Sender {
    stream: UnixStream,
    descriptor: OwnedFd,
    sent: Vec<u8>,
}

impl Sender {
    pub(super) fn pair() -> (Self, UnixStream) {
        let (stream, far) = UnixStream::pair().expect("a socket pair");
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        (Self { stream, descriptor, sent: Vec::new() }, far)
    }

    /// Sends a piece; false when it could not be sent whole.
    pub(super) fn send(&mut self, bytes: &[u8], descriptors: u8) -> bool {
        let count = usize::from(descriptors) % (MAX_DESCRIPTORS + 1);
        let descriptors = vec![self.descriptor.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(count) => {
                self.sent.extend(&bytes[..count]);
                count == bytes.len()
            }
            Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET) => false,
            Err(errno) => panic!("cannot send: {errno}"),
        }
    }

    /// Sends `bytes` in pieces, as much as there is room for.
    pub(super) fn send_all<H: Header>(&mut self, pieces: &[Piece], bytes: &[u8], header: MakeHeader<H>) {
        Cut::new(pieces, bytes, header).all(|(bytes, descriptors)| self.send(&bytes, descriptors));
    }

    /// Nothing more will be sent, and nobody is waited for.
    pub(super) fn finish_sending(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("the connection is there");
    }
}

/// Bytes, cut into pieces. What is left over is the last one.
struct Cut<'a, H> {
    pieces: std::slice::Iter<'a, Piece>,
    bytes: &'a [u8],
    header: MakeHeader<H>,
    count: u16,
}

impl<'a, H: Header> Cut<'a, H> {
    fn new(pieces: &'a [Piece], bytes: &'a [u8], header: MakeHeader<H>) -> Self {
        Self { pieces: pieces.iter(), bytes, header, count: 0 }
    }
}

impl<H: Header> Iterator for Cut<'_, H> {
    type Item = (Vec<u8>, u8);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = Piece { length: u16::MAX, descriptors: 0, head: Head::AsItCame };
        let Piece { length, descriptors, head } = self.pieces.next().copied().unwrap_or(rest);
        let (bytes, rest) = self.bytes.split_at(self.bytes.len().min(length.into()));
        self.bytes = rest;
        let piece = match (head, H::read_from_prefix(bytes)) {
            (Head::Known(place), _) => message((self.header)(place, self.count), bytes),
            (Head::Sized, Ok((header, body))) => message(header, body),
            _ => bytes.to_vec(),
        };
        self.count = self.count.wrapping_add(1);
        // Without a byte there is nothing that descriptors could come with.
        (!piece.is_empty()).then_some((piece, descriptors))
    }
}

/// A message whose header tells its size.
pub(super) fn message<H: Header>(header: H, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).expect("a short body");
    [header.with_body_size(size).as_bytes(), body].concat()
}

/// Has a server receive `bytes` in pieces, and hands each message on to `parse`.
pub(super) fn receive<H: Header>(
    pieces: &[Piece],
    bytes: &[u8],
    header: MakeHeader<H>,
    parse: impl Fn(Frame<H>),
) {
    let (mut sender, far) = Sender::pair();
    let mut receiver = Receiver { connection: Connection::new(far, Endpoint::Server), received: 0 };
    for (piece, descriptors) in Cut::new(pieces, bytes, header) {
        let is_sent_whole = sender.send(&piece, descriptors);
        if receiver.receive_all(&sender.sent, &parse).is_err() {
            return;
        }
        assert!(is_sent_whole, "there is room again");
    }
    let Sender { stream, sent, .. } = sender;
    drop(stream);
    let end = receiver.receive_all(&sent, &parse).expect_err("the connection has an end");
    let is_partial = sent.len() > receiver.received;
    assert_eq!(matches!(end, ReceiveError::Truncated), is_partial, "{end}");
}

struct Receiver<H> {
    connection: Connection<H>,
    /// Bytes of whole messages.
    received: usize,
}

impl<H: Header> Receiver<H> {
    /// Everything that is there to be received now. An error is the end of the connection.
    fn receive_all(&mut self, sent: &[u8], parse: impl Fn(Frame<H>)) -> Result<(), ReceiveError> {
        loop {
            match self.connection.receive() {
                Ok(Some(frame)) => {
                    self.check(&frame, sent);
                    parse(frame);
                }
                Ok(None) => {
                    let is_partial = sent.len() > self.received;
                    assert_eq!(self.connection.partial_since().is_some(), is_partial, "half a message");
                    return Ok(());
                }
                Err(error) => {
                    assert!(error.errno().raw_os_error() > 0, "an error without errno");
                    let last_words = Failure::from(&error).refusal(error.errno());
                    assert!(last_words.len() <= H::MAX_BODY, "last words that are too long");
                    return Err(error);
                }
            }
        }
    }

    /// A message is what was sent, and within the limits.
    fn check(&mut self, Frame { header, body, descriptors }: &Frame<H>, sent: &[u8]) {
        assert!(body.len() <= H::MAX_BODY, "a body of {} bytes", body.len());
        if let Descriptors::Complete(descriptors) = descriptors {
            assert!(descriptors.len() <= H::MAX_FDS, "{} descriptors", descriptors.len());
        }
        let message = [header.as_bytes(), body].concat();
        let end = self.received + message.len();
        assert_eq!(sent.get(self.received..end), Some(message.as_slice()), "not what was sent");
        self.received = end;
    }
}
