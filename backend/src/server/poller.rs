// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's eyes: which descriptors are ready.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// What the loop knows a descriptor by; never used twice, so that a late event finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// There is something to receive.
    Read,
    /// There is room to send.
    Write,
    /// Nothing, not even its end.
    Nothing,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Nothing => EventFlags::empty(),
        }
    }
}

/// Most descriptors that one wait reports; the others are reported by the next.
const MAX_EVENTS: usize = 32;

/// An epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Watches nothing yet.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Changes what a descriptor is watched for.
    pub fn watch(&self, fd: impl AsFd, token: Token, before: Interest, after: Interest) -> Result<(), Errno> {
        let data = EventData::new_u64(token.0);
        match (before, after) {
            _ if before == after => Ok(()),
            (Interest::Nothing, _) => epoll::add(&self.epoll, fd, data, after.flags()),
            (_, Interest::Nothing) => epoll::delete(&self.epoll, fd),
            _ => epoll::modify(&self.epoll, fd, data, after.flags()),
        }
    }

    /// Waits for something to be ready, for `timeout` at most.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Vec<Token>, Errno> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut room = [MaybeUninit::uninit(); MAX_EVENTS];
        match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => Ok(events.iter().map(|event| Token(event.data.u64())).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }
}
