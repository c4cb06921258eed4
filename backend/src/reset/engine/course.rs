// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The course of a reset that has begun: quiesce, ask the kernel, restore, and tell.

use std::time::Instant;

use protocol::extension::{Cookie, Epoch, MemberMessage, MemberName, PciAddress, ResetOutcome, ResetReport};
use rustix::io::Errno;

use super::Engine;
use super::device::{Access, Cleaning, Condition, Consent, HowLost, Loss, Restoration};
use super::event::{Action, Announcement, ResetId};
use super::ladder::Reason;
use super::phase::{Ending, Fired, Phase, Reset};
use super::request::{Asker, Demand, Refusal, Report};

impl Engine {
    /// Begins a reset: its devices are held off and quiesced.
    pub(super) fn launch(&mut self, id: ResetId, mut reset: Reset, now: Instant) {
        let affected: Vec<_> = reset.scope.iter().copied().collect();
        self.actions
            .push(Action::Announce(id, Announcement::Begun { rung: reset.rung, affected: affected.clone() }));
        self.hold_off(&mut reset, now);
        self.actions.extend(affected.iter().map(|name| Action::Quiesce(id, *name)));
        reset.phase = Phase::Quiescing(reset.scope.clone());
        self.go_on(id, reset, now);
    }

    /// From now on accesses to its devices wait.
    fn hold_off(&mut self, reset: &mut Reset, now: Instant) {
        reset.launched_at = now;
        reset.busy_at = Some(now + self.settings.hold_off).filter(|_| !reset.scope.is_empty());
        for name in &reset.scope {
            self.set_access(*name, Access::HeldOff);
            if let Some(device) = self.devices.get_mut(name) {
                device.is_untouched = true;
            }
        }
    }

    /// Clears a device that is clean, but was put back for its client.
    pub(super) fn clear(
        &mut self,
        asker: Asker,
        Cleaning { rung, reset: earlier, .. }: Cleaning,
        now: Instant,
    ) {
        let name = asker.request.device;
        let id = self.new_reset();
        let mut reset = Reset::new(rung, name, Phase::Waiting, now);
        reset.functions.extend(self.address(name));
        reset.askers.push(asker);
        self.hold_off(&mut reset, now);
        let ending = Ok(Fired { outcome: earlier.outcome, attempts: earlier.attempts, missing: None });
        reset.earlier = Some(earlier);
        self.restore(id, reset, ending, now);
    }

    /// Takes the next step, if nothing is awaited any more.
    pub(super) fn go_on(&mut self, id: ResetId, reset: Reset, now: Instant) {
        match &reset.phase {
            Phase::Quiescing(pending) if pending.is_empty() => self.go_on_quiesced(id, reset, now),
            Phase::Restoring(pending, _) if pending.is_empty() => self.conclude(id, reset, now),
            _ => drop(self.resets.insert(id, reset)),
        }
    }

    pub(super) fn quiesced(&mut self, id: ResetId, name: Cookie, result: Result<(), Errno>, now: Instant) {
        let Some(mut reset) = self.resets.remove(&id) else { return };
        if let Phase::Quiescing(pending) = &mut reset.phase
            && pending.remove(&name)
            && let Err(errno) = result
        {
            // That is no reason to spare it: the reset is what may cure it.
            self.note_loss(&mut reset, name, HowLost::NotQuiesced(errno));
        }
        self.go_on(id, reset, now);
    }

    fn go_on_quiesced(&mut self, id: ResetId, mut reset: Reset, now: Instant) {
        let affected = reset.scope.iter().copied().collect();
        let announcement = Announcement::Quiesced { rung: reset.rung, affected, lost: reset.lost.clone() };
        self.actions.push(Action::Announce(id, announcement));
        let Some(coordination) = &mut reset.coordination else {
            return if reset.askers.is_empty() {
                self.restore(id, reset, Err(Reason::Abandoned), now);
            } else {
                self.attempt(id, reset, now);
            };
        };
        if let Some(verdict) = coordination.verdict.clone() {
            return self.restore(id, reset, verdict, now);
        }
        if let Some(coordination) = coordination.id {
            self.tell_broker(MemberMessage::Ready { coordination, lost: reset.lost_addresses() });
        }
        reset.phase = Phase::Ready;
        self.resets.insert(id, reset);
    }

