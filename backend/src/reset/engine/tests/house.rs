// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several servers and their broker, with the sockets between them and one kernel below.

use std::collections::BTreeSet;

use protocol::extension::MemberName;

use super::super::broker::{self, Broker, MemberId, Patience};
use super::*;

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// The kernel does a server's next step.
    Kernel(u64),
    /// The broker reads a server's next message.
    ToBroker(u64),
    /// A server reads the broker's next message.
    ToServer(u64),
}

pub(super) struct Server {
    pub(super) engine: Engine,
    pub(super) devices: Vec<u64>,
    pub(super) steps: VecDeque<Action>,
    pub(super) outbox: VecDeque<MemberMessage>,
    pub(super) inbox: VecDeque<BrokerMessage>,
    pub(super) answers: BTreeMap<RequestId, Result<Report, Refusal>>,
    pub(super) is_connected: bool,
    /// It does nothing any more, and its connection stays.
    pub(super) is_hung: bool,
    /// It did nothing for a while.
    pub(super) was_hung: bool,
}

impl Server {
    /// What the kernel is asked for now: the first step, if that is it.
    fn attempt(&self) -> Option<ResetMethod> {
        match self.steps.front() {
            Some(Action::Attempt(_, _, method)) => Some(*method),
            _ => None,
        }
    }
}

/// Servers 1, 2 …, of which server N has the devices that it was given; all devices are one reset set.
pub(super) struct House {
    pub(super) broker: Option<Broker>,
    pub(super) servers: BTreeMap<u64, Server>,
    pub(super) now: Instant,
    pub(super) concluded: Vec<broker::Action>,
    /// Each attempt of a hot reset, and by whom.
    pub(super) attempts: Vec<u64>,
    /// Whether the broker has been there all the time, so that nobody may reset what others have not quiesced.
    pub(super) is_orderly: bool,
    /// All functions of the set.
    pub(super) functions: BTreeSet<u64>,
    deadlines: BTreeMap<RequestId, Instant>,
    last_request: u64,
}

pub(super) fn name(server: u64) -> MemberName {
    MemberName::new(&format!("server{server}"))
}

impl House {
    /// A server for each list of devices, none of which has a reset of its own.
    pub(super) fn with(devices: &[&[u64]]) -> Self {
        let now = Instant::now();
        let mut house = Self {
            broker: None,
            servers: BTreeMap::new(),
            now,
            concluded: Vec::new(),
            attempts: Vec::new(),
            is_orderly: true,
            functions: devices.iter().copied().flatten().copied().collect(),
            deadlines: BTreeMap::new(),
            last_request: 0,
        };
        for (server, devices) in (1..).zip(devices) {
            let server = house.servers.entry(server).or_insert_with(|| Server {
                engine: Engine::new(Settings::default()),
                devices: devices.to_vec(),
                steps: VecDeque::new(),
                outbox: VecDeque::new(),
                inbox: VecDeque::new(),
                answers: BTreeMap::new(),
                is_connected: false,
                is_hung: false,
                was_hung: false,
            });
            for device in *devices {
                let function_reset = FunctionReset::None;
                let event =
                    Event::DeviceAdded { device: Cookie(*device), address: address(*device), function_reset };
                assert_eq!(server.engine.handle(event, now), []);
            }
        }
        house.connect_broker();
        house
    }

    /// A broker comes, and knows all servers that are there.
    pub(super) fn connect_broker(&mut self) {
        self.broker = Some(Broker::new(Patience::default()));
        for server in self.servers.keys().copied().collect::<Vec<_>>() {
            let devices = self.servers[&server].devices.iter().map(|device| address(*device)).collect();
            self.server(server).is_connected = true;
            if !self.servers[&server].is_hung {
                self.tell(server, Event::BrokerFound);
            }
            self.tell_broker(broker::Event::Joined { member: MemberId(server), name: name(server), devices });
        }
    }

    pub(super) fn server(&mut self, server: u64) -> &mut Server {
        self.servers.get_mut(&server).expect("the server is gone")
    }

    pub(super) fn ask(&mut self, server: u64, device: u64) -> RequestId {
        self.ask_within(server, device, Duration::from_mins(1))
    }

    pub(super) fn ask_within(&mut self, server: u64, device: u64, deadline: Duration) -> RequestId {
        self.ask_with(server, device, ResetPolicy::Group, deadline)
    }

