// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A reset under way, and how far it has come.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use protocol::extension::{
    Cookie, CoordinationId, MemberName, PciAddress, ResetMethod, ResetOutcome, ResetPolicy, ResetReport,
    ResetRequestId,
};
use rustix::io::Errno;

use super::device::Loss;
use super::ladder::{Reason, Rung};
use super::request::{Asker, Demand, Request};

/// How a reset ended.
pub(super) type Ending = Result<Fired, Reason>;

/// A reset that reached the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fired {
    pub(super) outcome: ResetOutcome,
    pub(super) attempts: u32,
    /// A process that was lost on the way, if one was.
    pub(super) missing: Option<MemberName>,
}

/// How far a reset has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// The kernel is asked for the set.
    Querying,
    /// Another reset holds a device of the set.
    Waiting,
    /// The broker was asked.
    Asking(ResetRequestId),
    /// The broker was told no; it has not said what becomes of it.
    Declined,
    /// These devices are being quiesced.
    Quiescing(BTreeSet<Cookie>),
    /// All are; the broker has to say what next.
    Ready,
    /// The kernel is asked for the reset.
    Attempting,
    /// It was busy, and is asked again then.
    Pausing(Instant, Errno),
    /// It has answered; the broker has to say what next.
    Told(Ending),
    /// These devices are being restored.
    Restoring(BTreeSet<Cookie>, Ending),
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For another reset.
    Waiting,
    /// For the kernel's answer which devices it would hit.
    Querying,
    /// For the broker.
    Coordinating,
    /// For devices that are being quiesced.
    Quiescing,
    /// For the kernel's reset.
    Resetting,
    /// For devices that are being restored.
    Restoring,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Waiting => "waiting for another reset",
            Self::Querying => "waiting to learn what it would hit",
            Self::Coordinating => "waiting for other servers",
            Self::Quiescing => "quiescing devices",
            Self::Resetting => "being reset by the kernel",
            Self::Restoring => "restoring devices",
        })
    }
}

/// What a reset that the broker coordinates has to remember.
#[derive(Debug)]
pub(super) struct Coordination {
    /// The broker's name for it; `None` once the broker is gone.
    pub(super) id: Option<CoordinationId>,
    pub(super) target: PciAddress,
    pub(super) policy: ResetPolicy,
    /// When it is given up if the broker has said no end.
    pub(super) patience: Instant,
    /// Until when the kernel may be asked, if that is granted to us.
    pub(super) tries: Instant,
    /// What the broker said, or what follows from its silence.
    pub(super) verdict: Option<Ending>,
    /// Which request of ours that answers.
    pub(super) answered: Option<ResetRequestId>,
}

/// A reset under way.
#[derive(Debug)]
pub(super) struct Reset {
    pub(super) rung: Rung,
    /// The device that it was asked for first, and through which the kernel is asked, as long as it is there.
    pub(super) target: Cookie,
    /// Our devices that it hits.
    pub(super) scope: BTreeSet<Cookie>,
    /// All functions that it hits.
    pub(super) functions: BTreeSet<PciAddress>,
    pub(super) phase: Phase,
    pub(super) askers: Vec<Asker>,
    pub(super) coordination: Option<Coordination>,
    pub(super) lost: Vec<Loss>,
    /// Devices that are put back for their clients.
    pub(super) put_back: BTreeSet<Cookie>,
    /// The reset that was done before, if all that is left to do is to clear what was put back then.
    pub(super) earlier: Option<ResetReport>,
    pub(super) attempts: u32,
    pub(super) launched_at: Instant,
    /// When accesses are no longer held off, but answered; `None` once they are.
    pub(super) busy_at: Option<Instant>,
    /// Whether a busy kernel is not to be asked again, however much time is left.
    pub(super) is_cut_short: bool,
}

