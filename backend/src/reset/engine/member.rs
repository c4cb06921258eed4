// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! This process as one of several whose resets a broker coordinates.

use std::collections::BTreeMap;
use std::time::Instant;

use protocol::extension::{
    AbortCause, BrokerMessage, Cookie, CoordinationId, MemberMessage, Preparation, ResetRequestId,
};
use rustix::io::Errno;

use super::course::seen_from_here;
use super::event::{Action, ResetId};
use super::ladder::{Reason, Rung};
use super::phase::{Coordination, Ending, Fired, Phase, Reset};
use super::{Engine, policy};

/// Most resets that a broker coordinates at once; more are as if they were not heard of.
const MAX_COORDINATED: usize = 64;

impl Engine {
    pub(super) fn hear_broker(&mut self, message: BrokerMessage, now: Instant) {
        if !self.has_broker {
            return;
        }
        match message {
            BrokerMessage::Prepare(preparation) => self.prepare(preparation, now),
            BrokerMessage::Grant { coordination } => self.use_grant(coordination, now),
            BrokerMessage::Done { coordination, request, outcome, attempts, missing } => {
                self.hear_end(coordination, request, Ok(Fired { outcome, attempts, missing }), now);
            }
            BrokerMessage::Abort { coordination: Some(coordination), request, cause } => {
                self.hear_end(coordination, request, Err(Reason::Aborted(cause)), now);
            }
            BrokerMessage::Abort { coordination: None, request, cause } => {
                if let Some(request) = request {
                    self.hear_no(request, cause, now);
                }
            }
        }
    }

    /// Others want the set reset, or we did.
    fn prepare(&mut self, preparation: Preparation, now: Instant) {
        let coordinated = self.resets.values().filter(|reset| reset.coordination.is_some());
        if coordinated.count() >= MAX_COORDINATED {
            return;
        }
        let Preparation { coordination, target, policy, tries, patience, functions } = preparation;
        let functions = functions.into_iter().collect();
        let scope = self.devices_at(&functions);
        // Whoever waits for a reset of this set that has not begun has it with this one.
        let merged: Vec<_> = self
            .resets
            .iter()
            .filter(|(_, reset)| {
                reset.rung == Rung::Group
                    && !reset.is_launched()
                    && reset.coordination.is_none()
                    && !reset.scope.is_disjoint(&scope)
            })
            .map(|(id, _)| *id)
            .collect();
        let askers = merged.iter().filter_map(|id| self.resets.remove(id)).flat_map(|reset| reset.askers);
        let (askers, others): (Vec<_>, Vec<_>) =
            askers.partition(|asker| scope.contains(&asker.request.device));
        let id = self.new_reset();
        let first = self.devices_at(&[target].into()).first().or(scope.first()).copied();
        let mut reset = Reset::new(Rung::Group, first.unwrap_or(Cookie(0)), Phase::Waiting, now);
        reset.scope = scope;
        reset.functions = functions;
        reset.askers = askers;
        reset.coordination = Some(Coordination {
            id: Some(coordination),
            target,
            policy,
            patience: now + patience,
            tries: now + tries,
            verdict: None,
            answered: None,
        });
        self.resets.insert(id, reset);
        for mut asker in others {
            asker.petition = None;
            self.ask(asker, now);
        }
    }

    /// Nothing holds its devices any more: a coordinated reset begins, unless policy protects one of them.
    pub(super) fn launch_coordinated(&mut self, id: ResetId, mut reset: Reset, now: Instant) {
        let Some(coordination) = &reset.coordination else { return };
        let devices = reset.scope.iter().filter_map(|name| self.devices.get(name));
        let protection =
            policy::protection(coordination.policy, coordination.target, &reset.functions, devices);
        if let (Some(Reason::Protected { sibling, .. }), Some(coordination)) = (protection, coordination.id) {
            self.tell_broker(MemberMessage::Refused { coordination, device: sibling });
            reset.phase = Phase::Declined;
            self.resets.insert(id, reset);
        } else {
            self.launch(id, reset, now);
        }
    }

    fn use_grant(&mut self, coordination: CoordinationId, now: Instant) {
        let mut errno = Errno::PROTO;
        if let Some((id, reset)) = self.take_coordinated(coordination) {
            let is_in_time = reset.tries_until().is_some_and(|until| now < until);
            if let (Phase::Ready, true) = (&reset.phase, is_in_time) {
                return self.attempt(id, reset, now);
            }
            errno = if is_in_time { errno } else { Errno::TIMEDOUT };
            self.resets.insert(id, reset);
        }
        // The broker must not wait for it.
        self.tell_broker(MemberMessage::Fired { coordination, result: Err(errno), attempts: 0 });
    }

    /// The broker says how a reset ended.
    fn hear_end(
        &mut self,
        coordination: CoordinationId,
        answered: Option<ResetRequestId>,
        verdict: Ending,
        now: Instant,
    ) {
        let Some((id, mut reset)) = self.take_coordinated(coordination) else {
            return self.tell_broker(MemberMessage::Restored { coordination, lost: Vec::new() });
        };
        if let Some(coordination) = &mut reset.coordination {
            coordination.answered = answered;
        }
        self.decide(id, reset, verdict, now);
    }

