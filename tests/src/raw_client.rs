// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client of the control face that sends what no good client would: any bytes, in any pieces, with any descriptors.
//!
//! It reads the wire by itself, so that a fault of the codec cannot hide behind the same fault here.

use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use protocol::RequestNumber;
use protocol::features::ProtocolFeatures;
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, recv, sendmsg, shutdown,
};

use crate::server_process::PATIENCE;

/// Flags of a request that wants an answer.
pub const REQUEST: u32 = 0x9;
/// Flags of a reply.
const REPLY: u32 = 0x5;
/// Most descriptors that the kernel takes with one message.
pub const MOST_DESCRIPTORS: usize = 253;

/// A header, whatever it says.
pub fn header(request: RequestNumber, flags: u32, size: u32) -> Vec<u8> {
    [request.0, flags, size].map(u32::to_ne_bytes).concat()
}

/// A request with the header that belongs to it.
pub fn message(request: RequestNumber, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).expect("a short body");
    [header(request, REQUEST, size).as_slice(), body].concat()
}

/// A refused request, with all that the server says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was refused.
    pub request: RequestNumber,
    /// For the program.
    pub errno: Errno,
    /// Stable name.
    pub id: String,
    /// What, why and fix, as the log has them.
    pub sentences: String,
}

impl Refusal {
    /// Id and errno: what a program acts on.
    pub fn kind(&self) -> (&str, Errno) {
        (&self.id, self.errno)
    }

    /// Reads errno, request and sentences; every one of the sentences must be one.
    fn new(request: RequestNumber, errno: u32, strings: &[u8]) -> Self {
        let strings = std::str::from_utf8(strings).expect("text");
        let strings = strings.strip_suffix('\0').expect("a NUL in the end");
        let [id, sentences @ ..] = strings.split('\0').collect::<Vec<_>>().try_into().unwrap_or([""; 4]);
        for sentence in sentences {
            let is_sentence = !sentence.starts_with(char::is_lowercase) && sentence.ends_with('.');
            assert!(is_sentence, "`{sentence}` of {request} ({id}) is no sentence");
        }
        let errno = Errno::from_raw_os_error(i32::try_from(errno).expect("an errno"));
        Self { request, errno, id: id.to_owned(), sentences: sentences.join(" ") }
    }
}

/// Something that the server sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// To what.
    pub request: RequestNumber,
    /// The rest of it.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first 8 bytes of the body, which is what most base requests are answered with.
    pub fn number(&self) -> u64 {
        let bytes = self.body.first_chunk().expect("8 bytes");
        u64::from_ne_bytes(*bytes)
    }

    /// The refusal that this is.
    pub fn refusal(&self) -> Refusal {
        let (status, strings) = self.body.split_at(8);
        Refusal::new(self.request, field(status, 0), strings)
    }
}

/// The 32 bits at `offset`.
fn field(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}

/// One connection.
#[derive(Debug)]
pub struct RawClient {
    stream: UnixStream,
}

impl From<UnixStream> for RawClient {
    fn from(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream }
    }
}

impl AsFd for RawClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl RawClient {
    /// A client that has said nothing yet.
    pub fn connect(path: &Path) -> Self {
        UnixStream::connect(path).expect("the server listens").into()
    }

    /// Acknowledges all protocol features and agrees on the version of the extension.
    pub fn negotiate(&mut self) {
        let features = ProtocolFeatures::OFFERED.0.to_ne_bytes();
        assert_eq!(self.ask(RequestNumber::SET_PROTOCOL_FEATURES, &features, &[]).number(), 0);
        let version = [1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(self.ask(RequestNumber::VERSION, &version, &[]).number(), 0);
    }

    /// Sends bytes with one call, descriptors with the first of them. An error where the server has gone.
    pub fn try_send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        self.send_with_flags(bytes, descriptors, SendFlags::NOSIGNAL)
    }

    /// The same where the server must still be there.
    pub fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        assert_eq!(self.try_send(bytes, descriptors), Ok(bytes.len()));
    }

    /// Sends `bytes` again and again until the server does not take them any more; gives how many bytes it took.
    pub fn flood(&mut self, bytes: &[u8]) -> usize {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut total = 0;
        loop {
            let sent = self.send_with_flags(bytes, &[], flags).expect("the server is there");
            total += sent;
            if sent < bytes.len() {
                return total;
            }
        }
    }

    fn send_with_flags(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "too many for the kernel");
        }
        match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::AGAIN) if flags.contains(SendFlags::DONTWAIT) => Ok(0),
            sent => sent,
        }
    }

    /// Nothing more will be sent.
    pub fn finish_sending(&mut self) {
        shutdown(&self.stream, Shutdown::Write).expect("the connection is there");
    }

    /// So many of the bytes that the server sends next.
    pub fn receive_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    /// The next message of the server.
    pub fn receive(&mut self) -> Reply {
        let header = self.receive_bytes(12);
        assert_eq!(field(&header, 4), REPLY, "the flags of every reply");
        let size = usize::try_from(field(&header, 8)).expect("a size");
        Reply { request: RequestNumber(field(&header, 0)), body: self.receive_bytes(size) }
    }

    /// Sends a request and gives the answer to it.
    pub fn ask(&mut self, request: RequestNumber, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Reply {
        self.send(&message(request, body), descriptors);
        let reply = self.receive();
        assert_eq!(reply.request, request, "the answer to something else");
        reply
    }

    /// Sends a request that will be refused. Where the answer has no room for words, `LAST_FAILURE` tells.
    pub fn refused(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Refusal {
        let reply = self.ask(request, body, descriptors);
        if request.is_extension() {
            return reply.refusal();
        }
        let refusal = self.last_failure();
        assert_eq!(refusal.request, request);
        if request.is_always_answered() {
            assert!(reply.body.is_empty(), "an errno could be taken for the number asked for");
        } else {
            let errno = u64::from(refusal.errno.raw_os_error().unsigned_abs());
            assert_eq!((reply.number(), reply.body.len()), (errno, 8), "the acknowledgement of {request}");
        }
        refusal
    }

    /// Why the last request failed.
    pub fn last_failure(&mut self) -> Refusal {
        let reply = self.ask(RequestNumber::LAST_FAILURE, &[], &[]);
        assert_eq!(reply.number(), 0);
        let (errno, request) = (field(&reply.body, 8), field(&reply.body, 12));
        Refusal::new(RequestNumber(request), errno, &reply.body[16..])
    }

    /// Asks something harmless: the server answers, and has sent nothing else before.
    pub fn assert_served(&mut self) {
        assert_eq!(self.ask(RequestNumber::GET_FEATURES, &[], &[]).body.len(), 8);
    }

    /// The server has closed the connection, and sent nothing more.
    pub fn assert_ended(&mut self) {
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            // It left something unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?} instead of the end"),
        }
    }

    /// Whether the server has not closed the connection yet.
    pub fn is_open(&self) -> bool {
        let received = recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        received.map_or_else(|errno| errno == Errno::AGAIN, |(_, bytes)| bytes != 0)
    }
}
