// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use super::*;
use crate::extension::{
    CoordinationId, DeviceFlags, Epoch, Generation, GroupReason, IommuGroup, KernelFeatures, Name, Ownership,
    PciAddress, ResetGroupRow, ResetOutcome, RowFlags, RowReason,
};
use crate::{ChannelError, ControlReply, ControlRequest, ServerRequest};

const COOKIE: Cookie = Cookie(0xc0);
const TIMEOUT: Duration = Duration::from_secs(10);

/// A server that answers every request with what `answer` says, until the client closes.
struct Server {
    thread: JoinHandle<()>,
}

impl Server {
    fn start(
        mut answer: impl FnMut(ControlRequest) -> ControlReply + Send + 'static,
    ) -> (Self, ControlClient) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::<VhostUserHeader>::new(ours, Endpoint::Server);
        let thread = thread::spawn(move || {
            while let Ok(frame) = connection.receive_within(TIMEOUT) {
                let header = frame.header;
                let reply = answer(ControlRequest::parse(frame).unwrap());
                if header.needs_reply() || header.request.is_always_answered() {
                    let body = reply.encode(header.request);
                    connection.send(VhostUserHeader::reply(header.request), &body, &[]).unwrap();
                }
            }
        });
        (Self { thread }, ControlClient::new(theirs, TIMEOUT))
    }

    /// A server with which the client has negotiated.
    fn negotiated(
        mut answer: impl FnMut(ControlRequest) -> ControlReply + Send + 'static,
    ) -> (Self, ControlClient) {
        let (server, mut client) =
            Self::start(move |request| negotiation(&request).unwrap_or_else(|| answer(request)));
        client.negotiate().unwrap();
        (server, client)
    }

    /// Ends the session; fails if the server's side of the test failed.
    fn end(self, client: ControlClient) {
        drop(client);
        self.thread.join().unwrap();
    }
}

/// What a server of this version answers while features and version are agreed on.
fn negotiation(request: &ControlRequest) -> Option<ControlReply> {
    match request {
        ControlRequest::GetFeatures => Some(ControlReply::Features(VirtioFeatures::OFFERED)),
        ControlRequest::GetProtocolFeatures => {
            Some(ControlReply::ProtocolFeatures(ProtocolFeatures::OFFERED))
        }
        ControlRequest::SetFeatures(_) | ControlRequest::SetProtocolFeatures(_) => Some(ControlReply::Done),
        ControlRequest::Version { minor } => Some(ControlReply::Version(VersionReply::to(*minor))),
        _ => None,
    }
}

/// A client that finds `body` as the reply to `request`, whatever it asks, and the other end, which reads nothing.
fn answered(request: RequestNumber, body: &[u8]) -> (Connection<VhostUserHeader>, ControlClient) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours, Endpoint::Server);
    connection.send(VhostUserHeader::reply(request), body, &[]).unwrap();
    (connection, ControlClient::new(theirs, TIMEOUT))
}

fn refusal(errno: Errno) -> ControlReply {
    ControlReply::Refused { errno, failure: failure() }
}

fn failure() -> Failure {
    Failure::new("some-reason", "It failed.", "For a reason.", "Do something.")
}

fn device() -> DeviceInfo {
    DeviceInfo {
        cookie: COOKIE,
        address: PciAddress { segment: 0, bus: 1, devfn: 0 },
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        iommu_group: IommuGroup(7),
        flags: DeviceFlags::FUNCTION_RESET,
        regions: 9,
        irqs: 5,
        reserved: 0,
        vfio_device: Name::new("vfio3"),
        driver: Name::new("vfio-pci"),
    }
}

fn row(number: u16) -> ResetGroupRow {
    ResetGroupRow {
        address: PciAddress { segment: number, bus: 0, devfn: 0 },
        ownership: Ownership::Ours,
        cookie: COOKIE,
        flags: RowFlags::HAS_COOKIE,
        iommu_group: IommuGroup(7),
        reason: RowReason::None,
        header_type: 0,
        vfio_device: Name::new("vfio3"),
        driver: Name::new("vfio-pci"),
    }
}

fn group(generation: u64, rows: u16) -> ResetGroup {
    let rows = (0..rows).map(row).collect();
    ResetGroup { generation: Generation(generation), reason: GroupReason::Available, rows }
}

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn negotiation_agrees_on_the_version_and_tells_the_limits() {
    let (server, mut client) = Server::start(|request| negotiation(&request).unwrap());
    let version = client.negotiate().unwrap();
    assert_eq!((version.major, version.minor), (1, 1));
    assert_eq!((version.max_payload, version.max_descriptors), (4096, 8));
    assert_eq!((version.max_devices, version.max_memory_slots), (64, 256));
    server.end(client);
}

