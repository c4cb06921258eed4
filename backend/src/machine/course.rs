// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset engine in the machine: what has happened goes in, what is to be done comes out.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use protocol::ServerRequest;
use protocol::extension::{
    AffectedDevice, AffectedState, BrokerMessage, Cookie, EventKinds, MemberMessage, ResetEvent,
    ResetProgress, ResetReport,
};
use rustix::io::Errno;
use vfio::Sysfs;

use super::Machine;
use crate::failure::Failure;
use crate::reset::engine::{
    Access, Action, Announcement, AuditOutcome, Event, Loss, RequestId, ResetId, Restoration, Rung, Verdict,
};
use crate::reset::report;
use crate::reset::step::Step;

/// What the loop has to do because of the resets.
#[derive(Debug)]
pub enum Effect {
    /// Have it carried out on a thread for resets.
    Step(Step),
    /// The answer to a request.
    Answer(RequestId, Result<ResetReport, Failure>),
    /// A device was sanitized, or must not be served.
    Sanitized(RequestId, Result<(), Failure>),
    /// What was held off for the sake of a reset is to be tried again.
    AccessChanged,
    /// A device that is driven for a frontend was reset, for somebody else's sake.
    RingsLost(Cookie),
    /// For the broker.
    TellBroker(MemberMessage),
    /// For those who have subscribed to its kind.
    Event(EventKinds, ServerRequest),
}

impl Machine {
    /// What is to be done, in this order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// A step of a reset is done.
    pub fn step_done(&mut self, event: Event) {
        if let Event::Restored(_, cookie, result) = event
            && let Some(device) = self.devices.get_mut(&cookie)
        {
            if result.is_err() {
                // It was stopped.
                device.note_cleared();
            } else if device.may_be_touched_unseen() {
                self.drive(Event::Touched(cookie));
            }
        }
        self.drive(event);
    }

    /// Time has passed.
    pub fn pass_time(&mut self) {
        self.drive(Event::TimePassed);
    }

