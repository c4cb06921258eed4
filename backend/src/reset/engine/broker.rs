// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The broker: coordinates the resets of several servers that share an iommufd, one [engine](super) in each.
//!
//! It is a pure state machine as well, for a launcher or a VMM to embed: it is told an [`Event`] and what time it is,
//! and gives [`Action`]s.
//!
//! ```text
//!  Request ──▶ queued, while another reset of the set goes on
//!     │
//!     ▼          all are ready           fired             all are restored
//!  Preparing ───────────────────▶ Granted ─────▶ Finishing ─────────────────▶ over
//!     │ somebody refuses, is gone or silent │ who was granted ▲
//!     └────────────── Abort to all ─────────┴── is gone or silent
//! ```
//!
//! * Prepare goes to every server that has a function of the set, Grant to the one that has asked for it, and then Done or
//!   Abort to all. A server that is gone is not waited for; one that is silent is waited for as long as
//!   [`Patience`] says, and told the end all the same.
//! * A server that is lost before the grant ends the reset, and so does the one that was granted. Another one that is lost
//!   afterwards is named in Done.
//! * There is one reset of a set at a time. Requests that come meanwhile are answered by it if it is done, and take their
//!   turn if it is not. Every server that has a device in it must be ready before the next is
//!   granted: one that still waits for the kernel is not. So there are never two in the kernel at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use protocol::extension::{
    AbortCause, BrokerMessage, CoordinationId, CoordinationRequest, LONGEST_ATTEMPT, MemberMessage,
    MemberName, PciAddress, Preparation, ResetOutcome, ResetRequestId,
};
use rustix::io::Errno;

/// A server, as the integrator calls it; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(pub u64);

/// What the broker is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A server takes part from now on.
    Joined {
        /// Which.
        member: MemberId,
        /// What people call it.
        name: MemberName,
        /// The devices that it has bound.
        devices: BTreeSet<PciAddress>,
    },
    /// It has other devices now.
    DevicesChanged(MemberId, BTreeSet<PciAddress>),
    /// Its connection has ended.
    Lost(MemberId),
    /// It says something.
    Said(MemberId, MemberMessage),
    /// Time has passed, at least to what [`Broker::wakes_at`] told.
    TimePassed,
}

/// What the broker wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A message for a server.
    Tell(MemberId, BrokerMessage),
    /// A reset is over, for the log.
    Concluded {
        /// Which.
        coordination: CoordinationId,
        /// How it ended.
        verdict: Verdict,
        /// Functions of which nobody has said that they are in order.
        lost: BTreeSet<PciAddress>,
        /// Servers that were gone or silent.
        missing: Vec<MemberName>,
    },
}

/// How a coordinated reset ended.
pub type Verdict = Result<(ResetOutcome, u32), AbortCause>;

/// How long a server may take for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To Prepare: quiescing, and before that perhaps a function reset that is under way.
    pub prepare: Duration,
    /// To Grant, from the moment on at which nothing more may be begun: the attempt that is under way then. Longer than an
    /// attempt and [`Self::prepare`] together, because servers count from when they have read Prepare.
    pub attempt: Duration,
    /// To Done and Abort.
    pub restore: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let step = Duration::from_secs(2);
        Self { prepare: step, attempt: LONGEST_ATTEMPT + 2 * step, restore: step }
    }
}

#[derive(Debug)]
struct Member {
    name: MemberName,
    devices: BTreeSet<PciAddress>,
}

/// A request that was not answered yet.
#[derive(Debug)]
struct Pending {
    member: MemberId,
    request: CoordinationRequest,
    /// When it may no longer begin.
    tries: Instant,
}

#[derive(Debug)]
enum Phase {
    /// These have not said that they are ready.
    Preparing(BTreeSet<MemberId>),
    /// The one that asks the kernel has not said what came of it.
    Granted,
    /// These have not said that they are done.
    Finishing(BTreeSet<MemberId>, Verdict),
}

#[derive(Debug)]
struct Reset {
    functions: BTreeSet<PciAddress>,
    members: BTreeSet<MemberId>,
    /// Who asked first, and asks the kernel.
    leader: MemberId,
    /// Whose requests it answers.
    requests: BTreeMap<MemberId, ResetRequestId>,
    tries: Instant,
    phase: Phase,
    /// When the phase has taken too long.
    until: Instant,
    lost: BTreeSet<PciAddress>,
    missing: Vec<MemberName>,
}

