// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The coordination messages as they are sent.

use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::{
    AbortCause, BrokerMessage, CoordinationId, CoordinationRequest, MAX_SET_FUNCTIONS, MemberMessage,
    MemberName, Preparation, ResetPolicy, ResetRequestId,
};
use crate::extension::{PciAddress, ResetOutcome, errno_from_wire, read_all, split, wire_errno};
use crate::request_number::RequestNumber;

/// Why a coordinated reset was not done, as it is sent; [`AbortCause`] has what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum AbortReason {
    /// A server's connection ended.
    MemberLost = 1,
    /// A server did not answer in time.
    MemberSilent = 2,
    /// A server protects a device of its.
    MemberRefused = 3,
    /// The kernel did not do the reset.
    KernelRefused = 4,
    /// The time allowed was over before the reset's turn came.
    DeadlinePassed = 5,
    /// A function of the set is bound by a process that the broker does not know.
    UnknownHolder = 6,
}

/// Which step a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum MemberAnswer {
    /// To `RESET_PREPARE`: its devices of the set are quiesced.
    Ready = 1,
    /// To `RESET_PREPARE`: it does not take part.
    Refused = 2,
    /// To `RESET_GRANT`: it has asked the kernel.
    Fired = 3,
    /// To `RESET_DONE` and `RESET_ABORT`: its devices are restored.
    Restored = 4,
}
crate::extension::numbered!(AbortReason, MemberAnswer);

/// Payload of the `COORDINATE` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CoordinateRequest {
    /// What the broker calls the server.
    pub name: MemberName,
}

/// What `RESET_PREPARE` begins with; `count` addresses follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PrepareRequest {
    /// Which reset.
    pub coordination: CoordinationId,
    /// For which device it was asked for.
    pub target: PciAddress,
    /// A [`ResetPolicy`].
    pub policy: u32,
    /// For how long the kernel may be asked, in milliseconds from now on.
    pub tries_ms: u32,
    /// When the server need not wait for an end any more, in milliseconds from now on.
    pub patience_ms: u32,
    /// Number of addresses that follow.
    pub count: u32,
    /// 0.
    pub reserved: u32,
}

/// Payload of the `RESET_GRANT` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantRequest {
    /// Which reset.
    pub coordination: CoordinationId,
}

/// Payload of the `RESET_DONE` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DoneRequest {
    /// Which reset.
    pub coordination: CoordinationId,
    /// Which request of the server it answers, or 0.
    pub request: ResetRequestId,
    /// A [`ResetOutcome`].
    pub outcome: u32,
    /// How often the kernel was asked.
    pub attempts: u32,
    /// A server that was lost on the way; empty if none was.
    pub missing: MemberName,
}

/// Payload of the `RESET_ABORT` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AbortRequest {
    /// Which reset, or 0: one that never began.
    pub coordination: CoordinationId,
    /// Which request of the server it answers, or 0.
    pub request: ResetRequestId,
    /// An [`AbortReason`].
    pub reason: u32,
    /// What the kernel said last, for `KernelRefused`.
    pub errno: u32,
    /// How often it was asked, for `KernelRefused`.
    pub attempts: u32,
    /// The device, for `MemberRefused` and `UnknownHolder`.
    pub device: PciAddress,
    /// The server, for `MemberLost`, `MemberSilent`, `MemberRefused` and `KernelRefused`.
    pub member: MemberName,
}

/// What `RESET_REQUEST` begins with; `count` addresses follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CoordinationRequestHeader {
    /// The server's name for it.
    pub request: ResetRequestId,
    /// For which device.
    pub target: PciAddress,
    /// How far it may reach.
    pub policy: ResetPolicy,
    /// For how long the kernel may be asked, in milliseconds.
    pub tries_ms: u32,
    /// Number of addresses that follow.
    pub count: u32,
}

