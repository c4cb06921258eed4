// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The course of a coordinated reset: prepare, grant, tell the end, and wait until all are restored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use protocol::extension::{
    AbortCause, BrokerMessage, CoordinationId, CoordinationRequest, MemberName, PciAddress, Preparation,
    ResetOutcome, ResetRequestId,
};
use rustix::io::Errno;

use super::{Action, Broker, Member, MemberId, Pending, Verdict};

#[derive(Debug)]
pub(super) enum Phase {
    /// These have not said that they are ready.
    Preparing(BTreeSet<MemberId>),
    /// The one that asks the kernel has not said what came of it.
    Granted,
    /// These have not said that they are done.
    Finishing(BTreeSet<MemberId>, Verdict),
}

#[derive(Debug)]
pub(super) struct Reset {
    pub(super) functions: BTreeSet<PciAddress>,
    pub(super) members: BTreeSet<MemberId>,
    /// Who asked first, and asks the kernel.
    pub(super) leader: MemberId,
    /// Whose requests it answers.
    pub(super) requests: BTreeMap<MemberId, ResetRequestId>,
    pub(super) tries: Instant,
    pub(super) phase: Phase,
    /// When the phase has taken too long.
    pub(super) until: Instant,
    pub(super) lost: BTreeSet<PciAddress>,
    pub(super) missing: Vec<MemberName>,
}

impl Broker {
    /// Begins every queued request whose set is free.
    pub(super) fn start_queued(&mut self, now: Instant) {
        let mut claimed: BTreeSet<PciAddress> =
            self.resets.values().flat_map(|reset| &reset.functions).copied().collect();
        for pending in std::mem::take(&mut self.queue) {
            let is_free = pending.request.functions.iter().all(|function| !claimed.contains(function));
            claimed.extend(&pending.request.functions);
            if is_free {
                self.start(pending, now);
            } else {
                self.queue.push_back(pending);
            }
        }
    }

    pub(super) fn start(&mut self, pending: Pending, now: Instant) {
        let Pending { member: leader, request, tries } = pending;
        let CoordinationRequest { request, target, policy, functions, .. } = request;
        let functions: BTreeSet<_> = functions.into_iter().chain([target]).collect();
        let holders = self.members.iter().filter(|(_, member)| !member.devices.is_disjoint(&functions));
        let members: BTreeSet<_> = holders.map(|(id, _)| *id).chain([leader]).collect();
        let is_known =
            |function: &PciAddress| self.members.values().any(|member| member.devices.contains(function));
        if let Some(stranger) = functions.iter().find(|function| !is_known(function)) {
            // The kernel was asked before its server was lost.
            let departed = self.departed.get(stranger).copied();
            let cause = departed.map_or(AbortCause::UnknownHolder(*stranger), AbortCause::MemberLost);
            let abort = BrokerMessage::Abort { coordination: None, request: Some(request), cause };
            return self.actions.push(Action::Tell(leader, abort));
        }
        self.last.0 += 1;
        let coordination = self.last;
        let preparation = Preparation {
            coordination,
            target,
            policy,
            tries: tries - now,
            patience: self.patience.prepare + (tries - now) + self.patience.attempt + self.patience.restore,
            functions: functions.iter().copied().collect(),
        };
        let prepare = |member: &MemberId| Action::Tell(*member, BrokerMessage::Prepare(preparation.clone()));
        self.actions.extend(members.iter().map(prepare));
        let reset = Reset {
            functions,
            phase: Phase::Preparing(members.clone()),
            members,
            leader,
            requests: BTreeMap::from([(leader, request)]),
            tries,
            until: now + self.patience.prepare,
            lost: BTreeSet::new(),
            missing: Vec::new(),
        };
        self.resets.insert(coordination, reset);
    }

    pub(super) fn hear_ready(
        &mut self,
        coordination: CoordinationId,
        member: MemberId,
        lost: Vec<PciAddress>,
        now: Instant,
    ) {
        let Some(mut reset) = self.take(coordination, member) else { return };
        reset.lost.extend(lost);
        if let Phase::Preparing(pending) = &mut reset.phase
            && pending.remove(&member)
            && pending.is_empty()
        {
            self.actions.push(Action::Tell(reset.leader, BrokerMessage::Grant { coordination }));
            reset.phase = Phase::Granted;
            reset.until = reset.tries.max(now) + self.patience.attempt;
        }
        self.resets.insert(coordination, reset);
    }

    pub(super) fn hear_fired(
        &mut self,
        coordination: CoordinationId,
        member: MemberId,
        result: Result<ResetOutcome, Errno>,
        attempts: u32,
        now: Instant,
    ) {
        let Some(reset) = self.take(coordination, member) else { return };
        let (Phase::Granted, true) = (&reset.phase, reset.leader == member) else {
            self.resets.insert(coordination, reset);
            return;
        };
        let verdict = result.map(|outcome| (outcome, attempts)).map_err(|errno| AbortCause::KernelRefused {
            member: self.name(member),
            errno,
            attempts,
        });
        self.finish(coordination, reset, verdict, now);
    }