#[test]
fn a_server_without_the_extension_is_recognised() {
    let stock = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let (server, mut client) = Server::start(move |request| match request {
        ControlRequest::GetProtocolFeatures => ControlReply::ProtocolFeatures(stock),
        request => negotiation(&request).unwrap(),
    });
    let outcome = client.negotiate();
    assert!(
        matches!(outcome, Err(ClientError::NotOffered { protocol_features, .. }) if protocol_features == stock)
    );
    server.end(client);
}

#[test]
fn a_whole_session_is_understood_on_both_sides() {
    let (server, mut client) = Server::negotiated(|request| match request {
        ControlRequest::GetMaxMemorySlots => ControlReply::MaxMemorySlots(256),
        ControlRequest::SetMemoryTable(table) if table.len() == 2 => ControlReply::Done,
        ControlRequest::SetIommufd { ioas: IoasChoice::Adopt(4), .. } => {
            ControlReply::Iommufd(SetIommufdReply { kernel_features: KernelFeatures::MAP_FILE })
        }
        ControlRequest::AddDevice { cookie: COOKIE, .. } | ControlRequest::GetDeviceInfo(COOKIE) => {
            ControlReply::Device(device())
        }
        ControlRequest::ListDevices => ControlReply::Devices(vec![COOKIE]),
        ControlRequest::SetOwner
        | ControlRequest::AddMemoryRegion(_)
        | ControlRequest::RemoveMemoryRegion(_)
        | ControlRequest::Serve { cookie: COOKIE, face: Face::VfioUser, .. }
        | ControlRequest::RemoveDevice(COOKIE) => ControlReply::Done,
        request => panic!("not what the client was told to ask: {request:?}"),
    });
    let file = eventfd();
    let region = MemoryRegion { guest_address: 0, size: 0x1000, user_address: 0, offset: 0 };
    client.set_owner().unwrap();
    assert!(
        client
            .set_iommufd(&file, IoasChoice::Adopt(4))
            .unwrap()
            .kernel_features
            .contains(KernelFeatures::MAP_FILE)
    );
    assert_eq!(client.max_memory_slots().unwrap(), 256);
    client.set_memory_table(&[region, region], &[file.as_fd(), file.as_fd()]).unwrap();
    client.add_memory_region(region, file.as_fd()).unwrap();
    client.remove_memory_region(region).unwrap();
    assert_eq!(client.add_device(COOKIE, &file).unwrap(), device());
    assert_eq!(client.device_info(COOKIE).unwrap(), device());
    assert_eq!(client.list_devices().unwrap(), [COOKIE]);
    client.serve(COOKIE, Face::VfioUser, &file).unwrap();
    client.remove_device(COOKIE).unwrap();
    server.end(client);
}

#[test]
fn a_reset_is_reported() {
    let report = ResetReport {
        epoch: Epoch(2),
        duration: Duration::from_millis(120),
        method: ResetMethod::Hot,
        outcome: ResetOutcome::Done,
        attempts: 1,
        affected: vec![COOKIE],
    };
    let answer = report.clone();
    let (server, mut client) = Server::negotiated(move |request| match request {
        ControlRequest::Reset {
            wish: ResetWish { method: Some(ResetMethod::Hot), policy: None, deadline: Some(deadline) },
            ..
        } => {
            assert_eq!(deadline, Duration::from_millis(1));
            ControlReply::Reset(answer.clone())
        }
        request => panic!("not the reset asked for: {request:?}"),
    });
    // A deadline below the wire's millisecond does not become the server's default.
    let deadline = Some(Duration::from_micros(10));
    assert_eq!(client.reset(COOKIE, Some(ResetMethod::Hot), deadline).unwrap(), report);
    server.end(client);
}

#[test]
fn a_refused_extension_request_comes_with_its_words() {
    let (server, mut client) = Server::negotiated(|_| refusal(Errno::NODEV));
    let error = client.device_info(COOKIE).unwrap_err();
    let ClientError::Refused { request, errno, failure: words } = &error else {
        panic!("not refused: {error}")
    };
    assert_eq!((*request, *errno, words), (RequestNumber::GET_DEVICE_INFO, Errno::NODEV, &failure()));
    assert_eq!(
        error.to_string(),
        "GET_DEVICE_INFO was refused: It failed. For a reason. Do something. (some-reason)"
    );
    server.end(client);
}

#[test]
fn the_words_for_a_refused_base_request_are_fetched() {
    let (server, mut client) = Server::negotiated(|request| match request {
        ControlRequest::SetMemoryTable(_) => refusal(Errno::NOMEM),
        ControlRequest::LastFailure => ControlReply::LastFailure(Some(LastFailure {
            request: RequestNumber::SET_MEM_TABLE,
            errno: Errno::NOMEM,
            failure: failure(),
        })),
        request => panic!("not asked for: {request:?}"),
    });
    let error = client.set_memory_table(&[], &[]).unwrap_err();
    let ClientError::Refused { errno: Errno::NOMEM, failure: words, .. } = error else {
        panic!("not refused: {error}");
    };
    assert_eq!(words, failure());
    server.end(client);
}

