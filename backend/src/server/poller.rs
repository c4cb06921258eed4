// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's eyes: which descriptors are ready.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
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
#[derive(Clone, Debug)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
}

impl Poller {
    /// Watches nothing yet.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?) })
    }

    /// Takes `source` in, to be watched for what [`Watched::watch_for`] says.
    pub fn watched<T: AsFd>(&self, source: T, token: Token) -> Watched<T> {
        Watched { poller: self.clone(), token, interest: Interest::Nothing, source }
    }

    /// Waits for something to be ready, for `timeout` at most, and adds what is to `ready`.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Token>) -> Result<(), Errno> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut room = [MaybeUninit::uninit(); MAX_EVENTS];
        match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => {
                ready.extend(events.iter().map(|event| Token(event.data.u64())));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Something with a descriptor that the poller watches.
///
/// It is taken out of the epoll instance before it is closed: epoll keeps an entry until the last copy of an open file is
/// gone, and whoever handed a socket over may have kept one.
#[derive(Debug)]
pub struct Watched<T: AsFd> {
    poller: Poller,
    token: Token,
    interest: Interest,
    /// What is watched.
    pub source: T,
}

impl<T: AsFd> Watched<T> {
    /// Changes what the descriptor is watched for; nothing at first.
    pub fn watch_for(&mut self, interest: Interest) -> Result<(), Errno> {
        let (epoll, data) = (&*self.poller.epoll, EventData::new_u64(self.token.0));
        match (self.interest, interest) {
            (before, after) if before == after => Ok(()),
            (Interest::Nothing, _) => epoll::add(epoll, &self.source, data, interest.flags()),
            (_, Interest::Nothing) => epoll::delete(epoll, &self.source),
            _ => epoll::modify(epoll, &self.source, data, interest.flags()),
        }?;
        self.interest = interest;
        Ok(())
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        // It is there and open; there is nothing to do about a kernel that says otherwise.
        let _ = self.watch_for(Interest::Nothing);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_dropped_reports_nothing_although_a_copy_is_open() {
        let poller = Poller::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let _copy = near.try_clone().unwrap();
        let mut watched = poller.watched(near, Token(1));
        watched.watch_for(Interest::Read).unwrap();
        far.write_all(b"x").unwrap();
        let mut ready = Vec::new();
        poller.wait(None, &mut ready).unwrap();
        assert_eq!(ready, [Token(1)]);
        drop(watched);
        ready.clear();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert_eq!(ready, []);
    }
}
