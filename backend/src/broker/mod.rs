// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The broker of a VM's servers, with its sockets: for a launcher, or for a VMM to embed.
//!
//! What is decided when is in [`crate::reset::engine::broker`], which has no sockets. Nothing here waits but
//! [`ResetBroker::add`]: whoever embeds it watches [`ResetBroker::descriptors`] in a loop of its own, and calls
//! [`ResetBroker::process`] when one of them is ready or [`ResetBroker::wakes_at`] has come.
//!
//! ```text
//!  server ── channel ──▶ BrokerSession ── Event::Said ──▶ Broker ── Action::Tell ──▶ BrokerSession ── connection ──▶ server
//!                              │ its end: Event::Lost        │ Action::Concluded
//!                              ▼                             ▼
//!                                        Notice, for the log
//! ```
//!
//! ```no_run
//! # use std::time::Instant;
//! # use protocol::{ClientError, ControlClient};
//! # use protocol::extension::{EventKinds, MemberName};
//! # use vhost_device_vfio::broker::{Patience, ResetBroker};
//! # fn wait_for(_: &ResetBroker) {}
//! # fn coordinate(nic: ControlClient, disk: ControlClient) -> Result<(), ClientError> {
//! let mut broker = ResetBroker::new(Patience::default());
//! broker.add(nic, MemberName::new("nic"), EventKinds::RESETS, Instant::now())?;
//! broker.add(disk, MemberName::new("disk"), EventKinds::RESETS, Instant::now())?;
//! loop {
//!     wait_for(&broker);
//!     for notice in broker.process(Instant::now()) {
//!         log::log!(notice.level(), "{notice}");
//!     }
//! }
//! # }
//! ```
//!
//! A server that is killed while the kernel resets for it keeps its sockets until the kernel is through, because a thread of
//! it is in there: its end is the end of that.
//!
//! A server that hangs costs each reset that it has a part in the time that [`Patience`] allows, and no other server anything:
//! what it does not read is kept for it, up to [`MAX_UNACKNOWLEDGED`](protocol::broker_session::MAX_UNACKNOWLEDGED) messages.

