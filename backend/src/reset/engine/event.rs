// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the engine is told, and what it wants done.

use std::time::Duration;

use protocol::extension::{
    BrokerMessage, Cookie, Epoch, MemberMessage, MemberName, PciAddress, ResetMethod, ResetOutcome,
    ResetReport,
};
use rustix::io::Errno;

use super::device::{Access, Loss, Restoration, Usage};
use super::ladder::{Reason, Rung};
use super::request::{Refusal, Report, Request, RequestId};
use super::sanitize::{AuditRecord, Sanitization, Verdict};
use super::scope::Scope;
use crate::device::FunctionReset;

/// One reset of this process, from its query to its end; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResetId(pub u64);

/// What the engine is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A device was bound.
    DeviceAdded {
        /// Its name.
        device: Cookie,
        /// Where it is.
        address: PciAddress,
        /// How it can be reset alone.
        function_reset: FunctionReset,
    },
    /// A device is no longer ours.
    DeviceRemoved(Cookie),
    /// Somebody waits for a device that is being reset: a busy kernel is not worth more waiting.
    WantedBack(Cookie),
    /// How a device is used has changed. One that becomes active is touched, too.
    Used(Cookie, Usage),
    /// A device was touched: it is not clean any more, and a wish to have it reset is no longer the last word.
    Touched(Cookie),
    /// Somebody asks for a reset.
    Asked(Request),
    /// Somebody gets a device, or had it.
    Sanitize(Sanitization),
    /// Of [`Action::Query`].
    Queried(ResetId, Result<Scope, Errno>),
    /// Of [`Action::Quiesce`].
    Quiesced(ResetId, Cookie, Result<(), Errno>),
    /// Of [`Action::Attempt`].
    Attempted(ResetId, Result<ResetOutcome, Errno>),
    /// Of [`Action::Restore`].
    Restored(ResetId, Cookie, Result<(), Errno>),
    /// A client has said that it coordinates the resets of this process. The one before is gone.
    BrokerFound,
    /// That client is gone.
    BrokerLost,
    /// It says something.
    BrokerSaid(BrokerMessage),
    /// Time has passed, at least to what [`Engine::wakes_at`](super::Engine::wakes_at) told.
    TimePassed,
}

/// What the engine wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the kernel for the reset set of the device. Slow: it waits for a reset of the set, whoever does it.
    Query(ResetId, Cookie),
    /// Take the device's interrupts down, turn decoding and bus mastering off, power it on.
    Quiesce(ResetId, Cookie),
    /// Ask the kernel, once, for the reset. Slow: up to a minute.
    Attempt(ResetId, Cookie, ResetMethod),
    /// Put the device in order.
    Restore(ResetId, Cookie, Restoration),
    /// Tell the device's client that its state is lost, which it has not agreed to.
    RaiseError(Cookie),
    /// From now on this is what becomes of an access to the device. Those held off are to be decided on anew.
    SetAccess(Cookie, Access),
    /// The answer to a request.
    Answer(RequestId, Box<Result<Report, Refusal>>),
    /// The end of a [`Sanitization`].
    Sanitized {
        /// Which.
        id: RequestId,
        /// Whether the device may be served.
        verdict: Verdict,
        /// For the audit log.
        record: AuditRecord,
    },
    /// For the broker.
    TellBroker(MemberMessage),
    /// For the log, and for those who have subscribed.
    Announce(ResetId, Announcement),
}

/// What everybody may know about a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// It begins: these devices are held off from now on.
    Begun {
        /// The means.
        rung: Rung,
        /// Our devices that it hits.
        affected: Vec<Cookie>,
    },
    /// They are quiesced.
    Quiesced {
        /// The means.
        rung: Rung,
        /// Our devices that it hits.
        affected: Vec<Cookie>,
        /// Those that did not let themselves be.
        lost: Vec<Loss>,
    },
    /// It was done.
    Done {
        /// The means.
        rung: Rung,
        /// What was done.
        report: ResetReport,
        /// Devices that are not in order.
        lost: Vec<Loss>,
        /// A server that was lost during it, with its devices.
        missing: Option<MemberName>,
    },
    /// It was not done, as far as the kernel told.
    Failed {
        /// The means.
        rung: Rung,
        /// Why.
        reason: Reason,
        /// The epoch, which goes on.
        epoch: Epoch,
        /// How long it took.
        duration: Duration,
        /// Our devices that it might have hit.
        affected: Vec<Cookie>,
        /// Devices that are not in order.
        lost: Vec<Loss>,
    },
}