/// What `RESET_ANSWER` begins with; `count` addresses follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetAnswer {
    /// Which reset.
    pub coordination: CoordinationId,
    /// To which step.
    pub answer: MemberAnswer,
    /// For `Fired`: what the kernel said last, 0 if it did the reset.
    pub errno: u32,
    /// For `Fired` with the errno 0: how sure it is.
    pub outcome: ResetOutcome,
    /// For `Fired`: how often it was asked.
    pub attempts: u32,
    /// For `Refused`: the device that is protected.
    pub device: PciAddress,
    /// Number of addresses that follow.
    pub count: u32,
}

/// No address, where none counts.
const NO_ADDRESS: PciAddress = PciAddress { segment: 0, bus: 0, devfn: 0 };

impl BrokerMessage {
    /// The request that says this, and its payload.
    pub fn encode(&self) -> (RequestNumber, Vec<u8>) {
        match self {
            Self::Prepare(preparation) => (RequestNumber::RESET_PREPARE, preparation.encode()),
            Self::Grant { coordination } => {
                (RequestNumber::RESET_GRANT, GrantRequest { coordination: *coordination }.as_bytes().to_vec())
            }
            Self::Done { coordination, request, outcome, attempts, missing } => {
                let payload = DoneRequest {
                    coordination: *coordination,
                    request: request.unwrap_or(ResetRequestId(0)),
                    outcome: (*outcome).into(),
                    attempts: *attempts,
                    missing: missing.unwrap_or(MemberName::new("")),
                };
                (RequestNumber::RESET_DONE, payload.as_bytes().to_vec())
            }
            Self::Abort { coordination, request, cause } => {
                let payload = AbortRequest {
                    coordination: coordination.unwrap_or(CoordinationId(0)),
                    request: request.unwrap_or(ResetRequestId(0)),
                    ..cause.encode()
                };
                (RequestNumber::RESET_ABORT, payload.as_bytes().to_vec())
            }
        }
    }
}

impl Preparation {
    fn encode(&self) -> Vec<u8> {
        let functions = bounded(&self.functions);
        let header = PrepareRequest {
            coordination: self.coordination,
            target: self.target,
            policy: self.policy.into(),
            tries_ms: milliseconds(self.tries),
            patience_ms: milliseconds(self.patience),
            count: count(functions),
            reserved: 0,
        };
        [header.as_bytes(), functions.as_bytes()].concat()
    }
}

impl AbortCause {
    /// The request that says this, without what it is about.
    fn encode(self) -> AbortRequest {
        let request = |reason: AbortReason, member: MemberName| AbortRequest {
            coordination: CoordinationId(0),
            request: ResetRequestId(0),
            reason: reason.into(),
            errno: 0,
            attempts: 0,
            device: NO_ADDRESS,
            member,
        };
        let nobody = MemberName::new("");
        match self {
            Self::MemberLost(member) => request(AbortReason::MemberLost, member),
            Self::MemberSilent(member) => request(AbortReason::MemberSilent, member),
            Self::MemberRefused { member, device } => {
                AbortRequest { device, ..request(AbortReason::MemberRefused, member) }
            }
            Self::KernelRefused { member, errno, attempts } => {
                let errno = wire_errno(errno);
                AbortRequest { errno, attempts, ..request(AbortReason::KernelRefused, member) }
            }
            Self::DeadlinePassed => request(AbortReason::DeadlinePassed, nobody),
            Self::UnknownHolder(device) => {
                AbortRequest { device, ..request(AbortReason::UnknownHolder, nobody) }
            }
        }
    }

    /// What the request says, which gives this `reason`; `None` if its errno is none.
    pub(crate) fn decode(reason: AbortReason, request: &AbortRequest) -> Option<Self> {
        let AbortRequest { errno, attempts, device, member, .. } = *request;
        Some(match reason {
            AbortReason::MemberLost => Self::MemberLost(member),
            AbortReason::MemberSilent => Self::MemberSilent(member),
            AbortReason::MemberRefused => Self::MemberRefused { member, device },
            AbortReason::KernelRefused => {
                Self::KernelRefused { member, errno: errno_from_wire(errno)?, attempts }
            }
            AbortReason::DeadlinePassed => Self::DeadlinePassed,
            AbortReason::UnknownHolder => Self::UnknownHolder(device),
        })
    }
}

