// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The broker over its sockets, with servers whose every word is the test's.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use protocol::broker_session::MAX_UNACKNOWLEDGED;
use protocol::connection::Connection;
use protocol::extension::{
    AbortCause, Cookie, CoordinationId, CoordinationRequest, DeviceFlags, DeviceInfo, IommuGroup,
    MemberMessage, Name, ResetOutcome, ResetPolicy, ResetRequestId, VersionReply,
};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::{ControlReply, ControlRequest, Endpoint, VhostUserHeader};
use rustix::io::Errno;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);
const FIRST: CoordinationId = CoordinationId(1);

/// The other ends of a session.
struct FakeServer {
    connection: Connection<VhostUserHeader>,
    channel: Connection<VhostUserHeader>,
    number: u8,
}

fn address(number: u8) -> PciAddress {
    PciAddress { segment: 0, bus: 1, devfn: number }
}

fn name(number: u8) -> MemberName {
    MemberName::new(&format!("server{number}"))
}

fn device(number: u8) -> DeviceInfo {
    DeviceInfo {
        cookie: Cookie(number.into()),
        address: address(number),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        iommu_group: IommuGroup::NONE,
        flags: DeviceFlags::default(),
        regions: 9,
        irqs: 5,
        reserved: 0,
        vfio_device: Name::new("vfio0"),
        driver: Name::new("vfio-pci"),
    }
}

impl FakeServer {
    /// Answers its client until that is its broker. It has the device of its number.
    fn set_up(stream: UnixStream, number: u8) -> Self {
        let mut connection = Connection::new(stream, Endpoint::Server);
        let mut channel = None;
        loop {
            let frame = connection.receive_within(TIMEOUT).unwrap();
            let header = frame.header;
            let request = ControlRequest::parse(frame).unwrap();
            let is_last = matches!(request, ControlRequest::Coordinate { .. });
            let reply = match request {
                ControlRequest::GetFeatures => ControlReply::Features(VirtioFeatures::OFFERED),
                ControlRequest::GetProtocolFeatures => {
                    let offered = ProtocolFeatures::OFFERED.0 | ProtocolFeatures::BACKEND_REQ.0;
                    ControlReply::ProtocolFeatures(ProtocolFeatures(offered))
                }
                ControlRequest::Version { minor } => ControlReply::Version(VersionReply::to(minor)),
                ControlRequest::ListDevices => ControlReply::Devices(vec![Cookie(number.into())]),
                ControlRequest::GetDeviceInfo { .. } => ControlReply::Device(device(number)),
                ControlRequest::SetServerChannel(socket) => {
                    channel = Some(Connection::new(socket.into(), Endpoint::Client));
                    ControlReply::Done
                }
                _ => ControlReply::Done,
            };
            if header.needs_reply() || header.request.is_always_answered() {
                let body = reply.encode(header.request);
                connection.send(VhostUserHeader::reply(header.request), &body, &[]).unwrap();
            }
            if is_last {
                return Self { connection, channel: channel.unwrap(), number };
            }
        }
    }

