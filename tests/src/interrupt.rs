// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An eventfd that a device's interrupt signals.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// How long to look for an interrupt that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The near end of an interrupt.
#[derive(Debug)]
pub struct Interrupt(OwnedFd);

impl Interrupt {
    /// A fresh eventfd, and a copy to hand over.
    pub fn new() -> (Self, OwnedFd) {
        let near = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
        let far = near.try_clone().expect("a second descriptor");
        (Self(near), far)
    }

    /// Fires it.
    pub fn signal(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).expect("an eventfd with room");
    }

    /// Whether it fires in time; takes what has fired.
    pub fn fires(&self) -> bool {
        self.fires_within(crate::server_process::PATIENCE)
    }

    /// Whether it stays silent for a while.
    pub fn is_silent(&self) -> bool {
        !self.fires_within(SILENCE)
    }

    fn fires_within(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).expect("a short time");
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&time)).expect("poll");
        ready == 1 && rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}
