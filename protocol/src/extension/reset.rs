// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! RESET: what is asked for and what was done.

use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::{Cookie, MAX_DEVICES, ResetPolicy, read_all, split};

/// How long a reset is tried again when the client names no deadline.
pub const DEFAULT_RESET_DEADLINE: Duration = Duration::from_mins(1);

/// How long one attempt can take, also one that begins just before the deadline: after a bus reset the kernel waits that
/// long for a function to come back.
pub const LONGEST_ATTEMPT: Duration = Duration::from_mins(1);

/// Counts the resets that a server has done.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Epoch(pub u64);

/// A way to reset a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum ResetMethod {
    /// The function alone (`VFIO_DEVICE_RESET`).
    Function = 1,
    /// Its whole reset group (`VFIO_DEVICE_PCI_HOT_RESET`).
    Hot = 2,
}

/// How a reset ended that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum ResetOutcome {
    /// Well.
    Done = 0,
    /// It was done, but the kernel did not see the link come back (ENOTTY).
    LinkUnconfirmed = 1,
}
super::numbered!(ResetMethod, ResetOutcome);

/// Payload of the RESET request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetRequest {
    /// Which device.
    pub cookie: Cookie,
    /// A [`ResetMethod`], or 0: the server chooses.
    pub method: u32,
    /// A [`ResetPolicy`], or 0: the server's.
    pub policy: u32,
    /// How long to try again while the kernel is busy, in milliseconds; 0: the server's default.
    pub deadline_ms: u32,
    /// 0.
    pub reserved: u32,
}

/// How a client would like a device to be reset; what it leaves open the server chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResetWish {
    /// By which means.
    pub method: Option<ResetMethod>,
    /// How far it may reach.
    pub policy: Option<ResetPolicy>,
    /// For how long the kernel may be asked again while it is busy. The last attempt may take [`LONGEST_ATTEMPT`] more.
    pub deadline: Option<Duration>,
}

impl ResetWish {
    /// The request's payload.
    pub(crate) fn request(&self, cookie: Cookie) -> ResetRequest {
        let milliseconds = self.deadline.map_or(0, |deadline| deadline.as_millis().max(1));
        ResetRequest {
            cookie,
            method: self.method.map_or(0, u32::from),
            policy: self.policy.map_or(0, u32::from),
            deadline_ms: u32::try_from(milliseconds).unwrap_or(u32::MAX),
            reserved: 0,
        }
    }
}

/// What the reply to RESET begins with; the `affected` cookies follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetReply {
    /// The epoch that the reset began.
    pub epoch: Epoch,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// What was done.
    pub method: ResetMethod,
    /// How it ended.
    pub outcome: ResetOutcome,
    /// How often the kernel was asked, at least once.
    pub attempts: u32,
    /// Number of cookies that follow.
    pub affected: u32,
}

/// What a reset did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetReport {
    /// The epoch that it began.
    pub epoch: Epoch,
    /// How long it took, to the microsecond.
    pub duration: Duration,
    /// What was done.
    pub method: ResetMethod,
    /// How it ended.
    pub outcome: ResetOutcome,
    /// How often the kernel was asked.
    pub attempts: u32,
    /// Which devices of the server were reset, at most [`MAX_DEVICES`]; more would not be encoded.
    pub affected: Vec<Cookie>,
}

impl ResetReport {
    /// Appends the reply's payload to `body`.
    pub(crate) fn encode(&self, body: &mut Vec<u8>) {
        let affected = self.affected.get(..usize::from(MAX_DEVICES)).unwrap_or(&self.affected);
        let reply = ResetReply {
            epoch: self.epoch,
            duration_us: u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX),
            method: self.method,
            outcome: self.outcome,
            attempts: self.attempts,
            affected: u32::try_from(affected.len()).unwrap_or(u32::MAX),
        };
        body.extend(reply.as_bytes());
        body.extend(affected.as_bytes());
    }

    /// Reads the reply's payload; `None` if it is malformed.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (ResetReply { epoch, duration_us, method, outcome, attempts, affected: count }, rest) =
            split(payload)?;
        let affected = read_all(rest)?;
        let duration = Duration::from_micros(duration_us);
        let consistent = usize::try_from(count) == Ok(affected.len());
        consistent.then_some(Self { epoch, duration, method, outcome, attempts, affected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ResetReport {
        ResetReport {
            epoch: Epoch(3),
            duration: Duration::from_micros(1_234_567),
            method: ResetMethod::Hot,
            outcome: ResetOutcome::LinkUnconfirmed,
            attempts: 2,
            affected: vec![Cookie(1), Cookie(9)],
        }
    }

    fn encode(report: &ResetReport) -> Vec<u8> {
        let mut payload = Vec::new();
        report.encode(&mut payload);
        payload
    }

    #[test]
    fn a_report_survives_the_wire() {
        assert_eq!(ResetReport::decode(&encode(&report())), Some(report()));
    }

    #[test]
    fn a_report_that_does_not_fill_its_reply_is_malformed() {
        let payload = encode(&report());
        for size in 0..payload.len() {
            assert_eq!(ResetReport::decode(&payload[..size]), None, "{size} bytes");
        }
        assert_eq!(ResetReport::decode(&[payload.as_slice(), &[0; 8]].concat()), None);
    }

    #[test]
    fn a_report_with_an_unknown_method_is_malformed() {
        let mut payload = encode(&report());
        payload[16] = 3;
        assert_eq!(ResetReport::decode(&payload), None);
    }

    #[test]
    fn a_report_names_no_more_devices_than_a_server_may_have() {
        let affected: Vec<_> = (0..100).map(Cookie).collect();
        let decoded = ResetReport::decode(&encode(&ResetReport { affected, ..report() })).unwrap();
        assert_eq!(decoded.affected.len(), usize::from(MAX_DEVICES));
    }

    #[test]
    fn methods_have_their_numbers() {
        assert_eq!((u32::from(ResetMethod::Function), ResetMethod::try_from(2)), (1, Ok(ResetMethod::Hot)));
        assert!(ResetMethod::try_from(0).is_err());
    }
}
