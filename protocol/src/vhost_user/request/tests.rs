// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::HashSet;
use std::fs::File;

use proptest::prelude::*;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::*;
use crate::frame::{Descriptors, Header};
use crate::vhost_user::{MAX_CONFIG, MemoryTableHeader, SingleMemoryRegion};

const REGION: MemoryRegion = MemoryRegion { guest_address: 0x1000, size: 0x2000, user_address: 1, offset: 0 };
const ADDRESS: VringAddress =
    VringAddress { index: 1, flags: 0, descriptor: 0x1000, used: 0x2004, available: 0x3002, log: 7 };
const ACCESS: ConfigAccess = ConfigAccess { offset: 2, size: 3, flags: 0 };

/// Every request of the face with a good payload and the descriptors that it takes then.
fn well_formed() -> Vec<(RequestNumber, Vec<u8>, usize)> {
    let number = 7_u64.as_bytes().to_vec();
    let state = VringState { index: 1, num: 1 }.as_bytes().to_vec();
    let region = SingleMemoryRegion { reserved: 0, region: REGION }.as_bytes().to_vec();
    let table = MemoryTableHeader::encode(&[REGION, REGION]);
    let config = [ACCESS.as_bytes(), &[1, 2, 3]].concat();
    vec![
        (RequestNumber::GET_FEATURES, vec![], 0),
        (RequestNumber::SET_FEATURES, number.clone(), 0),
        (RequestNumber::SET_OWNER, vec![], 0),
        (RequestNumber::RESET_OWNER, vec![], 0),
        (RequestNumber::SET_MEM_TABLE, table, 2),
        (RequestNumber::SET_VRING_NUM, state.clone(), 0),
        (RequestNumber::SET_VRING_ADDR, ADDRESS.as_bytes().to_vec(), 0),
        (RequestNumber::SET_VRING_BASE, state.clone(), 0),
        (RequestNumber::GET_VRING_BASE, state.clone(), 0),
        (RequestNumber::SET_VRING_KICK, number.clone(), 1),
        (RequestNumber::SET_VRING_CALL, number.clone(), 1),
        (RequestNumber::SET_VRING_ERR, number.clone(), 1),
        (RequestNumber::GET_PROTOCOL_FEATURES, vec![], 0),
        (RequestNumber::SET_PROTOCOL_FEATURES, number.clone(), 0),
        (RequestNumber::GET_QUEUE_NUM, vec![], 0),
        (RequestNumber::SET_VRING_ENABLE, state, 0),
        (RequestNumber::SET_BACKEND_REQ_FD, vec![], 1),
        (RequestNumber::GET_CONFIG, config.clone(), 0),
        (RequestNumber::SET_CONFIG, config, 0),
        (RequestNumber::RESET_DEVICE, vec![], 0),
        (RequestNumber::GET_MAX_MEM_SLOTS, vec![], 0),
        (RequestNumber::ADD_MEM_REG, region.clone(), 1),
        (RequestNumber::REM_MEM_REG, region, 0),
        (RequestNumber::SET_STATUS, number, 0),
        (RequestNumber::GET_STATUS, vec![], 0),
    ]
}

fn frame(request: RequestNumber, body: &[u8], descriptors: usize) -> Frame<VhostUserHeader> {
    let file = File::open("/dev/null").unwrap();
    let descriptors = (0..descriptors).map(|_| OwnedFd::from(file.try_clone().unwrap())).collect();
    let header = VhostUserHeader::request(request, true).with_body_size(body.len().try_into().unwrap());
    Frame { header, body: body.to_vec(), descriptors: Descriptors::Complete(descriptors) }
}

fn parse(request: RequestNumber, body: &[u8], descriptors: usize) -> Result<DeviceRequest, RequestError> {
    DeviceRequest::parse(frame(request, body, descriptors))
}

fn field_of(outcome: Result<DeviceRequest, RequestError>) -> &'static str {
    match outcome {
        Err(RequestError::Field { field, .. }) => field,
        other => panic!("not refused for a field: {other:?}"),
    }
}

#[test]
fn no_other_request_is_known() {
    let numbers: HashSet<u32> = well_formed().iter().map(|(request, _, _)| request.0).collect();
    for number in 0..0x6000 {
        let request = RequestNumber(number);
        let is_known = !matches!(parse(request, &[], 0), Err(RequestError::Unknown { .. }));
        assert_eq!(is_known, numbers.contains(&number), "{request}");
    }
    assert_eq!(parse(RequestNumber(19), &[0; 8], 0).unwrap_err().errno(), Errno::OPNOTSUPP);
}

#[test]
fn every_request_must_have_its_size() {
    for (request, body, descriptors) in well_formed() {
        parse(request, &body, descriptors).unwrap_or_else(|error| panic!("{request}: {error}"));
        for wrong in [body.len().wrapping_sub(1), body.len() + 1, body.len() + 8] {
            if wrong > 4096 {
                continue;
            }
            let mut body = body.clone();
            body.resize(wrong, 0);
            let outcome = parse(request, &body, descriptors);
            assert!(matches!(outcome, Err(RequestError::Size { .. })), "{request}, {wrong}: {outcome:?}");
        }
    }
}

