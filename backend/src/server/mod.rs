// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop: one thread that waits for messages and finished jobs, and hands each to the face it belongs to.

mod backend_channel;
mod channel;
mod control;
mod faces;
mod listening;
pub mod peer;
pub mod poller;
pub mod refusals;
mod reset;
mod turned_away;
mod vfio_user;
mod vhost_user;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use protocol::extension::{Cookie, Face};
use protocol::vfio_user::{Request as VfioUserRequest, VfioUserHeader};
use protocol::vhost_user::{BackendChannel, DeviceRequest};
use protocol::{ControlRequest, ReceiveError, VhostUserHeader};
use sandbox::{Filters, Thread};

use self::channel::Channel;
use self::listening::Doorkeeper;
use self::peer::Peer;
use self::poller::{Interest, Poller, Token, Watched};
use self::reset::Handout;
use self::turned_away::TurnedAway;
use self::work::Asker;
use crate::device::DataFace;
use crate::face::control::ControlSession;
use crate::face::vfio_user::VfioUserSession;
use crate::face::vhost_user::VhostUserSession;
use crate::failure::Failure;
use crate::job::Job;
use crate::machine::{Answer, Machine};
use crate::notice::NoticeKind;
use crate::owner::ConnectionId;
use crate::reset::engine::RequestId;
use crate::reset::step::ResetThreads;
use crate::virtio::{Eventfd, Relay};
use crate::worker::{Work, Worker};

// Boxed: a client leaves the table for each of its messages and comes back.
type ControlPeer = Box<Peer<VhostUserHeader, ControlSession, (VhostUserHeader, ControlRequest)>>;
type VfioUserPeer = Box<Peer<VfioUserHeader, VfioUserSession, (VfioUserHeader, VfioUserRequest)>>;
type VhostUserPeer = Box<Peer<VhostUserHeader, VhostUserSession, (VhostUserHeader, DeviceRequest)>>;

/// Everything the loop waits for.
#[derive(Debug)]
enum Endpoint {
    ControlListener(Watched<UnixListener>),
    Control(ControlPeer),
    FaceListener(Cookie, Face, Watched<UnixListener>),
    VfioUser(VfioUserPeer),
    VhostUser(VhostUserPeer),
    /// Readable when the configuration has changed of the device that this vhost-user client has.
    ConfigChange(Token, Watched<Eventfd>),
    /// The socket for requests to this vhost-user client.
    Backend(Token, Watched<BackendChannel>),
    TurnedAway(Box<TurnedAway>),
    /// The server channel of this control client: all that can come is its end.
    Channel(Token),
    /// Readable when a job has finished.
    Worker(Watched<OwnedFd>),
    /// Readable when a step of a reset has finished.
    ResetThreads(Watched<OwnedFd>),
    /// Readable when the kernel has something to tell of a device.
    Notice(Cookie, NoticeKind, Watched<Arc<OwnedFd>>),
    /// Readable when the process shall end.
    Termination(Watched<UnixStream>),
}

/// The server process.
#[derive(Debug)]
pub struct Server {
    poller: Poller,
    machine: Machine,
    worker: Worker<Job>,
    reset_threads: ResetThreads,
    /// Rings the doorbells of virtio devices.
    relay: Arc<Relay>,
    endpoints: BTreeMap<Token, Endpoint>,
    next_token: u64,
    in_flight: Option<Asker>,
    /// Who waits for which request to the reset engine.
    reset_askers: BTreeMap<RequestId, Asker>,
    /// What waits for which device to be sanitized.
    handouts: BTreeMap<RequestId, Handout>,
    /// The server channels, by the control connections that they belong to.
    channels: BTreeMap<Token, Channel>,
    /// The control connection whose client coordinates our resets with those of other servers.
    broker: Option<Token>,
    /// Control connections that are gone, and what they handed over is not yet.
    withdrawals: VecDeque<ConnectionId>,
    /// Devices whose data clients are gone, and what those described of memory is not yet.
    left_views: VecDeque<Cookie>,
    /// Clients whose request waits for the job in flight.
    waiting: VecDeque<Token>,
    /// Clients whose request waits for a device that is being reset.
    held_off: Vec<Token>,
    /// The connections of which each ends the process when it ends.
    lifelines: Vec<Token>,
    is_terminated: bool,
    doorkeeper: Doorkeeper,
}