#[test]
fn no_failure_yet_is_no_failure() {
    let (server, mut client) = Server::negotiated(|_| ControlReply::LastFailure(None));
    assert!(client.last_failure().unwrap().is_none());
    server.end(client);
}

#[test]
fn a_reset_group_is_read_page_by_page() {
    let (server, mut client) = Server::negotiated(|request| match request {
        ControlRequest::GetResetGroup { first_row, max_rows, .. } => {
            ControlReply::ResetGroup(group(1, 120).page(first_row, max_rows))
        }
        request => panic!("not asked for: {request:?}"),
    });
    let header = client.reset_group_header(COOKIE).unwrap();
    assert!(header.is_available() && header.rows.is_empty());
    assert_eq!(client.reset_group(COOKIE).unwrap(), group(1, 120));
    server.end(client);
}

#[test]
fn a_reset_group_that_changes_meanwhile_is_read_anew() {
    let mut asked = 0;
    let (server, mut client) = Server::negotiated(move |request| match request {
        ControlRequest::GetResetGroup { first_row, max_rows, .. } => {
            asked += 1;
            let current = if asked == 1 { group(1, 120) } else { group(2, 60) };
            ControlReply::ResetGroup(current.page(first_row, max_rows))
        }
        request => panic!("not asked for: {request:?}"),
    });
    assert_eq!(client.reset_group(COOKIE).unwrap(), group(2, 60));
    server.end(client);
}

#[test]
fn a_reset_group_that_never_rests_is_given_up() {
    let mut generation = 0;
    let (server, mut client) = Server::negotiated(move |request| match request {
        ControlRequest::GetResetGroup { first_row, max_rows, .. } => {
            generation += 1;
            ControlReply::ResetGroup(group(generation, 120).page(first_row, max_rows))
        }
        request => panic!("not asked for: {request:?}"),
    });
    assert!(matches!(client.reset_group(COOKIE), Err(ClientError::Unsteady)));
    server.end(client);
}

#[test]
fn a_group_of_absurd_size_is_malformed() {
    let (server, mut client) = Server::negotiated(|_| {
        ControlReply::ResetGroup(ResetGroupPage { total_rows: u32::MAX, ..group(1, 120).page(0, u32::MAX) })
    });
    assert!(matches!(client.reset_group(COOKIE), Err(ClientError::Malformed { .. })));
    server.end(client);
}

/// A server is no more to be believed than a client.
#[test]
fn counts_that_a_server_makes_up_are_malformed() {
    let report = ResetReport {
        epoch: Epoch(1),
        duration: Duration::ZERO,
        method: ResetMethod::Hot,
        outcome: ResetOutcome::Done,
        attempts: 1,
        affected: vec![COOKIE],
    };
    // Each has one element, and its count stands so many bytes before the end.
    for (request, reply, place) in [
        (RequestNumber::LIST_DEVICES, ControlReply::Devices(vec![COOKIE]), 16),
        (RequestNumber::RESET, ControlReply::Reset(report), 12),
        (
            RequestNumber::GET_RESET_GROUP,
            ControlReply::ResetGroup(group(1, 1).page(0, 1)),
            4 + size_of::<ResetGroupRow>(),
        ),
    ] {
        let good = reply.encode(request);
        let place = good.len() - place;
        assert_eq!(good[place..place + 4], 1_u32.to_ne_bytes(), "the count of {request}");
        for count in [0_u32, 2, 1 << 16, 1 << 31, u32::MAX] {
            let mut made_up = good.clone();
            made_up[place..place + 4].copy_from_slice(&count.to_ne_bytes());
            let (_server, mut client) = answered(request, &made_up);
            let outcome = match request {
                RequestNumber::LIST_DEVICES => client.list_devices().map(drop),
                RequestNumber::RESET => client.reset(COOKIE, None, None).map(drop),
                _ => client.reset_group(COOKIE).map(drop),
            };
            assert!(
                matches!(outcome, Err(ClientError::Malformed { .. })),
                "{count} in {request}: {outcome:?}"
            );
        }
    }
}

#[test]
fn pages_that_end_too_early_are_malformed() {
    let (server, mut client) = Server::negotiated(|request| match request {
        ControlRequest::GetResetGroup { first_row: 0, max_rows, .. } => {
            ControlReply::ResetGroup(group(1, 120).page(0, max_rows))
        }
        _ => ControlReply::ResetGroup(group(1, 120).page(0, 0)),
    });
    assert!(matches!(client.reset_group(COOKIE), Err(ClientError::Malformed { .. })));
    server.end(client);
}