#[test]
fn every_request_must_have_its_descriptors() {
    for (request, body, descriptors) in well_formed() {
        // The one request that may come with a descriptor that nobody needs.
        let tolerated = usize::from(request == RequestNumber::REM_MEM_REG);
        for wrong in (0..=8).filter(|count| !(descriptors..=descriptors + tolerated).contains(count)) {
            let outcome = parse(request, &body, wrong);
            assert!(
                matches!(outcome, Err(RequestError::Descriptors { .. })),
                "{request} with {wrong}: {outcome:?}"
            );
        }
    }
}

#[test]
fn lost_descriptors_refuse_any_request() {
    let header = VhostUserHeader::request(RequestNumber::SET_OWNER, true);
    let outcome = DeviceRequest::parse(Frame { header, body: vec![], descriptors: Descriptors::Truncated });
    assert_eq!(outcome.unwrap_err().errno(), Errno::TOOBIG);
}

#[test]
fn a_ring_has_an_index_of_at_most_255() {
    for (request, mut body, descriptors) in well_formed() {
        if request.name().is_some_and(|name| name.contains("VRING")) {
            body[..2].copy_from_slice(&256_u16.to_ne_bytes());
            let refused = parse(request, &body, descriptors).map(|parsed| format!("{parsed:?}"));
            match request {
                // There it is the bit that says that no eventfd comes.
                RequestNumber::SET_VRING_KICK
                | RequestNumber::SET_VRING_CALL
                | RequestNumber::SET_VRING_ERR => {
                    assert!(matches!(refused, Err(RequestError::Descriptors { expected: 0, .. })));
                    body[1] = 2;
                    assert_eq!(field_of(parse(request, &body, descriptors)), "u64");
                }
                _ => assert!(matches!(refused, Err(RequestError::Field { field: "index", value: 256, .. }))),
            }
        }
    }
}