impl Reset {
    /// A reset of `target`, of which nothing else is known yet.
    pub(super) fn new(rung: Rung, target: Cookie, phase: Phase, now: Instant) -> Self {
        Self {
            rung,
            target,
            scope: BTreeSet::from([target]),
            functions: BTreeSet::new(),
            phase,
            askers: Vec::new(),
            coordination: None,
            lost: Vec::new(),
            put_back: BTreeSet::new(),
            earlier: None,
            attempts: 0,
            launched_at: now,
            busy_at: None,
            is_cut_short: false,
        }
    }

    /// Whether it has begun and is not over: from the first quiesce to the last restore.
    pub(super) const fn is_launched(&self) -> bool {
        match self.phase {
            Phase::Querying | Phase::Waiting | Phase::Asking(_) | Phase::Declined => false,
            Phase::Quiescing(_)
            | Phase::Ready
            | Phase::Attempting
            | Phase::Pausing(..)
            | Phase::Told(_)
            | Phase::Restoring(..) => true,
        }
    }

    /// Whether its set is reset together.
    pub(super) const fn is_group_reset(&self) -> bool {
        matches!(self.rung, Rung::Group) && self.earlier.is_none()
    }

    /// Whether it knows what it hits and will come to that.
    pub(super) const fn is_settled(&self) -> bool {
        self.is_launched() || matches!(self.phase, Phase::Waiting | Phase::Asking(_))
    }

    /// Whether nobody else may reset the function meanwhile, be it ours or not.
    pub(super) fn holds(&self, function: PciAddress) -> bool {
        self.is_launched() && self.functions.contains(&function)
    }

    /// Whether it hits the device, as far as is known.
    pub(super) fn affects(&self, device: Cookie) -> bool {
        self.scope.contains(&device)
    }

    /// Whether a request for one of its devices is served by it: none is if it has failed already, and a wish for a hot
    /// reset only by one.
    pub(super) fn serves(&self, request: &Request) -> bool {
        if self.has_failed() || self.earlier.is_some() && request.demand == Demand::Reset {
            return false;
        }
        self.rung == Rung::Group
            || request.method != Some(ResetMethod::Hot)
            || request.demand == Demand::Clean
    }

    /// Whether it is known that it will not be done.
    fn has_failed(&self) -> bool {
        let verdict = self.coordination.as_ref().and_then(|coordination| coordination.verdict.as_ref());
        let ending = if let Phase::Told(ending) | Phase::Restoring(_, ending) = &self.phase {
            Some(ending)
        } else {
            verdict
        };
        ending.is_some_and(Result::is_err)
    }

    /// Until when a busy kernel is asked again; `None` if nobody waits for that.
    pub(super) fn tries_until(&self) -> Option<Instant> {
        match &self.coordination {
            _ if self.is_cut_short => None,
            Some(coordination) => Some(coordination.tries).filter(|_| coordination.verdict.is_none()),
            None => self.askers.iter().map(|asker| asker.request.deadline.tries()).max(),
        }
    }

    /// What somebody waits for who has asked for it.
    pub(super) const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Querying => Stage::Querying,
            Phase::Waiting => Stage::Waiting,
            Phase::Asking(_) | Phase::Declined | Phase::Ready | Phase::Told(_) => Stage::Coordinating,
            Phase::Quiescing(_) => Stage::Quiescing,
            Phase::Attempting | Phase::Pausing(..) => Stage::Resetting,
            Phase::Restoring(..) => Stage::Restoring,
        }
    }

    /// The next moment at which something is due.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let deadlines = self.askers.iter().map(|asker| {
            let deadline = asker.request.deadline;
            if self.is_launched() { deadline.answer() } else { deadline.tries() }
        });
        let pause = if let Phase::Pausing(until, _) = self.phase { Some(until) } else { None };
        let coordination = self.coordination.as_ref().filter(|coordination| coordination.verdict.is_none());
        let patience = coordination.map(|coordination| coordination.patience);
        deadlines.chain(pause).chain(patience).chain(self.busy_at).min()
    }
}
