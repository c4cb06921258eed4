// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a client and the server agree on, and what is refused before they have, or for good.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use protocol::RequestNumber;
use protocol::extension::{VersionReply, VersionRequest};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use rustix::io::Errno;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::raw_client::{REQUEST, RawClient, header, message};
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess};
use vhost_device_vfio_tests::witnessed_server::WitnessedServer;
use zerocopy::{FromBytes, IntoBytes};

/// All requests of the extension and their payloads' sizes.
const EXTENSION: [(RequestNumber, usize); 10] = [
    (RequestNumber::VERSION, 8),
    (RequestNumber::SET_IOMMUFD, 8),
    (RequestNumber::ADD_DEVICE, 16),
    (RequestNumber::SERVE, 16),
    (RequestNumber::REMOVE_DEVICE, 8),
    (RequestNumber::GET_DEVICE_INFO, 8),
    (RequestNumber::GET_RESET_GROUP, 16),
    (RequestNumber::RESET, 16),
    (RequestNumber::LAST_FAILURE, 0),
    (RequestNumber::LIST_DEVICES, 0),
];
/// The base requests and their payloads' sizes.
const BASE: [(RequestNumber, usize); 9] = [
    (RequestNumber::GET_FEATURES, 0),
    (RequestNumber::SET_FEATURES, 8),
    (RequestNumber::SET_OWNER, 0),
    (RequestNumber::SET_MEM_TABLE, 8),
    (RequestNumber::GET_PROTOCOL_FEATURES, 0),
    (RequestNumber::SET_PROTOCOL_FEATURES, 8),
    (RequestNumber::GET_MAX_MEM_SLOTS, 0),
    (RequestNumber::ADD_MEM_REG, 40),
    (RequestNumber::REM_MEM_REG, 40),
];

/// Whether one descriptor belongs to the request.
fn takes_a_descriptor(request: RequestNumber) -> bool {
    let with_one = [
        RequestNumber::ADD_MEM_REG,
        RequestNumber::SET_IOMMUFD,
        RequestNumber::ADD_DEVICE,
        RequestNumber::SERVE,
    ];
    with_one.contains(&request)
}

fn acknowledge(client: &mut RawClient, features: ProtocolFeatures) {
    let reply = client.ask(RequestNumber::SET_PROTOCOL_FEATURES, features.as_bytes(), &[]);
    assert_eq!(reply.number(), 0);
}

fn version(major: u16, minor: u16) -> VersionRequest {
    VersionRequest { major, minor, flags: 0 }
}

#[test]
fn the_extension_is_closed_until_its_feature_is_acknowledged() {
    let mut server = WitnessedServer::start();
    let null = std::fs::File::open("/dev/null").unwrap();
    for (request, size) in EXTENSION {
        let refused = |client: &mut RawClient| client.refused(request, &vec![0; size], &[null.as_fd()]);
        let refusal = server.refuses(server.connect(), refused);
        assert_eq!(refusal.kind(), ("not-negotiated", Errno::PROTO), "{request}");
    }
}

#[test]
fn the_version_comes_before_the_rest_of_the_extension() {
    let mut server = WitnessedServer::start();
    for (request, size) in EXTENSION {
        if [RequestNumber::VERSION, RequestNumber::LAST_FAILURE].contains(&request) {
            continue;
        }
        let refusal = server.refuses(server.connect(), |client| {
            acknowledge(client, ProtocolFeatures::OFFERED);
            client.refused(request, &vec![0; size], &[])
        });
        assert_eq!(refusal.kind(), ("not-negotiated", Errno::PROTO), "{request}");
    }
}

#[test]
fn the_extension_closes_again_with_its_feature() {
    let mut server = WitnessedServer::start();
    let refusal = server.refuses(server.negotiate(), |client| {
        acknowledge(client, ProtocolFeatures::REPLY_ACK);
        client.refused(RequestNumber::LIST_DEVICES, &[], &[])
    });
    assert_eq!(refusal.kind(), ("not-negotiated", Errno::PROTO));
}

#[test]
fn another_major_version_is_refused() {
    let mut server = WitnessedServer::start();
    for major in [0, 2, u16::MAX] {
        let refusal = server.refuses(server.connect(), |client| {
            acknowledge(client, ProtocolFeatures::OFFERED);
            client.refused(RequestNumber::VERSION, version(major, 0).as_bytes(), &[])
        });
        assert_eq!(refusal.kind(), ("unsupported-version", Errno::PROTONOSUPPORT), "{major}");
    }
}

#[test]
fn a_client_may_offer_another_version_after_a_refused_one() {
    let server = WitnessedServer::start();
    let mut client = server.connect();
    acknowledge(&mut client, ProtocolFeatures::OFFERED);
    client.refused(RequestNumber::VERSION, version(2, 0).as_bytes(), &[]);
    assert_eq!(client.ask(RequestNumber::VERSION, version(1, 0).as_bytes(), &[]).number(), 0);
}

