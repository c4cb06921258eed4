// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which reset a request leads to: one that is under way, a new one, or none.

use std::collections::BTreeSet;
use std::time::Instant;

use protocol::extension::{
    Cookie, CoordinationRequest, MAX_SET_FUNCTIONS, MemberMessage, PciAddress, ResetRequestId,
};
use rustix::io::Errno;

use super::device::Condition;
use super::event::{Action, ResetId};
use super::ladder::{self, Reason, Rung, Step};
use super::phase::{Phase, Reset, Stage};
use super::request::{Asker, Demand, Refusal, Report};
use super::scope::{Scope, ScopeFunction};
use super::{Engine, policy};

impl Engine {
    /// Takes a request on, or further.
    pub(super) fn ask(&mut self, mut asker: Asker, now: Instant) {
        let target = asker.request.device;
        let Some(device) = self.devices.get(&target) else {
            return self.answer(asker, Err(Refusal::UnknownDevice), now);
        };
        let address = device.address;
        if let Some(reset) = self.resets.values_mut().find(|reset| reset.holds(address)) {
            let is_served = reset.affects(target) && reset.serves(&asker.request);
            let line = if is_served { &mut reset.askers } else { &mut self.waiting };
            return line.push(asker);
        }
        if let (Demand::Clean, Condition::Clean(cleaning)) = (asker.request.demand, &device.condition) {
            if cleaning.is_put_back {
                let cleaning = cleaning.clone();
                return self.clear(asker, cleaning, now);
            }
            let report = Report {
                rung: cleaning.rung,
                reset: cleaning.reset.clone(),
                is_from_epoch: true,
                passed: std::mem::take(&mut asker.passed),
                lost: Vec::new(),
                missing: None,
            };
            return self.answer(asker, Ok(report), now);
        }
        let rung = ladder::next(device.function_reset, asker.request.method, &mut asker.passed);
        let Some(rung) = rung else {
            let passed = std::mem::take(&mut asker.passed);
            return self.answer(asker, Err(Refusal::NoMeansLeft { passed }), now);
        };
        if asker.request.deadline.tries() <= now {
            return self.answer_too_late(asker, Stage::Waiting, now);
        }
        match self.upcoming(rung, target) {
            Some(reset) => reset.join(asker),
            None => self.begin(rung, asker, now),
        }
    }

    /// A reset that has not begun and will do for a request that has come to `rung`.
    fn upcoming(&mut self, rung: Rung, target: Cookie) -> Option<&mut Reset> {
        self.resets.values_mut().find(|reset| {
            let is_on_its_way = match reset.phase {
                Phase::Waiting => true,
                // Who can be reset alone need not wait for other processes.
                Phase::Querying | Phase::Asking(_) => rung == Rung::Group,
                _ => false,
            };
            is_on_its_way && reset.rung == Rung::Group && reset.affects(target)
        })
    }

    fn begin(&mut self, rung: Rung, asker: Asker, now: Instant) {
        let target = asker.request.device;
        let id = self.new_reset();
        let mut reset = Reset::new(rung, target, Phase::Querying, now);
        reset.askers.push(asker);
        if rung == Rung::Group {
            self.resets.insert(id, reset);
            self.actions.push(Action::Query(id, target));
        } else {
            reset.functions.extend(self.address(target));
            self.launch(id, reset, now);
        }
    }

    /// The kernel has told the set, or has not.
    pub(super) fn queried(&mut self, id: ResetId, scope: Result<Scope, Errno>, now: Instant) {
        let Some(mut reset) = self.resets.remove(&id) else { return };
        let Phase::Querying = reset.phase else {
            self.resets.insert(id, reset);
            return;
        };
        let functions = match scope {
            Err(errno) => return self.pass_over(reset.askers, reset.rung, &Reason::SetUnknown(errno), now),
            Ok(Scope::None) => return self.pass_over(reset.askers, reset.rung, &Reason::NoGroupReset, now),
            Ok(Scope::Functions { is_available: false, functions }) => {
                let blocking = functions.iter().filter(|function| function.is_blocking());
                let blocking = blocking.map(|function| function.address).collect();
                return self.pass_over(reset.askers, reset.rung, &Reason::Blocked(blocking), now);
            }
            Ok(Scope::Functions { is_available: true, functions }) => functions,
        };
        reset.functions = functions.iter().map(|function| function.address).collect();
        reset.scope = self.devices_at(&reset.functions);
        // The kernel's answer is about this device, whatever it says.
        reset.scope.insert(reset.target);
        let (askers, others): (Vec<_>, Vec<_>) =
            reset.askers.into_iter().partition(|asker| reset.scope.contains(&asker.request.device));
        reset.askers = askers;
        self.choose(id, reset, &functions, now);
        for asker in others {
            self.ask(asker, now);
        }
    }

