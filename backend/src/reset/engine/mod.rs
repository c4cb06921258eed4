// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset engine: decides which reset is done when, what it may hit, and what everybody is told.
//!
//! It is a pure state machine. It has no descriptor, no socket, no clock and no log: it is told an [`Event`] and what time
//! it is, and gives [`Action`]s. Each action that touches the kernel is carried out by somebody else, and what came of it is
//! the next event.
//!
//! ```text
//!  Asked ─▶ clean since its last reset? ─ yes, perhaps Restoring ─▶ Answer, from the epoch
//!             │ no
//!             ▼
//!     the ladder's next rung ─ none left ─▶ Answer: refused, with the reason for every rung
//!             │         │
//!             │ function│ group
//!             │         ▼
//!             │     Querying ─ blocked, protected … ─▶ passed over: on to the next rung
//!             │         ├─ another reset holds a function of the set ─▶ Waiting ─▶ Querying
//!             │         └─ a function is bound by another process ─▶ Asking ─ Abort ─▶ passed over
//!             ▼ alone   ▼                                              ▼ Prepare, which also comes unasked
//!         Quiescing ◀───┘                                          Quiescing, or Declined until Abort
//!             │                                                        ▼
//!             │                                                      Ready ─ Done, Abort ─────┐
//!             ▼                                                        ▼ Grant                │
//!         Attempting ⇄ Pausing                                     Attempting ⇄ Pausing       │
//!             │                                                        ▼                      │
//!             │                                                      Told ── Done, Abort ─────┤
//!             ▼                                                                               ▼
//!         Restoring ─▶ Answer to all who wait for it; or, if it failed, on to the next rung ◀─ Restoring
//! ```
//!
//! From the first quiesce to the last restore accesses to the devices of the reset are held off.
//!
//! What the integrator does:
//!
//! * Carries out the actions, those for one device in their order, and tells what came of each of [`Action::Query`],
//!   [`Action::Quiesce`], [`Action::Attempt`] and [`Action::Restore`] with the same [`ResetId`]; also for a device that
//!   is gone, with ENODEV. One worker thread is enough; with more, resets of different sets do not wait for each other.
//! * Calls [`Engine::handle`] with [`Event::TimePassed`] when [`Engine::wakes_at`] has come.
//! * Asks [`Engine::access`] before it lets a client access a device, change its interrupts, or write a register that
//!   resets it, and keeps what is held off until [`Action::SetAccess`].
//! * Tells what touches a device. After a reset that is, and nothing else:
//!   * a client has connected: [`Event::Touched`] and [`Event::Used`];
//!   * a write to a region other than the config space: [`Event::Touched`];
//!   * a write to the config space for which [`touch::config_write_touches`] is true: [`Event::Touched`]; if it leaves bus
//!     mastering on, [`Event::Used`] with [`Usage::Active`];
//!   * MSI or MSI-X was armed: [`Event::Used`] with [`Usage::Active`]. `INTx`, and the interrupts for errors and requests, do
//!     not count: clients arm them again right after each reset.
//!
//!   And when bus mastering, MSI and MSI-X are all off again, [`Usage::Still`]; when the client has gone, [`Usage::Free`].
//!   What a reset does to them the engine knows.
//!   Told too much, the engine resets once too often; told too little, it calls a device clean that is not.
//! * Removes a device that is held off only if it is really gone: the reset goes on without it. Who wants it back tells
//!   [`Event::WantedBack`] and waits for [`Action::SetAccess`].
//!
//! What holds, whatever happens (the tests in `tests/` show it):
//!
//! * Every request gets one answer, by its deadline. Two resets that share a device are never under way at once.
//! * Every device that is quiesced is restored, whatever the kernel said, or named as lost.
//! * A device is [cleared](Restoration::Cleared) for whoever wants it clean, and [put back](Restoration::PutBack) for a client
//!   that has not asked. If its state is lost, and it was active, the client is told, unless its VM has asked for something
//!   that would hit it.
//! * Who asks while a reset is under way that will do gets what comes of it; who asks afterwards for a clean device, and
//!   has not touched it, is answered at once. So N requests are one reset.
//! * A reset that the kernel refuses ends that rung only: everybody who asked climbs on from where they are.
//!
//! [`broker`] is the other side of coordination: what a launcher or a VMM runs over several engines.

pub mod broker;
mod course;
mod decision;
mod device;
mod event;
mod ladder;
mod member;
mod phase;
mod policy;
mod request;
mod sanitize;
mod scope;
#[cfg(test)]
mod tests;
pub mod touch;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use protocol::extension::{Cookie, Epoch, PciAddress};