impl Server {
    /// A server without clients. Its threads are confined by these filters, if any; so must be the one that runs it.
    pub fn new(machine: Machine, filters: Option<&Filters>) -> io::Result<Self> {
        let worker = Worker::start("worker", 1, confinement(filters, Thread::Worker))?;
        let doorkeeper = Doorkeeper::new(worker.ready().try_clone_to_owned()?);
        let mut server = Self {
            poller: Poller::new()?,
            machine,
            worker,
            reset_threads: ResetThreads::start(confinement(filters, Thread::Reset))?,
            relay: Arc::new(Relay::start(confinement(filters, Thread::Kick))?),
            endpoints: BTreeMap::new(),
            next_token: 0,
            in_flight: None,
            reset_askers: BTreeMap::new(),
            handouts: BTreeMap::new(),
            channels: BTreeMap::new(),
            broker: None,
            withdrawals: VecDeque::new(),
            left_views: VecDeque::new(),
            waiting: VecDeque::new(),
            held_off: Vec::new(),
            lifelines: Vec::new(),
            is_terminated: false,
            doorkeeper,
        };
        let finished = server.worker.ready().try_clone_to_owned()?;
        server.watch(finished, Endpoint::Worker)?;
        let finished = server.reset_threads.ready().try_clone_to_owned()?;
        server.watch(finished, Endpoint::ResetThreads)?;
        Ok(server)
    }

    /// Ends when `signal` becomes readable.
    pub fn end_on(&mut self, signal: UnixStream) -> io::Result<()> {
        self.watch(signal, Endpoint::Termination)
    }

    /// Runs a job before the first message: a device of the command line. On this thread, which may do more than the worker
    /// as long as it has no filter.
    pub fn run_job(&mut self, job: Job) -> Result<(), Failure> {
        match self.machine.finish(job.carry_out())? {
            Answer::DeviceAdded(info) => self.watch_notices(info.cookie),
            Answer::Done
            | Answer::Memory(_)
            | Answer::Reset(_)
            | Answer::DriveTaken(_)
            | Answer::Driven(..) => {}
        }
        Ok(())
    }

