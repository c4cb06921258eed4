// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors that are not what they are handed over for, and devices that do not exist.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::os::fd::AsFd;

use protocol::RequestNumber;
use protocol::extension::{
    AddDeviceRequest, Cookie, CookieRequest, Face, ResetGroupRequest, ResetRequest, ServeRequest,
    SetIommufdRequest,
};
use rustix::io::Errno;
use vhost_device_vfio_tests::foreign_file::ForeignFile;
use vhost_device_vfio_tests::raw_client::RawClient;
use vhost_device_vfio_tests::witnessed_server::WitnessedServer;
use zerocopy::IntoBytes;

const COOKIE: Cookie = Cookie(7);
const SET_IOMMUFD: SetIommufdRequest = SetIommufdRequest { flags: 0, ioas: 0 };
const ADD_DEVICE: AddDeviceRequest = AddDeviceRequest { cookie: COOKIE, flags: 0, reserved: 0 };
const SERVE: ServeRequest = ServeRequest { cookie: COOKIE, face: Face::VfioUser as u32, flags: 0 };
const RESET: ResetRequest =
    ResetRequest { cookie: COOKIE, method: 0, policy: 0, deadline_ms: 0, reserved: 0 };

/// A memory region of a page at address 0.
const REGION: [u64; 5] = [0, 0, 4096, 0, 0];

/// The requests that take a descriptor, with a payload that is good.
fn requests_with_a_descriptor() -> [(RequestNumber, Vec<u8>); 4] {
    [
        (RequestNumber::SET_IOMMUFD, SET_IOMMUFD.as_bytes().to_vec()),
        (RequestNumber::ADD_DEVICE, ADD_DEVICE.as_bytes().to_vec()),
        (RequestNumber::SERVE, SERVE.as_bytes().to_vec()),
        (RequestNumber::ADD_MEM_REG, REGION.as_bytes().to_vec()),
    ]
}

/// Hands every foreign file over and expects the same refusal for each.
fn expect_for_every_foreign_file(request: RequestNumber, body: &[u8], id: &str, errno: Errno) {
    let mut server = WitnessedServer::start();
    for ForeignFile { kind, file } in ForeignFile::all() {
        let refused = |client: &mut RawClient| client.refused(request, body, &[file.as_fd()]);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), (id, errno), "{kind} for {request}");
    }
}

#[test]
fn what_is_no_iommufd_is_refused() {
    let body = SET_IOMMUFD.as_bytes();
    expect_for_every_foreign_file(RequestNumber::SET_IOMMUFD, body, "not-an-iommufd", Errno::INVAL);
}

#[test]
fn what_is_no_iommufd_is_refused_with_an_address_space_to_adopt_as_well() {
    let request = SetIommufdRequest { flags: SetIommufdRequest::ADOPT_IOAS, ioas: 1 };
    let body = request.as_bytes();
    expect_for_every_foreign_file(RequestNumber::SET_IOMMUFD, body, "not-an-iommufd", Errno::INVAL);
}

#[test]
fn what_is_no_vfio_device_is_refused() {
    let body = ADD_DEVICE.as_bytes();
    expect_for_every_foreign_file(RequestNumber::ADD_DEVICE, body, "not-a-vfio-device", Errno::NODEV);
}

#[test]
fn a_face_needs_a_device_whatever_it_is_given() {
    // Sockets that are none are looked at only for a device that there is: first-light has those.
    let body = SERVE.as_bytes();
    expect_for_every_foreign_file(RequestNumber::SERVE, body, "unknown-device", Errno::NOENT);
}

#[test]
fn a_missing_descriptor_is_refused() {
    let mut server = WitnessedServer::start();
    for (request, body) in requests_with_a_descriptor() {
        let refusal = server.refuses(server.negotiate(), |client| client.refused(request, &body, &[]));
        assert_eq!(refusal.kind(), ("wrong-descriptor-count", Errno::INVAL), "{request}");
    }
}

#[test]
fn a_second_descriptor_is_refused() {
    let mut server = WitnessedServer::start();
    let null = File::open("/dev/null").unwrap();
    for (request, body) in requests_with_a_descriptor() {
        for count in [2, 8] {
            let descriptors = vec![null.as_fd(); count];
            let refused = |client: &mut RawClient| client.refused(request, &body, &descriptors);
            let refusal = server.refuses(server.negotiate(), refused);
            assert_eq!(refusal.kind(), ("wrong-descriptor-count", Errno::INVAL), "{count} with {request}");
        }
    }
}

