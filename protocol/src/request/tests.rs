// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::HashSet;
use std::fs::File;

use proptest::prelude::*;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::extension::{
    AbortCause, CoordinationId, PciAddress, Preparation, ResetOutcome, ResetPolicy, ResetRequestId,
    ResetWish, SubscribeRequest,
};
use crate::frame::Descriptors;
use crate::frame::Header;
use crate::vhost_user::{MemoryTableHeader, SingleMemoryRegion};

/// Every request of the protocol with a payload of zeroes of the right size and the descriptors it takes.
const WELL_FORMED: [(RequestNumber, usize, usize); 26] = [
    (RequestNumber::GET_FEATURES, 0, 0),
    (RequestNumber::SET_FEATURES, 8, 0),
    (RequestNumber::SET_OWNER, 0, 0),
    (RequestNumber::SET_MEM_TABLE, 8, 0),
    (RequestNumber::GET_PROTOCOL_FEATURES, 0, 0),
    (RequestNumber::SET_PROTOCOL_FEATURES, 8, 0),
    (RequestNumber::SET_BACKEND_REQ_FD, 0, 1),
    (RequestNumber::GET_MAX_MEM_SLOTS, 0, 0),
    (RequestNumber::ADD_MEM_REG, 40, 1),
    (RequestNumber::REM_MEM_REG, 40, 0),
    (RequestNumber::VERSION, 8, 0),
    (RequestNumber::SET_IOMMUFD, 8, 1),
    (RequestNumber::ADD_DEVICE, 16, 1),
    (RequestNumber::SERVE, 16, 1),
    (RequestNumber::REMOVE_DEVICE, 8, 0),
    (RequestNumber::GET_DEVICE_INFO, 8, 0),
    (RequestNumber::GET_RESET_GROUP, 16, 0),
    (RequestNumber::RESET, 24, 0),
    (RequestNumber::LAST_FAILURE, 0, 0),
    (RequestNumber::LIST_DEVICES, 0, 0),
    (RequestNumber::SUBSCRIBE, 8, 0),
    (RequestNumber::COORDINATE, 32, 0),
    (RequestNumber::RESET_PREPARE, 32, 0),
    (RequestNumber::RESET_GRANT, 8, 0),
    (RequestNumber::RESET_DONE, 56, 0),
    (RequestNumber::RESET_ABORT, 64, 0),
];

const COOKIE: Cookie = Cookie(7);
const REGION: MemoryRegion = MemoryRegion { guest_address: 0x1000, size: 0x2000, user_address: 1, offset: 0 };

fn parse(request: RequestNumber, body: &[u8], descriptors: usize) -> Result<ControlRequest, RequestError> {
    let file = File::open("/dev/null").unwrap();
    let descriptors = (0..descriptors).map(|_| OwnedFd::from(file.try_clone().unwrap())).collect();
    let header = VhostUserHeader::request(request, true).with_body_size(body.len().try_into().unwrap());
    ControlRequest::parse(Frame {
        header,
        body: body.to_vec(),
        descriptors: Descriptors::Complete(descriptors),
    })
}

fn field_of(outcome: Result<ControlRequest, RequestError>) -> &'static str {
    match outcome {
        Err(RequestError::Field { field, .. }) => field,
        other => panic!("not refused for a field: {other:?}"),
    }
}

#[test]
fn no_other_request_is_known() {
    let numbers: HashSet<u32> = WELL_FORMED.iter().map(|(request, _, _)| request.0).collect();
    for number in 0..0x6000 {
        let request = RequestNumber(number);
        let is_known = !matches!(parse(request, &[], 0), Err(RequestError::Unknown { .. }));
        assert_eq!(is_known, numbers.contains(&number), "{request}");
        assert!(!is_known || request.name().is_some(), "{request}");
    }
}

