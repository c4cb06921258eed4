// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One server with its kernel and its clients, which have their own idea of what is right.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

pub(super) const DEVICES: u64 = 5;

/// What a device is, and in which set.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) function_reset: FunctionReset,
    pub(super) set: usize,
}

/// What a set is besides its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surroundings {
    Nothing,
    ImpliedFunction,
    BlockingFunction,
    NoReset,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Deed {
    Ask {
        device: u64,
        method: Option<ResetMethod>,
        demand: Demand,
        policy: ResetPolicy,
        patience: u64,
        grace: u64,
    },
    Kernel {
        which: usize,
        errno: Option<Errno>,
    },
    Touch(u64),
    Use(u64, Usage),
    Remove(u64),
    Add(u64),
    Wait(u64),
}

/// The kernel and the clients, with their own idea of what is right.
pub(super) struct World {
    engine: Engine,
    now: Instant,
    slots: Vec<Slot>,
    surroundings: Vec<Surroundings>,
    present: BTreeSet<u64>,
    usage: BTreeMap<u64, Usage>,
    /// Who has asked and has not touched the device since.
    asked: BTreeSet<u64>,
    touched: BTreeSet<u64>,
    /// How each was restored last.
    restored: BTreeMap<u64, Restoration>,
    steps: Vec<Action>,
    open: BTreeMap<RequestId, Request>,
    /// Which devices each reset has quiesced and not restored.
    quiesced: BTreeMap<ResetId, BTreeSet<Cookie>>,
    attempted: BTreeMap<ResetId, u32>,
    last_request: u64,
}

impl World {
    pub(super) fn new(slots: Vec<Slot>, surroundings: Vec<Surroundings>) -> Self {
        let mut world = Self {
            engine: Engine::new(Settings::default()),
            now: Instant::now(),
            slots,
            surroundings,
            present: BTreeSet::new(),
            usage: BTreeMap::new(),
            asked: BTreeSet::new(),
            touched: BTreeSet::new(),
            restored: BTreeMap::new(),
            steps: Vec::new(),
            open: BTreeMap::new(),
            quiesced: BTreeMap::new(),
            attempted: BTreeMap::new(),
            last_request: 0,
        };
        (1..=DEVICES).for_each(|device| world.add(device));
        world
    }

    fn slot(&self, device: u64) -> &Slot {
        &self.slots[usize::try_from(device - 1).unwrap()]
    }

    /// Every device that is there and of the set of this one.
    fn set(&self, device: u64) -> BTreeSet<u64> {
        let set = self.slot(device).set;
        self.present.iter().copied().filter(|other| self.slot(*other).set == set).collect()
    }

    fn add(&mut self, device: u64) {
        // A name is given again once nothing is under way for the one who had it.
        let is_awaited = self.steps.iter().any(|step| device_of(step) == Some(device));
        if is_awaited || !self.present.insert(device) {
            return;
        }
        self.usage.insert(device, Usage::Free);
        self.touched.insert(device);
        let function_reset = self.slot(device).function_reset;
        self.tell(Event::DeviceAdded { device: Cookie(device), address: address(device), function_reset });
    }

    fn remove(&mut self, device: u64) {
        self.present.remove(&device);
        self.asked.remove(&device);
        for devices in self.quiesced.values_mut() {
            devices.remove(&Cookie(device));
        }
        self.tell(Event::DeviceRemoved(Cookie(device)));
    }

    pub(super) fn do_deed(&mut self, deed: Deed) {
        match deed {
            Deed::Ask { device, method, demand, policy, patience, grace } => {
                self.last_request += 1;
                let tries = self.now + Duration::from_millis(patience);
                let request = Request {
                    id: RequestId(self.last_request),
                    device: Cookie(device),
                    method,
                    demand,
                    policy,
                    vm: None,
                    deadline: Deadline::outlasting(tries, Duration::from_millis(grace)),
                };
                self.open.insert(request.id, request.clone());
                if self.present.contains(&device) {
                    self.asked.insert(device);
                }
                self.tell(Event::Asked(request));
            }
            Deed::Kernel { which, errno } => self.step(which, errno),
            Deed::Touch(device) => {
                self.note_touch(device);
                self.tell(Event::Touched(Cookie(device)));
            }
            Deed::Use(device, usage) if self.present.contains(&device) => {
                let before = self.usage.insert(device, usage);
                let is_active = |usage| matches!(usage, Some(Usage::Active(_)));
                if is_active(Some(usage)) && !is_active(before) {
                    self.note_touch(device);
                }
                self.tell(Event::Used(Cookie(device), usage));
            }
            Deed::Use(..) => {}
            Deed::Remove(device) => self.remove(device),
            Deed::Add(device) => self.add(device),
            Deed::Wait(milliseconds) => self.wait(Duration::from_millis(milliseconds)),
        }
    }