    /// Asks the kernel, through the device that the reset was asked for, or another one if that is gone.
    pub(super) fn attempt(&mut self, id: ResetId, mut reset: Reset, now: Instant) {
        let target = Some(reset.target).filter(|target| reset.affects(*target));
        let Some(device) = target.or_else(|| reset.scope.first().copied()) else {
            return self.hear_kernel(id, reset, Err(Reason::NoDeviceLeft), now);
        };
        reset.attempts += 1;
        reset.phase = Phase::Attempting;
        self.actions.push(Action::Attempt(id, device, reset.rung.method()));
        self.resets.insert(id, reset);
    }

    pub(super) fn attempted(&mut self, id: ResetId, result: Result<ResetOutcome, Errno>, now: Instant) {
        let Some(mut reset) = self.resets.remove(&id) else { return };
        let Phase::Attempting = reset.phase else {
            self.resets.insert(id, reset);
            return;
        };
        let attempts = reset.attempts;
        let again_at = now + self.settings.pause;
        match result {
            Ok(outcome) => self.hear_kernel(id, reset, Ok(Fired { outcome, attempts, missing: None }), now),
            Err(errno) if is_busy(errno) && reset.tries_until().is_some_and(|until| again_at < until) => {
                reset.phase = Phase::Pausing(again_at, errno);
                self.resets.insert(id, reset);
            }
            Err(errno) => self.hear_kernel(id, reset, Err(Reason::Refused { errno, attempts }), now),
        }
    }

    /// The kernel is not asked again for a reset that hits this device; perhaps it is busy just because of who waits.
    pub(super) fn cut_short(&mut self, device: Cookie, now: Instant) {
        for reset in self.resets.values_mut().filter(|reset| reset.affects(device)) {
            reset.is_cut_short = true;
            if let Phase::Pausing(until, _) = &mut reset.phase {
                *until = now;
            }
        }
    }

    /// The kernel will not be asked again.
    fn hear_kernel(&mut self, id: ResetId, mut reset: Reset, ending: Ending, now: Instant) {
        let Some(coordination) = &reset.coordination else { return self.restore(id, reset, ending, now) };
        if let Some(verdict) = coordination.verdict.clone() {
            return self.restore(id, reset, seen_from_here(ending, verdict), now);
        }
        if let Some(coordination) = coordination.id {
            let result = match &ending {
                Ok(fired) => Ok(fired.outcome),
                Err(Reason::Refused { errno, .. }) => Err(*errno),
                Err(_) => Err(Errno::NODEV),
            };
            self.tell_broker(MemberMessage::Fired { coordination, result, attempts: reset.attempts });
        }
        reset.phase = Phase::Told(ending);
        self.resets.insert(id, reset);
    }

    /// Restores every device, whatever the kernel said: a reset that failed may have reached the hardware.
    pub(super) fn restore(&mut self, id: ResetId, mut reset: Reset, ending: Ending, now: Instant) {
        for name in &reset.scope {
            let restoration = self.restoration(&reset, *name);
            match (restoration, self.devices.get_mut(name)) {
                (Restoration::PutBack, _) => drop(reset.put_back.insert(*name)),
                (Restoration::Cleared, Some(device)) => device.note_cleared(),
                (Restoration::Cleared, None) => {}
            }
            self.actions.push(Action::Restore(id, *name, restoration));
        }
        reset.phase = Phase::Restoring(reset.scope.clone(), ending);
        self.go_on(id, reset, now);
    }

    /// A client that has not asked finds its device as it has set it up. One that is lost is better off.
    fn restoration(&self, reset: &Reset, name: Cookie) -> Restoration {
        let is_used = self.devices.get(&name).is_some_and(|device| device.usage.vm().is_some());
        let wants_it_clean =
            |asker: &Asker| asker.request.device == name && asker.request.demand == Demand::Clean;
        if is_used && reset.loss_of(name).is_none() && !reset.askers.iter().any(wants_it_clean) {
            Restoration::PutBack
        } else {
            Restoration::Cleared
        }
    }