/// The resets of several servers.
#[derive(Debug)]
pub struct Broker {
    patience: Patience,
    members: BTreeMap<MemberId, Member>,
    /// Who had a device that nobody has now.
    departed: BTreeMap<PciAddress, MemberName>,
    resets: BTreeMap<CoordinationId, Reset>,
    queue: VecDeque<Pending>,
    last: CoordinationId,
    actions: Vec<Action>,
}

impl Broker {
    /// A broker without servers.
    pub const fn new(patience: Patience) -> Self {
        Self {
            patience,
            members: BTreeMap::new(),
            departed: BTreeMap::new(),
            resets: BTreeMap::new(),
            queue: VecDeque::new(),
            last: CoordinationId(0),
            actions: Vec::new(),
        }
    }

    /// Takes note of what has happened, and says what is to be done. `now` never goes back.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Joined { member, name, devices } => {
                self.departed.retain(|device, _| !devices.contains(device));
                self.members.insert(member, Member { name, devices });
            }
            Event::DevicesChanged(member, devices) => {
                if let Some(member) = self.members.get_mut(&member) {
                    self.departed.retain(|device, _| !devices.contains(device));
                    member.devices = devices;
                }
            }
            Event::Lost(member) => self.lose(member, now),
            Event::Said(member, message) => self.hear(member, message, now),
            Event::TimePassed => {}
        }
        self.expire(now);
        self.start_queued(now);
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::TimePassed`] is due, if nothing else happens before.
    pub fn wakes_at(&self) -> Option<Instant> {
        let queued = self.queue.iter().map(|pending| pending.tries);
        self.resets.values().map(|reset| reset.until).chain(queued).min()
    }

    /// Whether nothing is under way and nobody waits.
    pub fn is_at_rest(&self) -> bool {
        self.resets.is_empty() && self.queue.is_empty()
    }

    fn hear(&mut self, member: MemberId, message: MemberMessage, now: Instant) {
        if !self.members.contains_key(&member) {
            return;
        }
        match message {
            MemberMessage::Request(request) => {
                let tries = now + request.tries;
                self.queue.push_back(Pending { member, request, tries });
            }
            MemberMessage::Ready { coordination, lost } => self.hear_ready(coordination, member, lost, now),
            MemberMessage::Refused { coordination, device } => {
                let cause = AbortCause::MemberRefused { member: self.name(member), device };
                self.withdraw(coordination, member, cause, now);
            }
            MemberMessage::Fired { coordination, result, attempts } => {
                self.hear_fired(coordination, member, result, attempts, now);
            }
            MemberMessage::Restored { coordination, lost } => {
                self.hear_restored(coordination, member, lost, now);
            }
        }
    }

    /// Begins every queued request whose set is free.
    fn start_queued(&mut self, now: Instant) {
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

    fn start(&mut self, pending: Pending, now: Instant) {
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

    fn hear_ready(
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

    fn hear_fired(
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
    fn lose(&mut self, member: MemberId, now: Instant) {
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

    fn hear_restored(
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
    fn withdraw(&mut self, coordination: CoordinationId, member: MemberId, cause: AbortCause, now: Instant) {
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
    fn finish(&mut self, coordination: CoordinationId, mut reset: Reset, verdict: Verdict, now: Instant) {
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
    fn absorb_queued(&mut self, reset: &mut Reset) {
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

    fn go_on(&mut self, coordination: CoordinationId, reset: Reset) {
        match reset.phase {
            Phase::Finishing(pending, verdict) if pending.is_empty() => {
                let Reset { lost, missing, .. } = reset;
                self.actions.push(Action::Concluded { coordination, verdict, lost, missing });
            }
            _ => drop(self.resets.insert(coordination, reset)),
        }
    }

    /// Does what time has come for.
    fn expire(&mut self, now: Instant) {
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
    fn give_up_silent(&mut self, coordination: CoordinationId, mut reset: Reset, now: Instant) {
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

    /// Takes a reset out of the table, if the server takes part in it.
    fn take(&mut self, coordination: CoordinationId, member: MemberId) -> Option<Reset> {
        self.resets.get(&coordination).filter(|reset| reset.members.contains(&member))?;
        self.resets.remove(&coordination)
    }

    fn name(&self, member: MemberId) -> MemberName {
        self.members.get(&member).map_or_else(|| MemberName::new("?"), |member| member.name)
    }
}
