// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The signals that concern a launcher, as something that can be watched.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::tool_error::ToolError;

/// A byte comes with each signal.
#[derive(Debug)]
pub(crate) struct Signals {
    end: UnixStream,
    child: UnixStream,
}

impl Signals {
    pub(crate) fn register() -> Result<Self, ToolError> {
        let registered =
            || Ok(Self { end: signalled_by(&[SIGINT, SIGTERM])?, child: signalled_by(&[SIGCHLD])? });
        registered().map_err(|error| ToolError::supervision(&error))
    }

    /// What to watch.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.end.as_fd(), self.child.as_fd()]
    }

    /// Whether we have been asked to end since the last time.
    pub(crate) fn take_end(&mut self) -> bool {
        drain(&mut self.end)
    }

    /// Is woken again only by the next child that ends.
    pub(crate) fn forget_children(&mut self) {
        drain(&mut self.child);
    }
}

fn signalled_by(signals: &[i32]) -> io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    for signal in signals {
        pipe::register(*signal, far.try_clone()?)?;
    }
    Ok(near)
}

/// Whether something was there.
fn drain(stream: &mut UnixStream) -> bool {
    let mut room = [0; 64];
    let mut was_there = false;
    while matches!(stream.read(&mut room), Ok(1..)) {
        was_there = true;
    }
    was_there
}
