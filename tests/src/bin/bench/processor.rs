// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which processor this process and those it starts run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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
