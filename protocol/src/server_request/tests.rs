// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::Duration;

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::extension::{
    CoordinationId, Epoch, Generation, GroupReason, PciAddress, ResetMethod, ResetOutcome, ResetPolicy,
    ResetProgress, ResetRequestId,
};
use crate::frame::{Descriptors, Header};

fn parse(request: RequestNumber, body: &[u8]) -> Option<ServerRequest> {
    let header = VhostUserHeader::request(request, false).with_body_size(body.len().try_into().unwrap());
    ServerRequest::parse(&Frame { header, body: body.to_vec(), descriptors: Descriptors::Complete(vec![]) })
}

fn address(devfn: u8) -> PciAddress {
    PciAddress { segment: 1, bus: 3, devfn }
}

/// One of each request, and those that differ in what they leave out.
fn requests() -> Vec<ServerRequest> {
    let coordination = CoordinationId(5);
    let event = ResetEvent {
        reset: 1,
        epoch: Epoch(2),
        method: ResetMethod::Function,
        progress: ResetProgress::Begun,
        affected: vec![],
    };
    let group = GroupEvent {
        generation: Generation(4),
        cookie: Cookie(1),
        available: 0,
        reason: GroupReason::Blocked,
    };
    let request = CoordinationRequest {
        request: ResetRequestId(9),
        target: address(0),
        policy: ResetPolicy::Group,
        tries: Duration::from_secs(4),
        functions: (0..=255).map(address).collect(),
    };
    let fired = |result| MemberMessage::Fired { coordination, result, attempts: 3 };
    let messages = [
        MemberMessage::Request(request),
        MemberMessage::Ready { coordination, lost: vec![] },
        MemberMessage::Ready { coordination, lost: vec![address(1), address(2)] },
        MemberMessage::Refused { coordination, device: address(3) },
        fired(Ok(ResetOutcome::LinkUnconfirmed)),
        fired(Err(Errno::BUSY)),
        MemberMessage::Restored { coordination, lost: vec![address(1)] },
    ];
    let events = [
        ServerRequest::Reset(event),
        ServerRequest::DeviceError(Cookie(7)),
        ServerRequest::UnplugRequest(Cookie(8)),
        ServerRequest::GroupChanged(group),
    ];
    events.into_iter().chain(messages.map(ServerRequest::Member)).collect()
}

#[test]
fn what_a_server_says_survives_the_wire() {
    for request in requests() {
        let (number, body) = request.encode();
        assert!(number.is_from_server() && body.len() <= VhostUserHeader::MAX_BODY, "{number}");
        assert_eq!(parse(number, &body), Some(request));
    }
}

#[test]
fn what_is_cut_or_too_long_is_malformed() {
    for request in requests() {
        let (number, body) = request.encode();
        for size in 0..body.len() {
            assert_eq!(parse(number, &body[..size]), None, "{number} of {size} bytes");
        }
        assert_eq!(parse(number, &[body.as_slice(), &[0; 4]].concat()), None, "{number}");
    }
}

#[test]
fn numbers_without_meaning_are_malformed() {
    let requests = requests();
    let broken = |index: usize, offset: usize, value: u32| {
        let (number, mut body) = requests[index].encode();
        body[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        parse(number, &body)
    };
    assert_eq!(broken(3, 20, 3), None, "a reason");
    assert_eq!(broken(4, 0, 0), None, "a request without a name");
    assert_eq!(broken(4, 12, 4), None, "a policy");
    assert_eq!(broken(4, 20, 257), None, "too many functions");
    assert_eq!(broken(5, 8, 5), None, "an answer");
    assert_eq!(broken(9, 12, 4096), None, "an errno");
    assert_eq!(broken(8, 16, 2), None, "an outcome");
}

#[test]
fn a_request_of_clients_is_none_of_servers() {
    assert_eq!(parse(RequestNumber::LIST_DEVICES, &[]), None);
    assert_eq!(parse(RequestNumber(0x5286), &[]), None);
}

proptest! {
    #[test]
    fn no_request_makes_the_parser_panic(
        number in 0x5280..0x5290_u32,
        body in prop::collection::vec(any::<u8>(), 0..=200),
    ) {
        parse(RequestNumber(number), &body);
    }
}