    /// What the broker has told it, acknowledged.
    fn hear(&mut self) -> BrokerMessage {
        let frame = self.connection.receive_within(TIMEOUT).unwrap();
        let request = frame.header.request;
        let body = ControlReply::Done.encode(request);
        self.connection.send(VhostUserHeader::reply(request), &body, &[]).unwrap();
        match ControlRequest::parse(frame).unwrap() {
            ControlRequest::Broker(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn has_heard_nothing(&mut self) -> bool {
        self.connection.receive().unwrap().is_none()
    }

    fn send(&mut self, request: &ServerRequest) {
        let (number, body) = request.encode();
        self.channel.send(VhostUserHeader::request(number, false), &body, &[]).unwrap();
    }

    fn say(&mut self, message: MemberMessage) {
        self.send(&ServerRequest::Member(message));
    }

    /// Asks for a reset of the devices 1 to `count`.
    fn ask(&mut self, count: u8) {
        self.say(MemberMessage::Request(CoordinationRequest {
            request: ResetRequestId(1),
            target: address(self.number),
            policy: ResetPolicy::Group,
            tries: Duration::from_mins(1),
            functions: (1..=count).map(address).collect(),
        }));
    }

    fn ready(&mut self) {
        self.say(MemberMessage::Ready { coordination: FIRST, lost: vec![] });
    }

    fn fired(&mut self) {
        self.say(MemberMessage::Fired { coordination: FIRST, result: Ok(ResetOutcome::Done), attempts: 1 });
    }

    fn restored(&mut self) {
        self.say(MemberMessage::Restored { coordination: FIRST, lost: vec![] });
    }

    fn expect_prepare(&mut self) {
        let message = self.hear();
        assert!(matches!(message, BrokerMessage::Prepare(_)), "{message:?}");
    }

    fn expect_grant(&mut self) {
        assert_eq!(self.hear(), BrokerMessage::Grant { coordination: FIRST });
    }

    /// Which server was missing when the reset was done.
    fn expect_done(&mut self) -> Option<MemberName> {
        match self.hear() {
            BrokerMessage::Done { missing, .. } => missing,
            other => panic!("{other:?}"),
        }
    }

    /// Why it was not.
    fn expect_abort(&mut self) -> AbortCause {
        match self.hear() {
            BrokerMessage::Abort { cause, .. } => cause,
            other => panic!("{other:?}"),
        }
    }
}

/// A broker, and a clock.
struct Office {
    broker: ResetBroker,
    now: Instant,
}

impl Office {
    /// A broker with two servers.
    fn with_two() -> (Self, FakeServer, FakeServer) {
        let mut office = Self { broker: ResetBroker::new(Patience::default()), now: Instant::now() };
        let (one, two) = (office.add(1).1, office.add(2).1);
        (office, one, two)
    }

    fn add(&mut self, number: u8) -> (MemberId, FakeServer) {
        let (near, far) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || FakeServer::set_up(far, number));
        let mut client = ControlClient::new(near, TIMEOUT);
        client.negotiate().unwrap();
        let member = self.broker.add(client, name(number), EventKinds::ALL, self.now).unwrap();
        (member, server.join().unwrap())
    }

    fn process(&mut self) -> Vec<Notice> {
        self.broker.process(self.now)
    }

    /// Lets pass what the broker waits for.
    fn wait(&mut self) -> Vec<Notice> {
        self.now = self.broker.wakes_at().expect("it waits for nothing");
        self.process()
    }

    /// Comes to where both are prepared and the first one has asked.
    fn prepare(&mut self, one: &mut FakeServer, two: &mut FakeServer) {
        one.ask(2);
        self.process();
        one.expect_prepare();
        two.expect_prepare();
    }

    /// Comes to where the first one may ask the kernel.
    fn grant(&mut self, one: &mut FakeServer, two: &mut FakeServer) {
        self.prepare(one, two);
        one.ready();
        two.ready();
        self.process();
        one.expect_grant();
    }
}

/// The servers that are told to be lost.
fn lost(notices: &[Notice]) -> Vec<&str> {
    let lost = notices.iter().filter_map(|notice| match notice {
        Notice::Lost { server, .. } => Some(server.as_str()),
        _ => None,
    });
    lost.collect()
}

#[test]
fn a_reset_takes_all_its_steps_over_the_sockets() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.grant(&mut one, &mut two);
    one.fired();
    office.process();
    assert_eq!((one.expect_done(), two.expect_done()), (None, None));
    one.restored();
    two.restored();
    let notices = office.process();
    assert!(matches!(&notices[..], [Notice::Concluded { verdict: Ok(_), .. }]), "{notices:?}");
    assert!(office.broker.is_at_rest());
}

#[test]
fn a_server_without_a_part_in_it_is_left_alone() {
    let (mut office, mut one, mut two) = Office::with_two();
    let (_, mut three) = office.add(3);
    office.grant(&mut one, &mut two);
    assert!(three.has_heard_nothing());
}

#[test]
fn a_server_that_goes_before_it_is_ready_is_named_to_the_other() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.prepare(&mut one, &mut two);
    drop(two);
    assert_eq!(lost(&office.process()), ["server2"]);
    assert_eq!(one.expect_abort(), AbortCause::MemberLost(name(2)));
    one.restored();
    let notices = office.process();
    assert_eq!(
        notices[0].to_string(),
        "event=coordination-failed coordination=1 reason=\"the server server2 is gone\" missing=server2 lost=0000:01:00.2"
    );
}

#[test]
fn a_server_that_goes_between_ready_and_the_grant_is_named_to_the_other() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.prepare(&mut one, &mut two);
    two.ready();
    office.process();
    drop(two);
    office.process();
    assert_eq!(one.expect_abort(), AbortCause::MemberLost(name(2)));
}

#[test]
fn a_server_that_goes_with_the_grant_ends_the_reset() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.grant(&mut one, &mut two);
    drop(one);
    assert_eq!(lost(&office.process()), ["server1"]);
    assert_eq!(two.expect_abort(), AbortCause::MemberLost(name(1)));
}

#[test]
fn a_server_that_goes_while_the_other_resets_is_named_when_it_is_done() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.grant(&mut one, &mut two);
    drop(two);
    office.process();
    assert!(one.has_heard_nothing(), "it may be in the kernel");
    one.fired();
    office.process();
    assert_eq!(one.expect_done(), Some(name(2)));
}

#[test]
fn a_server_that_goes_before_it_has_restored_keeps_nobody_waiting() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.grant(&mut one, &mut two);
    one.fired();
    office.process();
    assert_eq!(two.expect_done(), None);
    drop(two);
    one.restored();
    let notices = office.process();
    let Some(Notice::Concluded { verdict: Ok(_), missing, .. }) = notices.last() else {
        panic!("{notices:?}")
    };
    assert_eq!(*missing, [name(2)]);
}

