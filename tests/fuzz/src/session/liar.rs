// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that says what is not so: somebody between the modelled kernel and whoever has opened a function there, who
//! passes every call on and spoils some of the answers.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use arbitrary::Arbitrary;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// An answer that is spoiled.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Lie {
    /// Of which call, counted from the opening on.
    call: u8,
    spoiled: Spoiled,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Spoiled {
    /// What the call returns.
    Outcome(i16),
    /// Some of what the kernel writes, or reads from the device.
    Bytes { at: u8, bytes: [u8; 4] },
    /// The end of it.
    Length(u8),
}

/// Bytes of an answer before the data: the outcome, and nothing.
const HEADER: usize = 24;
/// Longest message of the model.
const LONGEST: usize = HEADER + (64 << 10);
/// Largest errno: a system call returns nothing below.
const MAX_ERRNO: i64 = 4095;
/// Most descriptors in one.
const MAX_DESCRIPTORS: usize = 32;

/// The function behind `file`, as a liar shows it. Whoever takes it for the real one gets the same file.
pub(super) fn open(file: OwnedFd, lies: &[Lie]) -> OwnedFd {
    let (near, far) = pair();
    let lies = lies.to_vec();
    thread::spawn(move || {
        for call in 0.. {
            let Some(question) = Message::receive(&near) else { break };
            let Some((asker, mut answer)) = question.pass_on(&file) else { break };
            for lie in lies.iter().filter(|lie| usize::from(lie.call) == call) {
                lie.spoiled.spoil(&mut answer.bytes);
            }
            answer.send(&asker);
        }
    });
    far
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair")
}

impl Spoiled {
    fn spoil(self, answer: &mut Vec<u8>) {
        match self {
            Self::Outcome(outcome) => {
                let outcome = i64::from(outcome).max(-MAX_ERRNO);
                answer[..8].copy_from_slice(&outcome.to_ne_bytes());
            }
            Self::Bytes { at, bytes } => {
                let data = answer.iter_mut().skip(HEADER + usize::from(at));
                data.zip(bytes).for_each(|(byte, lie)| *byte = lie);
            }
            Self::Length(length) => answer.truncate(HEADER + usize::from(length)),
        }
    }
}

/// A question, or the answer to one.
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    /// `None` when nobody is left at the other end.
    fn receive(from: &OwnedFd) -> Option<Self> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            let mut room = [IoSliceMut::new(&mut bytes)];
            match recvmsg(from, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message.bytes,
                Err(Errno::CONNRESET) => return None,
                // The fuzzer looks at the clock by way of a signal.
                Err(Errno::INTR) => {}
                Err(errno) => panic!("cannot receive: {errno}"),
            }
        };
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        bytes.truncate(count);
        (count > 0).then_some(Self { bytes, descriptors })
    }

    /// Passes a question on to the kernel. Gives the socket on which the answer is awaited, and the answer.
    fn pass_on(mut self, file: &OwnedFd) -> Option<(OwnedFd, Self)> {
        let (near, far) = pair();
        let asker = std::mem::replace(self.descriptors.first_mut()?, far);
        self.send(file);
        drop(self);
        Some((asker, Self::receive(&near)?))
    }

    /// Whoever is asked, or has asked, may be gone.
    fn send(&self, to: &OwnedFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let has_room = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(has_room, "{} descriptors", descriptors.len());
        let _ = sendmsg(to, &[IoSlice::new(&self.bytes)], &mut control, SendFlags::NOSIGNAL);
    }
}