impl MemberMessage {
    /// The request that says this, and its payload.
    pub(crate) fn encode(&self) -> (RequestNumber, Vec<u8>) {
        let answer = |coordination: &CoordinationId, answer| ResetAnswer {
            coordination: *coordination,
            answer,
            errno: 0,
            outcome: ResetOutcome::Done,
            attempts: 0,
            device: NO_ADDRESS,
            count: 0,
        };
        let (header, lost) = match self {
            Self::Request(request) => return (RequestNumber::RESET_REQUEST, request.encode()),
            Self::Ready { coordination, lost } => (answer(coordination, MemberAnswer::Ready), bounded(lost)),
            Self::Restored { coordination, lost } => {
                (answer(coordination, MemberAnswer::Restored), bounded(lost))
            }
            Self::Refused { coordination, device } => (
                ResetAnswer { device: *device, ..answer(coordination, MemberAnswer::Refused) },
                [].as_slice(),
            ),
            Self::Fired { coordination, result, attempts } => {
                let errno = result.map_or_else(wire_errno, |_| 0);
                let outcome = result.unwrap_or(ResetOutcome::Done);
                let fired = answer(coordination, MemberAnswer::Fired);
                (ResetAnswer { errno, outcome, attempts: *attempts, ..fired }, [].as_slice())
            }
        };
        let header = ResetAnswer { count: count(lost), ..header };
        (RequestNumber::RESET_ANSWER, [header.as_bytes(), lost.as_bytes()].concat())
    }

    /// Reads the payload of `RESET_ANSWER`; `None` if it is malformed.
    pub(crate) fn decode_answer(payload: &[u8]) -> Option<Self> {
        let (header, rest): (ResetAnswer, _) = split(payload)?;
        let ResetAnswer { coordination, answer, errno, outcome, attempts, device, count } = header;
        let lost = read_addresses(count, rest)?;
        Some(match answer {
            MemberAnswer::Ready => Self::Ready { coordination, lost },
            MemberAnswer::Restored => Self::Restored { coordination, lost },
            MemberAnswer::Refused => Self::Refused { coordination, device },
            MemberAnswer::Fired if errno == 0 => Self::Fired { coordination, result: Ok(outcome), attempts },
            MemberAnswer::Fired => {
                Self::Fired { coordination, result: Err(errno_from_wire(errno)?), attempts }
            }
        })
    }
}

impl CoordinationRequest {
    fn encode(&self) -> Vec<u8> {
        let functions = bounded(&self.functions);
        let header = CoordinationRequestHeader {
            request: self.request,
            target: self.target,
            policy: self.policy,
            tries_ms: milliseconds(self.tries),
            count: count(functions),
        };
        [header.as_bytes(), functions.as_bytes()].concat()
    }

    /// Reads the payload of `RESET_REQUEST`; `None` if it is malformed.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (header, rest): (CoordinationRequestHeader, _) = split(payload)?;
        let CoordinationRequestHeader { request, target, policy, tries_ms, count } = header;
        let functions = read_addresses(count, rest)?;
        let tries = Duration::from_millis(tries_ms.into());
        (request.0 != 0).then_some(Self { request, target, policy, tries, functions })
    }
}

/// As many addresses as `bytes` have to be.
pub(crate) fn read_addresses(count: u32, bytes: &[u8]) -> Option<Vec<PciAddress>> {
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_SET_FUNCTIONS)?;
    read_all(bytes).filter(|addresses| addresses.len() == count)
}

fn bounded(addresses: &[PciAddress]) -> &[PciAddress] {
    addresses.get(..MAX_SET_FUNCTIONS).unwrap_or(addresses)
}

fn count(addresses: &[PciAddress]) -> u32 {
    u32::try_from(addresses.len()).unwrap_or(u32::MAX)
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
