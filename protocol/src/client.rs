// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A blocking client of the control face, such as a VMM or a launcher links.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::connection::{Connection, ReceiveError, SendError};
use crate::extension::{
    AddDeviceRequest, BrokerMessage, Cookie, CookieRequest, CoordinateRequest, DEFAULT_RESET_DEADLINE,
    DeviceInfo, EventKinds, Face, Failure, IoasChoice, LONGEST_ATTEMPT, LastFailure, ListDevicesReply, MAJOR,
    MAX_GROUP_ROWS, MINOR, MemberName, ReplyStatus, ResetGroup, ResetGroupPage, ResetGroupRequest,
    ResetMethod, ResetReport, ResetWish, ServeRequest, SetIommufdReply, SetIommufdRequest, SubscribeRequest,
    VersionReply, VersionRequest, errno_from_wire,
};
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::frame::Endpoint;
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;
use crate::server_channel::ServerChannel;
use crate::vhost_user::{MemoryRegion, MemoryTableHeader, SingleMemoryRegion};

/// The protocol features without which there is no session.
const NEEDED: ProtocolFeatures = ProtocolFeatures(
    ProtocolFeatures::REPLY_ACK.0 | ProtocolFeatures::CONFIGURE_MEM_SLOTS.0 | ProtocolFeatures::VFIO.0,
);
/// How often a reset group is read anew because it changed between two pages.
const GROUP_ATTEMPTS: u32 = 8;

/// Why a call had no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The request could not be sent.
    #[error("cannot send {request}")]
    Send {
        /// The request.
        request: RequestNumber,
        /// Why.
        source: SendError,
    },
    /// No reply came. The connection is of no use any more: the reply may still come.
    #[error("no reply to {request}")]
    Receive {
        /// The request.
        request: RequestNumber,
        /// Why.
        source: ReceiveError,
    },
    /// The server refused.
    #[error("{request} was refused: {failure}")]
    Refused {
        /// The request.
        request: RequestNumber,
        /// The server's errno.
        errno: Errno,
        /// The server's words; empty if it gave none.
        failure: Failure,
    },
    /// The reply is not what the specification says.
    #[error("the reply to {request} is malformed")]
    Malformed {
        /// The request.
        request: RequestNumber,
    },
    /// The server lacks features that this client cannot do without.
    #[error("the server offers the virtio features {features:#x} and the protocol features {protocol_features:#x}, not the VFIO extension", features = .features.0, protocol_features = .protocol_features.0)]
    NotOffered {
        /// What the server offers.
        features: VirtioFeatures,
        /// What the server offers.
        protocol_features: ProtocolFeatures,
    },
    /// No socket could be made for the server channel.
    #[error("no socket can be made for the server channel")]
    Channel(#[source] std::io::Error),
    /// The reset group changed each time while it was read.
    #[error("the reset group keeps changing")]
    Unsteady,
}

/// One session with a server.
#[derive(Debug)]
pub struct ControlClient {
    connection: Connection<VhostUserHeader>,
    timeout: Duration,
    acknowledged: bool,
}

impl ControlClient {
    /// A session on a connected socket, in which the server may take `timeout` for each reply (a reset takes longer).
    pub fn new(stream: UnixStream, timeout: Duration) -> Self {
        Self { connection: Connection::new(stream, Endpoint::Client), timeout, acknowledged: false }
    }

    /// Agrees on features and on the version of the extension. The first thing to do, once.
    pub fn negotiate(&mut self) -> Result<VersionReply, ClientError> {
        let features = VirtioFeatures(self.number(RequestNumber::GET_FEATURES)?);
        let mut protocol_features = ProtocolFeatures::default();
        if features.contains(VirtioFeatures::OFFERED) {
            self.command(RequestNumber::SET_FEATURES, VirtioFeatures::OFFERED.as_bytes(), &[])?;
            protocol_features = ProtocolFeatures(self.number(RequestNumber::GET_PROTOCOL_FEATURES)?);
        }
        if !protocol_features.contains(NEEDED) {
            return Err(ClientError::NotOffered { features, protocol_features });
        }
        // A server of version 1.0 has no channel.
        let wanted = ProtocolFeatures(protocol_features.0 & (NEEDED | ProtocolFeatures::BACKEND_REQ).0);
        self.command(RequestNumber::SET_PROTOCOL_FEATURES, wanted.as_bytes(), &[])?;
        self.acknowledged = true;
        self.extension(RequestNumber::VERSION, &VersionRequest { major: MAJOR, minor: MINOR, flags: 0 }, &[])
    }