#[test]
fn a_newer_minor_version_is_answered_with_ours() {
    let server = WitnessedServer::start();
    let mut client = server.connect();
    acknowledge(&mut client, ProtocolFeatures::OFFERED);
    let reply = client.ask(RequestNumber::VERSION, version(1, 7).as_bytes(), &[]);
    assert_eq!(VersionReply::read_from_bytes(&reply.body[8..]).unwrap(), VersionReply::to(1));
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut server = WitnessedServer::start();
    let highest = 1 << 63;
    for (request, features) in [
        (RequestNumber::SET_FEATURES, 1),
        (RequestNumber::SET_FEATURES, VirtioFeatures::OFFERED.0 | highest),
        (RequestNumber::SET_PROTOCOL_FEATURES, 1),
        (RequestNumber::SET_PROTOCOL_FEATURES, ProtocolFeatures::OFFERED.0 | highest),
    ] {
        let refused = |client: &mut RawClient| client.refused(request, features.as_bytes(), &[]);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), ("feature-not-offered", Errno::INVAL), "{request} {features:#x}");
    }
}

#[test]
fn requests_that_do_not_exist_are_refused() {
    let mut server = WitnessedServer::start();
    // None; a vring's, which this face has not; the backend's and beyond; the end of the extension's block.
    for number in [0, 8, 43, 0x51ff, 0x5280, u32::MAX, 0x520a, 0x527f] {
        let refused = |client: &mut RawClient| client.refused(RequestNumber(number), &[0; 24], &[]);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), ("unknown-request", Errno::OPNOTSUPP), "{number:#x}");
    }
}

#[test]
fn payloads_of_another_size_are_refused() {
    let mut server = WitnessedServer::start();
    let null = std::fs::File::open("/dev/null").unwrap();
    for (request, size) in BASE.into_iter().chain(EXTENSION) {
        let descriptors = if takes_a_descriptor(request) { vec![null.as_fd()] } else { Vec::new() };
        for size in [0, size.saturating_sub(1), size + 1, 4096].into_iter().filter(|other| *other != size) {
            let refused = |client: &mut RawClient| client.refused(request, &vec![0; size], &descriptors);
            let refusal = server.refuses(server.negotiate(), refused);
            assert_eq!(refusal.kind(), ("wrong-payload-size", Errno::INVAL), "{request}, {size} bytes");
        }
    }
}

#[test]
fn a_base_request_that_wants_no_acknowledgement_fails_silently() {
    let mut server = WitnessedServer::start();
    let refusal = server.refuses(server.negotiate(), |client| {
        client.send(&header(RequestNumber::SET_FEATURES, REQUEST & !0x8, 0), &[]);
        client.last_failure()
    });
    assert_eq!(refusal.kind(), ("wrong-payload-size", Errno::INVAL));
    assert_eq!(refusal.request, RequestNumber::SET_FEATURES);
}

#[test]
fn nothing_is_acknowledged_before_that_is_agreed_on() {
    let server = WitnessedServer::start();
    let mut client = server.connect();
    client.send(&message(RequestNumber::SET_OWNER, &[]), &[]);
    client.assert_served();
}

/// The vhost crate's frontend, connected to a server of its own.
fn stock_frontend() -> (ServerProcess, Frontend) {
    let (server, socket) = ServerProcess::start();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (server, shake_hands(socket))
}

/// What a stock VMM does first. It keeps of the protocol features those that it knows.
fn shake_hands(socket: UnixStream) -> Frontend {
    let mut frontend = Frontend::from_stream(socket, 1);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features).unwrap();
    let features = frontend.get_protocol_features().unwrap();
    let known = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert_eq!(features & VhostUserProtocolFeatures::all(), known, "the extension's bit is none of theirs");
    frontend.set_protocol_features(features & VhostUserProtocolFeatures::all()).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
}

#[test]
fn a_stock_frontend_finds_a_vhost_user_backend() {
    let (_server, mut frontend) = stock_frontend();
    frontend.set_owner().unwrap();
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 256);
}

#[test]
fn a_stock_frontend_is_told_that_its_memory_is_refused() {
    let (server, mut frontend) = stock_frontend();
    let memory = GuestMemory::new(0, 1 << 20);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 1 << 20,
        mmap_handle: memory.as_fd().as_raw_fd(),
        ..VhostUserMemoryRegionInfo::default()
    };
    let files = server.open_files();
    assert!(frontend.add_mem_region(&region).is_err());
    assert!(frontend.set_mem_table(&[region]).is_err());
    server.wait_for_log("request=SET_MEM_TABLE");
    server.wait_for_open_files(files);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 256, "the connection lives");
}

#[test]
fn a_stock_frontend_is_told_what_this_backend_has_not() {
    let (server, frontend) = stock_frontend();
    assert!(frontend.reset_owner().is_err());
    assert!(frontend.set_vring_num(0, 256).is_err());
    server.wait_for_log("(unknown-request)");
    frontend.set_owner().unwrap();
}
