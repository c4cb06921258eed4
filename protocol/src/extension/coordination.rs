// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One hot reset across several servers: what a server and the broker of its VM say to each other about it.
//!
//! The broker prepares every server that has a function of the set, grants the reset to one of them, and tells all how it
//! ended. Every server answers each step.

mod wire;

use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

pub(crate) use self::wire::read_addresses;
pub use self::wire::{
    AbortReason, AbortRequest, CoordinateRequest, CoordinationRequestHeader, DoneRequest, GrantRequest,
    MemberAnswer, PrepareRequest, ResetAnswer,
};
use super::{Name, PciAddress, ResetOutcome};

/// Most functions of one reset set that servers may have bound: as many as a bus has.
pub const MAX_SET_FUNCTIONS: usize = 256;

/// How the broker calls a reset that it coordinates; never 0, and never used twice in a session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct CoordinationId(pub u64);

/// How a server calls a request of its to the broker; never 0, and never used twice in a session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct ResetRequestId(pub u64);

/// How the broker calls a server, for people to read.
pub type MemberName = Name<32>;

/// How far a reset may reach beyond the device that it was asked for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(u32)]
pub enum ResetPolicy {
    /// Not beyond it.
    Function = 1,
    /// To siblings that are idle, and those whose VM asked too.
    Group = 2,
    /// To every sibling.
    Force = 3,
}

super::numbered!(ResetPolicy);

/// Why a coordinated reset was not done.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AbortCause {
    /// A server's connection ended.
    #[error("the server {} is gone", .0.as_str())]
    MemberLost(MemberName),
    /// A server did not answer in time.
    #[error("the server {} does not answer", .0.as_str())]
    MemberSilent(MemberName),
    /// A server protects a device of its.
    #[error("the server {} has {device} in use", .member.as_str())]
    MemberRefused {
        /// The server.
        member: MemberName,
        /// What it protects.
        device: PciAddress,
    },
    /// The kernel did not do the reset.
    #[error("the kernel refused it to the server {} ({errno}, {attempts} attempts)", .member.as_str())]
    KernelRefused {
        /// Who asked the kernel.
        member: MemberName,
        /// What it said last.
        errno: Errno,
        /// How often it was asked.
        attempts: u32,
    },
    /// The time allowed was over before the reset's turn came.
    #[error("another reset of the set took too long")]
    DeadlinePassed,
    /// A function of the set is bound to the iommufd by a process that the broker does not know.
    #[error("{0} is bound by a process that the broker does not know")]
    UnknownHolder(PciAddress),
}

/// What a server tells the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberMessage {
    /// It would like a reset whose set reaches beyond its own devices.
    Request(CoordinationRequest),
    /// Its devices of the set are quiesced.
    Ready {
        /// Which reset.
        coordination: CoordinationId,
        /// Those that did not let themselves be quiesced.
        lost: Vec<PciAddress>,
    },
    /// It does not take part, and has quiesced nothing.
    Refused {
        /// Which reset.
        coordination: CoordinationId,
        /// The device that its policy protects.
        device: PciAddress,
    },
    /// It has used the grant.
    Fired {
        /// Which reset.
        coordination: CoordinationId,
        /// What the kernel said in the end.
        result: Result<ResetOutcome, Errno>,
        /// How often it was asked.
        attempts: u32,
    },
    /// Its devices are in use again.
    Restored {
        /// Which reset.
        coordination: CoordinationId,
        /// Those that are not.
        lost: Vec<PciAddress>,
    },
}

/// A server's wish for a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinationRequest {
    /// Its name.
    pub request: ResetRequestId,
    /// For which device.
    pub target: PciAddress,
    /// How far it may reach.
    pub policy: ResetPolicy,
    /// For how long a busy kernel may be asked again.
    pub tries: Duration,
    /// The functions of the set that are bound to the iommufd, by whomever; at most [`MAX_SET_FUNCTIONS`].
    pub functions: Vec<PciAddress>,
}

/// What the broker tells a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerMessage {
    /// Quiesce your devices of the set.
    Prepare(Preparation),
    /// You are the one who asks the kernel.
    Grant {
        /// Which reset.
        coordination: CoordinationId,
    },
    /// The set was reset: restore.
    Done {
        /// Which reset.
        coordination: CoordinationId,
        /// Which request of yours it answers.
        request: Option<ResetRequestId>,
        /// How sure the kernel is.
        outcome: ResetOutcome,
        /// How often it was asked.
        attempts: u32,
        /// A server that was lost on the way, if one was.
        missing: Option<MemberName>,
    },
    /// The set was not reset, as far as anybody knows: restore.
    Abort {
        /// Which reset; `None` if it never began.
        coordination: Option<CoordinationId>,
        /// Which request of yours this answers.
        request: Option<ResetRequestId>,
        /// Why.
        cause: AbortCause,
    },
}

/// What a server has to prepare for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preparation {
    /// Which reset.
    pub coordination: CoordinationId,
    /// For which device it was asked for, in whatever server.
    pub target: PciAddress,
    /// How far it may reach.
    pub policy: ResetPolicy,
    /// How long from now on the kernel may be asked by the server that is granted it; a grant that comes later is void.
    pub tries: Duration,
    /// How long from now on the whole may take. A server that has heard no end by then restores on its own.
    pub patience: Duration,
    /// The functions that it hits; at most [`MAX_SET_FUNCTIONS`].
    pub functions: Vec<PciAddress>,
}