    /// What becomes of a reset whose set is known.
    fn choose(&mut self, id: ResetId, mut reset: Reset, functions: &[ScopeFunction], now: Instant) {
        let permitted = reset.askers.iter().filter(|asker| self.protection(&reset, asker).is_none());
        // Those who may not cause it have it all the same if somebody else may.
        let Some(reach) = permitted.map(|asker| asker.request.policy).max() else {
            for asker in std::mem::take(&mut reset.askers) {
                let reason = self.protection(&reset, &asker).unwrap_or(Reason::Abandoned);
                self.pass_over(vec![asker], reset.rung, &reason, now);
            }
            return;
        };
        let elsewhere = |function: &&ScopeFunction| {
            function.is_bound() && !self.devices.values().any(|device| device.address == function.address)
        };
        let elsewhere = functions.iter().find(elsewhere).map(|function| function.address);
        if let (Some(sibling), false) = (elsewhere, self.has_broker) {
            return self.pass_over(reset.askers, reset.rung, &Reason::SiblingElsewhere(sibling), now);
        }
        let shares =
            |other: &&mut Reset| other.is_settled() && !other.functions.is_disjoint(&reset.functions);
        if let Some(other) = self.resets.values_mut().find(shares) {
            let (joining, mut left): (Vec<_>, Vec<_>) = reset
                .askers
                .into_iter()
                .partition(|asker| other.is_group_reset() && other.affects(asker.request.device));
            for asker in joining {
                other.join(asker);
            }
            if let Some(first) = left.first() {
                reset.target = first.request.device;
                reset.askers = std::mem::take(&mut left);
                reset.phase = Phase::Waiting;
                self.resets.insert(id, reset);
            }
            return;
        }
        if elsewhere.is_none() {
            return self.launch(id, reset, now);
        }
        let request = ResetRequestId(self.last_petition + 1);
        self.last_petition = request.0;
        let target = self.address(reset.target);
        let bound = functions.iter().filter(|function| function.is_bound()).map(|function| function.address);
        let tries = reset.tries_until().map_or(now, |until| until.max(now)) - now;
        self.actions.push(Action::TellBroker(MemberMessage::Request(CoordinationRequest {
            request,
            target: target.unwrap_or(PciAddress { segment: 0, bus: 0, devfn: 0 }),
            policy: reach,
            tries,
            functions: bound.take(MAX_SET_FUNCTIONS).collect(),
        })));
        reset.phase = Phase::Asking(request);
        for asker in &mut reset.askers {
            asker.petition = Some(request);
        }
        self.resets.insert(id, reset);
    }

    fn protection(&self, reset: &Reset, asker: &Asker) -> Option<Reason> {
        let target = self.address(asker.request.device)?;
        let siblings = reset.scope.iter().filter_map(|name| self.devices.get(name));
        policy::protection(asker.request.policy, target, &reset.functions, siblings)
    }

    /// Begins the first reset that waited for others and need not any more. False if there is none.
    pub(super) fn start_waiting(&mut self, now: Instant) -> bool {
        let is_free = |(id, reset): &(&ResetId, &Reset)| {
            let mut others = self.resets.iter().filter(|(other, _)| other != id);
            matches!(reset.phase, Phase::Waiting)
                && !others.any(|(other, before)| {
                    let comes_first = before.is_launched() || before.is_settled() && other < id;
                    comes_first && !before.functions.is_disjoint(&reset.functions)
                })
        };
        let Some(id) = self.resets.iter().find(is_free).map(|(id, _)| *id) else { return false };
        let Some(mut reset) = self.resets.remove(&id) else { return false };
        if reset.coordination.is_some() {
            self.launch_coordinated(id, reset, now);
        } else {
            reset.phase = Phase::Querying;
            self.actions.push(Action::Query(id, reset.target));
            self.resets.insert(id, reset);
        }
        true
    }

    /// A rung did not serve those who had come to it: they go on from there.
    pub(super) fn pass_over(&mut self, askers: Vec<Asker>, rung: Rung, reason: &Reason, now: Instant) {
        for mut asker in askers {
            asker.petition = None;
            asker.passed.push(Step { rung, reason: reason.clone() });
            self.ask(asker, now);
        }
    }

    /// Tells a request that its time is over, and what it was that took it.
    pub(super) fn answer_too_late(&mut self, mut asker: Asker, stage: Stage, now: Instant) {
        let passed = std::mem::take(&mut asker.passed);
        let was_tried = ladder::decisive(&passed).is_some_and(|step| step.reason.was_tried());
        let refusal = if was_tried && stage == Stage::Waiting {
            Refusal::NoMeansLeft { passed }
        } else {
            Refusal::DeadlinePassed { stage, passed }
        };
        self.answer(asker, Err(refusal), now);
    }

    /// Our devices at these addresses.
    pub(super) fn devices_at(&self, functions: &BTreeSet<PciAddress>) -> BTreeSet<Cookie> {
        let ours = self.devices.iter().filter(|(_, device)| functions.contains(&device.address));
        ours.map(|(name, _)| *name).collect()
    }
}

impl Reset {
    /// One more who waits for it.
    fn join(&mut self, mut asker: Asker) {
        if let Phase::Asking(request) = self.phase {
            asker.petition = Some(request);
        }
        self.askers.push(asker);
    }
}
