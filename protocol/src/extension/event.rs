// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Events: what a server tells a client that has subscribed, without being asked each time.

use std::ops::BitOr;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::failure::bounded;
use super::{
    Cookie, Epoch, Generation, GroupReason, MAX_DEVICES, ResetMethod, ResetOutcome, errno_from_wire, split,
    wire_errno,
};

/// Longest reason of a reset that failed, in bytes.
const MAX_WHY: usize = 1023;

/// Kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct EventKinds(pub u32);

impl EventKinds {
    /// Bit 0: how resets go.
    pub const RESETS: Self = Self(1);
    /// Bit 1: errors of devices.
    pub const DEVICE_ERRORS: Self = Self(2);
    /// Bit 2: devices that the host wants back.
    pub const UNPLUG_REQUESTS: Self = Self(4);
    /// Bit 3: reset groups that become available, or are not any more.
    pub const GROUPS: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(0xf);

    /// Whether all of `kinds` are in this set.
    pub fn contains(self, kinds: Self) -> bool {
        self.0 & kinds.0 == kinds.0
    }
}

impl BitOr for EventKinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Payload of the `SUBSCRIBE` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SubscribeRequest {
    /// Which; these take the place of those subscribed to before.
    pub events: EventKinds,
    /// How often the server asks the kernel whether groups are available, in milliseconds; 0: only when it has changed
    /// something itself.
    pub poll_ms: u32,
}

/// How far a reset has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum ResetStage {
    /// It begins: its devices are held off.
    Begun = 1,
    /// They are quiesced.
    Quiesced = 2,
    /// It is over, and was done.
    Done = 3,
    /// It is over, and was not done as far as the kernel tells.
    Failed = 4,
}

/// How a device of a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum AffectedState {
    /// It is held off.
    HeldOff = 1,
    /// It is in use again.
    InOrder = 2,
    /// It could not be quiesced or restored, and is not in use.
    Lost = 3,
}
super::numbered!(ResetStage, AffectedState);

/// What `RESET_EVENT` begins with; `affected` times an [`AffectedDevice`] and a string, ended by NUL, follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetEventHeader {
    /// Which reset of the server.
    pub reset: u64,
    /// The epoch that it began, or that goes on if it did not.
    pub epoch: Epoch,
    /// How long it has taken, in microseconds; 0 until it is over.
    pub duration_us: u64,
    /// How far it has come.
    pub stage: ResetStage,
    /// How it is done.
    pub method: ResetMethod,
    /// For `Done`: how sure the kernel is.
    pub outcome: ResetOutcome,
    /// For `Failed`: an errno.
    pub errno: u32,
    /// For `Done` and `Failed`: how often the kernel was asked.
    pub attempts: u32,
    /// Number of devices that follow.
    pub affected: u32,
}

/// A device of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AffectedDevice {
    /// Which.
    pub cookie: Cookie,
    /// How it is.
    pub state: AffectedState,
    /// 0.
    pub reserved: u32,
}

/// How a reset goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetEvent {
    /// Which reset of the server.
    pub reset: u64,
    /// The epoch that it began, or that goes on if it did not.
    pub epoch: Epoch,
    /// How it is done.
    pub method: ResetMethod,
    /// How far it has come.
    pub progress: ResetProgress,
    /// The server's devices that it hits, at most [`MAX_DEVICES`]; more would not be encoded.
    pub affected: Vec<AffectedDevice>,
}

/// How far a reset has come, and what there is to tell then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetProgress {
    /// It begins.
    Begun,
    /// Its devices are quiesced.
    Quiesced,
    /// It was done.
    Done {
        /// How sure the kernel is.
        outcome: ResetOutcome,
        /// How often it was asked.
        attempts: u32,
        /// How long it took, to the microsecond.
        duration: Duration,
    },
    /// It was not done.
    Failed {
        /// Why, for a program.
        errno: Errno,
        /// Why, for a person: at most 1023 bytes, without NUL.
        why: String,
        /// How often the kernel was asked.
        attempts: u32,
        /// How long it took, to the microsecond.
        duration: Duration,
    },
}

impl ResetEvent {
    /// The payload.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let affected = self.affected.get(..usize::from(MAX_DEVICES)).unwrap_or(&self.affected);
        let mut header = ResetEventHeader {
            reset: self.reset,
            epoch: self.epoch,
            duration_us: 0,
            stage: ResetStage::Begun,
            method: self.method,
            outcome: ResetOutcome::Done,
            errno: 0,
            attempts: 0,
            affected: u32::try_from(affected.len()).unwrap_or(u32::MAX),
        };
        let mut words = String::new();
        let microseconds = |duration: &Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        match &self.progress {
            ResetProgress::Begun => {}
            ResetProgress::Quiesced => header.stage = ResetStage::Quiesced,
            ResetProgress::Done { outcome, attempts, duration } => {
                header.stage = ResetStage::Done;
                header.outcome = *outcome;
                header.attempts = *attempts;
                header.duration_us = microseconds(duration);
            }
            ResetProgress::Failed { errno, why, attempts, duration } => {
                header.stage = ResetStage::Failed;
                header.errno = wire_errno(*errno);
                header.attempts = *attempts;
                header.duration_us = microseconds(duration);
                words = bounded(why.clone(), MAX_WHY);
            }
        }
        [header.as_bytes(), affected.as_bytes(), words.as_bytes(), &[0]].concat()
    }

    /// Reads the payload; `None` if it is malformed.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (header, mut rest): (ResetEventHeader, _) = split(payload)?;
        let ResetEventHeader {
            reset,
            epoch,
            duration_us,
            stage,
            method,
            outcome,
            errno,
            attempts,
            affected: count,
        } = header;
        let count = usize::try_from(count).ok().filter(|count| *count <= usize::from(MAX_DEVICES))?;
        let mut affected = Vec::with_capacity(count);
        for _ in 0..count {
            let (device, behind) = split(rest)?;
            affected.push(device);
            rest = behind;
        }
        let words = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?;
        if words.contains('\0') || words.len() > MAX_WHY {
            return None;
        }
        let duration = Duration::from_micros(duration_us);
        let progress = match stage {
            ResetStage::Begun => ResetProgress::Begun,
            ResetStage::Quiesced => ResetProgress::Quiesced,
            ResetStage::Done => ResetProgress::Done { outcome, attempts, duration },
            ResetStage::Failed => {
                let (errno, why) = (errno_from_wire(errno)?, words.to_owned());
                ResetProgress::Failed { errno, why, attempts, duration }
            }
        };
        Some(Self { reset, epoch, method, progress, affected })
    }
}

/// Payload of `GROUP_CHANGED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GroupEvent {
    /// Of which state of the group this tells.
    pub generation: Generation,
    /// Which device's group.
    pub cookie: Cookie,
    /// 1 if the group can be reset now, else 0.
    pub available: u32,
    /// Why, or why not.
    pub reason: GroupReason,
}

#[cfg(test)]
mod tests;