#[test]
fn every_request_must_have_its_size() {
    for (request, size, descriptors) in WELL_FORMED {
        let outcome = parse(request, &vec![0; size], descriptors);
        assert!(
            !matches!(outcome, Err(RequestError::Size { .. })),
            "{request} with {size} bytes: {outcome:?}"
        );
        for wrong in [size.wrapping_sub(1), size + 1, size + 8].into_iter().filter(|size| *size <= 4096) {
            let outcome = parse(request, &vec![0; wrong], descriptors);
            assert!(
                matches!(outcome, Err(RequestError::Size { .. })),
                "{request} with {wrong} bytes: {outcome:?}"
            );
        }
    }
}

#[test]
fn every_request_must_have_its_descriptors() {
    for (request, size, descriptors) in WELL_FORMED {
        // The one request that may come with a descriptor that nobody needs.
        let tolerated = usize::from(request == RequestNumber::REM_MEM_REG);
        for wrong in (0..=8).filter(|count| !(descriptors..=descriptors + tolerated).contains(count)) {
            let outcome = parse(request, &vec![0; size], wrong);
            assert!(
                matches!(outcome, Err(RequestError::Descriptors { .. })),
                "{request} with {wrong}: {outcome:?}"
            );
        }
    }
}

#[test]
fn an_unknown_request_is_told_apart() {
    for number in [0, 4, 6, 12, 22, 34, 39, 45, 0x51ff, 0x5210, 0x527f, 0x5280, 0x5285, u32::MAX] {
        let request = RequestNumber(number);
        let error = parse(request, &[0; 8], 1).unwrap_err();
        assert_eq!(error, RequestError::Unknown { request });
        assert_eq!(error.errno(), Errno::OPNOTSUPP);
        assert_eq!(error.failure().id(), "unknown-request");
    }
}

#[test]
fn lost_descriptors_refuse_any_request() {
    let header = VhostUserHeader::request(RequestNumber::SET_OWNER, true);
    let error = ControlRequest::parse(Frame { header, body: vec![], descriptors: Descriptors::Truncated });
    assert_eq!(error.unwrap_err().errno(), Errno::TOOBIG);
}

#[test]
fn a_memory_table_pairs_regions_with_their_files() {
    let other = MemoryRegion { guest_address: 0x10_0000, ..REGION };
    let header = MemoryTableHeader { count: 2, reserved: 0 };
    let body = [header.as_bytes(), [REGION, other].as_bytes()].concat();
    let ControlRequest::SetMemoryTable(table) = parse(RequestNumber::SET_MEM_TABLE, &body, 2).unwrap() else {
        panic!("not a memory table");
    };
    let regions: Vec<_> = table.iter().map(|backed| backed.region).collect();
    assert_eq!(regions, [REGION, other]);
}

#[test]
fn a_memory_table_may_be_empty() {
    let outcome = parse(RequestNumber::SET_MEM_TABLE, &[0; 8], 0).unwrap();
    assert!(matches!(outcome, ControlRequest::SetMemoryTable(table) if table.is_empty()));
}

#[test]
fn a_memory_table_has_at_most_eight_regions() {
    for count in [9, u32::MAX] {
        let body = MemoryTableHeader { count, reserved: 0 };
        assert_eq!(field_of(parse(RequestNumber::SET_MEM_TABLE, body.as_bytes(), 8)), "count");
    }
}

#[test]
fn a_region_that_wraps_around_is_refused_wherever_it_comes() {
    let region = MemoryRegion { guest_address: u64::MAX, ..REGION };
    let single = SingleMemoryRegion { reserved: 0, region };
    let table = [MemoryTableHeader { count: 1, reserved: 0 }.as_bytes(), region.as_bytes()].concat();
    for (request, body, descriptors) in [
        (RequestNumber::SET_MEM_TABLE, table.as_slice(), 1),
        (RequestNumber::ADD_MEM_REG, single.as_bytes(), 1),
        (RequestNumber::REM_MEM_REG, single.as_bytes(), 0),
    ] {
        assert_eq!(parse(request, body, descriptors).unwrap_err(), RequestError::Region { request, region });
    }
}

