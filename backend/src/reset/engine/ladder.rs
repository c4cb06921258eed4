// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ladder: which means of resetting a device come in which order, and why one is passed over.

use std::fmt;

use protocol::extension::{AbortCause, PciAddress, ResetMethod, ResetPolicy};
use rustix::io::Errno;
use thiserror::Error;

use crate::device::FunctionReset;

/// A means of resetting a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The function alone, by a function level reset or another way that the kernel found good.
    Function,
    /// Its group: the slot or bus.
    Group,
    /// The function alone, by sending it to sleep and waking it.
    PowerManagement,
}

impl Rung {
    /// What it is to the kernel, and to a client.
    pub const fn method(self) -> ResetMethod {
        match self {
            Self::Group => ResetMethod::Hot,
            Self::Function | Self::PowerManagement => ResetMethod::Function,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Function => "function reset",
            Self::Group => "hot reset",
            Self::PowerManagement => "power management reset",
        })
    }
}

/// A rung that was passed over, or that failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("no {rung}: {reason}")]
pub struct Step {
    /// Which.
    pub rung: Rung,
    /// Why.
    pub reason: Reason,
}

/// Why a rung did not serve.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// The function has no reset of its own.
    #[error("the function has no reset of its own")]
    NoFunctionReset,
    /// It has one that is tried last.
    #[error("the function's own reset is one by power management, which leaves more behind")]
    OnlyPowerManagement,
    /// `ENODEV`.
    #[error("neither its slot nor its bus can be reset")]
    NoGroupReset,
    /// Functions of the set are not ours; none are named if the kernel does not tell which.
    #[error("functions of the set are not ours: {}", Addresses(.0))]
    Blocked(Vec<PciAddress>),
    /// Policy protects a sibling.
    #[error("the policy {policy:?} protects {sibling}")]
    Protected {
        /// What it protects.
        sibling: PciAddress,
        /// Which.
        policy: ResetPolicy,
    },
    /// Another process has bound a function of the set, and there is no broker to ask.
    #[error("another process has bound {0}, and there is no broker to coordinate with it")]
    SiblingElsewhere(PciAddress),
    /// The kernel does not tell the set.
    #[error("the kernel does not tell the set ({0})")]
    SetUnknown(Errno),
    /// It was tried, and the kernel refused.
    #[error("the kernel refused it ({errno}, {attempts} attempts)")]
    Refused {
        /// What it said last.
        errno: Errno,
        /// How often it was asked.
        attempts: u32,
    },
    /// The broker gave it up.
    #[error("the broker gave it up: {0}")]
    Aborted(AbortCause),
    /// The connection to the broker ended.
    #[error("the broker is gone")]
    BrokerLost,
    /// The broker did not say how it ended.
    #[error("the broker does not answer")]
    BrokerSilent,
    /// Nobody who asked for it waits any more.
    #[error("nobody waits for it any more")]
    Abandoned,
    /// No device is left through which the kernel could be asked.
    #[error("every device of it was removed")]
    NoDeviceLeft,
}

impl Reason {
    /// An errno for it: the kernel's, where that has said one.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoFunctionReset | Self::OnlyPowerManagement => Errno::OPNOTSUPP,
            Self::NoGroupReset | Self::NoDeviceLeft => Errno::NODEV,
            Self::Blocked(_) => Errno::PERM,
            Self::Protected { .. } | Self::SiblingElsewhere(_) => Errno::BUSY,
            Self::SetUnknown(errno) | Self::Refused { errno, .. } => *errno,
            Self::Aborted(cause) => match cause {
                AbortCause::KernelRefused { errno, .. } => *errno,
                AbortCause::MemberRefused { .. } | AbortCause::UnknownHolder(_) => Errno::BUSY,
                AbortCause::MemberLost(_) => Errno::CONNRESET,
                AbortCause::MemberSilent(_) | AbortCause::DeadlinePassed => Errno::TIMEDOUT,
            },
            Self::BrokerLost => Errno::CONNRESET,
            Self::BrokerSilent => Errno::TIMEDOUT,
            Self::Abandoned => Errno::CANCELED,
        }
    }

    /// How often the kernel was asked.
    pub const fn attempts(&self) -> u32 {
        match self {
            Self::Refused { attempts, .. } | Self::Aborted(AbortCause::KernelRefused { attempts, .. }) => {
                *attempts
            }
            _ => 0,
        }
    }

    /// Whether the hardware may have been reset all the same: nobody has said that it was not.
    pub(super) const fn leaves_doubt(&self) -> bool {
        match self {
            Self::Refused { errno, .. } | Self::Aborted(AbortCause::KernelRefused { errno, .. }) => {
                !matches!(*errno, Errno::INVAL | Errno::NODEV | Errno::PERM | Errno::BUSY | Errno::AGAIN)
            }
            Self::Aborted(AbortCause::MemberLost(_) | AbortCause::MemberSilent(_))
            | Self::BrokerLost
            | Self::BrokerSilent => true,
            _ => false,
        }
    }

    /// Whether the rung was tried: that is what a person wants to hear of first.
    pub(super) const fn was_tried(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. } | Self::Aborted(_) | Self::BrokerLost | Self::BrokerSilent | Self::Abandoned
        )
    }
}

/// The step that a failure is to be told with: the last one that was tried, or else the last one.
pub fn decisive(passed: &[Step]) -> Option<&Step> {
    passed.iter().rev().find(|step| step.reason.was_tried()).or_else(|| passed.last())
}

/// The next rung to try for a device, if one is left. Those that it lacks are passed over, with the reason.
pub(super) fn next(
    function_reset: FunctionReset,
    method: Option<ResetMethod>,
    passed: &mut Vec<Step>,
) -> Option<Rung> {
    let is_passed = |rung, passed: &[Step]| passed.iter().any(|step| step.rung == rung);
    let wants_function = method != Some(ResetMethod::Hot);
    if wants_function && !is_passed(Rung::Function, passed) {
        let reason = match function_reset {
            FunctionReset::Full => return Some(Rung::Function),
            FunctionReset::PowerManagement => Reason::OnlyPowerManagement,
            FunctionReset::None => Reason::NoFunctionReset,
        };
        passed.push(Step { rung: Rung::Function, reason });
    }
    if method != Some(ResetMethod::Function) && !is_passed(Rung::Group, passed) {
        return Some(Rung::Group);
    }
    let is_left = function_reset == FunctionReset::PowerManagement
        && wants_function
        && !is_passed(Rung::PowerManagement, passed);
    is_left.then_some(Rung::PowerManagement)
}

/// Addresses in a sentence.
struct Addresses<'a>(&'a [PciAddress]);

impl fmt::Display for Addresses<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        formatter.write_str(if names.is_empty() { "the kernel does not say which" } else { "" })?;
        formatter.write_str(&names.join(", "))
    }
}