    fn note_cleared(&mut self, device: u64) {
        if let Some(usage) = self.usage.get_mut(&device)
            && let Usage::Active(vm) = *usage
        {
            *usage = Usage::Still(vm);
        }
    }

    fn note_touch(&mut self, device: u64) {
        self.touched.insert(device);
        self.asked.remove(&device);
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.engine.wakes_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.tell(Event::TimePassed);
        }
        self.now = end;
    }

    /// Those steps that may come next: those of one device come in their order.
    fn ready_steps(&self) -> Vec<usize> {
        let is_first = |index: &usize| {
            let device = device_of(&self.steps[*index]);
            !self.steps[..*index].iter().any(|step| device_of(step) == device)
        };
        (0..self.steps.len()).filter(is_first).collect()
    }

    fn step(&mut self, which: usize, errno: Option<Errno>) {
        let ready = self.ready_steps();
        if ready.is_empty() {
            return;
        }
        let step = self.steps.remove(ready[which % ready.len()]);
        let gone = device_of(&step).is_some_and(|device| !self.present.contains(&device));
        let errno = if gone { Some(Errno::NODEV) } else { errno };
        let done = errno.map_or(Ok(()), Err);
        let event = match step {
            Action::Query(reset, device) => {
                Event::Queried(reset, errno.map_or_else(|| Ok(self.scope(device.0)), Err))
            }
            Action::Quiesce(reset, device) => Event::Quiesced(reset, device, done),
            Action::Attempt(reset, device, method) => {
                if done.is_ok() {
                    let hit = if method == ResetMethod::Hot { self.set(device.0) } else { [device.0].into() };
                    self.touched.retain(|device| !hit.contains(device));
                }
                Event::Attempted(reset, done.map(|()| ResetOutcome::Done))
            }
            Action::Restore(reset, device, _) => {
                if done.is_err() {
                    self.note_cleared(device.0);
                }
                Event::Restored(reset, device, done)
            }
            other => panic!("no step: {other:?}"),
        };
        self.tell(event);
    }

    fn scope(&self, device: u64) -> Scope {
        let surroundings = self.surroundings[self.slot(device).set];
        let set = self.slot(device).set;
        let functions = (1..=DEVICES).filter(|function| self.slot(*function).set == set).map(|number| {
            let is_ours = self.present.contains(&number);
            function(number, if is_ours { Ownership::Ours } else { Ownership::Implied })
        });
        let other = match surroundings {
            Surroundings::Nothing => None,
            Surroundings::ImpliedFunction => Some(function(100, Ownership::Implied)),
            Surroundings::BlockingFunction => Some(function(100, Ownership::Blocking)),
            Surroundings::NoReset => return Scope::None,
        };
        let is_available = surroundings != Surroundings::BlockingFunction;
        Scope::Functions { is_available, functions: functions.chain(other).collect() }
    }

    fn tell(&mut self, event: Event) {
        for action in self.engine.handle(event, self.now) {
            self.check(&action);
            if device_of(&action).is_some() {
                self.steps.push(action);
            }
        }
        for (id, request) in &self.open {
            assert!(self.now < request.deadline.answer(), "{id:?} still waits");
        }
    }

    fn check(&mut self, action: &Action) {
        match action {
            Action::Quiesce(reset, device) => drop(self.quiesced.entry(*reset).or_default().insert(*device)),
            Action::Restore(reset, device, restoration) => {
                self.quiesced.entry(*reset).or_default().remove(device);
                self.restored.insert(device.0, *restoration);
                if *restoration == Restoration::Cleared {
                    self.note_cleared(device.0);
                }
            }
            Action::Attempt(reset, device, method) => self.check_attempt(*reset, device.0, *method),
            Action::Answer(request, result) => self.check_answer(*request, result),
            Action::Announce(_, Announcement::Begun { rung: Rung::Group, affected }) => {
                self.check_policy(affected);
            }
            Action::Announce(_, Announcement::Done { report, .. }) => {
                self.asked.retain(|device| !report.affected.contains(&Cookie(*device)));
            }
            _ => {}
        }
    }

    fn check_attempt(&mut self, reset: ResetId, device: u64, method: ResetMethod) {
        let hit =
            |device, method| if method == ResetMethod::Hot { self.set(device) } else { [device].into() };
        let hits = hit(device, method);
        for step in &self.steps {
            if let Action::Attempt(_, other, method) = step {
                assert!(hit(other.0, *method).is_disjoint(&hits), "two resets of {hits:?} at once");
            }
        }
        for device in &hits {
            assert_ne!(self.engine.access(Cookie(*device)), Access::Open, "device {device} is reset in use");
        }
        let waiting = self.open.values().filter(|request| hits.contains(&request.device.0));
        let waiting: Vec<_> = waiting.collect();
        assert!(!waiting.is_empty(), "nobody waits for the reset of {hits:?}");
        let attempts = self.attempted.entry(reset).or_default();
        *attempts += 1;
        let in_time = waiting.iter().any(|request| self.now < request.deadline.tries());
        assert!(*attempts == 1 || in_time, "a busy kernel is asked after the deadline");
    }

    /// Somebody waits who may reset all of these.
    fn check_policy(&self, affected: &[Cookie]) {
        let set = self.set(affected[0].0);
        let Scope::Functions { functions, .. } = self.scope(affected[0].0) else { panic!("there is no set") };
        let is_alone = functions.len() == 1;
        let is_protected =
            |device: &u64| matches!(self.usage[device], Usage::Active(_)) && !self.asked.contains(device);
        let permits = |request: &Request| match request.policy {
            ResetPolicy::Function => is_alone,
            ResetPolicy::Group => {
                !set.iter().any(|device| *device != request.device.0 && is_protected(device))
            }
            ResetPolicy::Force => true,
        };
        let mut waiting = self.open.values().filter(|request| set.contains(&request.device.0));
        assert!(waiting.any(permits), "policy protects a device of {set:?}");
    }

    fn check_answer(&mut self, id: RequestId, result: &Result<Report, Refusal>) {
        let request = self.open.remove(&id).expect("a request is answered twice");
        assert!(self.now <= request.deadline.answer(), "{id:?} is answered too late");
        let Ok(report) = result else { return };
        assert!(report.reset.affected.contains(&request.device), "{id:?} is told of another reset");
        if request.demand == Demand::Clean {
            assert_eq!(self.restored[&request.device.0], Restoration::Cleared, "{id:?} wants a clean device");
        }
        if report.is_from_epoch {
            assert!(!self.touched.contains(&request.device.0), "a touched device is called clean");
            assert_eq!(request.demand, Demand::Clean);
        }
    }

    /// The kernel does all it is to do, time passes, and nothing more happens.
    pub(super) fn come_to_rest(&mut self) {
        loop {
            while !self.steps.is_empty() {
                self.step(0, None);
            }
            let Some(at) = self.engine.wakes_at() else { break };
            self.now = self.now.max(at);
            self.tell(Event::TimePassed);
        }
        assert!(self.engine.is_at_rest(), "{:#?}", self.engine);
        assert!(self.open.is_empty(), "{:?} are not answered", self.open);
        assert!(self.quiesced.values().all(BTreeSet::is_empty), "{:?} are not restored", self.quiesced);
        for device in &self.present {
            let is_lost = matches!(self.engine.condition(Cookie(*device)), Some(Condition::Lost(_)));
            let expected = if is_lost { Access::Lost } else { Access::Open };
            assert_eq!(self.engine.access(Cookie(*device)), expected);
        }
    }

    /// The kernel does nothing any more, and time passes.
    pub(super) fn be_abandoned(&mut self) {
        while let Some(at) = self.engine.wakes_at() {
            self.now = self.now.max(at);
            self.tell(Event::TimePassed);
        }
        assert!(self.open.is_empty(), "{:?} are not answered", self.open);
    }
}

/// The device that a step of the kernel is about, if the action is one.
pub(super) fn device_of(action: &Action) -> Option<u64> {
    match action {
        Action::Query(_, device)
        | Action::Quiesce(_, device)
        | Action::Attempt(_, device, _)
        | Action::Restore(_, device, _) => Some(device.0),
        _ => None,
    }
}