#[test]
fn removing_a_region_drops_the_file_that_comes_with_it() {
    let body = SingleMemoryRegion { reserved: 0, region: REGION };
    let outcome = parse(RequestNumber::REM_MEM_REG, body.as_bytes(), 1).unwrap();
    assert!(matches!(outcome, ControlRequest::RemoveMemoryRegion(REGION)));
}

#[test]
fn another_major_version_is_refused() {
    for major in [0, 2, u16::MAX] {
        let body = VersionRequest { major, minor: 0, flags: 0 };
        let error = parse(RequestNumber::VERSION, body.as_bytes(), 0).unwrap_err();
        assert_eq!(error.errno(), Errno::PROTONOSUPPORT);
        assert_eq!(error.failure().id(), "unsupported-version");
    }
}

#[test]
fn a_newer_minor_version_is_accepted() {
    let body = VersionRequest { major: MAJOR, minor: 9, flags: 0 };
    let outcome = parse(RequestNumber::VERSION, body.as_bytes(), 0).unwrap();
    assert!(matches!(outcome, ControlRequest::Version { minor: 9 }));
}

#[test]
fn an_address_space_is_allocated_adopted_or_filled() {
    for choice in [IoasChoice::Allocate, IoasChoice::Adopt(0), IoasChoice::Adopt(5), IoasChoice::Fill(5)] {
        let body = SetIommufdRequest::from(choice);
        let outcome = parse(RequestNumber::SET_IOMMUFD, body.as_bytes(), 1).unwrap();
        assert!(matches!(outcome, ControlRequest::SetIommufd { ioas, .. } if ioas == choice));
    }
}

#[test]
fn an_address_space_without_its_flag_is_refused() {
    let body = SetIommufdRequest { flags: 0, ioas: 5 };
    assert_eq!(field_of(parse(RequestNumber::SET_IOMMUFD, body.as_bytes(), 1)), "ioas");
}

#[test]
fn unknown_flags_are_refused() {
    let version = VersionRequest { major: MAJOR, minor: 0, flags: 1 };
    let iommufd =
        SetIommufdRequest { flags: SetIommufdRequest::ADOPT_IOAS | SetIommufdRequest::FILL_IOAS, ioas: 5 };
    let device = AddDeviceRequest { cookie: COOKIE, flags: 1 << 31, reserved: 0 };
    let serve = ServeRequest { cookie: COOKIE, face: 1, flags: 4 };
    assert_eq!(field_of(parse(RequestNumber::VERSION, version.as_bytes(), 0)), "flags");
    assert_eq!(field_of(parse(RequestNumber::SET_IOMMUFD, iommufd.as_bytes(), 1)), "flags");
    assert_eq!(field_of(parse(RequestNumber::ADD_DEVICE, device.as_bytes(), 1)), "flags");
    assert_eq!(field_of(parse(RequestNumber::SERVE, serve.as_bytes(), 1)), "flags");
}

#[test]
fn a_reserved_field_must_be_zero() {
    let body = AddDeviceRequest { cookie: COOKIE, flags: 0, reserved: 1 };
    assert_eq!(field_of(parse(RequestNumber::ADD_DEVICE, body.as_bytes(), 1)), "reserved");
}

#[test]
fn an_unknown_face_is_refused() {
    for face in [0, 3, u32::MAX] {
        let body = ServeRequest { cookie: COOKIE, face, flags: 0 };
        assert_eq!(field_of(parse(RequestNumber::SERVE, body.as_bytes(), 1)), "face");
    }
}

const fn reset(method: u32, policy: u32, deadline_ms: u32) -> ResetRequest {
    ResetRequest { cookie: COOKIE, method, policy, deadline_ms, reserved: 0 }
}

