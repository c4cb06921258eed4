// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An eventfd that a client handed over, or one of ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use crate::failure::Failure;

/// An eventfd.
#[derive(Clone, Debug)]
pub struct Eventfd(Arc<OwnedFd>);

impl Eventfd {
    /// One of ours.
    pub fn new() -> Result<Self, Errno> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        rustix::event::eventfd(0, flags).map(|fd| Self(Arc::new(fd)))
    }

    /// A client's. It is watched, by the kernel or by us, and never read here: what has another reader would make a read wait. Of what else a client
    /// could hand over, watching alone can wait for its maker, as with a file in user space; an eventfd has no such type.
    ///
    /// # Errors
    ///
    /// It is a file, a socket or the like.
    pub fn received(fd: OwnedFd) -> Result<Self, Failure> {
        let kind = fstat(&fd).map(|found| FileType::from_raw_mode(found.st_mode));
        match kind {
            Ok(FileType::Unknown) => Ok(Self(Arc::new(fd))),
            _ => Err(Failure::not_an_eventfd()),
        }
    }

    /// Counts up by one, where there is room. A client can fill its own eventfd, and then nothing is lost; one that does so
    /// between the question and the write holds up the thread that serves it.
    pub fn signal(&self) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&now)) == Ok(1) {
            // It is readable already where this fails.
            let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
        }
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Two are the same if they are one descriptor.
impl PartialEq for Eventfd {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Eventfd {}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_an_eventfd_is_taken() {
        let ours = Eventfd::new().unwrap();
        assert!(Eventfd::received(ours.as_fd().try_clone_to_owned().unwrap()).is_ok());
        let (socket, _other) = UnixStream::pair().unwrap();
        assert_eq!(Eventfd::received(socket.into()), Err(Failure::not_an_eventfd()));
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert_eq!(Eventfd::received(file.into()), Err(Failure::not_an_eventfd()));
    }

    #[test]
    fn one_that_is_full_is_left_alone() {
        let eventfd = Eventfd::received(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap();
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        eventfd.signal();
        let mut count = [0; 8];
        rustix::io::read(&eventfd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
    }
}
