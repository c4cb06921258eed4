// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The server channels of control clients: events for those who have subscribed, and what is said to the broker.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::extension::{EventKinds, GroupEvent, MemberMessage};
use protocol::{Connection, Endpoint as End, ServerRequest, VhostUserHeader};

use super::poller::{Interest, Token, Watched};
use super::{Endpoint, Server};
use crate::face::control::ChannelRequest;
use crate::face::socket::FaceSocket;
use crate::failure::Failure;

/// The reset groups are not looked at more often than that, whatever a client wishes.
const SHORTEST_POLL: Duration = Duration::from_millis(100);

/// The channel of a control client.
#[derive(Debug)]
pub(super) struct Channel {
    connection: Watched<Connection<VhostUserHeader>>,
    /// What the loop knows its socket by.
    token: Token,
    events: EventKinds,
    /// Whether it has yet to be told how each group is.
    is_new_to_groups: bool,
    poll: Option<Duration>,
    /// When the groups are looked at next, if they are.
    polls_at: Option<Instant>,
}

impl Channel {
    /// Whether it is told of events of this kind.
    fn hears(&self, kind: EventKinds) -> bool {
        self.events.contains(kind) && !(kind == EventKinds::GROUPS && self.is_new_to_groups)
    }

    /// Sends a request whole; fails if the client does not read.
    fn send(&mut self, request: &ServerRequest) -> bool {
        let (number, body) = request.encode();
        let header = VhostUserHeader::request(number, false);
        let connection = &mut self.connection.source;
        connection.send(header, &body, &[]).is_ok() && !connection.has_unsent()
    }
}

impl Server {
    /// Carries a request about the channel of the control client `client` out.
    pub(super) fn handle_channel_request(
        &mut self,
        client: Token,
        request: ChannelRequest,
    ) -> Result<(), Failure> {
        match request {
            ChannelRequest::Open(socket) => {
                let FaceSocket::Connected(stream) = FaceSocket::from_fd(socket)? else {
                    return Err(Failure::not_a_unix_stream());
                };
                self.close_channel(client);
                self.open_channel(client, stream).map_err(|error| Failure::channel_not_set_up(&error))
            }
            ChannelRequest::Subscribe(events, poll) => self.subscribe(client, events, poll),
            ChannelRequest::Coordinate(name) => {
                if !self.channels.contains_key(&client) {
                    return Err(Failure::no_server_channel());
                }
                match self.broker {
                    Some(broker) if broker != client => return Err(Failure::already_coordinated()),
                    Some(_) => self.machine.lose_broker(),
                    None => {}
                }
                log::info!("event=coordinated connection={} name=\"{}\"", client.0, name.as_str());
                self.broker = Some(client);
                self.machine.find_broker();
                Ok(())
            }
            ChannelRequest::Broker(message) if self.broker == Some(client) => {
                self.machine.hear_broker(message);
                Ok(())
            }
            ChannelRequest::Broker(_) => Err(Failure::not_the_broker()),
        }
    }

    fn open_channel(&mut self, client: Token, stream: UnixStream) -> io::Result<()> {
        let token = self.new_token();
        let mut connection = self.poller.watched(Connection::new(stream, End::Client), token);
        connection.watch_for(Interest::Read)?;
        self.endpoints.insert(token, Endpoint::Channel(client));
        let events = EventKinds::default();
        let channel =
            Channel { connection, token, events, is_new_to_groups: false, poll: None, polls_at: None };
        self.channels.insert(client, channel);
        Ok(())
    }

    fn subscribe(
        &mut self,
        client: Token,
        events: EventKinds,
        poll: Option<Duration>,
    ) -> Result<(), Failure> {
        let channel = self.channels.get_mut(&client).ok_or_else(Failure::no_server_channel)?;
        let has_groups = events.contains(EventKinds::GROUPS);
        channel.events = events;
        channel.poll = poll.filter(|_| has_groups).map(|poll| poll.max(SHORTEST_POLL));
        channel.polls_at = channel.poll.map(|poll| Instant::now() + poll);
        channel.is_new_to_groups = has_groups;
        Ok(())
    }

    /// The channel ends, with everything that depends on it.
    pub(super) fn close_channel(&mut self, client: Token) {
        let Some(channel) = self.channels.remove(&client) else { return };
        self.endpoints.remove(&channel.token);
        if self.broker == Some(client) {
            log::warn!("event=broker-gone connection={}", client.0);
            self.broker = None;
            self.machine.lose_broker();
        }
    }

    pub(super) fn tell_broker(&mut self, message: MemberMessage) {
        if let Some(broker) = self.broker {
            self.send_to(broker, &ServerRequest::Member(message));
        }
    }

    /// Tells those who have subscribed to it.
    pub(super) fn publish(&mut self, kind: EventKinds, request: &ServerRequest) {
        for client in self.clients(|channel| channel.hears(kind)) {
            self.send_to(client, request);
        }
    }

    /// The server never waits for a channel: a client that does not read loses it.
    fn send_to(&mut self, client: Token, request: &ServerRequest) {
        if self.channels.get_mut(&client).is_some_and(|channel| !channel.send(request)) {
            log::warn!("event=channel-lost connection={}", client.0);
            self.close_channel(client);
        }
    }

    /// Looks at the groups, if somebody wants to know, because this process has done something or the time has come. Not
    /// while a job is in flight: the kernel would not answer before a device is bound.
    pub(super) fn watch_groups(&mut self) {
        let watches = |channel: &Channel| channel.events.contains(EventKinds::GROUPS);
        if self.in_flight.is_some() || !self.channels.values().any(watches) {
            return;
        }
        let now = Instant::now();
        let newcomers = self.clients(|channel| channel.is_new_to_groups);
        let mut is_due = self.machine.have_groups_changed() || !newcomers.is_empty();
        for channel in self.channels.values_mut() {
            if channel.polls_at.is_some_and(|at| at <= now) {
                is_due = true;
                channel.polls_at = channel.poll.map(|poll| now + poll);
            }
        }
        if !is_due {
            return;
        }
        for event in self.machine.changed_groups() {
            let GroupEvent { cookie, reason, .. } = event;
            log::info!("event=group-changed cookie={:#x} reason={reason:?}", cookie.0);
            self.publish(EventKinds::GROUPS, &ServerRequest::GroupChanged(event));
        }
        for client in newcomers {
            for event in self.machine.known_groups() {
                self.send_to(client, &ServerRequest::GroupChanged(event));
            }
            if let Some(channel) = self.channels.get_mut(&client) {
                channel.is_new_to_groups = false;
            }
        }
    }

    /// The clients with such a channel.
    fn clients(&self, wanted: impl Fn(&Channel) -> bool) -> Vec<Token> {
        self.channels.iter().filter(|(_, channel)| wanted(channel)).map(|(client, _)| *client).collect()
    }

    /// When the groups are to be looked at, as far as that can be.
    pub(super) fn polls_at(&self) -> Option<Instant> {
        let polls = self.channels.values().filter_map(|channel| channel.polls_at);
        polls.min().filter(|_| self.in_flight.is_none())
    }
}
