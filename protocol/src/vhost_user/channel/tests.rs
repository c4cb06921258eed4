// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::mem::offset_of;

use proptest::prelude::*;

use super::*;
use crate::frame::Header;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONFIG_CHANGE: BackendRequestNumber = BackendRequestNumber::CONFIG_CHANGE;
const HOST_NOTIFIER: BackendRequestNumber = BackendRequestNumber::VRING_HOST_NOTIFIER;

fn channel() -> (BackendChannel, FrontendChannel) {
    let (backend, frontend) = UnixStream::pair().unwrap();
    (BackendChannel::new(backend), FrontendChannel::new(frontend))
}

fn parse(number: u32, body: &[u8], files: usize) -> Result<BackendRequest, ChannelError> {
    let files = (0..files).map(|_| File::open("/dev/null").unwrap().into()).collect();
    let header = VhostUserHeader::request(RequestNumber(number), false);
    BackendRequest::parse(Frame { header, body: body.to_vec(), descriptors: Descriptors::Complete(files) })
}

/// The `vhost` crate has no such structure; QEMU's is `VhostUserVringArea`.
#[test]
fn a_ring_s_area_is_laid_out_as_qemu_has_it() {
    assert_eq!(size_of::<VringArea>(), 24);
    assert_eq!((offset_of!(VringArea, size), offset_of!(VringArea, offset)), (8, 16));
}

#[test]
fn a_change_of_the_configuration_space_is_told_and_not_acknowledged() {
    let (mut backend, mut frontend) = channel();
    backend.config_changed().unwrap();
    let (request, needs_reply) = frontend.receive_within(TIMEOUT).unwrap();
    assert!(matches!(request, BackendRequest::ConfigChange) && !needs_reply);
    assert!(backend.receive().unwrap().is_none());
}

#[test]
fn a_doorbell_is_given_and_taken_away_and_the_frontend_says_whether_it_could() {
    let (mut backend, mut frontend) = channel();
    let file = File::open("/dev/zero").unwrap();
    let area = NotifierArea { file: file.as_fd(), size: 4096, offset: 0x1_0000_3000 };
    backend.set_host_notifier(3, Some(&area), true).unwrap();
    backend.set_host_notifier(3, None, true).unwrap();
    for (expected, is_done) in [(Some((4096, 0x1_0000_3000)), true), (None, false)] {
        let (request, needs_reply) = frontend.receive_within(TIMEOUT).unwrap();
        let BackendRequest::HostNotifier { queue: 3, area } = &request else { panic!("{request:?}") };
        assert_eq!(area.as_ref().map(|area| (area.size, area.offset)), expected);
        assert!(needs_reply);
        frontend.acknowledge(&request, is_done).unwrap();
    }
    assert_eq!(backend.receive().unwrap(), Some((HOST_NOTIFIER, true)));
    assert_eq!(backend.receive().unwrap(), Some((HOST_NOTIFIER, false)));
    assert_eq!(backend.receive().unwrap(), None);
}

#[test]
fn what_was_not_asked_for_is_no_acknowledgement() {
    for asked in [false, true] {
        let (mut backend, mut frontend) = channel();
        if asked {
            backend.set_host_notifier(0, None, true).unwrap();
        }
        frontend.acknowledge(&BackendRequest::ConfigChange, true).unwrap();
        let outcome = backend.receive();
        assert!(matches!(outcome, Err(ChannelError::Malformed(CONFIG_CHANGE))), "{outcome:?}");
    }
}

#[test]
fn an_acknowledgement_has_eight_bytes() {
    let (mut backend, mut frontend) = channel();
    backend.set_host_notifier(0, None, true).unwrap();
    let header = VhostUserHeader::reply(HOST_NOTIFIER.in_header());
    frontend.connection.send(header, &[0; 4], &[]).unwrap();
    assert!(matches!(backend.receive(), Err(ChannelError::Malformed(HOST_NOTIFIER))));
}

#[test]
fn a_frontend_that_does_not_acknowledge_is_asked_only_so_much() {
    let (mut backend, mut frontend) = channel();
    for _ in 0..MAX_UNACKNOWLEDGED {
        backend.set_host_notifier(0, None, true).unwrap();
        frontend.receive_within(TIMEOUT).unwrap();
    }
    assert!(matches!(backend.set_host_notifier(0, None, true), Err(SendError::Backlog)));
    backend.config_changed().unwrap();
}

#[test]
fn a_frontend_that_does_not_read_is_not_waited_for() {
    let (mut backend, _frontend) = channel();
    let outcome = std::iter::repeat_with(|| backend.config_changed()).find_map(Result::err);
    assert!(matches!(outcome, Some(SendError::Backlog)));
}

#[test]
fn a_backend_s_request_that_is_malformed_is_told_apart() {
    let area = |word: u64| VringArea { vring: VringDescriptor(word), size: 4096, offset: 0 };
    assert!(parse(3, area(1).as_bytes(), 1).is_ok());
    for (number, body, files) in [
        (1, &[][..], 0),
        (2, &[0; 8], 0),
        (2, &[], 1),
        (3, area(1).as_bytes(), 0),
        (3, area(1).as_bytes(), 2),
        (3, area(0x101).as_bytes(), 1),
        (3, area(0x201).as_bytes(), 1),
        (3, &[0; 23], 1),
    ] {
        let outcome = parse(number, body, files);
        assert!(matches!(&outcome, Err(ChannelError::Malformed(at)) if at.0 == number), "{outcome:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        number in 0..5_u32,
        body in prop::collection::vec(any::<u8>(), 0..=VhostUserHeader::MAX_BODY.min(64)),
        files in 0..=2_usize,
    ) {
        let _ = parse(number, &body, files).is_ok();
    }
}