pub use self::device::{Access, Cleaning, Condition, HowLost, Loss, Restoration, Usage, Vm};
pub use self::event::{Action, Announcement, Event, ResetId};
pub use self::ladder::{Reason, Rung, Step, decisive};
pub use self::phase::Stage;
pub use self::request::{Deadline, Demand, Refusal, Report, Request, RequestId};
pub use self::sanitize::{AuditOutcome, AuditRecord, Occasion, Sanitization, Sanitizing, Verdict};
pub use self::scope::{Scope, ScopeFunction};
pub use crate::device::FunctionReset;

use self::device::{Consent, Device};
use self::phase::{Phase, Reset};
use self::request::Asker;

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a busy kernel is left alone before it is asked again.
    pub pause: Duration,
    /// How long accesses to a device are held off before they are answered.
    pub hold_off: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        // A stock QEMU waits 5 s for each answer.
        Self { pause: Duration::from_millis(10), hold_off: Duration::from_secs(4) }
    }
}

/// The resets of one process.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    devices: BTreeMap<Cookie, Device>,
    resets: BTreeMap<ResetId, Reset>,
    /// Those whose device is held by a reset that will not do.
    waiting: Vec<Asker>,
    has_broker: bool,
    epoch: Epoch,
    last_reset: ResetId,
    last_petition: u64,
    actions: Vec<Action>,
}

impl Engine {
    /// An engine without devices.
    pub const fn new(settings: Settings) -> Self {
        Self {
            settings,
            devices: BTreeMap::new(),
            resets: BTreeMap::new(),
            waiting: Vec::new(),
            has_broker: false,
            epoch: Epoch(0),
            last_reset: ResetId(0),
            last_petition: 0,
            actions: Vec::new(),
        }
    }

