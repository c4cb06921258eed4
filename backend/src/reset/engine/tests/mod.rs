// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The engine at a desk: the tests are its kernel, its clients, its broker and its clock.

mod access;
mod broker;
mod coordinated;
mod course;
mod deadlines;
mod epochs;
mod house;
mod ladder;
mod losses;
mod many_servers;
mod one_server;
mod policies;
mod removal;
mod restorations;
mod sanitizing;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::extension::{
    BrokerMessage, Cookie, MemberMessage, Ownership, PciAddress, ResetMethod, ResetOutcome, ResetPolicy,
};
use rustix::io::Errno;

use super::*;

/// The address of the device of this name: function `number` of the one slot.
const fn address(number: u64) -> PciAddress {
    PciAddress { segment: 0, bus: 1, devfn: number.to_le_bytes()[0] }
}

/// The function of this address as ours, implied or blocking.
const fn function(number: u64, ownership: Ownership) -> ScopeFunction {
    ScopeFunction { address: address(number), ownership }
}

/// The set of these functions, which the kernel would reset.
fn set_of(functions: &[u64]) -> Scope {
    let functions = functions.iter().map(|number| function(*number, Ownership::Ours)).collect();
    Scope::Functions { is_available: true, functions }
}

/// An engine, and what it wants of others.
struct Desk {
    engine: Engine,
    now: Instant,
    /// What the kernel is to do, and has not done.
    steps: VecDeque<Action>,
    /// What the kernel tells of the set of a device; of one that is not listed: that all devices are one set.
    scopes: BTreeMap<Cookie, Scope>,
    answers: BTreeMap<RequestId, Result<Report, Refusal>>,
    sanitized: Vec<(Verdict, AuditRecord)>,
    announced: Vec<Announcement>,
    told: Vec<MemberMessage>,
    /// Every attempt of a reset.
    attempts: Vec<(Cookie, ResetMethod)>,
    /// How each device was restored last.
    restored: BTreeMap<Cookie, Restoration>,
    /// Whose clients were told that their device's state is lost.
    errors: Vec<Cookie>,
    devices: Vec<u64>,
    last_request: u64,
}

impl Desk {
    /// An engine that has these devices, which are one reset set.
    fn with(devices: &[(u64, FunctionReset)]) -> Self {
        let mut desk = Self {
            engine: Engine::new(Settings::default()),
            now: Instant::now(),
            steps: VecDeque::new(),
            scopes: BTreeMap::new(),
            answers: BTreeMap::new(),
            sanitized: Vec::new(),
            announced: Vec::new(),
            told: Vec::new(),
            attempts: Vec::new(),
            restored: BTreeMap::new(),
            errors: Vec::new(),
            devices: Vec::new(),
            last_request: 0,
        };
        for (device, function_reset) in devices {
            desk.add(*device, *function_reset);
        }
        desk
    }

    /// Devices 1 to `count` without a reset of their own.
    fn with_group(count: u64) -> Self {
        let devices: Vec<_> = (1..=count).map(|device| (device, FunctionReset::None)).collect();
        Self::with(&devices)
    }

    fn add(&mut self, device: u64, function_reset: FunctionReset) {
        self.devices.push(device);
        self.tell(Event::DeviceAdded { device: Cookie(device), address: address(device), function_reset });
    }

