// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes that are no messages, or come in another way than they should: the sender is told, and nobody else notices.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use protocol::RequestNumber;
use protocol::extension::{AddDeviceRequest, Cookie};
use rustix::io::Errno;
use vhost_device_vfio_tests::raw_client::{MOST_DESCRIPTORS, REQUEST, RawClient, header, message};
use vhost_device_vfio_tests::server_process::{server_binary, wait_until};
use vhost_device_vfio_tests::witnessed_server::WitnessedServer;
use zerocopy::IntoBytes;

const LIMIT: u32 = 4096;
const ADD_DEVICE: RequestNumber = RequestNumber::ADD_DEVICE;

fn null() -> File {
    File::open("/dev/null").unwrap()
}

/// A request that takes a descriptor.
fn add_device() -> Vec<u8> {
    let body = AddDeviceRequest { cookie: Cookie(1), flags: 0, reserved: 0 };
    message(ADD_DEVICE, body.as_bytes())
}

#[test]
fn a_malformed_header_ends_the_connection() {
    let mut server = WitnessedServer::start();
    for (what, flags, size, errno) in [
        ("version 0", 0x8, 0, Errno::PROTO),
        ("version 2", 0xa, 0, Errno::PROTO),
        ("version 3", 0xb, 0, Errno::PROTO),
        ("a bit that has no meaning", 0x19, 0, Errno::PROTO),
        ("the highest bit", 0x8000_0009, 0, Errno::PROTO),
        ("a reply", 0x5, 0, Errno::PROTO),
        ("a reply that wants a reply", 0xd, 0, Errno::PROTO),
        ("a body beyond the limit", REQUEST, LIMIT + 1, Errno::MSGSIZE),
        ("the largest body that can be announced", REQUEST, u32::MAX, Errno::MSGSIZE),
    ] {
        let refusal = server.parts_from(server.negotiate(), |client| {
            client.send(&header(ADD_DEVICE, flags, size), &[null().as_fd()]);
            client.receive().refusal()
        });
        assert_eq!(refusal.kind(), ("malformed-header", errno), "{what}");
        assert_eq!(refusal.request, ADD_DEVICE, "{what}");
    }
}

#[test]
fn the_largest_body_is_still_a_message() {
    let mut server = WitnessedServer::start();
    let refusal = server.refuses(server.negotiate(), |client| {
        client.refused(ADD_DEVICE, &[0; LIMIT as usize], &[null().as_fd()])
    });
    assert_eq!(refusal.kind(), ("wrong-payload-size", Errno::INVAL));
}

/// Sends the bytes one by one, never silent for long, until the server does not take them any more.
fn drip(client: &mut RawClient, bytes: &[u8], pause: Duration) {
    let mut bytes = bytes.iter();
    assert!(wait_until(|| {
        std::thread::sleep(pause);
        bytes.next().is_none_or(|byte| client.try_send(&[*byte], &[]).is_err())
    }));
}

#[test]
fn a_message_that_is_not_finished_in_time_ends_the_connection() {
    let mut server = WitnessedServer::start();
    let (request, long) = (add_device(), header(ADD_DEVICE, REQUEST, LIMIT));
    let beginnings = [&request[..1], &request[..11], &request[..1], &long, &request[..27]];
    let mut clients = beginnings.map(|beginning| {
        let mut client = server.negotiate();
        client.send(beginning, &[null().as_fd()]);
        client
    });
    // The deadline is that of the whole message: bytes that come meanwhile do not put it off.
    let [_, _, slow_header, slow_body, _] = &mut clients;
    std::thread::scope(|scope| {
        scope.spawn(|| drip(slow_header, &request[1..], Duration::from_millis(600)));
        scope.spawn(|| drip(slow_body, &[0; LIMIT as usize], Duration::from_millis(100)));
    });
    for (number, client) in clients.iter_mut().enumerate() {
        let refusal = client.receive().refusal();
        assert_eq!(refusal.kind(), ("message-timeout", Errno::TIMEDOUT));
        let request = if number < 3 { RequestNumber::NONE } else { ADD_DEVICE };
        assert_eq!(refusal.request, request, "what was known of client {number}");
        server.server.wait_for_log(&format!("reason=\"{} (message-timeout)\"", refusal.sentences));
        client.assert_ended();
    }
    server.assert_unharmed(0);
}

#[test]
fn a_message_that_ends_too_early_ends_the_connection() {
    let mut server = WitnessedServer::start();
    let request = add_device();
    for length in [1, 11, 12, 13, request.len() - 1] {
        let refusal = server.parts_from(server.negotiate(), |client| {
            client.send(&request[..length], &[null().as_fd()]);
            client.finish_sending();
            client.receive().refusal()
        });
        assert_eq!(refusal.kind(), ("truncated-message", Errno::PROTO), "{length} bytes");
        let known = if length < 12 { RequestNumber::NONE } else { ADD_DEVICE };
        assert_eq!(refusal.request, known, "{length} bytes");
    }
}

#[test]
fn a_client_may_go_at_any_time() {
    let mut server = WitnessedServer::start();
    let (null, request) = (null(), add_device());
    for length in 0..=request.len() {
        let is_between = [0, request.len()].contains(&length);
        let entry = if is_between { "event=control-closed" } else { "(truncated-message)" };
        server.outlives(server.negotiate(), &[entry], |mut client| {
            if length != 0 {
                client.send(&request[..length], &[null.as_fd()]);
            }
        });
    }
}

#[test]
fn a_client_that_has_asked_and_will_ask_no_more_is_answered() {
    let server = WitnessedServer::start();
    let mut client = server.negotiate();
    client.send(&message(RequestNumber::LIST_DEVICES, &[]), &[]);
    client.finish_sending();
    assert_eq!(client.receive().number(), 0);
    client.assert_ended();
}