#[test]
fn what_a_server_said_before_it_went_counts() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.grant(&mut one, &mut two);
    one.fired();
    drop(one);
    assert_eq!(lost(&office.process()), ["server1"]);
    two.expect_done();
}

#[test]
fn a_server_that_hangs_is_named_and_hinders_nobody() {
    let (mut office, mut one, mut two) = Office::with_two();
    let (_, mut three) = office.add(3);
    one.ask(2);
    office.process();
    one.expect_prepare();
    one.ready();
    // Nobody reads what the second one is told.
    three.ask(3);
    office.process();
    assert!(office.broker.servers.len() == 3 && one.has_heard_nothing());
    assert_eq!(lost(&office.wait()), Vec::<&str>::new());
    assert_eq!(one.expect_abort(), AbortCause::MemberSilent(name(2)));
    // It wakes up, and finds the end behind the beginning.
    two.expect_prepare();
    assert_eq!(two.expect_abort(), AbortCause::MemberSilent(name(2)));
}

#[test]
fn a_server_that_never_reads_again_is_lost_some_day() {
    let (mut office, mut one, _two) = Office::with_two();
    // Two messages for each reset.
    for coordination in (1..=MAX_UNACKNOWLEDGED as u64 / 2).map(CoordinationId) {
        one.ask(2);
        office.process();
        one.expect_prepare();
        one.say(MemberMessage::Ready { coordination, lost: vec![] });
        office.process();
        office.wait();
        assert_eq!(one.expect_abort(), AbortCause::MemberSilent(name(2)));
        one.say(MemberMessage::Restored { coordination, lost: vec![] });
        office.process();
        office.wait();
    }
    one.ask(2);
    assert_eq!(lost(&office.process()), ["server2"]);
    one.expect_prepare();
    assert_eq!(one.expect_abort(), AbortCause::MemberLost(name(2)));
}

#[test]
fn a_server_that_refuses_is_named_with_its_device() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.prepare(&mut one, &mut two);
    two.say(MemberMessage::Refused { coordination: FIRST, device: address(2) });
    office.process();
    let cause = AbortCause::MemberRefused { member: name(2), device: address(2) };
    assert_eq!((one.expect_abort(), two.expect_abort()), (cause, cause));
}

#[test]
fn a_kernel_that_refuses_is_told_with_its_errno() {
    let (mut office, mut one, mut two) = Office::with_two();
    office.grant(&mut one, &mut two);
    one.say(MemberMessage::Fired { coordination: FIRST, result: Err(Errno::IO), attempts: 3 });
    office.process();
    let cause = AbortCause::KernelRefused { member: name(1), errno: Errno::IO, attempts: 3 };
    assert_eq!((one.expect_abort(), two.expect_abort()), (cause, cause));
}

#[test]
fn a_function_that_no_server_has_is_declined() {
    let (mut office, mut one, _two) = Office::with_two();
    one.ask(9);
    let notices = office.process();
    let [Notice::Declined { cause, .. }] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!(*cause, AbortCause::UnknownHolder(address(3)));
    assert_eq!(one.expect_abort(), *cause);
}

#[test]
fn a_server_gets_the_devices_that_came_later() {
    let (mut office, mut one, mut two) = Office::with_two();
    let member = *office.broker.servers.keys().last().unwrap();
    office.broker.set_devices(member, [address(2), address(3)].into(), office.now);
    one.ask(3);
    office.process();
    one.expect_prepare();
    two.expect_prepare();
}

#[test]
fn a_server_that_says_something_malformed_is_lost() {
    let (mut office, mut one, two) = Office::with_two();
    let FakeServer { mut channel, connection: _connection, .. } = two;
    let number = protocol::RequestNumber::RESET_ANSWER;
    channel.send(VhostUserHeader::request(number, false), &[1, 2, 3], &[]).unwrap();
    let notices = office.process();
    assert_eq!(
        notices[0].to_string(),
        "event=server-lost server=server2 reason=\"RESET_ANSWER on the server channel is malformed\""
    );
    one.ask(2);
    office.process();
    assert_eq!(one.expect_abort(), AbortCause::MemberLost(name(2)));
}

#[test]
fn events_of_a_server_are_told() {
    let (mut office, mut one, _two) = Office::with_two();
    one.send(&ServerRequest::DeviceError(Cookie(7)));
    let notices = office.process();
    assert_eq!(notices[0].to_string(), "event=device-error cookie=0x7 server=server1");
    assert_eq!(notices[0].level(), log::Level::Warn);
}

#[test]
fn the_sockets_of_a_server_are_watched_as_long_as_it_is_there() {
    let (mut office, one, _two) = Office::with_two();
    assert_eq!(office.broker.descriptors().count(), 4);
    assert!(office.broker.descriptors().all(|(_, interest)| interest == PollFlags::IN));
    drop(one);
    office.process();
    assert_eq!(office.broker.descriptors().count(), 2);
}