/// What is asked of this ring.
fn of_ring(parsed: Result<DeviceRequest, RequestError>, expected: u8) -> VringRequest {
    match parsed {
        Ok(DeviceRequest::Vring { queue, request }) if queue == expected => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ring_has_one_to_32768_descriptors() {
    let size_of = |num| parse(RequestNumber::SET_VRING_NUM, VringState { index: 0, num }.as_bytes(), 0);
    for size in [1, 128, 32768] {
        let VringRequest::SetSize(read) = of_ring(size_of(size), 0) else { panic!("another request") };
        assert_eq!(u32::from(read), size);
    }
    for size in [0, 32769, 65536, u32::MAX] {
        assert_eq!(field_of(size_of(size)), "num");
    }
}

#[test]
fn a_ring_is_enabled_or_not() {
    let enable = |num| parse(RequestNumber::SET_VRING_ENABLE, VringState { index: 3, num }.as_bytes(), 0);
    assert!(matches!(of_ring(enable(1), 3), VringRequest::SetEnabled(true)));
    assert!(matches!(of_ring(enable(0), 3), VringRequest::SetEnabled(false)));
    assert_eq!(field_of(enable(2)), "num");
}

#[test]
fn rings_are_aligned_and_not_logged() {
    let address = |address: VringAddress| parse(RequestNumber::SET_VRING_ADDR, address.as_bytes(), 0);
    assert!(matches!(
        of_ring(address(ADDRESS), 1),
        VringRequest::SetAddress { descriptors: 0x1000, available: 0x3002, used: 0x2004 }
    ));
    assert_eq!(field_of(address(VringAddress { flags: 1, ..ADDRESS })), "flags");
    assert_eq!(field_of(address(VringAddress { descriptor: 0x1008, ..ADDRESS })), "descriptor");
    assert_eq!(field_of(address(VringAddress { used: 0x2002, ..ADDRESS })), "used");
    assert_eq!(field_of(address(VringAddress { available: 0x3001, ..ADDRESS })), "available");
}

#[test]
fn a_malformed_description_tells_of_which_ring_it_is() {
    let described = |request, body: &[u8]| DeviceRequest::described_vring(&frame(request, body, 0));
    for request in
        [RequestNumber::SET_VRING_NUM, RequestNumber::SET_VRING_ADDR, RequestNumber::SET_VRING_BASE]
    {
        assert_eq!(described(request, &5_u32.to_ne_bytes()), Some(5));
        assert_eq!(described(request, &256_u32.to_ne_bytes()), None);
        assert_eq!(described(request, &[5]), None);
    }
    assert_eq!(described(RequestNumber::SET_VRING_ENABLE, &[0; 8]), None);
}

#[test]
fn an_eventfd_comes_unless_the_payload_says_otherwise() {
    let kick = |word: u64, count| parse(RequestNumber::SET_VRING_KICK, word.as_bytes(), count);
    assert!(matches!(of_ring(kick(0xff, 1), 255), VringRequest::SetKick(Some(_))));
    assert!(matches!(of_ring(kick(0x102, 0), 2), VringRequest::SetKick(None)));
}

#[test]
fn the_configuration_space_ends_at_4096_bytes() {
    let config = |access: ConfigAccess| {
        let data = vec![0; access.size.min(4084).try_into().unwrap()];
        parse(RequestNumber::GET_CONFIG, &[access.as_bytes(), &data].concat(), 0)
    };
    for (offset, size) in [(0, 4084), (4095, 1), (0, 57)] {
        let access = ConfigAccess { offset, size, flags: 0 };
        assert!(matches!(config(access), Ok(DeviceRequest::GetConfig(read)) if read == access));
    }
    for (offset, size) in [(0, 0), (0, 4097), (4096, 1), (u32::MAX, 1), (1, u32::MAX)] {
        assert_eq!(field_of(config(ConfigAccess { offset, size, flags: 0 })), "size");
    }
}

/// What the specification calls a migration is what Cloud Hypervisor says when the guest writes.
#[test]
fn both_kinds_of_frontends_may_write_the_configuration_space() {
    let write = |flags| {
        let access = ConfigAccess { flags, ..ACCESS };
        parse(RequestNumber::SET_CONFIG, &[access.as_bytes(), &[7, 8, 9]].concat(), 0)
    };
    for flags in [0, 1] {
        let written = write(flags).unwrap();
        assert!(matches!(written, DeviceRequest::SetConfig { data, .. } if data == [7, 8, 9]));
    }
    for flags in [2, 3, u32::MAX] {
        assert_eq!(field_of(write(flags)), "flags");
    }
}

#[test]
fn a_status_has_eight_bits() {
    let status = |status: u64| parse(RequestNumber::SET_STATUS, status.as_bytes(), 0);
    assert!(matches!(status(0xff), Ok(DeviceRequest::SetStatus(0xff))));
    assert_eq!(field_of(status(0x100)), "status");
}

proptest! {
    #[test]
    fn no_request_makes_the_parser_panic(
        known in any::<prop::sample::Index>(),
        number in prop::option::weighted(0.2, any::<u32>()),
        bytes in prop::collection::vec(any::<u8>(), 0..=400),
        right_size in any::<bool>(),
        descriptors in 0..=8_usize,
    ) {
        let mut body = bytes;
        let (request, payload, _) = known.get(&well_formed()).clone();
        if right_size {
            body.resize(payload.len(), 0);
        }
        let request = number.map_or(request, RequestNumber);
        let _ = DeviceRequest::described_vring(&frame(request, &body, 0));
        if let Err(error) = parse(request, &body, descriptors) {
            prop_assert!(error.errno().raw_os_error() > 0);
        }
    }

    #[test]
    fn what_is_asked_survives_the_wire(
        queue: u8, number: u32, size in 1..=MAX_VRING_SIZE, descriptors: u64, offset in 0..MAX_CONFIG,
        data in prop::collection::vec(any::<u8>(), 1..=256),
    ) {
        let state = |num| VringState { index: queue.into(), num };
        let parsed = parse(RequestNumber::SET_VRING_BASE, state(number).as_bytes(), 0).unwrap();
        let expected = DeviceRequest::Vring { queue, request: VringRequest::SetBase(number) };
        prop_assert_eq!(format!("{parsed:?}"), format!("{expected:?}"));
        let parsed = parse(RequestNumber::SET_VRING_NUM, state(size.into()).as_bytes(), 0).unwrap();
        let expected = DeviceRequest::Vring { queue, request: VringRequest::SetSize(size) };
        prop_assert_eq!(format!("{parsed:?}"), format!("{expected:?}"));
        let descriptors = descriptors & !0xf;
        let address = VringAddress { index: queue.into(), descriptor: descriptors, ..ADDRESS };
        let parsed = parse(RequestNumber::SET_VRING_ADDR, address.as_bytes(), 0).unwrap();
        let request = VringRequest::SetAddress { descriptors, available: 0x3002, used: 0x2004 };
        let expected = DeviceRequest::Vring { queue, request };
        prop_assert_eq!(format!("{parsed:?}"), format!("{expected:?}"));
        let length = u32::try_from(data.len()).unwrap();
        let access = ConfigAccess { offset, size: length, flags: 0 };
        match parse(RequestNumber::SET_CONFIG, &[access.as_bytes(), &data].concat(), 0) {
            Ok(DeviceRequest::SetConfig { access: read, data: written }) => {
                prop_assert_eq!((read, written), (access, data));
            }
            outcome => prop_assert!(offset + length > MAX_CONFIG, "{outcome:?}"),
        }
    }
}