#[test]
fn a_reset_leaves_open_what_is_zero() {
    let outcome = parse(RequestNumber::RESET, reset(0, 0, 0).as_bytes(), 0).unwrap();
    let ControlRequest::Reset { cookie: COOKIE, wish } = outcome else {
        panic!("not the reset asked for: {outcome:?}");
    };
    assert_eq!(wish, ResetWish::default());
}

#[test]
fn a_reset_has_the_method_the_policy_and_the_deadline_that_it_names() {
    let outcome = parse(RequestNumber::RESET, reset(2, 3, 1500).as_bytes(), 0).unwrap();
    let ControlRequest::Reset { wish, .. } = outcome else {
        panic!("not the reset asked for: {outcome:?}");
    };
    let deadline = Some(Duration::from_millis(1500));
    let named = ResetWish { method: Some(ResetMethod::Hot), policy: Some(ResetPolicy::Force), deadline };
    assert_eq!(wish, named);
}

#[test]
fn an_unknown_reset_method_or_policy_is_refused() {
    for (body, field) in [(reset(3, 0, 0), "method"), (reset(0, 4, 0), "policy")] {
        assert_eq!(field_of(parse(RequestNumber::RESET, body.as_bytes(), 0)), field);
    }
}

#[test]
fn a_subscription_names_events_that_exist() {
    let body = SubscribeRequest { events: EventKinds::RESETS | EventKinds::GROUPS, poll_ms: 500 };
    let ControlRequest::Subscribe { events, poll } =
        parse(RequestNumber::SUBSCRIBE, body.as_bytes(), 0).unwrap()
    else {
        panic!("not a subscription")
    };
    assert_eq!((events, poll), (body.events, Some(Duration::from_millis(500))));
    let body = SubscribeRequest { events: EventKinds(0x10), poll_ms: 0 };
    assert_eq!(field_of(parse(RequestNumber::SUBSCRIBE, body.as_bytes(), 0)), "events");
}

/// One of each of a broker's messages, and those that differ in what they leave out.
fn broker_messages() -> Vec<BrokerMessage> {
    let coordination = CoordinationId(5);
    let address = |devfn| PciAddress { segment: 0, bus: 3, devfn };
    let member = MemberName::new("vm-nic");
    let causes = [
        AbortCause::MemberLost(member),
        AbortCause::MemberSilent(member),
        AbortCause::MemberRefused { member, device: address(1) },
        AbortCause::KernelRefused { member, errno: Errno::BUSY, attempts: 17 },
        AbortCause::DeadlinePassed,
        AbortCause::UnknownHolder(address(2)),
    ];
    let abort = |cause| BrokerMessage::Abort { coordination: Some(coordination), request: None, cause };
    let mut messages: Vec<_> = causes.map(abort).into();
    messages.extend([
        BrokerMessage::Abort { coordination: None, request: Some(ResetRequestId(8)), cause: causes[4] },
        BrokerMessage::Prepare(Preparation {
            coordination,
            target: address(0),
            policy: ResetPolicy::Force,
            tries: Duration::from_millis(1500),
            patience: Duration::from_secs(70),
            functions: (0..=255).map(address).collect(),
        }),
        BrokerMessage::Grant { coordination },
        BrokerMessage::Done {
            coordination,
            request: Some(ResetRequestId(8)),
            outcome: ResetOutcome::LinkUnconfirmed,
            attempts: 2,
            missing: Some(member),
        },
        BrokerMessage::Done {
            coordination,
            request: None,
            outcome: ResetOutcome::Done,
            attempts: 1,
            missing: None,
        },
    ]);
    messages
}

#[test]
fn what_a_broker_says_survives_the_wire() {
    for message in broker_messages() {
        let (request, body) = message.encode();
        assert!(body.len() <= VhostUserHeader::MAX_BODY);
        let ControlRequest::Broker(parsed) = parse(request, &body, 0).unwrap() else { panic!("{request}") };
        assert_eq!(parsed, message);
    }
}

