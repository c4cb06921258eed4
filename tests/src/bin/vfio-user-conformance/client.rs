// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client that sends any bytes, in any pieces, with any descriptors, and judges the form of every answer.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};

use crate::case::{Finding, Judgement, fault, require};
use crate::wire::{self, ERROR, HEADER, REPLY, command};

/// Most descriptors that the kernel takes with one message.
pub(crate) const MOST_DESCRIPTORS: usize = 253;
/// No reply of any command here is longer, in bytes.
const LONGEST_REPLY: usize = 2 << 20;
/// Largest errno of Linux.
const MAX_ERRNO: u32 = 4095;

/// A reply of good form.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) id: u16,
    pub(crate) command: u16,
    /// The errno, which may be 0, of an error.
    pub(crate) error: Option<u32>,
    /// What follows the header.
    pub(crate) payload: Vec<u8>,
    /// What came along.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// What comes next from the server.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    /// The server has closed the connection.
    End,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    next_id: u16,
}

impl Client {
    /// A connection on which nothing was said yet. The stream has its timeouts already.
    pub(crate) const fn new(stream: UnixStream) -> Self {
        Self { stream, next_id: 0x7a00 }
    }

    /// The id of the next command.
    pub(crate) const fn new_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Sends bytes with one call, descriptors with the first of them. False where the server has closed the connection.
    pub(crate) fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Judgement<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "too many for the kernel");
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(errno) => return fault(format!("{} bytes cannot be sent: {errno}", rest.len())),
            }
            control.clear();
        }
        Ok(true)
    }

    /// The same where the server must still be there.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Judgement {
        require!(self.try_send(bytes, descriptors)?, "the server closes the connection");
        Ok(())
    }

    /// The next message of the server, in good form.
    pub(crate) fn receive(&self) -> Judgement<Answer> {
        loop {
            let mut header = [0; HEADER];
            let mut descriptors = Vec::new();
            if !self.receive_exactly(&mut header, &mut descriptors, true)? {
                return Ok(Answer::End);
            }
            let (id, number) = (wire::u16_at(&header, 0)?, wire::u16_at(&header, 2)?);
            let size = usize::try_from(wire::u32_at(&header, 4)?).unwrap_or(usize::MAX);
            let (flags, errno) = (wire::u32_at(&header, 8)?, wire::u32_at(&header, 12)?);
            require!((HEADER..=LONGEST_REPLY).contains(&size), "a message of {size} bytes");
            let mut payload = vec![0; size - HEADER];
            self.receive_exactly(&mut payload, &mut descriptors, false)?;
            // A server may want guest memory at any time.
            if flags == wire::COMMAND && [command::DMA_READ, command::DMA_WRITE].contains(&number) {
                self.try_send(&wire::header(id, number, 16, REPLY | ERROR), &[])?;
                continue;
            }
            require!(flags == REPLY || flags == REPLY | ERROR, "a reply with the flags {flags:#x}");
            let error = (flags & ERROR != 0).then_some(errno);
            if error.is_some() {
                require!(payload.is_empty(), "an error reply with {} bytes of payload", payload.len());
                require!(descriptors.is_empty(), "an error reply with descriptors");
                require!(errno <= MAX_ERRNO, "an error reply with the errno {errno}");
            }
            return Ok(Answer::Reply(Reply { id, command: number, error, payload, descriptors }));
        }
    }

    /// Fills `room`; false if the connection ends before its first byte, which is a fault unless it `may_end`.
    fn receive_exactly(
        &self,
        room: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        may_end: bool,
    ) -> Judgement<bool> {
        let mut filled = 0;
        while let Some(rest) = room.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.stream, &mut [IoSliceMut::new(rest)], &mut control, flags) {
                Ok(message) => message.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => 0,
                Err(Errno::AGAIN) => return fault("no answer in time"),
                Err(errno) => return fault(format!("nothing can be received: {errno}")),
            };
            let before = descriptors.len();
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(came) = ancillary {
                    descriptors.extend(came);
                }
            }
            let is_late = descriptors.len() > before && !(may_end && filled == 0);
            require!(!is_late, "descriptors that do not come with the first byte of their message");
            if received == 0 {
                require!(may_end && filled == 0, "the connection ends in the middle of a message");
                return Ok(false);
            }
            filled += received;
        }
        Ok(true)
    }

    /// How many bytes one receive gives that has room for more than comes.
    pub(crate) fn receive_piece(&self) -> Judgement<usize> {
        let mut room = [0; 4096];
        match (&self.stream).read(&mut room) {
            Ok(count) => Ok(count),
            Err(error) => fault(format!("nothing can be received: {error}")),
        }
    }

    /// The reply to this command, which comes next.
    pub(crate) fn reply_to(&self, id: u16, number: u16) -> Judgement<Reply> {
        match self.receive()? {
            Answer::Reply(reply) => {
                let got = (reply.id, reply.command);
                require!(got == (id, number), "a reply to {got:?} instead of {:?}", (id, number));
                Ok(reply)
            }
            Answer::End => fault("the connection ends instead of a reply"),
        }
    }

    /// Sends a command and gives its reply, be it an error.
    pub(crate) fn ask(
        &mut self,
        number: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Judgement<Reply> {
        let id = self.new_id();
        self.send(&wire::message(id, number, wire::COMMAND, payload), descriptors)?;
        self.reply_to(id, number)
    }

    /// A command that must be carried out; gives the reply, after which the stream is in step.
    pub(crate) fn done(
        &mut self,
        number: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Judgement<Reply> {
        let reply = self.ask(number, payload, descriptors)?;
        if let Some(errno) = reply.error {
            return fault(format!("command {number} is refused: {}", name(errno)));
        }
        self.expect_in_step()?;
        Ok(reply)
    }

    /// A command that must be refused; gives the errno, after which the stream is in step.
    pub(crate) fn refused(
        &mut self,
        number: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Judgement<u32> {
        let reply = self.ask(number, payload, descriptors)?;
        let Some(errno) = reply.error else {
            return fault(format!("command {number} is carried out instead of refused"));
        };
        self.expect_in_step()?;
        Ok(errno)
    }

    /// A command that may be refused; gives the reply to one that is not. The stream is in step either way.
    pub(crate) fn settled(
        &mut self,
        number: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Judgement<Option<Reply>> {
        let reply = self.ask(number, payload, descriptors)?;
        self.expect_in_step()?;
        Ok(Some(reply).filter(|reply| reply.error.is_none()))
    }

    /// Sends bytes after which the server may refuse or end the connection, but not do what they say.
    pub(crate) fn refused_or_ended(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Judgement {
        self.try_send(bytes, descriptors)?;
        match self.receive()? {
            Answer::End | Answer::Reply(Reply { error: Some(_), .. }) => Ok(()),
            Answer::Reply(reply) => fault(format!("command {} is carried out", reply.command)),
        }
    }

    /// Sends bytes after which the server may do anything but send what is no reply.
    pub(crate) fn settled_or_ended(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Judgement {
        self.try_send(bytes, descriptors)?;
        self.receive().map(drop)
    }

    /// The next command is answered next.
    pub(crate) fn expect_in_step(&mut self) -> Judgement {
        let reply = self.ask(command::DEVICE_GET_IRQ_INFO, &wire::irq_info(16, 0), &[]);
        let out_of_step = |finding| match finding {
            Finding::Fault(fault) => Finding::Fault(format!("out of step afterwards: {fault}")),
            Finding::NotApplicable(why) => Finding::NotApplicable(why),
        };
        let reply = reply.map_err(out_of_step)?;
        require!(reply.error.is_none(), "afterwards DEVICE_GET_IRQ_INFO is refused");
        require!(reply.payload.len() == 16, "afterwards DEVICE_GET_IRQ_INFO is answered otherwise");
        Ok(())
    }

    /// The connection's own descriptor.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// From now on the server may take this long.
    pub(crate) fn set_patience(&self, patience: Duration) -> Judgement {
        match self.stream.set_read_timeout(Some(patience)) {
            Ok(()) => Ok(()),
            Err(error) => fault(format!("no timeout can be set: {error}")),
        }
    }

    /// Whether nothing comes in the time that the server may take.
    pub(crate) fn waits(&self) -> Judgement<bool> {
        match recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK) {
            Err(Errno::AGAIN) => Ok(true),
            Ok(_) | Err(Errno::CONNRESET) => Ok(false),
            Err(errno) => fault(format!("nothing can be received: {errno}")),
        }
    }

    /// Nothing more will be sent.
    pub(crate) fn finish_sending(&self) {
        // It fails where the server has gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends bytes that are the last ones.
    pub(crate) fn finish_after(&self, bytes: &[u8]) -> Judgement {
        self.try_send(bytes, &[])?;
        self.finish_sending();
        Ok(())
    }

    /// Goes at once, whatever was asked.
    pub(crate) fn abandon(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A client goes when the server has noticed that it goes: who connects next is not taken for a second one.
impl Drop for Client {
    fn drop(&mut self) {
        self.finish_sending();
        let mut room = [0; 4096];
        loop {
            match self.stream.read(&mut room) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
}

fn name(errno: u32) -> String {
    match i32::try_from(errno) {
        Ok(0) | Err(_) => "no errno".to_owned(),
        Ok(number) => Errno::from_raw_os_error(number).to_string(),
    }
}
