// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sanitizing: a device is reset before somebody gets it and after somebody had it, and there is a record of that.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use protocol::extension::{Cookie, Epoch, PciAddress, ResetOutcome, ResetPolicy};

use super::device::Loss;
use super::event::Action;
use super::ladder::Rung;
use super::request::{Asker, Deadline, Demand, Refusal, Report, Request, RequestId};

/// What is done about a device that cannot be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizing {
    /// It is not served.
    Required,
    /// It is served all the same.
    BestEffort,
    /// Nothing is tried.
    Off,
}

/// When a device is sanitized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Before somebody gets it.
    HandOut,
    /// After somebody had it.
    HandBack,
}

/// A device to be sanitized.
#[derive(Clone, Debug)]
pub struct Sanitization {
    /// Its name, from the same numbers as those of [`Request`].
    pub id: RequestId,
    /// Which device.
    pub device: Cookie,
    /// How strictly.
    pub policy: Sanitizing,
    /// How far the reset may reach.
    pub reach: ResetPolicy,
    /// When.
    pub occasion: Occasion,
    /// For whom it is, or who had it.
    pub who: String,
    /// The time of day.
    pub when: SystemTime,
    /// How long it may take.
    pub deadline: Deadline,
}

/// Whether the device may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Serve,
    /// It must not.
    Refuse,
}

/// What is kept about a device that was to be sanitized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// When it was.
    pub occasion: Occasion,
    /// For whom, or who had it.
    pub who: String,
    /// The time of day when it began.
    pub when: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Which device; no address if there was none of that name.
    pub device: (Cookie, Option<PciAddress>),
    /// How strictly.
    pub policy: Sanitizing,
    /// What came of it.
    pub outcome: AuditOutcome,
}

/// What came of sanitizing a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditOutcome {
    /// It was reset.
    Reset {
        /// By which means.
        rung: Rung,
        /// How sure the kernel is.
        outcome: ResetOutcome,
        /// In which epoch.
        epoch: Epoch,
        /// All devices that the reset hit.
        affected: Vec<Cookie>,
        /// Those that it has left lost.
        lost: Vec<Loss>,
    },
    /// It was clean since this epoch.
    WasClean {
        /// By which means it had been reset.
        rung: Rung,
        /// The epoch.
        epoch: Epoch,
    },
    /// It was not reset.
    NotReset(Refusal),
    /// Nothing was tried.
    Skipped,
}

impl Sanitization {
    /// The request that it comes to.
    pub(super) fn asker(self, now: Instant) -> Asker {
        let request = Request {
            id: self.id,
            device: self.device,
            method: None,
            demand: Demand::Clean,
            policy: self.reach,
            vm: None,
            deadline: self.deadline,
        };
        Asker { sanitization: Some((self, now)), ..Asker::new(request) }
    }

    /// What is told and kept in the end.
    pub(super) fn conclude(
        self,
        address: Option<PciAddress>,
        took: Duration,
        result: Option<Result<Report, Refusal>>,
    ) -> Action {
        let verdict = match (&result, self.policy) {
            (Some(Err(_)), Sanitizing::Required) => Verdict::Refuse,
            _ => Verdict::Serve,
        };
        let record = AuditRecord {
            occasion: self.occasion,
            who: self.who,
            when: self.when,
            took,
            device: (self.device, address),
            policy: self.policy,
            outcome: result.map_or(AuditOutcome::Skipped, AuditOutcome::of),
        };
        Action::Sanitized { id: self.id, verdict, record }
    }
}

/// As fields of a line in the log.
impl fmt::Display for AuditRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cookie, address) = &self.device;
        let when = self.when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let address = address.map_or_else(|| "gone".into(), |address| address.to_string());
        write!(
            formatter,
            "occasion={:?} device={address} cookie={:#x} who=\"{}\" when={when} took-us={} policy={:?} {}",
            self.occasion,
            cookie.0,
            self.who,
            self.took.as_micros(),
            self.policy,
            self.outcome
        )
    }
}

/// As fields of a line in the log.
impl fmt::Display for AuditOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset { rung, outcome, epoch, affected, lost } => {
                let names: Vec<_> = affected.iter().map(|cookie| format!("{:#x}", cookie.0)).collect();
                write!(
                    formatter,
                    "result=reset method=\"{rung}\" outcome={outcome:?} epoch={} affected={} lost={}",
                    epoch.0,
                    names.join(","),
                    lost.len()
                )
            }
            Self::WasClean { rung, epoch } => {
                write!(formatter, "result=was-clean method=\"{rung}\" epoch={}", epoch.0)
            }
            Self::NotReset(refusal) => write!(formatter, "result=not-reset reason=\"{refusal}\""),
            Self::Skipped => formatter.write_str("result=skipped"),
        }
    }
}

impl AuditOutcome {
    fn of(result: Result<Report, Refusal>) -> Self {
        match result {
            Ok(Report { rung, reset, is_from_epoch: true, .. }) => {
                Self::WasClean { rung, epoch: reset.epoch }
            }
            Ok(Report { rung, reset, lost, .. }) => Self::Reset {
                rung,
                outcome: reset.outcome,
                epoch: reset.epoch,
                affected: reset.affected,
                lost,
            },
            Err(refusal) => Self::NotReset(refusal),
        }
    }
}
