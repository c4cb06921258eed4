// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client's end of a connection, which sends anything and takes what comes.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::patience::PATIENCE;
use protocol::vfio_user::{Command, VfioUserHeader};
use protocol::{Connection, Endpoint, Frame, Header, ReceiveError, RequestNumber, VhostUserHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost_device_vfio_tests::raw_client::Reply;

use super::flaw::Flaw;

/// Most descriptors that are sent with a message: more than any may have.
pub(crate) const MAX_DESCRIPTORS: usize = 24;

/// What a client has to know of a protocol in order to break its rules.
pub(crate) trait Protocol: Header {
    /// Where in the header the flags are.
    const FLAGS: usize;
    /// Where in the header the size is.
    const SIZE: usize;
    /// The flag that decides whether an answer is wanted.
    const ANSWER_WANTED: u32;
    /// The header of something harmless that is always answered.
    fn question() -> Self;
    /// Whether this is one, and will be answered.
    fn is_question(&self) -> bool;
    /// Whether this is the answer to one.
    fn is_answer(&self) -> bool;
    /// Looks at something that the server sent.
    fn check(frame: &Frame<Self>);
}

impl Protocol for VhostUserHeader {
    const FLAGS: usize = 4;
    const SIZE: usize = 8;
    const ANSWER_WANTED: u32 = 1 << 3;

    fn question() -> Self {
        Self::request(RequestNumber::GET_FEATURES, false)
    }

    fn is_question(&self) -> bool {
        self.request == RequestNumber::GET_FEATURES
    }

    fn is_answer(&self) -> bool {
        self.request == RequestNumber::GET_FEATURES
    }

    fn check(frame: &Frame<Self>) {
        let request = frame.header.request;
        let status = frame.body.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        if request.is_extension() && status != Some(0) {
            // Which must be one, down to its sentences.
            Reply { request, body: frame.body.clone() }.refusal();
        }
    }
}

impl Protocol for VfioUserHeader {
    const FLAGS: usize = 8;
    const SIZE: usize = 4;
    const ANSWER_WANTED: u32 = 1 << 4;

    fn question() -> Self {
        Self::command(0, Command(0x7fff))
    }

    fn is_question(&self) -> bool {
        self.command == Self::question().command && !self.wants_no_reply()
    }

    fn is_answer(&self) -> bool {
        self.command == Self::question().command
    }

    fn check(frame: &Frame<Self>) {
        let is_known = frame.header.command.name().is_some();
        assert!(is_known || frame.header.error().is_some(), "{:?} was done", frame.header);
    }
}

/// The server has closed the connection.
#[derive(Debug)]
pub(crate) struct Gone;

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Peer<H> {
    connection: Connection<H>,
    /// What is still to be sent of the message before.
    rest: Vec<u8>,
    /// The server may take what is sent now for something else.
    is_lost: bool,
    questions: u64,
    answers: u64,
}

impl<H: Protocol> Peer<H> {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let connection = Connection::new(stream, Endpoint::Client);
        Self { connection, rest: Vec::new(), is_lost: false, questions: 0, answers: 0 }
    }

    /// Sends a message, with a flaw or without.
    pub(crate) fn send(
        &mut self,
        header: H,
        body: Vec<u8>,
        descriptors: &[OwnedFd],
        flaw: Option<&Flaw>,
    ) -> Result<(), Gone> {
        let rest = std::mem::take(&mut self.rest);
        self.send_bytes(&rest, &[])?;
        let mut message = match flaw {
            Some(flaw) => flaw.spoil(header, body),
            None => Flaw::message(header, &body),
        };
        let is_understood = flaw.is_none_or(Flaw::leaves_a_message);
        self.is_lost |= !is_understood;
        if let Ok((header, _)) = H::read_from_prefix(&message)
            && header.is_question()
        {
            self.questions += 1;
        }
        if let Some(Flaw::Halves(first)) = flaw {
            self.rest = message.split_off(message.len().min((*first).into()));
        }
        self.send_bytes(&message, descriptors)
    }

    /// Waits until the server has done with all that was sent, unless that cannot be seen.
    pub(crate) fn wait(&mut self) -> Result<(), Gone> {
        if self.is_lost || !self.rest.is_empty() {
            return self.receive_all();
        }
        self.send(H::question(), Vec::new(), &[], None)?;
        while self.answers < self.questions {
            self.wait_for(PollFlags::IN);
            self.receive_all()?;
        }
        Ok(())
    }

    fn receive_all(&mut self) -> Result<(), Gone> {
        loop {
            match self.connection.receive() {
                Ok(Some(frame)) => {
                    H::check(&frame);
                    if frame.header.is_answer() {
                        self.answers += 1;
                    }
                }
                Ok(None) => return Ok(()),
                // It may go with something half sent.
                Err(ReceiveError::Closed | ReceiveError::Truncated) => return Err(Gone),
                Err(error) => panic!("the server sends what cannot be received: {error}"),
            }
        }
    }

    fn send_bytes(&mut self, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<(), Gone> {
        let mut descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room");
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(self.connection.as_fd(), &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    descriptors.clear();
                }
                // Who does not read is not answered, and in the end not read.
                Err(Errno::AGAIN) => {
                    self.receive_all()?;
                    self.wait_for(PollFlags::IN | PollFlags::OUT);
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Gone),
                Err(errno) => panic!("cannot send: {errno}"),
            }
        }
        Ok(())
    }

    fn wait_for(&self, events: PollFlags) {
        let time = Timespec::try_from(PATIENCE).expect("a short time");
        match poll(&mut [PollFd::new(&self.connection, events)], Some(&time)) {
            // The fuzzer looks at the clock by way of a signal; whoever waits asks again.
            Err(Errno::INTR) => {}
            ready => assert!(ready.expect("poll") > 0, "the server does not answer"),
        }
    }
}