    pub(super) fn ask_with(
        &mut self,
        server: u64,
        device: u64,
        policy: ResetPolicy,
        deadline: Duration,
    ) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.deadlines.insert(id, self.now + deadline);
        let request = Request {
            id,
            device: Cookie(device),
            method: None,
            demand: Demand::Clean,
            policy,
            vm: None,
            deadline: Deadline::at(self.now + deadline),
        };
        self.tell(server, Event::Asked(request));
        id
    }

    pub(super) fn tell(&mut self, number: u64, event: Event) {
        let now = self.now;
        let mut attempted = None;
        let server = self.servers.get_mut(&number).expect("the server is gone");
        for action in server.engine.handle(event, now) {
            match action {
                Action::Query(..) | Action::Quiesce(..) | Action::Restore(..) => {
                    server.steps.push_back(action);
                }
                Action::Attempt(_, _, method) => {
                    attempted = Some(method);
                    server.steps.push_back(action);
                }
                Action::TellBroker(message) if server.is_connected => server.outbox.push_back(message),
                Action::Answer(request, result) => {
                    assert!(
                        server.was_hung || now <= self.deadlines[&request],
                        "{request:?} is answered too late"
                    );
                    assert!(
                        server.answers.insert(request, *result).is_none(),
                        "{request:?} is answered twice"
                    );
                }
                _ => {}
            }
        }
        if attempted == Some(ResetMethod::Hot) {
            self.attempts.push(number);
            self.check_attempt(number);
        }
    }

    /// Nobody else asks the kernel for the set, and nobody uses a device of it.
    fn check_attempt(&self, attempting: u64) {
        for (number, server) in self.servers.iter().filter(|(number, _)| **number != attempting) {
            let is_attempting = server.steps.iter().any(|step| matches!(step, Action::Attempt(..)));
            assert!(!is_attempting, "server {attempting} and server {number} reset the set at once");
            for device in server.devices.iter().filter(|_| self.is_orderly && server.is_connected) {
                let access = server.engine.access(Cookie(*device));
                assert_ne!(access, Access::Open, "server {attempting} resets device {device} in use");
            }
        }
    }

    fn tell_broker(&mut self, event: broker::Event) {
        let Some(broker) = &mut self.broker else { return };
        for action in broker.handle(event, self.now) {
            match action {
                broker::Action::Tell(MemberId(server), message) => {
                    self.server(server).inbox.push_back(message);
                }
                concluded @ broker::Action::Concluded { .. } => self.concluded.push(concluded),
            }
        }
    }

    /// All that can happen next.
    pub(super) fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (number, server) in &self.servers {
            if server.is_connected && self.broker.is_some() && !server.outbox.is_empty() {
                moves.push(Move::ToBroker(*number));
            }
            if server.is_hung {
                continue;
            }
            if server.is_connected && !server.inbox.is_empty() {
                moves.push(Move::ToServer(*number));
            }
            if !server.steps.is_empty() {
                moves.push(Move::Kernel(*number));
            }
        }
        moves
    }

    /// What can happen happens; the kernel says `errno`, or does what it is asked for.
    pub(super) fn make(&mut self, chosen: Move, errno: Option<Errno>) {
        match chosen {
            Move::Kernel(number) => {
                let step = self.server(number).steps.pop_front().expect("nothing is to be done");
                let done = errno.map_or(Ok(()), Err);
                let event = match step {
                    Action::Query(reset, _) => {
                        Event::Queried(reset, errno.map_or_else(|| Ok(self.scope()), Err))
                    }
                    Action::Quiesce(reset, device) => Event::Quiesced(reset, device, done),
                    Action::Attempt(reset, ..) => Event::Attempted(reset, done.map(|()| ResetOutcome::Done)),
                    Action::Restore(reset, device, _) => Event::Restored(reset, device, done),
                    other => panic!("no step: {other:?}"),
                };
                self.tell(number, event);
            }
            Move::ToBroker(number) => {
                let message = self.server(number).outbox.pop_front().expect("nothing is said");
                self.tell_broker(broker::Event::Said(MemberId(number), message));
            }
            Move::ToServer(number) => {
                let message = self.server(number).inbox.pop_front().expect("nothing is said");
                self.tell(number, Event::BrokerSaid(message));
            }
        }
    }

    /// Every function: bound, as long as its server lives, and else of a group with one that is.
    fn scope(&self) -> Scope {
        let functions = self.functions.iter().map(|number| {
            let is_bound = self.servers.values().any(|server| server.devices.contains(number));
            function(*number, if is_bound { Ownership::Ours } else { Ownership::Implied })
        });
        Scope::Functions { is_available: true, functions: functions.collect() }
    }

    /// Everything that can happen happens, without time passing. False if nothing can.
    pub(super) fn step(&mut self) -> bool {
        let Some(next) = self.moves().first().copied() else { return false };
        self.make(next, None);
        true
    }

    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    /// Up to the moment at which a server has asked the kernel for the reset.
    pub(super) fn run_to_attempt(&mut self) -> u64 {
        loop {
            let attempting = self.servers.iter().find(|(_, server)| server.attempt().is_some());
            if let Some((number, _)) = attempting {
                return *number;
            }
            assert!(self.step(), "nobody resets anything");
        }
    }

    /// Lets everybody but those who ask the kernel go on.
    pub(super) fn run_others(&mut self) {
        while let Some(next) = self
            .moves()
            .into_iter()
            .find(|next| !matches!(next, Move::Kernel(number) if self.servers[number].attempt().is_some()))
        {
            self.make(next, None);
        }
    }

    /// The next moment at which something is due.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let servers = self.servers.values().filter(|server| !server.is_hung);
        let servers = servers.filter_map(|server| server.engine.wakes_at());
        servers.chain(self.broker.as_ref().and_then(Broker::wakes_at)).min()
    }

    /// What is due at the next moment is done. False if nothing is due any more.
    pub(super) fn wake(&mut self) -> bool {
        let Some(at) = self.wakes_at() else { return false };
        self.now = self.now.max(at);
        for number in self.servers.keys().copied().collect::<Vec<_>>() {
            if !self.servers[&number].is_hung {
                self.tell(number, Event::TimePassed);
            }
        }
        self.tell_broker(broker::Event::TimePassed);
        true
    }

    /// Everything happens that can, and time passes until nothing is due.
    pub(super) fn settle(&mut self) {
        self.run();
        while self.wake() {
            self.run();
        }
    }

    /// The process ends. What it was doing in the kernel is over before its connection is.
    pub(super) fn kill(&mut self, server: u64) {
        self.servers.remove(&server);
        self.tell_broker(broker::Event::Lost(MemberId(server)));
    }

    /// The broker's process ends.
    pub(super) fn kill_broker(&mut self) {
        self.broker = None;
        self.is_orderly = false;
        for number in self.servers.keys().copied().collect::<Vec<_>>() {
            let server = self.server(number);
            server.is_connected = false;
            server.outbox.clear();
            server.inbox.clear();
            if !server.is_hung {
                self.tell(number, Event::BrokerLost);
            }
        }
    }

    pub(super) fn answer(&self, request: RequestId) -> &Result<Report, Refusal> {
        let mut answers = self.servers.values().filter_map(|server| server.answers.get(&request));
        answers.next().unwrap_or_else(|| panic!("{request:?} is not answered"))
    }

    /// Why a request was not granted, in words.
    pub(super) fn reason(&self, request: RequestId) -> String {
        self.answer(request).as_ref().unwrap_err().to_string()
    }

    /// Nothing is under way, and every device of a living server is in use or known to be lost.
    pub(super) fn assert_at_rest(&self) {
        for (number, server) in self.servers.iter().filter(|(_, server)| !server.is_hung) {
            assert!(server.engine.is_at_rest(), "server {number}: {:#?}", server.engine);
            for device in &server.devices {
                let access = server.engine.access(Cookie(*device));
                let is_lost = matches!(server.engine.condition(Cookie(*device)), Some(Condition::Lost(_)));
                assert_eq!(access, if is_lost { Access::Lost } else { Access::Open });
            }
        }
        assert!(self.broker.as_ref().is_none_or(Broker::is_at_rest), "{:#?}", self.broker);
    }

    /// The names of lost servers in the broker's account of its last reset, and the functions lost.
    pub(super) fn last_losses(&self) -> (Vec<String>, BTreeSet<PciAddress>) {
        match self.concluded.last() {
            Some(broker::Action::Concluded { lost, missing, .. }) => {
                (missing.iter().map(|name| name.as_str().to_owned()).collect(), lost.clone())
            }
            other => panic!("no reset is over: {other:?}"),
        }
    }
}