    fn tell(&mut self, event: Event) {
        let mut accesses = BTreeMap::new();
        for action in self.engine.handle(event, self.now) {
            if let Action::SetAccess(device, access) = action {
                accesses.insert(device, access);
            }
            self.take(action);
        }
        for (device, access) in accesses {
            assert_eq!(self.engine.access(device), access);
        }
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Attempt(_, device, method) => {
                self.attempts.push((device, method));
                self.steps.push_back(action);
            }
            Action::Restore(_, device, restoration) => {
                self.restored.insert(device, restoration);
                self.steps.push_back(action);
            }
            Action::RaiseError(device) => self.errors.push(device),
            Action::Query(..) | Action::Quiesce(..) => self.steps.push_back(action),
            Action::Answer(request, result) => {
                assert!(self.answers.insert(request, *result).is_none(), "{request:?} is answered twice");
            }
            Action::Sanitized { verdict, record, .. } => self.sanitized.push((verdict, record)),
            Action::TellBroker(message) => self.told.push(message),
            Action::Announce(_, announcement) => self.announced.push(announcement),
            Action::SetAccess(..) => {}
        }
    }

    /// A request for the device in the manner of a stock VMM.
    fn request(&mut self, device: u64) -> Request {
        self.last_request += 1;
        Request {
            id: RequestId(self.last_request),
            device: Cookie(device),
            method: None,
            demand: Demand::Clean,
            policy: ResetPolicy::Group,
            vm: None,
            deadline: Deadline::at(self.now + Duration::from_mins(1)),
        }
    }

    fn ask(&mut self, device: u64) -> RequestId {
        let request = self.request(device);
        self.ask_so(request)
    }

    fn ask_so(&mut self, request: Request) -> RequestId {
        let id = request.id;
        self.tell(Event::Asked(request));
        id
    }

    /// The device is used by a VM of its own.
    fn activate(&mut self, device: u64) {
        self.tell(Event::Used(Cookie(device), Usage::Active(Vm(device))));
    }

    fn touch(&mut self, device: u64) {
        self.tell(Event::Touched(Cookie(device)));
    }

    /// The kernel does what it is to do next, and does it well.
    fn step(&mut self) -> Action {
        let step = self.steps.pop_front().expect("nothing is to be done");
        let event = match &step {
            Action::Query(reset, device) => Event::Queried(*reset, Ok(self.scope(*device))),
            Action::Quiesce(reset, device) => Event::Quiesced(*reset, *device, Ok(())),
            Action::Attempt(reset, ..) => Event::Attempted(*reset, Ok(ResetOutcome::Done)),
            Action::Restore(reset, device, _) => Event::Restored(*reset, *device, Ok(())),
            other => panic!("no step: {other:?}"),
        };
        self.tell(event);
        step
    }

    /// The kernel refuses what it is to do next.
    fn refuse(&mut self, errno: Errno) -> Action {
        let step = self.steps.pop_front().expect("nothing is to be done");
        let event = match &step {
            Action::Query(reset, _) => Event::Queried(*reset, Err(errno)),
            Action::Quiesce(reset, device) => Event::Quiesced(*reset, *device, Err(errno)),
            Action::Attempt(reset, ..) => Event::Attempted(*reset, Err(errno)),
            Action::Restore(reset, device, _) => Event::Restored(*reset, *device, Err(errno)),
            other => panic!("no step: {other:?}"),
        };
        self.tell(event);
        step
    }

    /// The kernel does all that it is to do.
    fn run(&mut self) {
        while !self.steps.is_empty() {
            self.step();
        }
    }

    /// The kernel does what it is to do, up to the attempt.
    fn run_to_attempt(&mut self) {
        while !matches!(self.steps.front().expect("there is no attempt"), Action::Attempt(..)) {
            self.step();
        }
    }

    fn scope(&self, device: Cookie) -> Scope {
        self.scopes.get(&device).cloned().unwrap_or_else(|| set_of(&self.devices))
    }

    /// The kernel tells this of every device.
    fn set_scope(&mut self, scope: &Scope) {
        self.scopes = (1..=8).map(|device| (Cookie(device), scope.clone())).collect();
    }

    /// Time passes, and whatever is due is told.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.engine.wakes_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.tell(Event::TimePassed);
        }
        self.now = end;
    }

    fn answer(&self, request: RequestId) -> &Result<Report, Refusal> {
        self.answers.get(&request).unwrap_or_else(|| panic!("{request:?} is not answered"))
    }

    fn report(&self, request: RequestId) -> &Report {
        self.answer(request).as_ref().unwrap()
    }

    /// The reasons for which a request was refused, rung by rung.
    fn reasons(&self, request: RequestId) -> Vec<(Rung, Reason)> {
        match self.answer(request) {
            Err(Refusal::NoMeansLeft { passed }) => {
                passed.iter().map(|step| (step.rung, step.reason.clone())).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn access(&self, device: u64) -> Access {
        self.engine.access(Cookie(device))
    }

    fn assert_at_rest(&self) {
        assert!(self.engine.is_at_rest() && self.steps.is_empty(), "{:#?}", self.engine);
        assert_eq!(self.engine.wakes_at(), None);
    }
}
