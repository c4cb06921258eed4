// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who asks for a reset, for how long they wait, and what they are told.

use std::time::{Duration, Instant};

use protocol::extension::{Cookie, MemberName, ResetMethod, ResetPolicy, ResetReport, ResetRequestId};
use thiserror::Error;

use super::device::{Loss, Vm};
use super::ladder::{Rung, Step};
use super::phase::Stage;
use super::sanitize::Sanitization;

/// Which request an answer belongs to. The integrator chooses it, and never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request to reset a device.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Which device.
    pub device: Cookie,
    /// How; `None` leaves it to the ladder.
    pub method: Option<ResetMethod>,
    /// What shall come of it.
    pub demand: Demand,
    /// How far it may reach.
    pub policy: ResetPolicy,
    /// Whose wish it is; `None` for the host's.
    pub vm: Option<Vm>,
    /// How long it may take.
    pub deadline: Deadline,
}

/// What shall come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// That the device be clean: one that nobody has touched since its last reset is not reset again. So ask those who are
    /// to use it then, and it is cleared for them.
    Clean,
    /// That it be reset, clean or not. A reset under way will do. So asks the host, and its client, if it has one, goes on.
    Reset,
}

/// Until when a request is worked on, and when it is answered at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    tries: Instant,
    answer: Instant,
}

impl Deadline {
    /// Whatever goes on at `instant`, the request is answered then. A reset under way is not cut short by that: it comes
    /// to its end, and whoever asks again has it.
    pub const fn at(instant: Instant) -> Self {
        Self { tries: instant, answer: instant }
    }

    /// From `instant` on nothing more is begun for the request, and `attempt` later at the latest it is answered: a reset
    /// under way is waited for so long.
    pub fn outlasting(instant: Instant, attempt: Duration) -> Self {
        Self { tries: instant, answer: instant + attempt }
    }

    /// From when on nothing is begun.
    pub(super) const fn tries(self) -> Instant {
        self.tries
    }

    /// When it is answered at the latest.
    pub(super) const fn answer(self) -> Instant {
        self.answer
    }
}

/// What came of a request that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The means.
    pub rung: Rung,
    /// The reset that cleaned the device.
    pub reset: ResetReport,
    /// Whether that was over when the request came, and the device untouched since.
    pub is_from_epoch: bool,
    /// The means that were passed over for this request, with the reasons.
    pub passed: Vec<Step>,
    /// Siblings that the reset has left lost.
    pub lost: Vec<Loss>,
    /// A server that was lost during the reset, with its devices.
    pub missing: Option<MemberName>,
}

/// Why a request was not granted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no device of this name.
    #[error("there is no such device")]
    UnknownDevice,
    /// The device was taken away meanwhile.
    #[error("the device was removed")]
    Removed,
    /// Every means was passed over or failed; [`decisive`](super::ladder::decisive) tells which to name first.
    #[error("no means is left: {}", sentence(passed))]
    NoMeansLeft {
        /// All of them.
        passed: Vec<Step>,
    },
    /// The deadline has passed.
    #[error("the deadline passed while it was {stage}")]
    DeadlinePassed {
        /// What was going on. If it was a reset, that goes on.
        stage: Stage,
        /// The means that were passed over before.
        passed: Vec<Step>,
    },
    /// The device was reset, and is not in order.
    #[error("{0}")]
    Lost(Loss),
}

fn sentence(steps: &[Step]) -> String {
    steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) request: Request,
    pub(super) passed: Vec<Step>,
    /// Under which name the broker was asked for it, if that has not been answered.
    pub(super) petition: Option<ResetRequestId>,
    /// What it is for, if not for its own sake.
    pub(super) sanitization: Option<(Sanitization, Instant)>,
}

impl Asker {
    pub(super) const fn new(request: Request) -> Self {
        Self { request, passed: Vec::new(), petition: None, sanitization: None }
    }
}