    /// Begins the session.
    pub fn set_owner(&mut self) -> Result<(), ClientError> {
        self.command(RequestNumber::SET_OWNER, &[], &[])
    }

    /// Replaces the memory table: at most 8 regions, each with the file that backs it.
    pub fn set_memory_table(
        &mut self,
        regions: &[MemoryRegion],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.command(RequestNumber::SET_MEM_TABLE, &MemoryTableHeader::encode(regions), files)
    }

    /// How many regions the memory table may have.
    pub fn max_memory_slots(&mut self) -> Result<u64, ClientError> {
        self.number(RequestNumber::GET_MAX_MEM_SLOTS)
    }

    /// Adds a region to the memory table.
    pub fn add_memory_region(
        &mut self,
        region: MemoryRegion,
        file: BorrowedFd<'_>,
    ) -> Result<(), ClientError> {
        let body = SingleMemoryRegion { reserved: 0, region };
        self.command(RequestNumber::ADD_MEM_REG, body.as_bytes(), &[file])
    }

    /// Removes a region from the memory table.
    pub fn remove_memory_region(&mut self, region: MemoryRegion) -> Result<(), ClientError> {
        let body = SingleMemoryRegion { reserved: 0, region };
        self.command(RequestNumber::REM_MEM_REG, body.as_bytes(), &[])
    }

    /// Hands over the iommufd that all devices of this session are bound to.
    pub fn set_iommufd(
        &mut self,
        iommufd: impl AsFd,
        ioas: IoasChoice,
    ) -> Result<SetIommufdReply, ClientError> {
        self.extension(RequestNumber::SET_IOMMUFD, &SetIommufdRequest::from(ioas), &[iommufd.as_fd()])
    }

    /// Hands over a VFIO character device that is not bound yet.
    pub fn add_device(&mut self, cookie: Cookie, device: impl AsFd) -> Result<DeviceInfo, ClientError> {
        let request = AddDeviceRequest { cookie, flags: 0, reserved: 0 };
        self.extension(RequestNumber::ADD_DEVICE, &request, &[device.as_fd()])
    }

    /// Has the device served on `socket`, which listens or is connected.
    pub fn serve(&mut self, cookie: Cookie, face: Face, socket: impl AsFd) -> Result<(), ClientError> {
        let request = ServeRequest { cookie, face: face.into(), flags: 0 };
        self.extension(RequestNumber::SERVE, &request, &[socket.as_fd()])
    }

    /// Takes the device back: nothing of it is left in the server when this returns.
    pub fn remove_device(&mut self, cookie: Cookie) -> Result<(), ClientError> {
        self.extension(RequestNumber::REMOVE_DEVICE, &CookieRequest { cookie }, &[])
    }

    /// Describes the device.
    pub fn device_info(&mut self, cookie: Cookie) -> Result<DeviceInfo, ClientError> {
        self.extension(RequestNumber::GET_DEVICE_INFO, &CookieRequest { cookie }, &[])
    }

    /// The names of all devices that the server has, whoever handed them over.
    pub fn list_devices(&mut self) -> Result<Vec<Cookie>, ClientError> {
        let request = RequestNumber::LIST_DEVICES;
        let reply = self.call(request, &[], &[])?;
        ListDevicesReply::decode(payload(request, &reply)?).ok_or(ClientError::Malformed { request })
    }

    /// Whether the device's reset group can be reset now, without its rows.
    pub fn reset_group_header(&mut self, cookie: Cookie) -> Result<ResetGroupPage, ClientError> {
        self.reset_group_page(cookie, 0, 0)
    }

