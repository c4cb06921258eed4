// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies of the control face, as a client parses them.

use std::time::Duration;

use arbitrary::Arbitrary;
use protocol::extension::{
    Cookie, Face, IoasChoice, MAX_GROUP_ROWS, MAX_PAGE_ROWS, ResetGroupPage, VersionReply,
};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::{
    ClientError, ControlClient, ControlReply, Header, ReceiveError, RequestNumber, VhostUserHeader,
};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::FromBytes;

use super::control_request;
use super::stream::{Piece, Sender, message};

/// Longer than it can take: everything that will ever be received is there already.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most calls: nobody reads them, and they must find room.
const MAX_CALLS: usize = 16;

/// What the client asks for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Call {
    Negotiate,
    SetOwner,
    MaxMemorySlots,
    SetIommufd,
    AddDevice,
    Serve,
    RemoveDevice,
    DeviceInfo,
    ListDevices,
    ResetGroupHeader,
    ResetGroup,
    Reset,
    LastFailure,
}

/// Has a client call, with `bytes` as all the replies that it gets.
pub(super) fn call(is_negotiated: bool, calls: &[Call], pieces: &[Piece], bytes: &[u8]) {
    let (mut sender, far) = Sender::pair();
    let mut client = ControlClient::new(far, PATIENCE);
    if is_negotiated {
        for reply in replies_to_negotiation() {
            assert!(sender.send(&reply, 0), "there is room");
        }
        client.negotiate().expect("a good server");
    }
    sender.send_all(pieces, bytes, |place, count| {
        VhostUserHeader::reply(control_request::header(place, count).request)
    });
    sender.finish_sending();
    let mut first = reply_at_front(bytes).filter(|_| pieces.is_empty());
    for call in calls.iter().take(MAX_CALLS) {
        let reply = call.make(&mut client);
        match reply {
            Ok(Some((request, reply))) => check(*call, request, &reply, first),
            Ok(None) => {}
            Err(ClientError::Receive { source: ReceiveError::TimedOut, .. }) => panic!("{call:?} waits"),
            Err(ClientError::Receive { .. } | ClientError::Send { .. }) => break,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        first = None;
    }
}

/// A good server's.
fn replies_to_negotiation() -> [Vec<u8>; 3] {
    let reply =
        |request, reply: &ControlReply| message(VhostUserHeader::reply(request), &reply.encode(request));
    [
        reply(RequestNumber::GET_FEATURES, &ControlReply::Features(VirtioFeatures::OFFERED)),
        reply(
            RequestNumber::GET_PROTOCOL_FEATURES,
            &ControlReply::ProtocolFeatures(ProtocolFeatures::OFFERED),
        ),
        reply(RequestNumber::VERSION, &ControlReply::Version(VersionReply::to(0))),
    ]
}

/// The body of the first reply.
fn reply_at_front(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = VhostUserHeader::read_from_prefix(bytes).ok()?;
    rest.get(..usize::try_from(header.size).ok()?)
}

impl Call {
    /// Gives the reply as a server would have it, where there is one of its own.
    fn make(self, client: &mut ControlClient) -> Result<Option<(RequestNumber, ControlReply)>, ClientError> {
        let cookie = Cookie(1);
        let descriptor = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        Ok(Some(match self {
            Self::Negotiate => (RequestNumber::VERSION, ControlReply::Version(client.negotiate()?)),
            Self::SetOwner => return client.set_owner().map(|()| None),
            Self::MaxMemorySlots => {
                let slots = client.max_memory_slots()?;
                (RequestNumber::GET_MAX_MEM_SLOTS, ControlReply::MaxMemorySlots(slots))
            }
            Self::SetIommufd => {
                let reply = client.set_iommufd(descriptor(), IoasChoice::Allocate)?;
                (RequestNumber::SET_IOMMUFD, ControlReply::Iommufd(reply))
            }
            Self::AddDevice => {
                let info = client.add_device(cookie, descriptor())?;
                (RequestNumber::ADD_DEVICE, ControlReply::Device(info))
            }
            Self::Serve => {
                client.serve(cookie, Face::VfioUser, descriptor())?;
                (RequestNumber::SERVE, ControlReply::Done)
            }
            Self::RemoveDevice => {
                client.remove_device(cookie)?;
                (RequestNumber::REMOVE_DEVICE, ControlReply::Done)
            }
            Self::DeviceInfo => {
                (RequestNumber::GET_DEVICE_INFO, ControlReply::Device(client.device_info(cookie)?))
            }
            Self::ListDevices => (RequestNumber::LIST_DEVICES, ControlReply::Devices(client.list_devices()?)),
            Self::ResetGroupHeader => {
                let page = client.reset_group_header(cookie)?;
                (RequestNumber::GET_RESET_GROUP, ControlReply::ResetGroup(page))
            }
            Self::ResetGroup => {
                let group = client.reset_group(cookie)?;
                assert!(group.rows.len() <= MAX_GROUP_ROWS, "{} rows", group.rows.len());
                let total_rows = u32::try_from(group.rows.len()).expect("a few rows");
                let rows = group.rows.into_iter().take(MAX_PAGE_ROWS).collect();
                let page =
                    ResetGroupPage { generation: group.generation, reason: group.reason, total_rows, rows };
                (RequestNumber::GET_RESET_GROUP, ControlReply::ResetGroup(page))
            }
            Self::Reset => {
                let report = client.reset(cookie, None, None)?;
                (RequestNumber::RESET, ControlReply::Reset(report))
            }
            Self::LastFailure => {
                (RequestNumber::LAST_FAILURE, ControlReply::LastFailure(client.last_failure()?))
            }
        }))
    }
}

/// What was parsed is what a server would have sent, and is parsed as the same again.
fn check(call: Call, request: RequestNumber, reply: &ControlReply, came: Option<&[u8]>) {
    let body = reply.encode(request);
    assert!(body.len() <= VhostUserHeader::MAX_BODY, "{reply:?}");
    if let (Some(came), Call::SetIommufd | Call::AddDevice | Call::DeviceInfo | Call::ResetGroupHeader) =
        (came, call)
    {
        assert_eq!(body, came, "{reply:?}");
    }
    // A whole group may take more than one reply, and a client asks for more than the version.
    if matches!(call, Call::ResetGroup | Call::Negotiate) {
        return;
    }
    let (mut sender, far) = Sender::pair();
    assert!(sender.send(&message(VhostUserHeader::reply(request), &body), 0), "there is room");
    let again = call.make(&mut ControlClient::new(far, PATIENCE)).expect("our own words");
    let (_, again) = again.expect("a reply");
    match (reply, &again) {
        // A list may have been longer than a server's.
        (ControlReply::Devices(_), ControlReply::Devices(_))
        | (ControlReply::Reset(_), ControlReply::Reset(_)) => {
            assert_eq!(again.encode(request), body);
        }
        _ => assert_eq!(&again, reply),
    }
}