#[test]
fn descriptors_after_the_first_byte_end_the_connection() {
    let mut server = WitnessedServer::start();
    let request = add_device();
    for place in [1, 11, 12, 27] {
        let refusal = server.parts_from(server.negotiate(), |client| {
            client.send(&request[..place], &[null().as_fd()]);
            // What is received with one call has one set of descriptors; they must not be taken for those of the rest.
            std::thread::sleep(Duration::from_millis(20));
            client.send(&request[place..], &[null().as_fd()]);
            client.receive().refusal()
        });
        assert_eq!(refusal.kind(), ("late-descriptors", Errno::PROTO), "at byte {place}");
    }
}

#[test]
fn too_many_descriptors_are_refused_with_the_request() {
    let mut server = WitnessedServer::start();
    let null = null();
    for count in [9, 16, 17, 40, MOST_DESCRIPTORS] {
        let descriptors = vec![null.as_fd(); count];
        for (request, body) in [
            (ADD_DEVICE, [0; 16].as_slice()),
            (RequestNumber::SET_IOMMUFD, &[0; 8]),
            (RequestNumber::SET_MEM_TABLE, &[0; 8]),
            (RequestNumber::SET_OWNER, &[]),
            (RequestNumber::GET_FEATURES, &[]),
        ] {
            let refused = |client: &mut RawClient| client.refused(request, body, &descriptors);
            let refusal = server.refuses(server.negotiate(), refused);
            assert_eq!(refusal.kind(), ("too-many-descriptors", Errno::TOOBIG), "{count} with {request}");
        }
    }
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let mut server = WitnessedServer::start();
    let (null, request) = (null(), add_device());
    let refusal = server.refuses(server.negotiate(), |client| {
        let (first, rest) = request.split_first().unwrap();
        client.send(&[*first], &[null.as_fd()]);
        for byte in rest {
            client.send(&[*byte], &[]);
        }
        client.receive().refusal()
    });
    assert_eq!(
        refusal.kind(),
        ("not-a-vfio-device", Errno::NODEV),
        "the descriptor came with the first byte"
    );
}

#[test]
fn requests_that_come_at_once_are_answered_in_order() {
    let mut server = WitnessedServer::start();
    let unknown = RequestNumber(0x527f);
    let requests = [
        (RequestNumber::LIST_DEVICES, 0),
        (unknown, Errno::OPNOTSUPP.raw_os_error()),
        (RequestNumber::VERSION, Errno::INVAL.raw_os_error()),
        (RequestNumber::LAST_FAILURE, 0),
    ];
    let mut client = server.negotiate();
    let all: Vec<_> = requests.iter().flat_map(|(request, _)| message(*request, &[])).collect();
    client.send(&all.repeat(20), &[]);
    for (request, errno) in requests.repeat(20) {
        let reply = client.receive();
        assert_eq!((reply.request, reply.number()), (request, u64::try_from(errno).unwrap()));
    }
    server.assert_unharmed(1);
}

#[test]
fn a_client_that_reads_no_replies_holds_up_nobody() {
    let mut server = WitnessedServer::start();
    let mut client = server.negotiate();
    let request = message(RequestNumber::LAST_FAILURE, &[]);
    let sent = client.flood(&request.repeat(100));
    server.assert_unharmed(1);
    // Once it does read, nothing is lost.
    for _ in 0..sent / request.len() {
        assert_eq!(client.receive().request, RequestNumber::LAST_FAILURE);
    }
    client.send(&request[sent % request.len()..], &[]);
    client.receive();
    client.assert_served();
}

#[test]
fn a_client_may_go_without_reading_its_replies() {
    let mut server = WitnessedServer::start();
    server.outlives(server.negotiate(), &["event=control-closed"], |mut client| {
        client.flood(&message(RequestNumber::LAST_FAILURE, &[]).repeat(100));
    });
}

#[test]
fn a_client_may_hand_over_its_own_connection() {
    let mut server = WitnessedServer::start();
    server.outlives(server.negotiate(), &["event=control-closed"], |mut client| {
        let own = client.as_fd().try_clone_to_owned().unwrap();
        client.send(&add_device(), &[own.as_fd()]);
    });
}

#[test]
fn thousands_of_bad_messages_leave_nothing_behind() {
    let mut server = WitnessedServer::start();
    let null = null();
    let mut client = server.negotiate();
    let mut send_bad_messages = |rounds: usize| {
        for descriptors in [1, 8, 9, 40].repeat(rounds) {
            client.refused(ADD_DEVICE, &[0; LIMIT as usize], &vec![null.as_fd(); descriptors]);
        }
    };
    send_bad_messages(10);
    let before = server.server.resident_memory();
    send_bad_messages(500);
    let grown = server.server.resident_memory().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more than before");
    server.assert_unharmed(1);
}

#[test]
fn more_clients_than_files_are_turned_away() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 32 && exec \"$0\" \"$@\""]).arg(server_binary());
    let mut server = WitnessedServer::start_command(command);
    let own_files = server.server.open_files();
    let clients: Vec<_> = (0..60).map(|_| server.connect()).collect();
    let open = || clients.iter().filter(|client| client.is_open()).count();
    let turned_away = || server.server.log().matches("event=accept-failed").count();
    // Nobody waits in between: each has its descriptor, or its entry in the log.
    let is_decided = || server.server.open_files() == own_files + open();
    assert!(wait_until(|| turned_away() > 0 && is_decided()));
    assert_eq!(open() + turned_away(), clients.len());
    server.assert_unharmed(open());
    drop(clients);
    server.assert_unharmed(0);
    server.negotiate().assert_served();
}