    /// The device's reset group. Read anew, a few times at most, if it changes between two replies.
    pub fn reset_group(&mut self, cookie: Cookie) -> Result<ResetGroup, ClientError> {
        for _ in 0..GROUP_ATTEMPTS {
            if let Some(group) = self.read_reset_group(cookie)? {
                return Ok(group);
            }
        }
        Err(ClientError::Unsteady)
    }

    /// Resets the device, and with the hot method its whole group. `None` leaves the choice to the server. The deadline
    /// ends the server's tries; the last one may take [`LONGEST_ATTEMPT`] more.
    pub fn reset(
        &mut self,
        cookie: Cookie,
        method: Option<ResetMethod>,
        deadline: Option<Duration>,
    ) -> Result<ResetReport, ClientError> {
        self.reset_as(cookie, ResetWish { method, policy: None, deadline })
    }

    /// Resets the device, and says how far that may reach.
    pub fn reset_as(&mut self, cookie: Cookie, wish: ResetWish) -> Result<ResetReport, ClientError> {
        let request = RequestNumber::RESET;
        let tries = wish.deadline.unwrap_or(DEFAULT_RESET_DEADLINE);
        let patience = tries.saturating_add(LONGEST_ATTEMPT).saturating_add(self.timeout);
        self.send(request, wish.request(cookie).as_bytes(), &[])?;
        let reply = self.receive(request, patience)?;
        ResetReport::decode(payload(request, &reply)?).ok_or(ClientError::Malformed { request })
    }