    /// What the faces act on.
    pub const fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Serves until the process shall end, then releases everything.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while !self.is_done() {
            let deadlines = self.deadlines().chain(self.accepts_again_at());
            let deadline = deadlines.chain(self.machine.wakes_at()).chain(self.polls_at()).min();
            let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(timeout, &mut ready)?;
            // Who comes after somebody has gone shall not be taken for a second client.
            ready.sort_by_key(|token| matches!(self.endpoints.get(token), Some(Endpoint::FaceListener(..))));
            for token in &ready {
                self.handle_event(*token);
            }
            self.close_due_batches(&ready);
            ready.clear();
            if deadline.is_some_and(|at| at <= Instant::now()) {
                self.close_overdue();
                self.accept_again();
                self.machine.pass_time();
            }
            self.proceed();
        }
        if self.in_flight.take().is_some()
            && let Some(completion) = self.worker.wait()
        {
            // Nobody is left to be told.
            let _ = self.machine.finish(completion);
        }
        let farewell = self.machine.dissolve();
        self.submit(farewell, Asker::Nobody);
        let released =
            self.worker.wait().map_or(Ok(Answer::Done), |completion| self.machine.finish(completion));
        released.map(drop).map_err(io::Error::other)
    }

    fn is_done(&self) -> bool {
        self.is_terminated || self.lifelines.iter().any(|token| !self.endpoints.contains_key(token))
    }

    /// An endpoint leaves the table while it is served, and comes back if it stays.
    fn handle_event(&mut self, token: Token) {
        let Some(endpoint) = self.endpoints.remove(&token) else { return };
        match endpoint {
            Endpoint::ControlListener(mut listener) => {
                if let Some(stream) = self.accept(&mut listener) {
                    self.add_control(stream);
                }
                self.endpoints.insert(token, Endpoint::ControlListener(listener));
            }
            Endpoint::FaceListener(cookie, face, mut listener) => {
                if let Some(stream) = self.accept(&mut listener) {
                    self.add_client(cookie, face, stream, DataFace::Connected);
                }
                self.endpoints.insert(token, Endpoint::FaceListener(cookie, face, listener));
            }
            Endpoint::Control(peer) => self.control_ready(token, peer),
            Endpoint::VfioUser(peer) => self.vfio_user_ready(token, peer),
            Endpoint::VhostUser(peer) => self.vhost_user_ready(token, peer),
            Endpoint::ConfigChange(owner, eventfd) => self.config_changed(token, owner, eventfd),
            Endpoint::Backend(owner, channel) => self.backend_ready(token, owner, channel),
            Endpoint::TurnedAway(client) => self.turned_away_ready(token, client),
            Endpoint::Channel(client) => {
                // It says nothing but that it ends.
                self.endpoints.insert(token, Endpoint::Channel(client));
                self.close_channel(client);
            }
            Endpoint::Worker(finished) => {
                self.endpoints.insert(token, Endpoint::Worker(finished));
                while let Some(completion) = self.worker.outcome() {
                    let answer = self.machine.finish(completion);
                    if let Ok(Answer::DeviceAdded(info)) = &answer {
                        self.watch_notices(info.cookie);
                    }
                    let asker = self.in_flight.take().unwrap_or(Asker::Nobody);
                    self.deliver(asker, answer);
                }
            }
            Endpoint::ResetThreads(finished) => {
                self.endpoints.insert(token, Endpoint::ResetThreads(finished));
                while let Some(events) = self.reset_threads.outcome() {
                    for event in events {
                        self.machine.step_done(event);
                    }
                }
            }
            Endpoint::Notice(cookie, kind, eventfd) => {
                // Whatever it counts is one thing to tell.
                let _ = rustix::io::read(&*eventfd.source, &mut [0; 8]);
                self.endpoints.insert(token, Endpoint::Notice(cookie, kind, eventfd));
                self.tell_notice(cookie, kind);
            }
            Endpoint::Termination(signal) => {
                drop(signal);
                self.is_terminated = true;
            }
        }
    }

    /// Takes in what is watched for something to read.
    fn watch<T: AsFd>(&mut self, source: T, endpoint: impl FnOnce(Watched<T>) -> Endpoint) -> io::Result<()> {
        let token = self.new_token();
        let mut watched = self.poller.watched(source, token);
        watched.watch_for(Interest::Read)?;
        self.endpoints.insert(token, endpoint(watched));
        Ok(())
    }

    fn new_token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.endpoints.values().filter_map(|endpoint| match endpoint {
            Endpoint::Control(peer) => peer.deadline(),
            Endpoint::VfioUser(peer) => {
                [peer.deadline(), peer.session.batch.due()].into_iter().flatten().min()
            }
            Endpoint::VhostUser(peer) => peer.deadline(),
            Endpoint::TurnedAway(client) => Some(client.deadline),
            _ => None,
        })
    }

    /// Closes connections on which a message was begun and not finished.
    fn close_overdue(&mut self) {
        let now = Instant::now();
        let is_overdue = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let overdue: Vec<_> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| match endpoint {
                Endpoint::Control(peer) => is_overdue(peer.deadline()),
                Endpoint::VfioUser(peer) => is_overdue(peer.deadline()),
                Endpoint::VhostUser(peer) => is_overdue(peer.deadline()),
                Endpoint::TurnedAway(client) => is_overdue(Some(client.deadline)),
                _ => false,
            })
            .map(|(token, _)| *token)
            .collect();
        for token in overdue {
            match self.endpoints.remove(&token) {
                Some(Endpoint::Control(peer)) => self.break_control(token, peer, &ReceiveError::TimedOut),
                Some(Endpoint::VfioUser(peer)) => self.close_vfio_user(token, &peer, &ReceiveError::TimedOut),
                Some(Endpoint::VhostUser(peer)) => {
                    self.close_vhost_user(token, &peer, &ReceiveError::TimedOut);
                }
                _ => {}
            }
        }
    }
}

/// What a thread of that kind begins with. One that cannot be confined must not do anything.
fn confinement(filters: Option<&Filters>, thread: Thread) -> impl Fn() + Clone + Send + 'static {
    let filters = filters.cloned();
    move || {
        if let Some(Err(error)) = filters.as_ref().map(|filters| filters.install(thread)) {
            log::error!("event=fatal reason=\"{error}\"");
            std::process::abort();
        }
    }
}