#[test]
fn a_descriptor_that_belongs_to_nothing_is_refused() {
    let mut server = WitnessedServer::start();
    let null = File::open("/dev/null").unwrap();
    let cookie = CookieRequest { cookie: COOKIE };
    for (request, body) in [
        (RequestNumber::GET_FEATURES, [].as_slice()),
        (RequestNumber::SET_FEATURES, &[0; 8]),
        (RequestNumber::SET_OWNER, &[]),
        (RequestNumber::GET_PROTOCOL_FEATURES, &[]),
        (RequestNumber::SET_PROTOCOL_FEATURES, &[0; 8]),
        (RequestNumber::GET_MAX_MEM_SLOTS, &[]),
        (RequestNumber::VERSION, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (RequestNumber::REMOVE_DEVICE, cookie.as_bytes()),
        (RequestNumber::GET_DEVICE_INFO, cookie.as_bytes()),
        (RequestNumber::GET_RESET_GROUP, &[0; 16]),
        (RequestNumber::RESET, RESET.as_bytes()),
        (RequestNumber::LAST_FAILURE, &[]),
        (RequestNumber::LIST_DEVICES, &[]),
    ] {
        let refused = |client: &mut RawClient| client.refused(request, body, &[null.as_fd()]);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), ("wrong-descriptor-count", Errno::INVAL), "{request}");
    }
}

#[test]
fn a_device_that_was_not_handed_over_is_refused() {
    let mut server = WitnessedServer::start();
    for cookie in [Cookie(0), COOKIE, Cookie(u64::MAX)] {
        let group = ResetGroupRequest { cookie, first_row: 0, max_rows: u32::MAX };
        for (request, body) in [
            (RequestNumber::REMOVE_DEVICE, CookieRequest { cookie }.as_bytes()),
            (RequestNumber::GET_DEVICE_INFO, CookieRequest { cookie }.as_bytes()),
            (RequestNumber::GET_RESET_GROUP, group.as_bytes()),
            (RequestNumber::RESET, ResetRequest { cookie, ..RESET }.as_bytes()),
            (RequestNumber::RESET, ResetRequest { cookie, method: 2, deadline_ms: 1, ..RESET }.as_bytes()),
        ] {
            let refusal = server.refuses(server.negotiate(), |client| client.refused(request, body, &[]));
            assert_eq!(refusal.kind(), ("unknown-device", Errno::NOENT), "{request} for {cookie:?}");
            assert!(refusal.sentences.contains(&format!("{:#x}", cookie.0)), "{}", refusal.sentences);
        }
    }
}

#[test]
fn values_without_a_meaning_are_refused() {
    let mut server = WitnessedServer::start();
    let null = File::open("/dev/null").unwrap();
    let version_with_flags = [1, 0, 0, 0, 1, 0, 0, 0];
    for (request, body, field) in [
        (RequestNumber::VERSION, version_with_flags.as_slice(), "flags"),
        (RequestNumber::SET_IOMMUFD, SetIommufdRequest { flags: 4, ioas: 0 }.as_bytes(), "flags"),
        (RequestNumber::SET_IOMMUFD, SetIommufdRequest { flags: 3, ioas: 1 }.as_bytes(), "flags"),
        (RequestNumber::SET_IOMMUFD, SetIommufdRequest { flags: 0, ioas: 1 }.as_bytes(), "ioas"),
        (RequestNumber::ADD_DEVICE, AddDeviceRequest { flags: 1, ..ADD_DEVICE }.as_bytes(), "flags"),
        (RequestNumber::ADD_DEVICE, AddDeviceRequest { reserved: 1, ..ADD_DEVICE }.as_bytes(), "reserved"),
        (RequestNumber::SERVE, ServeRequest { flags: 1, ..SERVE }.as_bytes(), "flags"),
        (RequestNumber::SERVE, ServeRequest { face: 0, ..SERVE }.as_bytes(), "face"),
        (RequestNumber::SERVE, ServeRequest { face: 3, ..SERVE }.as_bytes(), "face"),
        (RequestNumber::RESET, ResetRequest { method: 3, ..RESET }.as_bytes(), "method"),
        (RequestNumber::RESET, ResetRequest { policy: 4, ..RESET }.as_bytes(), "policy"),
        (RequestNumber::RESET, ResetRequest { reserved: 1, ..RESET }.as_bytes(), "reserved"),
    ] {
        let takes_one = requests_with_a_descriptor().iter().any(|(number, _)| *number == request);
        let descriptors = if takes_one { vec![null.as_fd()] } else { Vec::new() };
        let refused = |client: &mut RawClient| client.refused(request, body, &descriptors);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), ("unknown-value", Errno::INVAL), "{field} of {request}");
        assert!(refusal.sentences.contains(&format!("`{field}`")), "{}", refusal.sentences);
    }
}
