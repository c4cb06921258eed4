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

    /// So many of them.
    pub fn several(count: usize) -> (Vec<Self>, Vec<OwnedFd>) {
        (0..count).map(|_| Self::new()).unzip()
    }

    /// Whether it fires in time; takes what has fired.
    pub fn fires(&self) -> bool {
        self.fires_within(crate::server_process::PATIENCE)
    }

    /// Whether it has fired already; takes what has fired.
    pub fn has_fired(&self) -> bool {
        self.fires_within(Duration::ZERO)
    }

    /// How often it has fired; takes that.
    pub fn count(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    /// Fires it, as the device would.
    pub fn signal(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).expect("an eventfd takes it");
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
