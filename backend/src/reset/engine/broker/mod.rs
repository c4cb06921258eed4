// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The broker: coordinates the resets of several servers that share an iommufd, one [engine](super) in each.
//!
//! It is a pure state machine as well, for a launcher or a VMM to embed: it is told an [`Event`] and what time it is,
//! and gives [`Action`]s.
//!
//! ```text
//!  Request ─▶ queued, as long as another reset of the set goes on
//!     ▼
//!  Preparing ── all are ready ─▶ Granted ── fired ─▶ Finishing ── all are restored ─▶ over
//!     │ one refuses, is gone or silent   │ who was granted       ▲
//!     └───────────── Abort ──────────────┴─ is gone or silent ───┘
//! ```
//!
//! * Prepare goes to every server that has a function of the set, Grant to the one that has asked for it, and then Done or
//!   Abort to all. A server that is gone is not waited for; one that is silent is waited for as long as [`Patience`] says,
//!   and told the end all the same.
//! * A server that is lost before the grant ends the reset, and so does the one that was granted. Another one that is lost
//!   afterwards is named in Done.
//! * There is one reset of a set at a time. Requests that come meanwhile are answered by it if it is done, and take their
//!   turn if it is not. Every server that has a device in it must be ready before the next is granted: one that still
//!   waits for the kernel is not. So there are never two in the kernel at once.
//! * Once it is granted nobody is told to restore before the one that was granted has ended it, or can no longer begin.

mod course;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use protocol::extension::{
    AbortCause, BrokerMessage, CoordinationId, CoordinationRequest, LONGEST_ATTEMPT, MemberMessage,
    MemberName, PciAddress, ResetOutcome,
};

use self::course::Reset;

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
        let Some(Member { devices, .. }) = self.members.get(&member) else { return };
        match message {
            MemberMessage::Request(request) if !devices.contains(&request.target) => {
                let cause = AbortCause::UnknownHolder(request.target);
                let request = Some(request.request);
                let abort = BrokerMessage::Abort { coordination: None, request, cause };
                self.actions.push(Action::Tell(member, abort));
            }
            MemberMessage::Request(request) => {
                let tries = now + request.tries;
                // Whoever asks again for a device does not wait for the first request any more.
                self.queue
                    .retain(|queued| queued.member != member || queued.request.target != request.target);
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

    /// Takes a reset out of the table, if the server takes part in it.
    fn take(&mut self, coordination: CoordinationId, member: MemberId) -> Option<Reset> {
        self.resets.get(&coordination).filter(|reset| reset.members.contains(&member))?;
        self.resets.remove(&coordination)
    }

    fn name(&self, member: MemberId) -> MemberName {
        self.members.get(&member).map_or_else(|| MemberName::new("?"), |member| member.name)
    }
}