#[test]
fn a_set_has_as_many_functions_as_it_says_and_not_too_many() {
    let (request, body) = broker_messages()
        .into_iter()
        .find_map(|message| match message {
            BrokerMessage::Prepare(_) => Some(message.encode()),
            _ => None,
        })
        .unwrap();
    for size in [0, 31, body.len() - 4, body.len() - 1] {
        assert!(matches!(parse(request, &body[..size], 0), Err(RequestError::Size { .. })), "{size} bytes");
    }
    let mut many = body.clone();
    many[24..28].copy_from_slice(&257_u32.to_ne_bytes());
    many.extend([0; 4]);
    assert_eq!(field_of(parse(request, &many, 0)), "count");
}

#[test]
fn what_a_broker_must_not_say_is_refused() {
    let (prepare, prepared) = broker_messages()[7].encode();
    let (abort, aborted) = broker_messages()[3].encode();
    let (done, finished) = broker_messages()[9].encode();
    let (grant, _) = broker_messages()[8].encode();
    let with = |body: &[u8], offset: usize, value: u32| {
        let mut body = body.to_vec();
        body[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        body
    };
    assert_eq!(field_of(parse(prepare, &with(&prepared, 0, 0), 0)), "coordination");
    assert_eq!(field_of(parse(prepare, &with(&prepared, 12, 4), 0)), "policy");
    assert_eq!(field_of(parse(prepare, &with(&prepared, 28, 1), 0)), "reserved");
    assert_eq!(field_of(parse(grant, &[0; 8], 0)), "coordination");
    assert_eq!(field_of(parse(done, &with(&finished, 0, 0), 0)), "coordination");
    assert_eq!(field_of(parse(done, &with(&finished, 16, 2), 0)), "outcome");
    assert_eq!(field_of(parse(abort, &with(&aborted, 16, 7), 0)), "reason");
    assert_eq!(field_of(parse(abort, &with(&aborted, 20, 0), 0)), "errno");
}

proptest! {
    #[test]
    fn no_request_makes_the_parser_panic(
        known in 0..WELL_FORMED.len(),
        number in prop::option::of(any::<u32>()),
        mut body in prop::collection::vec(any::<u8>(), 0..=400),
        right_size in any::<bool>(),
        descriptors in 0..=8_usize,
    ) {
        let (request, size, _) = WELL_FORMED[known];
        if right_size {
            body.resize(size, 0);
        }
        let outcome = parse(number.map_or(request, RequestNumber), &body, descriptors);
        if let Err(error) = outcome {
            let failure = error.failure();
            prop_assert!(!failure.id().is_empty() && !failure.what().is_empty());
        }
    }

    #[test]
    fn no_header_makes_the_receiver_panic(header in any::<[u8; 12]>()) {
        let header = VhostUserHeader::read_from_bytes(&header).unwrap();
        for receiver in [crate::Endpoint::Server, crate::Endpoint::Client] {
            if let Ok(size) = header.body_size(receiver) {
                prop_assert!(size <= VhostUserHeader::MAX_BODY);
            }
        }
    }

    #[test]
    fn a_memory_table_survives_the_wire(
        starts in prop::collection::vec((0..1_u64 << 48, 1..1_u64 << 40, any::<u32>(), any::<u32>()), 0..=8),
    ) {
        let regions: Vec<_> = starts
            .into_iter()
            .map(|(guest_address, size, user_address, offset)| MemoryRegion {
                guest_address,
                size,
                user_address: user_address.into(),
                offset: offset.into(),
            })
            .collect();
        let header = MemoryTableHeader { count: regions.len().try_into().unwrap(), reserved: 0 };
        let body = [header.as_bytes(), regions.as_bytes()].concat();
        let outcome = parse(RequestNumber::SET_MEM_TABLE, &body, regions.len()).unwrap();
        let ControlRequest::SetMemoryTable(table) = outcome else { panic!("not a memory table") };
        prop_assert_eq!(table.iter().map(|backed| backed.region).collect::<Vec<_>>(), regions);
    }
}
