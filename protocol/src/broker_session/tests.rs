// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::extension::{CoordinationId, MemberMessage, PciAddress, VersionReply};
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::{ControlReply, ControlRequest, Endpoint};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The other ends of a session, in the hands of the test.
struct Server {
    connection: Connection<VhostUserHeader>,
    channel: Connection<VhostUserHeader>,
}

/// A session that has begun.
fn begin() -> (Server, BrokerSession) {
    let (near, far) = UnixStream::pair().unwrap();
    let answering = thread::spawn(|| answer_until_coordinated(Connection::new(far, Endpoint::Server)));
    let mut client = ControlClient::new(near, TIMEOUT);
    client.negotiate().unwrap();
    let session = BrokerSession::begin(client, MemberName::new("a"), EventKinds::ALL).unwrap();
    (answering.join().unwrap(), session)
}

fn answer_until_coordinated(mut connection: Connection<VhostUserHeader>) -> Server {
    let mut channel = None;
    loop {
        let frame = connection.receive_within(TIMEOUT).unwrap();
        let header = frame.header;
        let mut is_last = false;
        let reply = match ControlRequest::parse(frame).unwrap() {
            ControlRequest::GetFeatures => ControlReply::Features(VirtioFeatures::OFFERED),
            ControlRequest::GetProtocolFeatures => {
                let offered = ProtocolFeatures::OFFERED.0 | ProtocolFeatures::BACKEND_REQ.0;
                ControlReply::ProtocolFeatures(ProtocolFeatures(offered))
            }
            ControlRequest::Version { minor } => ControlReply::Version(VersionReply::to(minor)),
            ControlRequest::SetServerChannel(socket) => {
                channel = Some(Connection::new(socket.into(), Endpoint::Client));
                ControlReply::Done
            }
            ControlRequest::Coordinate { .. } => {
                is_last = true;
                ControlReply::Done
            }
            _ => ControlReply::Done,
        };
        if header.needs_reply() || header.request.is_always_answered() {
            let body = reply.encode(header.request);
            connection.send(VhostUserHeader::reply(header.request), &body, &[]).unwrap();
        }
        if is_last {
            return Server { connection, channel: channel.unwrap() };
        }
    }
}

impl Server {
    fn read(&mut self) -> BrokerMessage {
        match ControlRequest::parse(self.connection.receive_within(TIMEOUT).unwrap()).unwrap() {
            ControlRequest::Broker(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn reply(&mut self, request: RequestNumber, reply: &ControlReply) {
        self.connection.send(VhostUserHeader::reply(request), &reply.encode(request), &[]).unwrap();
    }

    fn say(&mut self, request: &ServerRequest) {
        let (number, body) = request.encode();
        self.channel.send(VhostUserHeader::request(number, false), &body, &[]).unwrap();
    }
}

fn grant(number: u64) -> BrokerMessage {
    BrokerMessage::Grant { coordination: CoordinationId(number) }
}

fn ready() -> ServerRequest {
    let lost = vec![PciAddress { segment: 0, bus: 1, devfn: 8 }];
    ServerRequest::Member(MemberMessage::Ready { coordination: CoordinationId(1), lost })
}

#[test]
fn what_is_told_need_not_be_acknowledged_before_the_next() {
    let (mut server, mut session) = begin();
    session.tell(&grant(1)).unwrap();
    session.tell(&grant(2)).unwrap();
    session.take_acknowledgements().unwrap();
    assert_eq!((server.read(), server.read()), (grant(1), grant(2)));
    server.reply(RequestNumber::RESET_GRANT, &ControlReply::Done);
    server.reply(RequestNumber::RESET_GRANT, &ControlReply::Done);
    session.take_acknowledgements().unwrap();
    assert!(session.unacknowledged.is_empty());
}

#[test]
fn what_the_server_says_comes_in_its_order_and_then_its_end() {
    let (mut server, mut session) = begin();
    assert!(session.receive().unwrap().is_none());
    server.say(&ready());
    drop(server);
    assert_eq!(session.receive().unwrap(), Some(ready()));
    assert!(session.receive().unwrap_err().is_end());
    assert!(session.take_acknowledgements().unwrap_err().is_end());
}

#[test]
fn a_server_that_does_not_read_is_told_later() {
    let (mut server, mut session) = begin();
    rustix::net::sockopt::set_socket_send_buffer_size(session.connection(), 0).unwrap();
    let mut told = 0;
    while !session.has_unsent() {
        told += 1;
        session.tell(&grant(told)).unwrap();
    }
    session.tell(&grant(told + 1)).unwrap();
    for number in 1..=told + 1 {
        session.flush().unwrap();
        assert_eq!(server.read(), grant(number));
    }
    assert!(!session.has_unsent());
}

#[test]
fn a_server_that_acknowledges_nothing_is_given_up() {
    let (_server, mut session) = begin();
    for _ in 0..MAX_UNACKNOWLEDGED {
        session.tell(&grant(1)).unwrap();
    }
    assert!(matches!(session.tell(&grant(1)), Err(SessionError::Unresponsive)));
}

#[test]
fn a_refusal_ends_the_session_with_the_servers_words() {
    let (mut server, mut session) = begin();
    session.tell(&grant(1)).unwrap();
    let failure = Failure::new("not-the-broker", "It was refused.", "You are not.", "Coordinate.");
    let refused = ControlReply::Refused { errno: Errno::PERM, failure };
    server.reply(RequestNumber::RESET_GRANT, &refused);
    let error = session.take_acknowledgements().unwrap_err();
    assert!(error.to_string().contains("not-the-broker"), "{error}");
    assert!(!error.is_end());
}

#[test]
fn an_acknowledgement_of_something_else_ends_the_session() {
    let (mut server, mut session) = begin();
    session.tell(&grant(1)).unwrap();
    server.reply(RequestNumber::RESET_DONE, &ControlReply::Done);
    let error = session.take_acknowledgements().unwrap_err();
    assert!(matches!(error, SessionError::Connection(ClientError::Malformed { .. })), "{error:?}");
}