    /// It is known how a coordinated reset ended: its devices are restored as soon as nothing is awaited.
    pub(super) fn decide(&mut self, id: ResetId, mut reset: Reset, verdict: Ending, now: Instant) {
        if let Some(coordination) = &mut reset.coordination {
            coordination.verdict = Some(verdict.clone());
        }
        match reset.phase {
            Phase::Ready => self.restore(id, reset, verdict, now),
            Phase::Pausing(_, errno) => {
                let own = Err(Reason::Refused { errno, attempts: reset.attempts });
                self.restore(id, reset, seen_from_here(own, verdict), now);
            }
            Phase::Told(ref own) => {
                let ending = seen_from_here(own.clone(), verdict);
                self.restore(id, reset, ending, now);
            }
            // What is awaited comes first; it finds the verdict.
            Phase::Quiescing(_) | Phase::Attempting | Phase::Restoring(..) => {
                self.resets.insert(id, reset);
            }
            Phase::Querying | Phase::Waiting | Phase::Asking(_) | Phase::Declined => {
                if let Some(coordination) =
                    reset.coordination.as_ref().and_then(|coordination| coordination.id)
                {
                    self.tell_broker(MemberMessage::Restored { coordination, lost: Vec::new() });
                }
                self.fail(reset, &verdict.err().unwrap_or(Reason::Abandoned), now);
            }
        }
    }

    /// A reset was not done. Those whose request to the broker is still open wait for its answer, the others go on.
    pub(super) fn fail(&mut self, reset: Reset, reason: &Reason, now: Instant) {
        let Reset { rung, askers, coordination, scope, functions, .. } = reset;
        let answered = coordination.as_ref().and_then(|coordination| coordination.answered);
        let is_protected = matches!(reason, Reason::Aborted(AbortCause::MemberRefused { .. }));
        let tried = coordination.filter(|_| is_protected).map(|coordination| coordination.policy);
        let mut open: BTreeMap<ResetRequestId, Reset> = BTreeMap::new();
        for asker in askers {
            let petition = asker.petition.filter(|petition| Some(*petition) != answered && self.has_broker);
            if let Some(petition) = petition {
                let target = asker.request.device;
                let reset = open.entry(petition).or_insert_with(|| {
                    let reset = Reset::new(rung, target, Phase::Asking(petition), now);
                    Reset { scope: scope.clone(), functions: functions.clone(), ..reset }
                });
                reset.askers.push(asker);
            } else if tried.is_some_and(|policy| policy < asker.request.policy) {
                // What was refused to somebody else may be allowed to whoever may reach further.
                self.ask(asker, now);
            } else {
                self.pass_over(vec![asker], rung, reason, now);
            }
        }
        for reset in open.into_values() {
            let id = self.new_reset();
            self.resets.insert(id, reset);
        }
    }

    /// The broker does not begin the reset that we have asked for.
    fn hear_no(&mut self, request: ResetRequestId, cause: AbortCause, now: Instant) {
        let is_asking =
            |(_, reset): &(&ResetId, &Reset)| matches!(reset.phase, Phase::Asking(asked) if asked == request);
        let asking = self.resets.iter().find(is_asking).map(|(id, _)| *id);
        if let Some(reset) = asking.and_then(|id| self.resets.remove(&id)) {
            return self.pass_over(reset.askers, reset.rung, &Reason::Aborted(cause), now);
        }
        // They wait for a reset that somebody else has asked for; that will answer them.
        let askers = self.resets.values_mut().flat_map(|reset| &mut reset.askers);
        for asker in askers.filter(|asker| asker.petition == Some(request)) {
            asker.petition = None;
        }
    }

    /// Whatever the broker had begun is ended here, each process for itself.
    pub(super) fn lose_broker(&mut self, now: Instant) {
        self.has_broker = false;
        for id in self.resets.keys().copied().collect::<Vec<_>>() {
            let Some(mut reset) = self.resets.remove(&id) else { continue };
            if let Phase::Asking(_) = reset.phase {
                self.pass_over(reset.askers, reset.rung, &Reason::BrokerLost, now);
            } else if let Some(coordination) = &mut reset.coordination {
                coordination.id = None;
                if coordination.verdict.is_some() {
                    self.resets.insert(id, reset);
                } else {
                    self.decide(id, reset, Err(Reason::BrokerLost), now);
                }
            } else {
                self.resets.insert(id, reset);
            }
        }
    }

    pub(super) fn tell_broker(&mut self, message: MemberMessage) {
        if self.has_broker {
            self.actions.push(Action::TellBroker(message));
        }
    }

    /// The reset of this name of the broker's.
    fn take_coordinated(&mut self, name: CoordinationId) -> Option<(ResetId, Reset)> {
        let is_it = |(_, reset): &(&ResetId, &Reset)| {
            reset.coordination.as_ref().is_some_and(|coordination| coordination.id == Some(name))
        };
        let id = self.resets.iter().find(is_it).map(|(id, _)| *id)?;
        self.resets.remove(&id).map(|reset| (id, reset))
    }
}
