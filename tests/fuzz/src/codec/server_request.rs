// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of a server on its channel, as a client parses them.

use protocol::{Frame, RequestNumber, ServerRequest, VhostUserHeader};

/// All that there are.
const REQUESTS: [RequestNumber; 6] = [
    RequestNumber::RESET_EVENT,
    RequestNumber::DEVICE_ERROR,
    RequestNumber::UNPLUG_REQUEST,
    RequestNumber::GROUP_CHANGED,
    RequestNumber::RESET_REQUEST,
    RequestNumber::RESET_ANSWER,
];

/// The header of a request.
pub(super) fn header(place: u8, _: u16) -> VhostUserHeader {
    VhostUserHeader::request(REQUESTS[usize::from(place) % REQUESTS.len()], false)
}

/// What can be parsed means the same when it is sent again.
pub(super) fn parse(frame: Frame<VhostUserHeader>) {
    let Some(parsed) = ServerRequest::parse(&frame) else { return };
    let (request, body) = parsed.encode();
    assert_eq!(request, frame.header.request);
    assert!(body.len() <= frame.body.len(), "{parsed:?}");
    let again = ServerRequest::parse(&Frame { body, ..frame });
    assert_eq!(again, Some(parsed));
}
