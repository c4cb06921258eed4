// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steps of resets that ask the kernel, and the threads on which they are done.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use protocol::extension::{Cookie, ResetMethod, ResetOutcome};
use vfio::{CallError, Device, HotReset};

use super::engine::{Event, ResetId, Restoration, Scope};
use super::group::ResetGroup;
use crate::device::Quiescer;
use crate::worker::{Work, Worker};

/// How many resets can be in the kernel at once. One of a function under a slow bridge takes a minute, and delays nobody
/// as long as a thread is left.
const THREADS: usize = 4;

/// One step of a reset.
#[derive(Debug)]
pub enum Step {
    /// Ask for the reset set of the device.
    Query(ResetId, Arc<Device>),
    /// Stop the device.
    Quiesce(ResetId, Cookie, Quiescer),
    /// Reset.
    Attempt(ResetId, Arc<Device>, ResetMethod),
    /// Put the device in order.
    Restore(ResetId, Cookie, Quiescer, Restoration),
}

impl Step {
    const fn reset(&self) -> ResetId {
        match self {
            Self::Query(reset, _)
            | Self::Quiesce(reset, ..)
            | Self::Attempt(reset, ..)
            | Self::Restore(reset, ..) => *reset,
        }
    }

    fn carry_out(self) -> Event {
        match self {
            Self::Query(reset, device) => {
                let group = ResetGroup::of(&device).map_err(|error| error.errno);
                Event::Queried(reset, group.as_ref().map(Scope::from).map_err(|errno| *errno))
            }
            Self::Quiesce(reset, cookie, device) => {
                Event::Quiesced(reset, cookie, device.quiesce().map_err(|error| error.errno))
            }
            Self::Attempt(reset, device, method) => {
                Event::Attempted(reset, attempt(&device, method).map_err(|error| error.errno))
            }
            Self::Restore(reset, cookie, device, restoration) => {
                let result = device.restore(restoration);
                Event::Restored(reset, cookie, result.map_err(|error| error.errno))
            }
        }
    }
}

/// Steps of one reset that can be done one after the other. A reset goes on when all are, so it is told of all at once.
#[derive(Debug)]
struct Steps {
    reset: ResetId,
    steps: Vec<Step>,
}

impl Work for Steps {
    type Outcome = (ResetId, Vec<Event>);

    fn carry_out(self) -> (ResetId, Vec<Event>) {
        (self.reset, self.steps.into_iter().map(Step::carry_out).collect())
    }
}

fn attempt(device: &Device, method: ResetMethod) -> Result<ResetOutcome, CallError> {
    match method {
        ResetMethod::Function => device.reset().map(|()| ResetOutcome::Done),
        ResetMethod::Hot => device.hot_reset().map(|reset| match reset {
            HotReset::Done => ResetOutcome::Done,
            HotReset::DoneLinkUnconfirmed => ResetOutcome::LinkUnconfirmed,
        }),
    }
}

/// The threads, and what each is busy with. The steps of one reset that are under way together are on one thread, so
/// they are done in their order.
#[derive(Debug)]
pub struct ResetThreads {
    worker: Worker<Steps>,
    under_way: [Vec<ResetId>; THREADS],
}

impl ResetThreads {
    /// Starts them. Each begins with `confine`.
    pub fn start(confine: impl Fn() + Clone + Send + 'static) -> io::Result<Self> {
        Ok(Self { worker: Worker::start("reset", THREADS, confine)?, under_way: Default::default() })
    }

    /// Has steps done; those of one reset in their order.
    ///
    /// # Errors
    ///
    /// As [`Worker::submit`].
    pub fn submit(&mut self, steps: Vec<Step>) -> io::Result<()> {
        let mut resets: BTreeMap<ResetId, Vec<Step>> = BTreeMap::new();
        for step in steps {
            resets.entry(step.reset()).or_default().push(step);
        }
        resets.into_iter().try_for_each(|(reset, steps)| self.submit_to_thread(Steps { reset, steps }))
    }

    fn submit_to_thread(&mut self, steps: Steps) -> io::Result<()> {
        let reset = steps.reset;
        let threads = || self.under_way.iter().enumerate();
        let same = threads().find(|(_, resets)| resets.contains(&reset));
        let least_busy = || threads().min_by_key(|(_, resets)| resets.len());
        let thread = same.or_else(least_busy).map_or(0, |(thread, _)| thread);
        self.worker.submit(thread, steps)?;
        if let Some(resets) = self.under_way.get_mut(thread) {
            resets.push(reset);
        }
        Ok(())
    }

    /// What the engine is to be told of steps that are done, if there are any.
    pub fn outcome(&mut self) -> Option<Vec<Event>> {
        let (reset, events) = self.worker.outcome()?;
        for resets in &mut self.under_way {
            if let Some(place) = resets.iter().position(|other| *other == reset) {
                resets.swap_remove(place);
            }
        }
        Some(events)
    }

    /// Readable when steps are done.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.worker.ready()
    }
}