    /// A server's connection has ended.
    pub(super) fn lose(&mut self, member: MemberId, now: Instant) {
        let name = self.name(member);
        let Some(Member { devices, .. }) = self.members.remove(&member) else { return };
        self.queue.retain(|pending| pending.member != member);
        self.departed.extend(devices.iter().map(|device| (*device, name)));
        for coordination in self.resets.keys().copied().collect::<Vec<_>>() {
            let Some(mut reset) = self.take(coordination, member) else { continue };
            reset.members.remove(&member);
            reset.requests.remove(&member);
            reset.missing.push(name);
            reset.lost.extend(devices.intersection(&reset.functions));
            match &mut reset.phase {
                Phase::Preparing(_) => {
                    self.finish(coordination, reset, Err(AbortCause::MemberLost(name)), now);
                }
                Phase::Granted if reset.leader == member => {
                    self.finish(coordination, reset, Err(AbortCause::MemberLost(name)), now);
                }
                Phase::Granted => drop(self.resets.insert(coordination, reset)),
                Phase::Finishing(pending, _) => {
                    pending.remove(&member);
                    self.go_on(coordination, reset);
                }
            }
        }
    }

    pub(super) fn hear_restored(
        &mut self,
        coordination: CoordinationId,
        member: MemberId,
        lost: Vec<PciAddress>,
        now: Instant,
    ) {
        let Some(mut reset) = self.take(coordination, member) else { return };
        reset.lost.extend(lost);
        if let Phase::Finishing(pending, _) = &mut reset.phase {
            pending.remove(&member);
            return self.go_on(coordination, reset);
        }
        self.resets.insert(coordination, reset);
        // It has given up before it heard an end.
        self.withdraw(coordination, member, AbortCause::MemberSilent(self.name(member)), now);
    }

    /// A server does not take part, or not any more. Once the kernel is asked only the one that asks it can end that: as
    /// long as it may, nobody else must be told to restore.
    pub(super) fn withdraw(
        &mut self,
        coordination: CoordinationId,
        member: MemberId,
        cause: AbortCause,
        now: Instant,
    ) {
        let Some(mut reset) = self.take(coordination, member) else { return };
        let is_its_end = match reset.phase {
            Phase::Preparing(_) => true,
            Phase::Granted => reset.leader == member,
            Phase::Finishing(..) => false,
        };
        if is_its_end {
            return self.finish(coordination, reset, Err(cause), now);
        }
        if let Phase::Granted = reset.phase {
            reset.members.remove(&member);
            reset.missing.push(self.name(member));
        }
        self.resets.insert(coordination, reset);
    }

    /// Tells all how it ended, and waits for them to restore.
    pub(super) fn finish(
        &mut self,
        coordination: CoordinationId,
        mut reset: Reset,
        verdict: Verdict,
        now: Instant,
    ) {
        if verdict.is_ok() {
            self.absorb_queued(&mut reset);
        }
        for member in &reset.members {
            let request = reset.requests.get(member).copied();
            let message = match verdict {
                Ok((outcome, attempts)) => {
                    let missing = reset.missing.first().copied();
                    BrokerMessage::Done { coordination, request, outcome, attempts, missing }
                }
                Err(cause) => BrokerMessage::Abort { coordination: Some(coordination), request, cause },
            };
            self.actions.push(Action::Tell(*member, message));
        }
        reset.phase = Phase::Finishing(reset.members.clone(), verdict);
        reset.until = now + self.patience.restore;
        self.go_on(coordination, reset);
    }

    /// Requests that have come before a reset was done have what they asked for. If it is not done they take their turn.
    pub(super) fn absorb_queued(&mut self, reset: &mut Reset) {
        for pending in std::mem::take(&mut self.queue) {
            let is_covered =
                reset.members.contains(&pending.member) && reset.functions.contains(&pending.request.target);
            if is_covered {
                reset.requests.insert(pending.member, pending.request.request);
            } else {
                self.queue.push_back(pending);
            }
        }
    }

    pub(super) fn go_on(&mut self, coordination: CoordinationId, reset: Reset) {
        match reset.phase {
            Phase::Finishing(pending, verdict) if pending.is_empty() => {
                let Reset { lost, missing, .. } = reset;
                self.actions.push(Action::Concluded { coordination, verdict, lost, missing });
            }
            _ => drop(self.resets.insert(coordination, reset)),
        }
    }

    /// Does what time has come for.
    pub(super) fn expire(&mut self, now: Instant) {
        for pending in std::mem::take(&mut self.queue) {
            if now < pending.tries {
                self.queue.push_back(pending);
                continue;
            }
            let request = Some(pending.request.request);
            let abort =
                BrokerMessage::Abort { coordination: None, request, cause: AbortCause::DeadlinePassed };
            self.actions.push(Action::Tell(pending.member, abort));
        }
        let due: Vec<_> =
            self.resets.iter().filter(|(_, reset)| reset.until <= now).map(|(id, _)| *id).collect();
        for coordination in due {
            if let Some(reset) = self.resets.remove(&coordination) {
                self.give_up_silent(coordination, reset, now);
            }
        }
    }

    /// A phase has taken too long: whoever is awaited does not answer.
    pub(super) fn give_up_silent(&mut self, coordination: CoordinationId, mut reset: Reset, now: Instant) {
        let silent = match &reset.phase {
            Phase::Preparing(pending) | Phase::Finishing(pending, _) => pending.clone(),
            Phase::Granted => BTreeSet::from([reset.leader]),
        };
        for name in silent.iter().map(|member| self.name(*member)) {
            if !reset.missing.contains(&name) {
                reset.missing.push(name);
            }
        }
        let Some(name) = silent.first().map(|member| self.name(*member)) else { return };
        if let Phase::Finishing(pending, _) = &mut reset.phase {
            for member in std::mem::take(pending) {
                let devices = self.members.get(&member).map(|member| &member.devices);
                reset
                    .lost
                    .extend(devices.into_iter().flatten().filter(|device| reset.functions.contains(device)));
            }
            self.go_on(coordination, reset);
        } else {
            self.finish(coordination, reset, Err(AbortCause::MemberSilent(name)), now);
        }
    }
}
