// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An eventfd that somebody handed to the kernel.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// An eventfd.
#[derive(Debug)]
pub(crate) struct Eventfd(OwnedFd);

impl Eventfd {
    /// Accepts a descriptor.
    ///
    /// # Errors
    ///
    /// `EINVAL` where it is not one of an eventfd; `EBADF` where it is a mere path.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        if rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::PATH) {
            return Err(Errno::BADF);
        }
        // Nothing but proc tells the kinds of files apart that have no inode of their own.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        match link {
            Ok(target) if target.as_os_str() != "anon_inode:[eventfd]" => Err(Errno::INVAL),
            _ => Ok(Self(fd)),
        }
    }

    /// Adds one event. As in the kernel, one that would overflow the counter is lost.
    pub(crate) fn signal(&self) {
        if self.is_ready(PollFlags::OUT) {
            // Whoever holds the other end sees the event, or is gone.
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }

    /// Takes the events there are. Whether there were any.
    pub(crate) fn take(&self) -> bool {
        self.has_event() && rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Whether there are events to take.
    pub(crate) fn has_event(&self) -> bool {
        self.is_ready(PollFlags::IN)
    }

    fn is_ready(&self, what: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.0, what)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn another_kind_of_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Eventfd::new(file.into()).err(), Some(Errno::INVAL));
    }

    #[test]
    fn a_mere_path_is_no_open_file() {
        let path = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        assert_eq!(Eventfd::new(path.unwrap()).err(), Some(Errno::BADF));
    }

    #[test]
    fn a_full_counter_does_not_block() {
        let eventfd = Eventfd::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap();
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        eventfd.signal();
        assert!(eventfd.take());
        assert!(!eventfd.take());
    }
}