    pub(super) fn restored(&mut self, id: ResetId, name: Cookie, result: Result<(), Errno>, now: Instant) {
        let Some(mut reset) = self.resets.remove(&id) else { return };
        if let Phase::Restoring(pending, _) = &mut reset.phase
            && pending.remove(&name)
            && let Err(errno) = result
        {
            self.note_loss(&mut reset, name, HowLost::NotRestored(errno));
            // It was stopped.
            if let Some(device) = self.devices.get_mut(&name) {
                device.note_cleared();
            }
        }
        self.go_on(id, reset, now);
    }

    /// A device that was lost twice is told of as it was lost first.
    fn note_loss(&self, reset: &mut Reset, name: Cookie, how: HowLost) {
        if let (Some(address), None) = (self.address(name), reset.loss_of(name)) {
            reset.lost.push(Loss { device: name, address, how });
        }
    }

    /// Every device is restored or lost: they are in use again, and everybody is told.
    fn conclude(&mut self, id: ResetId, mut reset: Reset, now: Instant) {
        let Phase::Restoring(_, ending) = reset.phase else { return };
        reset.phase = Phase::Waiting;
        let duration = now - reset.launched_at;
        let affected: Vec<_> = reset.scope.iter().copied().collect();
        let missing = ending.as_ref().ok().and_then(|fired| fired.missing);
        if let Some(report) = reset.earlier.clone() {
            for name in &affected {
                self.leave(*name, &reset, Ok(&report));
            }
            return self.grant(reset, &report, None, now);
        }
        let result = ending.map(|Fired { outcome, attempts, .. }| {
            self.epoch = Epoch(self.epoch.0 + 1);
            let method = reset.rung.method();
            ResetReport { epoch: self.epoch, duration, method, outcome, attempts, affected: affected.clone() }
        });
        for name in &affected {
            self.leave(*name, &reset, result.as_ref());
        }
        let (rung, lost, epoch) = (reset.rung, reset.lost.clone(), self.epoch);
        self.actions.push(Action::Announce(
            id,
            match &result {
                Ok(report) => Announcement::Done { rung, report: report.clone(), lost, missing },
                Err(reason) => {
                    Announcement::Failed { rung, reason: reason.clone(), epoch, duration, affected, lost }
                }
            },
        ));
        if let Some(coordination) = reset.coordination.as_ref().and_then(|coordination| coordination.id) {
            self.tell_broker(MemberMessage::Restored { coordination, lost: reset.lost_addresses() });
        }
        match result {
            Ok(report) => self.grant(reset, &report, missing, now),
            Err(reason) => self.fail(reset, &reason, now),
        }
    }

    /// A device leaves a reset.
    fn leave(&mut self, name: Cookie, reset: &Reset, result: Result<&ResetReport, &Reason>) {
        let Some(device) = self.devices.get_mut(&name) else { return };
        let loss = reset.loss_of(name);
        let is_put_back = reset.put_back.contains(&name);
        device.condition = match (loss, result) {
            (Some(loss), _) => Condition::Lost(loss),
            (None, Ok(report)) if device.is_untouched => {
                Condition::Clean(Cleaning { rung: reset.rung, reset: report.clone(), is_put_back })
            }
            (None, _) => Condition::Dirty,
        };
        let has_lost_state = match loss {
            Some(_) => device.usage.vm().is_some(),
            None => device.usage.is_active() && result.map_or_else(Reason::leaves_doubt, |_| true),
        };
        if has_lost_state && device.consent < Consent::Vm {
            self.actions.push(Action::RaiseError(name));
        }
        if result.is_ok() {
            device.consent = Consent::Nobody;
        }
        self.set_access(name, if loss.is_some() { Access::Lost } else { Access::Open });
    }

