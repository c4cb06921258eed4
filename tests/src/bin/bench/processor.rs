// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which processor this process and those it starts run on, and for how long they do.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Keeps this process, and for good those that it starts meanwhile, on one processor.
///
/// On one, a round trip is the sum of all that client, server and kernel do, with two switches between them, and it does
/// not matter how long another processor takes to wake up.
#[derive(Debug)]
pub(crate) struct OneProcessor {
    before: CpuSet,
}

impl OneProcessor {
    /// The last one that may be used: more of the kernel's own work is done on the first.
    pub(crate) fn pin() -> Self {
        let before = sched_getaffinity(None).expect("the processors");
        let last = (0..CpuSet::MAX_CPU).rfind(|number| before.is_set(*number)).expect("a processor");
        let mut only = CpuSet::new();
        only.set(last);
        sched_setaffinity(None, &only).expect("a processor that may be used");
        Self { before }
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.before).expect("the processors as before");
    }
}

/// How much of a processor's time this process has had.
pub(crate) fn own_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).expect("a time")
}

/// The same of the threads of another process whose names pass. They must be at rest: what one has just had is not counted
/// yet.
pub(crate) fn time_of_threads(process: u32, is_counted: impl Fn(&str) -> bool) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process's threads");
    let time = |thread: std::io::Result<std::fs::DirEntry>| {
        let folder = thread.expect("a thread").path();
        let text = |file| std::fs::read_to_string(folder.join(file)).expect("what is known of the thread");
        if !is_counted(text("comm").trim()) {
            return Duration::ZERO;
        }
        let nanoseconds = text("schedstat").split(' ').next().and_then(|number| number.parse().ok());
        Duration::from_nanos(nanoseconds.expect("the time in which it ran"))
    };
    threads.map(time).sum()
}

/// The same of all threads of another process.
pub(crate) fn time_of_process(process: u32) -> Duration {
    time_of_threads(process, |_| true)
}