mod notice;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use protocol::extension::{BrokerMessage, EventKinds, MemberName, PciAddress};
use protocol::{BrokerSession, ClientError, ControlClient, ServerRequest, SessionError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use self::notice::{Notice, ServerEvent};
use crate::reset::engine::broker::{self, Action, Broker};
pub use crate::reset::engine::broker::{MemberId, Patience};

/// Most requests that are taken from a server before the next one has its turn; more than a channel holds.
const MAX_REQUESTS_AT_ONCE: usize = 1024;

/// How many descriptors of a server are watched: its connection and its channel.
const DESCRIPTORS: usize = 2;

/// A server, and the session with it.
#[derive(Debug)]
struct Server {
    name: MemberName,
    session: BrokerSession,
}

/// Coordinates the resets of several servers that share an iommufd.
#[derive(Debug)]
pub struct ResetBroker {
    broker: Broker,
    servers: BTreeMap<MemberId, Server>,
    last: MemberId,
    notices: Vec<Notice>,
}

impl ResetBroker {
    /// A broker without servers.
    pub const fn new(patience: Patience) -> Self {
        Self {
            broker: Broker::new(patience),
            servers: BTreeMap::new(),
            last: MemberId(0),
            notices: Vec::new(),
        }
    }

    /// Takes in a server with the devices that it has, under a name for people; it tells of `events` too. The client has
    /// negotiated, and nothing was handed over on its connection: that closes when the server says something malformed. Waits
    /// for the server, as long as the client does.
    ///
    /// # Errors
    ///
    /// Refused with EBUSY (`already-coordinated`) where the server has another broker.
    pub fn add(
        &mut self,
        mut client: ControlClient,
        name: MemberName,
        events: EventKinds,
        now: Instant,
    ) -> Result<MemberId, ClientError> {
        let cookies = client.list_devices()?.into_iter();
        let devices = cookies.map(|cookie| Ok(client.device_info(cookie)?.address));
        let devices = devices.collect::<Result<_, ClientError>>()?;
        let session = BrokerSession::begin(client, name, events)?;
        self.last.0 += 1;
        let member = self.last;
        self.servers.insert(member, Server { name, session });
        self.tell_broker(broker::Event::Joined { member, name, devices }, now);
        Ok(member)
    }

    /// Takes note of the devices that a server has now.
    pub fn set_devices(&mut self, member: MemberId, devices: BTreeSet<PciAddress>, now: Instant) {
        self.tell_broker(broker::Event::DevicesChanged(member, devices), now);
    }

    /// What to watch, and for what. It is another after each call that changes something.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.servers.values().flat_map(|Server { session, .. }| {
            let room = if session.has_unsent() { PollFlags::OUT } else { PollFlags::empty() };
            let watched: [_; DESCRIPTORS] =
                [(session.connection(), PollFlags::IN | room), (session.channel(), PollFlags::IN)];
            watched
        })
    }

    /// When [`Self::process`] is due, if no descriptor is ready before.
    pub fn wakes_at(&self) -> Option<Instant> {
        self.broker.wakes_at()
    }

    /// Whether no reset is under way and no server waits for one.
    pub fn is_at_rest(&self) -> bool {
        self.broker.is_at_rest()
    }

    /// Does what has become due, and tells what has happened since the last call. `now` never goes back.
    pub fn process(&mut self, now: Instant) -> Vec<Notice> {
        for member in self.ready() {
            self.hear(member, now);
        }
        self.tell_broker(broker::Event::TimePassed, now);
        std::mem::take(&mut self.notices)
    }

    /// The servers that have said something, have room again, or are gone: one call tells, however many there are.
    fn ready(&self) -> Vec<MemberId> {
        let watch = |(fd, events)| PollFd::from_borrowed_fd(fd, events);
        let mut watched: Vec<_> = self.descriptors().map(watch).collect();
        let looked = poll(&mut watched, Some(&Timespec::default()));
        let is_ready = |watched: &PollFd<'_>| looked.is_err() || !watched.revents().is_empty();
        let (servers, _) = watched.as_chunks::<DESCRIPTORS>();
        let members = self.servers.keys().zip(servers).filter(|(_, server)| server.iter().any(is_ready));
        members.map(|(member, _)| *member).collect()
    }

    /// Takes what a server has said, and notices its end.
    fn hear(&mut self, member: MemberId, now: Instant) {
        let Some(Server { name, session }) = self.servers.get_mut(&member) else { return };
        let name = *name;
        // The connection first: whatever a server said before it went is on the channel by then.
        let connection = session.flush().and_then(|()| session.take_acknowledgements());
        let requests = std::iter::from_fn(|| session.receive().transpose());
        let said: Vec<_> = requests.take(MAX_REQUESTS_AT_ONCE).collect();
        let mut end = connection.err();
        for request in said {
            match request {
                Ok(request) => self.take_request(member, name, request, now),
                Err(error) => end = end.or(Some(error)),
            }
        }
        if let Some(error) = end {
            self.lose(member, error);
            self.tell_broker(broker::Event::Lost(member), now);
        }
    }

    fn take_request(&mut self, member: MemberId, server: MemberName, request: ServerRequest, now: Instant) {
        let event = match request {
            ServerRequest::Member(message) => {
                return self.tell_broker(broker::Event::Said(member, message), now);
            }
            ServerRequest::Reset(reset) => ServerEvent::Reset(reset),
            ServerRequest::DeviceError(cookie) => ServerEvent::DeviceError(cookie),
            ServerRequest::UnplugRequest(cookie) => ServerEvent::UnplugRequest(cookie),
            ServerRequest::GroupChanged(group) => ServerEvent::GroupChanged(group),
        };
        self.notices.push(Notice::Event { member, server, event });
    }

    fn lose(&mut self, member: MemberId, why: SessionError) {
        if let Some(Server { name, .. }) = self.servers.remove(&member) {
            self.notices.push(Notice::Lost { member, server: name, why });
        }
    }

    /// Tells the broker, and does what it wants done. A server that cannot be told is lost.
    fn tell_broker(&mut self, event: broker::Event, now: Instant) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.broker.handle(event, now) {
                match action {
                    Action::Tell(member, message) => {
                        if let Err(error) = self.tell_server(member, &message) {
                            self.lose(member, error);
                            events.push_back(broker::Event::Lost(member));
                        }
                    }
                    Action::Concluded { coordination, verdict, lost, missing } => {
                        self.notices.push(Notice::Concluded { coordination, verdict, lost, missing });
                    }
                }
            }
        }
    }

    fn tell_server(&mut self, member: MemberId, message: &BrokerMessage) -> Result<(), SessionError> {
        let Some(Server { name, session }) = self.servers.get_mut(&member) else { return Ok(()) };
        match message {
            BrokerMessage::Prepare(preparation) => match self.notices.last_mut() {
                Some(Notice::Begun { coordination, servers, .. })
                    if *coordination == preparation.coordination =>
                {
                    servers.push(*name);
                }
                _ => self.notices.push(Notice::Begun {
                    coordination: preparation.coordination,
                    target: preparation.target,
                    servers: vec![*name],
                }),
            },
            BrokerMessage::Abort { coordination: None, cause, .. } => {
                self.notices.push(Notice::Declined { server: *name, cause: *cause });
            }
            _ => {}
        }
        session.tell(message)
    }
}

#[cfg(test)]
mod tests;