    /// Answers all who waited for a reset that was done.
    fn grant(&mut self, mut reset: Reset, report: &ResetReport, missing: Option<MemberName>, now: Instant) {
        let (late, in_time): (Vec<_>, Vec<_>) = std::mem::take(&mut reset.askers)
            .into_iter()
            .partition(|asker| self.comes_too_late(&reset, asker));
        for asker in in_time {
            let result = match reset.loss_of(asker.request.device) {
                Some(loss) => Err(Refusal::Lost(loss)),
                None => Ok(Report {
                    rung: reset.rung,
                    reset: report.clone(),
                    is_from_epoch: reset.earlier.is_some(),
                    passed: asker.passed.clone(),
                    lost: reset.lost.clone(),
                    missing,
                }),
            };
            self.answer(asker, result, now);
        }
        for asker in late {
            self.ask(asker, now);
        }
    }

    /// Whether a clean device is wanted, and this one was being put back already, or was touched while it was cleared.
    fn comes_too_late(&self, reset: &Reset, asker: &Asker) -> bool {
        let name = asker.request.device;
        let is_touched =
            || self.devices.get(&name).is_some_and(|device| device.condition == Condition::Dirty);
        asker.request.demand == Demand::Clean
            && (reset.put_back.contains(&name) || reset.earlier.is_some() && is_touched())
    }

    /// Does what time has come for.
    pub(super) fn expire(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.waiting);
        let is_due = |asker: &Asker| asker.request.deadline.tries() <= now;
        let (due, left): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_due);
        self.waiting = left;
        for asker in due {
            self.answer_too_late(asker, super::Stage::Waiting, now);
        }
        let due: Vec<_> = self
            .resets
            .iter()
            .filter(|(_, reset)| reset.wakes_at().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(reset) = self.resets.remove(&id) {
                self.expire_reset(id, reset, now);
            }
        }
    }

    fn expire_reset(&mut self, id: ResetId, mut reset: Reset, now: Instant) {
        let (stage, is_launched) = (reset.stage(), reset.is_launched());
        let is_due = |asker: &Asker| {
            let deadline = asker.request.deadline;
            (if is_launched { deadline.answer() } else { deadline.tries() }) <= now
        };
        let (due, left): (Vec<_>, Vec<_>) = std::mem::take(&mut reset.askers).into_iter().partition(is_due);
        reset.askers = left;
        for asker in due {
            self.answer_too_late(asker, stage, now);
        }
        if reset.busy_at.is_some_and(|at| at <= now) {
            reset.busy_at = None;
            for name in &reset.scope {
                self.set_access(*name, Access::Busy);
            }
        }
        let coordination = reset.coordination.as_ref().filter(|coordination| coordination.verdict.is_none());
        if coordination.is_some_and(|coordination| coordination.patience <= now) {
            return self.decide(id, reset, Err(Reason::BrokerSilent), now);
        }
        match reset.phase {
            Phase::Pausing(at, errno) if at <= now => {
                if reset.tries_until().is_some_and(|until| now < until) {
                    self.attempt(id, reset, now);
                } else {
                    let attempts = reset.attempts;
                    self.hear_kernel(id, reset, Err(Reason::Refused { errno, attempts }), now);
                }
            }
            // Nobody waits for it, and it has done nothing yet.
            _ if !is_launched && reset.askers.is_empty() && reset.coordination.is_none() => {}
            _ => drop(self.resets.insert(id, reset)),
        }
    }
}

/// `EBUSY`: somebody is in a BAR access. `EAGAIN`: somebody holds a device's lock. Both pass, and nothing was reset.
fn is_busy(errno: Errno) -> bool {
    matches!(errno, Errno::BUSY | Errno::AGAIN)
}

/// How a reset ended that we have asked the kernel for: what the broker says of one that was done is more than we know, and
/// what we know of one that was not.
pub(super) fn seen_from_here(own: Ending, verdict: Ending) -> Ending {
    verdict.or(own)
}

impl Reset {
    /// How this reset lost the device, if it did.
    fn loss_of(&self, device: Cookie) -> Option<Loss> {
        self.lost.iter().find(|loss| loss.device == device).copied()
    }

    fn lost_addresses(&self) -> Vec<PciAddress> {
        self.lost.iter().map(|loss| loss.address).collect()
    }
}