#[test]
fn a_reply_to_another_request_is_malformed() {
    let (_server, mut client) = answered(RequestNumber::GET_MAX_MEM_SLOTS, &[0; 8]);
    assert!(matches!(client.negotiate(), Err(ClientError::Malformed { .. })));
}

#[test]
fn a_reply_of_another_size_is_malformed() {
    for size in [0, 4, 7, 9, 4096] {
        let (_server, mut client) = answered(RequestNumber::GET_FEATURES, &vec![0; size]);
        assert!(matches!(client.negotiate(), Err(ClientError::Malformed { .. })), "{size} bytes");
    }
}

#[test]
fn the_final_reply_before_the_server_closes_is_a_refusal_whatever_it_answers() {
    for request in [RequestNumber::NONE, RequestNumber::GET_FEATURES, RequestNumber::RESET] {
        let (_server, mut client) = answered(request, &failure().refusal(Errno::PROTO));
        let outcome = client.negotiate();
        assert!(
            matches!(outcome, Err(ClientError::Refused { errno: Errno::PROTO, .. })),
            "{request}: {outcome:?}"
        );
    }
}

#[test]
fn a_silent_server_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut client = ControlClient::new(ours, Duration::from_millis(1));
    let outcome = client.negotiate();
    assert!(matches!(outcome, Err(ClientError::Receive { source: ReceiveError::TimedOut, .. })));
}

#[test]
fn a_server_that_is_gone_is_noticed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut client = ControlClient::new(ours, TIMEOUT);
    assert!(matches!(client.negotiate(), Err(ClientError::Send { source: SendError::Closed, .. })));
}

#[test]
fn a_client_hears_on_the_server_channel_what_it_has_subscribed_to() {
    let (server, mut client) = Server::negotiated(|request| {
        if let ControlRequest::SetServerChannel(channel) = request {
            let mut channel = Connection::<VhostUserHeader>::new(channel.into(), Endpoint::Client);
            for cookie in 1..=2 {
                let (request, body) = ServerRequest::DeviceError(Cookie(cookie)).encode();
                channel.send(VhostUserHeader::request(request, false), &body, &[]).unwrap();
            }
        }
        ControlReply::Done
    });
    let mut channel = client.open_server_channel().unwrap();
    client.subscribe(EventKinds::DEVICE_ERRORS, Some(Duration::from_secs(1))).unwrap();
    assert_eq!(channel.receive_within(TIMEOUT).unwrap(), ServerRequest::DeviceError(Cookie(1)));
    assert_eq!(channel.receive_within(TIMEOUT).unwrap(), ServerRequest::DeviceError(Cookie(2)));
    let end = channel.receive_within(TIMEOUT).unwrap_err();
    assert!(matches!(end, ChannelError::Receive(ReceiveError::Closed)), "{end:?}");
    server.end(client);
}

#[test]
fn what_is_no_request_of_a_server_is_malformed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut channel = ServerChannel::new(theirs);
    let mut server = Connection::<VhostUserHeader>::new(ours, Endpoint::Client);
    server.send(VhostUserHeader::request(RequestNumber::RESET_ANSWER, false), &[0; 3], &[]).unwrap();
    let error = channel.receive_within(TIMEOUT).unwrap_err();
    assert!(matches!(error, ChannelError::Malformed(RequestNumber::RESET_ANSWER)), "{error:?}");
}

#[test]
fn a_broker_tells_a_server_what_to_do() {
    let message = BrokerMessage::Grant { coordination: CoordinationId(3) };
    let expected = message.clone();
    let (server, mut client) = Server::negotiated(move |request| {
        match request {
            ControlRequest::Coordinate { name } => assert_eq!(name.as_str(), "vm-nic"),
            ControlRequest::Broker(message) => assert_eq!(message, expected),
            other => panic!("{other:?}"),
        }
        ControlReply::Done
    });
    client.coordinate(MemberName::new("vm-nic")).unwrap();
    client.tell(&message).unwrap();
    server.end(client);
}

#[test]
fn a_server_without_the_channel_is_a_server_all_the_same() {
    let without = ProtocolFeatures(ProtocolFeatures::OFFERED.0 & !ProtocolFeatures::BACKEND_REQ.0);
    let (server, mut client) = Server::start(move |request| match request {
        ControlRequest::GetProtocolFeatures => ControlReply::ProtocolFeatures(without),
        ControlRequest::SetProtocolFeatures(features) => {
            assert_eq!(features, without);
            ControlReply::Done
        }
        other => negotiation(&other).unwrap(),
    });
    client.negotiate().unwrap();
    server.end(client);
}
