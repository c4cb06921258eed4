// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Time and locks: which system calls last, which have to wait for those, and what the time is.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::topology::DeviceSet;
use crate::pci_address::PciAddress;

/// What a system call works on alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locks {
    /// The kernel's lock of a set of devices: binding, attaching, asking for a reset and doing it.
    pub(crate) set: Option<DeviceSet>,
    /// Memory of devices: accesses and resets.
    pub(crate) memory: Vec<PciAddress>,
}

impl Locks {
    fn collides_with(&self, other: &Self) -> bool {
        let shares_set = self.set.is_some() && self.set == other.set;
        shares_set || self.memory.iter().any(|function| other.memory.contains(function))
    }
}

/// The time since the machine started.
#[derive(Debug)]
pub(crate) enum Clock {
    /// As everybody's.
    Real(Instant),
    /// As told.
    Virtual(Duration),
}

impl Clock {
    pub(crate) fn now(&self) -> Duration {
        match self {
            Self::Real(start) => start.elapsed(),
            Self::Virtual(now) => *now,
        }
    }
}

/// A piece of work that a schedule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64);

/// Work that lasts, and work that has to wait for it, in the order it came.
#[derive(Debug)]
pub(crate) struct Schedule<T> {
    running: BTreeMap<(Duration, Place), (Locks, T)>,
    waiting: VecDeque<(Locks, T)>,
    next: u64,
}

impl<T> Schedule<T> {
    pub(crate) fn new() -> Self {
        Self { running: BTreeMap::new(), waiting: VecDeque::new(), next: 0 }
    }

    /// Whether work that needs these locks has to wait: for what is running, and for what came before it.
    pub(crate) fn is_blocked(&self, needed: &Locks) -> bool {
        let running = self.running.values().map(|(held, _)| held);
        let waiting = self.waiting.iter().map(|(needed, _)| needed);
        running.chain(waiting).any(|held| held.collides_with(needed))
    }

    /// Work that has to wait.
    pub(crate) fn wait(&mut self, needed: Locks, work: T) {
        self.waiting.push_back((needed, work));
    }

    /// Work that lasts until `due`.
    pub(crate) fn run(&mut self, due: Duration, held: Locks, work: T) {
        let place = Place(self.next);
        self.next += 1;
        self.running.insert((due, place), (held, work));
    }

    /// When the next piece of work comes to its end.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.running.keys().next().map(|(due, _)| *due)
    }

    /// Work that has come to its end.
    pub(crate) fn finish(&mut self, now: Duration) -> Option<T> {
        let entry = self.running.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove().1)
    }

    /// What waited for it may try again.
    pub(crate) fn take_waiting(&mut self) -> VecDeque<T> {
        self.waiting.drain(..).map(|(_, work)| work).collect()
    }

    /// How much lasts, and how much waits.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Functions whose memory is in use by work that lasts.
    pub(crate) fn busy(&self) -> impl Iterator<Item = PciAddress> {
        self.running.values().flat_map(|(held, _)| held.memory.iter().copied())
    }
}