    /// When [`Self::pass_time`] is due.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.engine.wakes_at()
    }

    /// A client coordinates the resets from now on.
    pub fn find_broker(&mut self) {
        self.drive(Event::BrokerFound);
    }

    /// It is gone.
    pub fn lose_broker(&mut self) {
        self.drive(Event::BrokerLost);
    }

    /// It says something.
    pub fn hear_broker(&mut self, message: BrokerMessage) {
        self.drive(Event::BrokerSaid(message));
    }

    /// Whether the device may be accessed now.
    pub fn access(&self, cookie: Cookie) -> Access {
        self.engine.access(cookie)
    }

    /// Why the device may not be accessed now, if it is no use waiting.
    pub fn refuse_access(&self, cookie: Cookie, access: Access) -> Option<Failure> {
        let address = self.devices.get(&cookie)?.function.address;
        match access {
            Access::Open | Access::HeldOff => None,
            Access::Busy => Some(Failure::being_reset(address)),
            Access::Lost => Some(Failure::device_lost(address)),
        }
    }

    /// Whether the device is being reset, so that it must be left alone.
    pub fn is_in_reset(&self, cookie: Cookie) -> bool {
        self.devices.contains_key(&cookie) && matches!(self.access(cookie), Access::HeldOff | Access::Busy)
    }

    /// Whether the device behind a descriptor is of a set that is being reset: the kernel would not bind it before that is
    /// over. Not so where the descriptor is no device's.
    pub fn is_set_in_reset(&self, device: BorrowedFd<'_>) -> bool {
        let number = Sysfs::character_device(device).ok().flatten();
        let address = number.and_then(|number| self.sysfs.function_of_cdev(number).ok());
        address.is_some_and(|address| self.engine.holds(report::wire_address(address)))
    }

    /// Somebody waits for the device, to take it back.
    pub fn want_back(&mut self, cookie: Cookie) {
        self.drive(Event::WantedBack(cookie));
    }

    /// Tells the engine, and turns what it wants into effects. What it wants of a device that is gone fails at once.
    pub(super) fn drive(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.engine.handle(event, Instant::now()) {
                match self.act(action) {
                    Ok(effect) => self.effects.extend(effect),
                    Err(failed) => events.push_back(failed),
                }
            }
        }
    }

    /// The effect of an action, if there is more to do, or what came of it at once.
    fn act(&mut self, action: Action) -> Result<Option<Effect>, Event> {
        const GONE: Errno = Errno::NODEV;
        let device = |cookie: &Cookie| self.devices.get(cookie);
        Ok(Some(match action {
            Action::Query(reset, cookie) => {
                let device = device(&cookie).ok_or(Event::Queried(reset, Err(GONE)))?;
                Effect::Step(Step::Query(reset, Arc::clone(&device.device)))
            }
            Action::Quiesce(reset, cookie) => {
                let device = device(&cookie).ok_or(Event::Quiesced(reset, cookie, Err(GONE)))?;
                Effect::Step(Step::Quiesce(reset, cookie, device.quiescer()))
            }
            Action::Attempt(reset, cookie, method) => {
                let device = device(&cookie).ok_or(Event::Attempted(reset, Err(GONE)))?;
                Effect::Step(Step::Attempt(reset, Arc::clone(&device.device), method))
            }
            Action::Restore(reset, cookie, restoration) => {
                let device = self.devices.get_mut(&cookie);
                let device = device.ok_or(Event::Restored(reset, cookie, Err(GONE)))?;
                // What a client has set up that is gone is not for the next.
                let is_cleared = device.is_left || device.is_driven;
                let restoration = if is_cleared { Restoration::Cleared } else { restoration };
                let quiescer = device.quiescer();
                if device.is_driven {
                    self.effects.push(Effect::RingsLost(cookie));
                }
                if restoration == Restoration::Cleared {
                    device.note_cleared();
                }
                Effect::Step(Step::Restore(reset, cookie, quiescer, restoration))
            }
            Action::RaiseError(cookie) => {
                if let Some(device) = device(&cookie) {
                    device.raise_error();
                }
                return Ok(None);
            }
            Action::SetAccess(cookie, access) => {
                // What the reset has put back for a client that is gone goes, too.
                if let Access::Open | Access::Lost = access {
                    self.quiet_left(cookie);
                }
                Effect::AccessChanged
            }
            Action::Answer(id, result) => Effect::Answer(id, self.answer(id, *result)),
            Action::Sanitized { id, verdict, record } => {
                log::info!("event=sanitized {record}");
                let address = self.requests.remove(&id);
                let verdict = match (verdict, record.outcome, address) {
                    (Verdict::Refuse, AuditOutcome::NotReset(refusal), Some(address)) => {
                        Err(Failure::not_sanitized(address, &self.explain(address, refusal)))
                    }
                    _ => Ok(()),
                };
                Effect::Sanitized(id, verdict)
            }
            Action::TellBroker(message) => Effect::TellBroker(message),
            Action::Announce(reset, announcement) => {
                // A function that is not ours yet may be waited for, too.
                if let Announcement::Done { .. } | Announcement::Failed { .. } = announcement {
                    self.effects.push(Effect::AccessChanged);
                }
                let event = self.announce(reset, announcement);
                Effect::Event(EventKinds::RESETS, ServerRequest::Reset(event))
            }
        }))
    }

    /// A line in the log, and the event for those who have subscribed.
    fn announce(&mut self, reset: ResetId, announcement: Announcement) -> ResetEvent {
        let states = |cookies: &[Cookie], otherwise: AffectedState, lost: &[Loss]| {
            let state = |cookie: &Cookie| {
                let is_lost = lost.iter().any(|loss| loss.device == *cookie);
                let state = if is_lost { AffectedState::Lost } else { otherwise };
                AffectedDevice { cookie: *cookie, state, reserved: 0 }
            };
            cookies.iter().map(state).collect::<Vec<_>>()
        };
        let number = reset.0;
        match announcement {
            Announcement::Begun { rung, affected } => {
                log::info!("event=reset-begun reset={number} method=\"{rung}\" affected={}", affected.len());
                let affected = states(&affected, AffectedState::HeldOff, &[]);
                self.reset_event(reset, rung, ResetProgress::Begun, affected)
            }
            Announcement::Quiesced { rung, affected, lost } => {
                log::info!("event=reset-quiesced reset={number} lost={}", lost.len());
                let affected = states(&affected, AffectedState::HeldOff, &lost);
                self.reset_event(reset, rung, ResetProgress::Quiesced, affected)
            }
            Announcement::Done { rung, report, lost, missing } => {
                log::info!(
                    "event=reset-done reset={number} method=\"{rung}\" outcome={:?} epoch={} attempts={} affected={} \
                     duration-us={} lost={} missing={}",
                    report.outcome,
                    report.epoch.0,
                    report.attempts,
                    report.affected.len(),
                    report.duration.as_micros(),
                    lost.len(),
                    missing.as_ref().map_or("none", |name| name.as_str()),
                );
                log_losses(&lost);
                let ResetReport { outcome, attempts, duration, affected, .. } = report;
                let progress = ResetProgress::Done { outcome, attempts, duration };
                self.note_change();
                self.reset_event(reset, rung, progress, states(&affected, AffectedState::InOrder, &lost))
            }
            Announcement::Failed { rung, reason, duration, affected, lost, .. } => {
                log::warn!(
                    "event=reset-failed reset={number} method=\"{rung}\" reason=\"{reason}\" affected={} duration-us={}",
                    affected.len(),
                    duration.as_micros()
                );
                log_losses(&lost);
                let (errno, attempts) = (reason.errno(), reason.attempts());
                let progress = ResetProgress::Failed { errno, why: reason.to_string(), attempts, duration };
                self.note_change();
                self.reset_event(reset, rung, progress, states(&affected, AffectedState::InOrder, &lost))
            }
        }
    }

    fn reset_event(
        &self,
        reset: ResetId,
        rung: Rung,
        progress: ResetProgress,
        affected: Vec<AffectedDevice>,
    ) -> ResetEvent {
        let (epoch, method) = (self.engine.epoch(), rung.method());
        ResetEvent { reset: reset.0, epoch, method, progress, affected }
    }
}

fn log_losses(lost: &[Loss]) {
    for loss in lost {
        log::error!("event=device-lost device={} reason=\"{loss}\"", loss.address);
    }
}
