// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Says to a server what a VMM says.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};

use super::{Attachment, Awaited, Message};
use crate::raw_client::{RawClient, Reply};

/// A connection on which a script is played, with all that its messages bring.
#[derive(Debug)]
pub struct Player {
    client: RawClient,
    memory: Vec<OwnedFd>,
    /// What the guest notifies each ring with.
    pub kicks: Vec<OwnedFd>,
    /// What each ring interrupts the guest with.
    pub calls: Vec<OwnedFd>,
    errors: Vec<OwnedFd>,
    /// The frontend's end of the backend channel.
    pub channel: UnixStream,
    backend_channel: UnixStream,
}

impl Player {
    /// A VMM on a connected socket, with the files of its guest's memory and so many rings.
    pub fn new(socket: UnixStream, memory: Vec<OwnedFd>, rings: usize) -> Self {
        let eventfds = || -> Vec<_> {
            (0..rings).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).collect()
        };
        let (channel, backend_channel) = UnixStream::pair().expect("a socket pair");
        let (kicks, calls, errors) = (eventfds(), eventfds(), eventfds());
        Self { client: socket.into(), memory, kicks, calls, errors, channel, backend_channel }
    }

    /// Says one message after the other, and waits for the answer where the VMM would. Gives the answers.
    pub fn play(&mut self, messages: &[Message]) -> Vec<Reply> {
        messages.iter().filter_map(|message| self.say(message)).collect()
    }

    /// Says a message. The answer has the form that the VMM takes; an acknowledgement is that it was done.
    pub fn say(&mut self, message: &Message) -> Option<Reply> {
        let Self { client, memory, kicks, calls, errors, backend_channel, .. } = self;
        let descriptors: Vec<_> = message
            .attachments
            .iter()
            .map(|attachment| match *attachment {
                Attachment::Memory(piece) => memory[piece].as_fd(),
                Attachment::Kick(queue) => kicks[queue].as_fd(),
                Attachment::Call(queue) => calls[queue].as_fd(),
                Attachment::Error(queue) => errors[queue].as_fd(),
                Attachment::Channel => backend_channel.as_fd(),
            })
            .collect();
        client.send(&message.bytes, &descriptors);
        if message.awaited == Awaited::Nothing {
            return None;
        }
        let reply = client.receive();
        assert_eq!(reply.request, message.request, "the answer to something else");
        let sent = &message.bytes[12..];
        match message.awaited {
            Awaited::Acknowledgement => assert_eq!(reply.body, [0; 8], "{} was refused", message.request),
            Awaited::Config => {
                assert_eq!((reply.body.len(), &reply.body[..12]), (sent.len(), &sent[..12]));
            }
            Awaited::Base => assert_eq!((reply.body.len(), &reply.body[..4]), (8, &sent[..4])),
            Awaited::Number | Awaited::Nothing => assert_eq!(reply.body.len(), 8),
        }
        Some(reply)
    }
}