    /// Takes note of what has happened, and says what is to be done. `now` never goes back.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::DeviceAdded { device, address, function_reset } => {
                self.add_device(device, Device::new(address, function_reset));
            }
            Event::DeviceRemoved(device) => self.remove_device(device, now),
            Event::WantedBack(device) => self.cut_short(device, now),
            Event::Used(device, usage) => {
                if let Some(device) = self.devices.get_mut(&device) {
                    device.note_usage(usage);
                }
            }
            Event::Touched(device) => {
                if let Some(device) = self.devices.get_mut(&device) {
                    device.touch();
                }
            }
            Event::Asked(request) => {
                self.note_wish(&request);
                self.ask(Asker::new(request), now);
            }
            Event::Sanitize(sanitization) => self.sanitize(sanitization, now),
            Event::Queried(reset, scope) => self.queried(reset, scope, now),
            Event::Quiesced(reset, device, result) => self.quiesced(reset, device, result, now),
            Event::Attempted(reset, result) => self.attempted(reset, result, now),
            Event::Restored(reset, device, result) => self.restored(reset, device, result, now),
            Event::BrokerFound => self.has_broker = true,
            Event::BrokerLost => self.lose_broker(now),
            Event::BrokerSaid(message) => self.hear_broker(message, now),
            Event::TimePassed => {}
        }
        self.settle(now);
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::TimePassed`] is due, if nothing else happens before.
    pub fn wakes_at(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|asker| asker.request.deadline.tries());
        self.resets.values().filter_map(Reset::wakes_at).chain(waiting).min()
    }

    /// What becomes of an access to the device.
    pub fn access(&self, device: Cookie) -> Access {
        self.devices.get(&device).map_or(Access::Lost, |device| device.access)
    }

    /// Whether a reset of the function's set is under way, be the function ours or not.
    pub fn holds(&self, function: PciAddress) -> bool {
        self.resets.values().any(|reset| reset.holds(function))
    }

    /// What state the device was left in, if there is one of this name.
    pub fn condition(&self, device: Cookie) -> Option<&Condition> {
        self.devices.get(&device).map(|device| &device.condition)
    }

    /// The number of resets done.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether nothing is under way and nobody waits.
    pub fn is_at_rest(&self) -> bool {
        self.resets.is_empty() && self.waiting.is_empty()
    }

    /// What has to be done because time has passed or something has ended.
    fn settle(&mut self, now: Instant) {
        self.expire(now);
        while self.start_waiting(now) {}
        for asker in std::mem::take(&mut self.waiting) {
            self.ask(asker, now);
        }
    }

    fn add_device(&mut self, name: Cookie, device: Device) {
        let address = device.address;
        self.devices.insert(name, device);
        let held = self.resets.iter_mut().find(|(_, reset)| reset.holds(address));
        let Some((id, reset)) = held else { return };
        // It came while its set is being reset: it is treated as those that were there before, as far as it can be.
        let id = *id;
        reset.scope.insert(name);
        let access = if reset.busy_at.is_some() { Access::HeldOff } else { Access::Busy };
        let action = match &mut reset.phase {
            Phase::Restoring(pending, _) => {
                pending.insert(name);
                Action::Restore(id, name, Restoration::Cleared)
            }
            Phase::Quiescing(pending) => {
                pending.insert(name);
                Action::Quiesce(id, name)
            }
            _ => Action::Quiesce(id, name),
        };
        self.set_access(name, access);
        self.actions.push(action);
    }

    fn remove_device(&mut self, name: Cookie, now: Instant) {
        let Some(device) = self.devices.remove(&name) else { return };
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting = self.answer_removed(waiting, name, now);
        let affected: Vec<_> =
            self.resets.iter().filter(|(_, reset)| reset.affects(name)).map(|(id, _)| *id).collect();
        for id in affected {
            let Some(mut reset) = self.resets.remove(&id) else { continue };
            reset.askers = self.answer_removed(reset.askers, name, now);
            reset.scope.remove(&name);
            if reset.is_launched() {
                reset.lost.push(Loss { device: name, address: device.address, how: HowLost::Removed });
                // What the kernel does about it now is waited for.
                self.resets.insert(id, reset);
            } else {
                self.go_on_without_target(id, reset, name);
            }
        }
    }

    /// A reset that has not begun goes on only for those who still wait for it.
    fn go_on_without_target(&mut self, id: ResetId, mut reset: Reset, target: Cookie) {
        let Some(first) = reset.askers.first() else {
            // What the broker coordinates goes on without askers of ours.
            if reset.coordination.is_some() {
                self.resets.insert(id, reset);
            }
            return;
        };
        if reset.target != target {
            self.resets.insert(id, reset);
            return;
        }
        reset.target = first.request.device;
        // The kernel was asked through a device that is gone; whatever it answers is nobody's any more.
        if let Phase::Querying = reset.phase {
            reset.phase = Phase::Waiting;
            let id = self.new_reset();
            self.resets.insert(id, reset);
        } else {
            self.resets.insert(id, reset);
        }
    }

    /// Tells those who asked for a removed device; gives the others back.
    fn answer_removed(&mut self, askers: Vec<Asker>, device: Cookie, now: Instant) -> Vec<Asker> {
        let (gone, left): (Vec<_>, Vec<_>) =
            askers.into_iter().partition(|asker| asker.request.device == device);
        for asker in gone {
            self.answer(asker, Err(Refusal::Removed), now);
        }
        left
    }

    /// Whoever asks for a device agrees to lose its state, and a VM that of what it uses besides.
    fn note_wish(&mut self, request: &Request) {
        for (name, device) in &mut self.devices {
            if request.vm.is_some() && device.usage.vm() == request.vm {
                device.consent = Consent::Vm;
            } else if *name == request.device {
                device.consent = device.consent.max(Consent::Host);
            }
        }
    }

    fn sanitize(&mut self, sanitization: Sanitization, now: Instant) {
        if sanitization.policy == Sanitizing::Off {
            let address = self.address(sanitization.device);
            self.actions.push(sanitization.conclude(address, Duration::ZERO, None));
        } else {
            self.ask(sanitization.asker(now), now);
        }
    }

    /// Gives a request its one answer.
    fn answer(&mut self, asker: Asker, result: Result<Report, Refusal>, now: Instant) {
        let action = match asker.sanitization {
            None => Action::Answer(asker.request.id, Box::new(result)),
            Some((sanitization, asked_at)) => {
                let address = self.address(sanitization.device);
                sanitization.conclude(address, now - asked_at, Some(result))
            }
        };
        self.actions.push(action);
    }

    fn set_access(&mut self, name: Cookie, access: Access) {
        if let Some(device) = self.devices.get_mut(&name).filter(|device| device.access != access) {
            device.access = access;
            self.actions.push(Action::SetAccess(name, access));
        }
    }

    fn address(&self, name: Cookie) -> Option<PciAddress> {
        self.devices.get(&name).map(|device| device.address)
    }

    const fn new_reset(&mut self) -> ResetId {
        self.last_reset.0 += 1;
        self.last_reset
    }
}