    /// Hands over one end of a new socket, on which the server sends its own requests, and gives the other. The one before
    /// ends. Nothing comes until the client subscribes or coordinates.
    pub fn open_server_channel(&mut self) -> Result<ServerChannel, ClientError> {
        let (ours, theirs) = UnixStream::pair().map_err(ClientError::Channel)?;
        self.command(RequestNumber::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Ok(ServerChannel::new(ours))
    }

    /// Has the server tell of `events` on the server channel, of no others, and look at the groups every `poll`.
    pub fn subscribe(&mut self, events: EventKinds, poll: Option<Duration>) -> Result<(), ClientError> {
        let milliseconds = poll.map_or(0, |poll| poll.as_millis().max(1));
        let poll_ms = u32::try_from(milliseconds).unwrap_or(u32::MAX);
        self.extension(RequestNumber::SUBSCRIBE, &SubscribeRequest { events, poll_ms }, &[])
    }

    /// Becomes the broker of the server's resets, and calls the server so.
    pub fn coordinate(&mut self, name: MemberName) -> Result<(), ClientError> {
        self.extension(RequestNumber::COORDINATE, &CoordinateRequest { name }, &[])
    }

    /// Tells the server something about a coordinated reset. It answers each step on the server channel.
    pub fn tell(&mut self, message: &BrokerMessage) -> Result<(), ClientError> {
        let (request, body) = message.encode();
        let reply = self.call(request, &body, &[])?;
        if payload(request, &reply)?.is_empty() { Ok(()) } else { Err(ClientError::Malformed { request }) }
    }

    /// Why the last request that failed on this connection did; `None` if none failed.
    pub fn last_failure(&mut self) -> Result<Option<LastFailure>, ClientError> {
        let request = RequestNumber::LAST_FAILURE;
        let reply = self.call(request, &[], &[])?;
        LastFailure::decode(payload(request, &reply)?).map_err(|_| ClientError::Malformed { request })
    }

    /// The whole group as long as it does not change; `None` if it did.
    fn read_reset_group(&mut self, cookie: Cookie) -> Result<Option<ResetGroup>, ClientError> {
        let malformed = || ClientError::Malformed { request: RequestNumber::GET_RESET_GROUP };
        let ResetGroupPage { generation, reason, total_rows, mut rows } =
            self.reset_group_page(cookie, 0, u32::MAX)?;
        let total = usize::try_from(total_rows)
            .ok()
            .filter(|total| *total <= MAX_GROUP_ROWS)
            .ok_or_else(malformed)?;
        while rows.len() < total {
            let first_row = u32::try_from(rows.len()).map_err(|_| malformed())?;
            let page = self.reset_group_page(cookie, first_row, u32::MAX)?;
            if page.generation != generation {
                return Ok(None);
            }
            if page.rows.is_empty() {
                return Err(malformed());
            }
            rows.extend(page.rows);
        }
        if rows.len() != total {
            return Err(malformed());
        }
        Ok(Some(ResetGroup { generation, reason, rows }))
    }

    fn reset_group_page(
        &mut self,
        cookie: Cookie,
        first_row: u32,
        max_rows: u32,
    ) -> Result<ResetGroupPage, ClientError> {
        let request = RequestNumber::GET_RESET_GROUP;
        let body = ResetGroupRequest { cookie, first_row, max_rows };
        let reply = self.call(request, body.as_bytes(), &[])?;
        ResetGroupPage::decode(payload(request, &reply)?).ok_or(ClientError::Malformed { request })
    }

    /// A base request that is answered with a number.
    fn number(&mut self, request: RequestNumber) -> Result<u64, ClientError> {
        let reply = self.call(request, &[], &[])?;
        read_number(request, &reply)
    }

    /// A base request that has no reply of its own; acknowledged once that is negotiated.
    fn command(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.send(request, body, descriptors)?;
        if !self.acknowledged {
            return Ok(());
        }
        let reply = self.receive(request, self.timeout)?;
        let number = read_number(request, &reply)?;
        if number == 0 {
            return Ok(());
        }
        let malformed = ClientError::Malformed { request };
        let errno = u32::try_from(number).ok().and_then(errno_from_wire).ok_or(malformed)?;
        // The acknowledgement has no room for words; they are kept until the next failure.
        let last = self.last_failure()?.filter(|last| last.request == request);
        let failure = last.map(|last| last.failure).unwrap_or_default();
        Err(ClientError::Refused { request, errno, failure })
    }

    /// An extension request whose reply is a `Reply` and no more.
    fn extension<Reply: FromBytes>(
        &mut self,
        request: RequestNumber,
        body: &(impl IntoBytes + zerocopy::Immutable),
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, ClientError> {
        let reply = self.call(request, body.as_bytes(), descriptors)?;
        Reply::read_from_bytes(payload(request, &reply)?).map_err(|_| ClientError::Malformed { request })
    }

    /// The connection, for whoever goes on with it in another way.
    pub(crate) fn into_connection(self) -> Connection<VhostUserHeader> {
        self.connection
    }

    fn call(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, ClientError> {
        self.send(request, body, descriptors)?;
        self.receive(request, self.timeout)
    }

    fn send(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let header = VhostUserHeader::request(request, self.acknowledged);
        self.connection
            .send_within(header, body, descriptors, self.timeout)
            .map_err(|source| ClientError::Send { request, source })
    }

    /// The body of the reply to `request`.
    fn receive(&mut self, request: RequestNumber, timeout: Duration) -> Result<Vec<u8>, ClientError> {
        let frame = self
            .connection
            .receive_within(timeout)
            .map_err(|source| ClientError::Receive { request, source })?;
        // The final reply before the server closes may answer something else, and has words whatever it answers.
        let plain = frame.header.request == request && request.is_extension();
        if let (false, Some((errno, failure))) = (plain, Failure::from_refusal(&frame.body)) {
            return Err(ClientError::Refused { request, errno, failure });
        }
        if frame.header.request == request { Ok(frame.body) } else { Err(ClientError::Malformed { request }) }
    }
}

/// The number that a base request is answered with.
fn read_number(request: RequestNumber, reply: &[u8]) -> Result<u64, ClientError> {
    u64::read_from_bytes(reply).map_err(|_| ClientError::Malformed { request })
}

/// What follows the status of a reply of the extension, unless it refuses.
pub(crate) fn payload(request: RequestNumber, reply: &[u8]) -> Result<&[u8], ClientError> {
    let malformed = ClientError::Malformed { request };
    match ReplyStatus::read_from_prefix(reply) {
        Ok((ReplyStatus::DONE, payload)) => Ok(payload),
        Ok(_) => match Failure::from_refusal(reply) {
            Some((errno, failure)) => Err(ClientError::Refused { request, errno, failure }),
            None => Err(malformed),
        },
        Err(_) => Err(malformed),
    }
}

#[cfg(test)]
mod tests;
