// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of the control face, as a server parses them.

use protocol::extension::{
    AddDeviceRequest, CookieRequest, CoordinateRequest, MAJOR, ResetGroupRequest, ResetRequest, ResetWish,
    ServeRequest, SetIommufdRequest, SubscribeRequest, VersionRequest,
};
use protocol::request::BackedRegion;
use protocol::vhost_user::{MemoryTableHeader, SingleMemoryRegion};
use protocol::{ControlReply, ControlRequest, Frame, Header, RequestNumber, VhostUserHeader};
use zerocopy::IntoBytes;

/// All that there are.
const REQUESTS: [RequestNumber; 26] = [
    RequestNumber::GET_FEATURES,
    RequestNumber::SET_FEATURES,
    RequestNumber::SET_OWNER,
    RequestNumber::SET_MEM_TABLE,
    RequestNumber::GET_PROTOCOL_FEATURES,
    RequestNumber::SET_PROTOCOL_FEATURES,
    RequestNumber::GET_MAX_MEM_SLOTS,
    RequestNumber::ADD_MEM_REG,
    RequestNumber::REM_MEM_REG,
    RequestNumber::VERSION,
    RequestNumber::SET_IOMMUFD,
    RequestNumber::ADD_DEVICE,
    RequestNumber::SERVE,
    RequestNumber::REMOVE_DEVICE,
    RequestNumber::GET_DEVICE_INFO,
    RequestNumber::GET_RESET_GROUP,
    RequestNumber::RESET,
    RequestNumber::LAST_FAILURE,
    RequestNumber::LIST_DEVICES,
    RequestNumber::SET_BACKEND_REQ_FD,
    RequestNumber::SUBSCRIBE,
    RequestNumber::COORDINATE,
    RequestNumber::RESET_PREPARE,
    RequestNumber::RESET_GRANT,
    RequestNumber::RESET_DONE,
    RequestNumber::RESET_ABORT,
];

/// The header of a request.
pub(super) fn header(place: u8, _: u16) -> VhostUserHeader {
    VhostUserHeader::request(REQUESTS[usize::from(place) % REQUESTS.len()], true)
}

/// What can be parsed is what its payload says; what cannot is refused with words that fit a reply.
pub(super) fn parse(frame: Frame<VhostUserHeader>) {
    let request = frame.header.request;
    let mut body = frame.body.clone();
    match ControlRequest::parse(frame) {
        Ok(parsed) => {
            // Whoever sends a word that is reserved may be careless about it.
            match request {
                RequestNumber::SET_MEM_TABLE => body[4..8].fill(0),
                RequestNumber::ADD_MEM_REG | RequestNumber::REM_MEM_REG => body[..8].fill(0),
                _ => {}
            }
            assert_eq!(payload(&parsed), body, "{parsed:?}");
        }
        Err(error) => {
            let refused = ControlReply::Refused { errno: error.errno(), failure: error.failure() };
            assert!(refused.encode(request).len() <= VhostUserHeader::MAX_BODY, "{error}");
        }
    }
}

/// The payload of a request.
fn payload(request: &ControlRequest) -> Vec<u8> {
    match request {
        ControlRequest::GetFeatures
        | ControlRequest::SetOwner
        | ControlRequest::GetProtocolFeatures
        | ControlRequest::GetMaxMemorySlots
        | ControlRequest::SetServerChannel(_)
        | ControlRequest::LastFailure
        | ControlRequest::ListDevices => Vec::new(),
        ControlRequest::SetFeatures(features) => features.as_bytes().into(),
        ControlRequest::SetProtocolFeatures(features) => features.as_bytes().into(),
        ControlRequest::SetMemoryTable(table) => {
            let count = u32::try_from(table.len()).expect("a few regions");
            let mut payload = MemoryTableHeader { count, reserved: 0 }.as_bytes().to_vec();
            payload.extend(table.iter().flat_map(|BackedRegion { region, .. }| region.as_bytes()));
            payload
        }
        ControlRequest::AddMemoryRegion(BackedRegion { region, .. })
        | ControlRequest::RemoveMemoryRegion(region) => {
            SingleMemoryRegion { reserved: 0, region: *region }.as_bytes().into()
        }
        ControlRequest::Version { minor } => {
            VersionRequest { major: MAJOR, minor: *minor, flags: 0 }.as_bytes().into()
        }
        ControlRequest::SetIommufd { ioas, .. } => SetIommufdRequest::from(*ioas).as_bytes().into(),
        ControlRequest::AddDevice { cookie, .. } => {
            AddDeviceRequest { cookie: *cookie, flags: 0, reserved: 0 }.as_bytes().into()
        }
        ControlRequest::Serve { cookie, face, .. } => {
            ServeRequest { cookie: *cookie, face: (*face).into(), flags: 0 }.as_bytes().into()
        }
        ControlRequest::RemoveDevice(cookie) | ControlRequest::GetDeviceInfo(cookie) => {
            CookieRequest { cookie: *cookie }.as_bytes().into()
        }
        ControlRequest::GetResetGroup { cookie, first_row, max_rows } => {
            ResetGroupRequest { cookie: *cookie, first_row: *first_row, max_rows: *max_rows }
                .as_bytes()
                .into()
        }
        ControlRequest::Subscribe { events, poll } => {
            let poll_ms = poll.map_or(0, |poll| u32::try_from(poll.as_millis()).expect("as it came"));
            SubscribeRequest { events: *events, poll_ms }.as_bytes().into()
        }
        ControlRequest::Coordinate { name } => CoordinateRequest { name: *name }.as_bytes().into(),
        ControlRequest::Broker(message) => message.encode().1,
        ControlRequest::Reset { cookie, wish: ResetWish { method, policy, deadline } } => {
            let milliseconds = deadline.map_or(0, |deadline| deadline.as_millis());
            let deadline_ms = u32::try_from(milliseconds).expect("as it came");
            let (method, policy) = (method.map_or(0, u32::from), policy.map_or(0, u32::from));
            ResetRequest { cookie: *cookie, method, policy, deadline_ms, reserved: 0 }.as_bytes().into()
        }
    }
}
