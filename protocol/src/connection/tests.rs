// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::thread;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;
use crate::vfio_user::{Command, VfioUserHeader};

type Server = Connection<VhostUserHeader>;

/// A descriptor that knows whether any copy of it is left.
struct Witness {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Witness {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self { reader, writer }
    }

    /// Waits until the last copy is closed: only then a read ends.
    fn assert_every_copy_is_closed(mut self) {
        drop(self.writer);
        let mut ready = [PollFd::new(&self.reader, PollFlags::IN)];
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        assert_eq!(poll(&mut ready, Some(&second)).unwrap(), 1, "a copy of the descriptor is still open");
        assert_eq!(self.reader.read(&mut [0]).unwrap(), 0);
    }
}

fn server() -> (Server, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    (Connection::new(ours, Endpoint::Server), peer)
}

fn message(request: RequestNumber, body: &[u8]) -> Vec<u8> {
    let header = VhostUserHeader::request(request, true).with_body_size(body.len().try_into().unwrap());
    [header.as_bytes(), body].concat()
}

/// One `sendmsg` of raw bytes with `count` copies of a descriptor, past every check of our own sender.
fn send_raw(peer: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>, count: usize) {
    let descriptors = vec![descriptor; count];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(peer, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

fn complete(frame: Frame<VhostUserHeader>) -> Vec<OwnedFd> {
    match frame.descriptors {
        Descriptors::Complete(descriptors) => descriptors,
        Descriptors::Truncated => panic!("descriptors were lost"),
    }
}

#[test]
fn an_idle_connection_has_no_message_and_no_deadline() {
    let (mut server, _peer) = server();
    assert!(server.receive().unwrap().is_none());
    assert!(server.partial_since().is_none());
    assert!(server.partial_header().is_none());
}

#[test]
fn a_message_arrives_whole() {
    let (mut server, mut peer) = server();
    peer.write_all(&message(RequestNumber::SET_FEATURES, &[7; 8])).unwrap();
    let frame = server.receive().unwrap().unwrap();
    assert_eq!(frame.header.request, RequestNumber::SET_FEATURES);
    assert!(frame.header.needs_reply());
    assert_eq!(frame.body, [7; 8]);
    assert!(complete(frame).is_empty());
}

#[test]
fn a_message_arrives_byte_by_byte() {
    let (mut server, mut peer) = server();
    let bytes = message(RequestNumber::SET_FEATURES, &[7; 8]);
    let (last, rest) = bytes.split_last().unwrap();
    for byte in rest {
        peer.write_all(&[*byte]).unwrap();
        assert!(server.receive().unwrap().is_none());
    }
    peer.write_all(&[*last]).unwrap();
    assert_eq!(server.receive().unwrap().unwrap().body, [7; 8]);
}

#[test]
fn a_half_message_is_dated_by_its_first_byte() {
    let (mut server, mut peer) = server();
    let bytes = message(RequestNumber::SET_FEATURES, &[7; 8]);
    peer.write_all(&bytes[..5]).unwrap();
    assert!(server.receive().unwrap().is_none());
    let since = server.partial_since().unwrap();
    assert!(server.partial_header().is_none());
    peer.write_all(&bytes[5..14]).unwrap();
    assert!(server.receive().unwrap().is_none());
    assert_eq!(server.partial_since(), Some(since));
    assert_eq!(server.partial_header().unwrap().request, RequestNumber::SET_FEATURES);
    peer.write_all(&bytes[14..]).unwrap();
    assert!(server.receive().unwrap().is_some());
    assert!(server.partial_since().is_none());
    assert!(server.partial_header().is_none());
}

#[test]
fn messages_sent_at_once_are_received_one_by_one() {
    let (mut server, mut peer) = server();
    let first = message(RequestNumber::SET_FEATURES, &[1; 8]);
    let second = message(RequestNumber::SET_OWNER, &[]);
    peer.write_all(&[first, second].concat()).unwrap();
    assert_eq!(server.receive().unwrap().unwrap().body, [1; 8]);
    assert_eq!(server.receive().unwrap().unwrap().header.request, RequestNumber::SET_OWNER);
    assert!(server.receive().unwrap().is_none());
}

#[test]
fn descriptors_arrive_in_order_and_closed_on_exec() {
    let (mut server, peer) = server();
    let (mut one, other) = (Witness::new(), Witness::new());
    let mut client = Server::new(peer, Endpoint::Client);
    let descriptors = [one.writer.as_fd(), other.writer.as_fd()];
    let header = VhostUserHeader::request(RequestNumber::SET_MEM_TABLE, false);
    client.send(header, &[0; 72], &descriptors).unwrap();
    let received = complete(server.receive().unwrap().unwrap());
    assert_eq!(received.len(), 2);
    for descriptor in &received {
        let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    let mut first = PipeWriter::from(received.into_iter().next().unwrap());
    first.write_all(&[42]).unwrap();
    let mut byte = [0];
    one.reader.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [42]);
}

#[test]
fn as_many_descriptors_as_allowed_are_kept() {
    let (mut server, peer) = server();
    let witness = Witness::new();
    send_raw(&peer, &message(RequestNumber::SET_MEM_TABLE, &[0; 8]), witness.writer.as_fd(), 8);
    assert_eq!(complete(server.receive().unwrap().unwrap()).len(), 8);
    witness.assert_every_copy_is_closed();
}

#[test]
fn more_descriptors_than_allowed_are_closed_and_the_message_says_so() {
    for count in [9, 16, 17, 18, 19, 20, 40] {
        let (mut server, mut peer) = server();
        let witness = Witness::new();
        send_raw(&peer, &message(RequestNumber::SET_FEATURES, &[1; 8]), witness.writer.as_fd(), count);
        peer.write_all(&message(RequestNumber::SET_OWNER, &[])).unwrap();
        let frame = server.receive().unwrap().unwrap();
        assert!(matches!(frame.descriptors, Descriptors::Truncated), "{count} descriptors");
        assert_eq!(frame.body, [1; 8]);
        witness.assert_every_copy_is_closed();
        assert_eq!(server.receive().unwrap().unwrap().header.request, RequestNumber::SET_OWNER);
    }
}

#[test]
fn vfio_user_takes_sixteen_descriptors_and_no_more() {
    for (count, kept) in [(16, true), (17, false), (18, false)] {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut server = Connection::<VfioUserHeader>::new(ours, Endpoint::Server);
        let witness = Witness::new();
        let header = VfioUserHeader::command(1, Command::DEVICE_RESET);
        send_raw(&peer, header.as_bytes(), witness.writer.as_fd(), count);
        let frame = server.receive().unwrap().unwrap();
        assert_eq!(matches!(frame.descriptors, Descriptors::Complete(_)), kept, "{count} descriptors");
    }
}

#[test]
fn descriptors_with_the_second_part_of_a_header_are_refused_and_closed() {
    let (mut server, mut peer) = server();
    let (early, late) = (Witness::new(), Witness::new());
    let bytes = message(RequestNumber::SET_FEATURES, &[7; 8]);
    send_raw(&peer, &bytes[..5], early.writer.as_fd(), 1);
    assert!(server.receive().unwrap().is_none());
    send_raw(&peer, &bytes[5..12], late.writer.as_fd(), 1);
    assert!(matches!(server.receive(), Err(ReceiveError::LateDescriptors)));
    peer.flush().unwrap();
    drop(server);
    early.assert_every_copy_is_closed();
    late.assert_every_copy_is_closed();
}

#[test]
fn descriptors_with_the_body_are_refused_and_closed() {
    let (mut server, mut peer) = server();
    let witness = Witness::new();
    let bytes = message(RequestNumber::SET_FEATURES, &[7; 8]);
    peer.write_all(&bytes[..12]).unwrap();
    send_raw(&peer, &bytes[12..], witness.writer.as_fd(), 3);
    assert!(matches!(server.receive(), Err(ReceiveError::LateDescriptors)));
    witness.assert_every_copy_is_closed();
}

#[test]
fn descriptors_of_a_message_that_never_ends_are_closed_with_the_connection() {
    let (mut server, peer) = server();
    let witness = Witness::new();
    let bytes = message(RequestNumber::ADD_MEM_REG, &[7; 40]);
    send_raw(&peer, &bytes[..20], witness.writer.as_fd(), 1);
    assert!(server.receive().unwrap().is_none());
    drop(server);
    witness.assert_every_copy_is_closed();
}

#[test]
fn descriptors_of_a_malformed_header_are_closed_with_the_connection() {
    let (mut server, peer) = server();
    let witness = Witness::new();
    send_raw(&peer, &[0xff; 12], witness.writer.as_fd(), 2);
    assert!(matches!(server.receive(), Err(ReceiveError::Header(HeaderError::Flags(u32::MAX)))));
    drop(server);
    witness.assert_every_copy_is_closed();
}

#[test]
fn a_malformed_header_is_refused_again_and_tells_its_request() {
    let (mut server, mut peer) = server();
    let header = VhostUserHeader { request: RequestNumber::VERSION, flags: 1, size: 4097 };
    peer.write_all(header.as_bytes()).unwrap();
    peer.write_all(&[0; 4097]).unwrap();
    for _ in 0..2 {
        let error = server.receive().unwrap_err();
        assert!(matches!(error, ReceiveError::Header(HeaderError::TooLarge { size: 4097, limit: 4096 })));
        assert_eq!(error.errno(), Errno::MSGSIZE);
    }
    assert_eq!(server.partial_header(), Some(header));
}

#[test]
fn the_end_between_two_messages_is_not_the_end_in_the_middle_of_one() {
    let bytes = message(RequestNumber::SET_FEATURES, &[7; 8]);
    for (sent, truncated) in [(0, false), (1, true), (11, true), (12, true), (19, true), (20, false)] {
        let (mut server, mut peer) = server();
        peer.write_all(&bytes[..sent]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let error = loop {
            if let Err(error) = server.receive() {
                break error;
            }
        };
        assert_eq!(matches!(error, ReceiveError::Truncated), truncated, "after {sent} bytes");
        assert_eq!(matches!(error, ReceiveError::Closed), !truncated, "after {sent} bytes");
    }
}

#[test]
fn a_peer_that_closes_without_reading_is_closed() {
    let (mut server, peer) = server();
    server.send(VhostUserHeader::reply(RequestNumber::VERSION), &[0; 8], &[]).unwrap();
    drop(peer);
    assert!(matches!(server.receive(), Err(ReceiveError::Closed)));
    let reply = VhostUserHeader::reply(RequestNumber::VERSION);
    assert!(matches!(server.send(reply, &[], &[]), Err(SendError::Closed)));
}

#[test]
fn a_message_leaves_with_its_size_filled_in() {
    let (mut server, peer) = server();
    let mut client = Server::new(peer, Endpoint::Client);
    server.send(VhostUserHeader::reply(RequestNumber::VERSION), &[3; 24], &[]).unwrap();
    assert!(!server.has_unsent());
    let frame = client.receive().unwrap().unwrap();
    assert_eq!(frame.header.size, 24);
    assert_eq!(frame.body, [3; 24]);
}

#[test]
fn what_the_socket_does_not_take_is_kept_until_flushed() {
    let (ours, peer) = UnixStream::pair().unwrap();
    let mut server = Connection::<VfioUserHeader>::new(ours, Endpoint::Server);
    let mut client = Connection::<VfioUserHeader>::new(peer, Endpoint::Client);
    let header = VfioUserHeader::command(1, Command::REGION_READ).reply();
    let body: Vec<u8> = (0..=u8::MAX).cycle().take(VfioUserHeader::MAX_BODY).collect();
    server.send(header, &body, &[]).unwrap();
    assert!(server.has_unsent());
    assert!(matches!(server.send(header, &[], &[]), Err(SendError::Backlog)));
    let frame = loop {
        if let Some(frame) = client.receive().unwrap() {
            break frame;
        }
        server.flush().unwrap();
    };
    assert_eq!(frame.body, body);
    assert!(!server.has_unsent());
}

#[test]
fn descriptors_are_not_sent_later_than_their_message() {
    let (server, peer) = server();
    let mut client = Server::new(peer, Endpoint::Client);
    let witness = Witness::new();
    let header = VhostUserHeader::request(RequestNumber::ADD_DEVICE, false);
    while !client.has_unsent() {
        client.send(header, &[0; 4096], &[]).unwrap();
    }
    let outcome = client.send(header, &[0; 16], &[witness.writer.as_fd()]);
    assert!(matches!(outcome, Err(SendError::Backlog)));
    drop(server);
    witness.assert_every_copy_is_closed();
}

#[test]
fn messages_behind_an_unsent_one_come_in_order_and_each_with_its_descriptors() {
    let (mut server, peer) = server();
    let mut client = Server::new(peer, Endpoint::Client);
    let header = VhostUserHeader::reply(RequestNumber::VERSION);
    let mut sent = 0_u32;
    while !server.has_unsent() {
        server.send(header, &[sent.to_ne_bytes().as_slice(), &[0; 4000]].concat(), &[]).unwrap();
        sent += 1;
    }
    let witnesses: Vec<_> = (0..3).map(|_| Witness::new()).collect();
    for witness in &witnesses {
        server.send_behind(header, &sent.to_ne_bytes(), &[witness.writer.as_fd()]).unwrap();
        server.send_behind(header, &(sent + 1).to_ne_bytes(), &[]).unwrap();
        sent += 2;
    }
    let mut with_descriptors = Vec::new();
    for number in 0..sent {
        let frame = loop {
            if let Some(frame) = client.receive().unwrap() {
                break frame;
            }
            server.flush().unwrap();
        };
        assert_eq!(frame.body[..4], number.to_ne_bytes());
        if matches!(frame.descriptors, Descriptors::Complete(descriptors) if descriptors.len() == 1) {
            with_descriptors.push(number);
        }
    }
    assert_eq!(with_descriptors, [sent - 6, sent - 4, sent - 2]);
    witnesses.into_iter().for_each(Witness::assert_every_copy_is_closed);
}

#[test]
fn a_message_beyond_the_limits_is_not_sent() {
    let (mut server, mut peer) = server();
    let witness = Witness::new();
    let header = VhostUserHeader::reply(RequestNumber::VERSION);
    assert!(matches!(server.send(header, &[0; 4097], &[]), Err(SendError::TooLarge { body: 4097, .. })));
    let nine = [witness.writer.as_fd(); 9];
    assert!(matches!(server.send(header, &[], &nine), Err(SendError::TooLarge { descriptors: 9, .. })));
    drop(server);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}

#[test]
fn waiting_for_a_message_ends_in_time() {
    let (mut server, mut peer) = server();
    let outcome = server.receive_within(Duration::from_millis(1));
    assert!(matches!(outcome, Err(ReceiveError::TimedOut)));
    peer.write_all(&message(RequestNumber::SET_OWNER, &[])).unwrap();
    assert!(server.receive_within(Duration::MAX).is_ok());
}

#[test]
fn a_peer_that_sends_byte_by_byte_does_not_put_the_deadline_off() {
    let (mut server, mut peer) = server();
    let sender = thread::spawn(move || {
        for byte in message(RequestNumber::SET_FEATURES, &[0; 4096]) {
            if peer.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    let outcome = server.receive_within(Duration::from_millis(50));
    assert!(matches!(outcome, Err(ReceiveError::TimedOut)));
    drop(server);
    sender.join().unwrap();
}

#[test]
fn waiting_for_a_peer_to_read_ends_in_time() {
    let (ours, _peer) = UnixStream::pair().unwrap();
    let mut client = Connection::<VfioUserHeader>::new(ours, Endpoint::Client);
    let header = VfioUserHeader::command(1, Command::REGION_WRITE);
    let outcome =
        client.send_within(header, &vec![0; VfioUserHeader::MAX_BODY], &[], Duration::from_millis(1));
    assert!(matches!(outcome, Err(SendError::TimedOut)));
}

#[test]
fn a_large_message_crosses_while_both_ends_wait() {
    let (ours, peer) = UnixStream::pair().unwrap();
    let mut server = Connection::<VfioUserHeader>::new(ours, Endpoint::Server);
    let mut client = Connection::<VfioUserHeader>::new(peer, Endpoint::Client);
    let timeout = Duration::from_secs(10);
    let sender = thread::spawn(move || {
        let header = VfioUserHeader::command(1, Command::REGION_WRITE);
        client.send_within(header, &vec![5; VfioUserHeader::MAX_BODY], &[], timeout).unwrap();
    });
    assert_eq!(server.receive_within(timeout).unwrap().body, vec![5; VfioUserHeader::MAX_BODY]);
    sender.join().unwrap();
}

proptest! {
    #[test]
    fn messages_arrive_whole_however_the_stream_is_cut(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..6),
        cuts in prop::collection::vec(1..40_usize, 1..50),
    ) {
        let (mut server, mut peer) = server();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| message(RequestNumber::SET_OWNER, body)).collect();
        let mut rest = stream.as_slice();
        let mut received = Vec::new();
        for cut in cuts.iter().cycle() {
            let (piece, others) = rest.split_at((*cut).min(rest.len()));
            peer.write_all(piece).unwrap();
            while let Some(frame) = server.receive().unwrap() {
                received.push(frame.body);
            }
            rest = others;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(received, bodies);
        prop_assert!(server.partial_since().is_none());
    }

    #[test]
    fn no_stream_makes_the_receiver_panic_or_wait(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (mut server, mut peer) = server();
        peer.write_all(&bytes).unwrap();
        drop(peer);
        // Every message takes at least a header, and the end of the stream is an error.
        let ended = (0..=bytes.len() / 12).any(|_| match server.receive() {
            Ok(Some(frame)) => {
                let _ = crate::ControlRequest::parse(frame).is_ok();
                false
            }
            Ok(None) => false,
            Err(_) => true,
        });
        prop_assert!(ended);
    }
}
