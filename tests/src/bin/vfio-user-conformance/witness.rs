// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors for the server of which it shows what the server does with them.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;

/// A pipe whose writing end is sent: as long as the server has it open, the reading end does not come to its end.
#[derive(Debug)]
pub(crate) struct Pipe {
    near: PipeReader,
    far: Option<PipeWriter>,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        let (near, far) = pipe().expect("a pipe");
        Self { near, far: Some(far) }
    }

    /// The end to send.
    pub(crate) fn end(&self) -> BorrowedFd<'_> {
        self.far.as_ref().expect("it was not dropped yet").as_fd()
    }

    /// Whether the server closes what it got within this time.
    pub(crate) fn is_closed_within(&mut self, time: Duration) -> bool {
        drop(self.far.take());
        wait(self.near.as_fd(), PollFlags::empty(), time).contains(PollFlags::HUP)
    }
}

/// An eventfd that an interrupt signals.
#[derive(Debug)]
pub(crate) struct Eventfd(OwnedFd);

impl Eventfd {
    pub(crate) fn new() -> Self {
        Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether it is signalled within this time; takes the signal.
    pub(crate) fn is_signalled_within(&self, time: Duration) -> bool {
        wait(self.0.as_fd(), PollFlags::IN, time).contains(PollFlags::IN)
            && rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Whether it was signalled.
    pub(crate) fn is_signalled(&self) -> bool {
        self.is_signalled_within(Duration::ZERO)
    }
}

/// Guest memory: a memfd that cannot shrink.
#[derive(Debug)]
pub(crate) struct Memory(OwnedFd);

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("guest", flags).expect("a memfd");
        ftruncate(&file, size).expect("its size");
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("its seal");
        Self(file)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A descriptor that is open for reading only.
    pub(crate) fn for_reading(&self) -> File {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.0));
        File::open(path).expect("the memfd opens for reading")
    }

    /// Whether nobody can write it by way of a mapping, be it the CPU's or a device's: the kernel forbids writing only then.
    pub(crate) fn is_released(&self) -> bool {
        match fcntl_add_seals(&self.0, SealFlags::WRITE) {
            Ok(()) => true,
            Err(Errno::BUSY) => false,
            Err(errno) => panic!("the seal: {errno}"),
        }
    }
}

/// What becomes true of a descriptor within this time; nothing if nothing does.
fn wait(fd: BorrowedFd<'_>, events: PollFlags, time: Duration) -> PollFlags {
    let time = Timespec::try_from(time).expect("a short time");
    let mut fds = [PollFd::new(&fd, events)];
    let ready = poll(&mut fds, Some(&time)).expect("poll");
    let [found] = fds;
    if ready == 0 { PollFlags::empty() } else { found.revents() }
}
