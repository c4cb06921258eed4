// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One attempt, in a process that it may cost.

use std::fmt;

use rustix::io::Errno;
use sandbox::{Filters, Thread};

/// How long an attempt that is not refused may wait for something, in seconds.
const PATIENCE: libc::c_uint = 10;

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The call succeeded.
    Done,
    /// The call failed.
    Failed(Errno),
    /// The process was ended by this signal.
    Killed(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => formatter.write_str("done"),
            Self::Failed(errno) => write!(formatter, "errno {}", errno.raw_os_error()),
            Self::Killed(signal) => write!(formatter, "signal {signal}"),
        }
    }
}

/// Makes the attempt on a thread of that kind in a child of this process. What it returns is a call's result.
pub(crate) fn try_in_child(
    thread: Thread,
    filters: Option<&Filters>,
    attempt: impl Fn() -> Result<(), Errno> + Send + Sync,
) -> Outcome {
    // SAFETY: this process has one thread, so the child is a whole copy of it.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no child");
    if child == 0 {
        // SAFETY: it only sets a timer; its signal ends the child.
        unsafe { libc::alarm(PATIENCE) };
        let result = match thread {
            Thread::Loop => confined(thread, filters, attempt),
            Thread::Worker | Thread::Reset | Thread::Kick => std::thread::scope(|scope| {
                let work = scope.spawn(|| confined(thread, filters, attempt));
                work.join().expect("the thread ends by itself")
            }),
        };
        let status = result.err().map_or(0, Errno::raw_os_error);
        // SAFETY: nothing of this process is used any more.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for it, and the child ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "the child's status");
    match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
        (true, _) => Outcome::Killed(libc::WTERMSIG(status)),
        (false, 0) => Outcome::Done,
        (false, errno) => Outcome::Failed(Errno::from_raw_os_error(errno)),
    }
}

fn confined(
    thread: Thread,
    filters: Option<&Filters>,
    attempt: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    if let Some(filters) = filters {
        filters.install(thread).expect("the filter is installed");
    }
    attempt()
}
