// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control face: handover, memory, reset groups and resets, in vhost-user framing with the VFIO extension.

use std::os::fd::OwnedFd;
use std::time::Duration;

use protocol::extension::{
    BrokerMessage, Cookie, EventKinds, Face, LastFailure, MAX_MEMORY_SLOTS, MemberName, SetIommufdReply,
    VersionReply,
};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::request::BackedRegion;
use protocol::vhost_user::MemoryRegion;
use protocol::{ControlReply, ControlRequest, RequestNumber};

use super::socket::FaceSocket;
use crate::failure::Failure;
use crate::job::Job;
use crate::machine::{Answer, Machine};
use crate::memory::{self, GuestAddress, MemoryView};
use crate::owner::{ConnectionId, Owner};
use crate::reset::engine::RequestId;

/// What a request leads to.
#[derive(Debug)]
pub enum Step {
    /// The answer.
    Reply(ControlReply),
    /// Something that takes its time; the answer is what its [`Answer`] turns into.
    Job(Job),
    /// A reset; the answer is the machine's to this request.
    Reset(RequestId),
    /// A data face for the device; the answer is [`ControlReply::Done`] once it is set up.
    Serve(Cookie, Face, FaceSocket),
    /// Something about the server channel; the answer is [`ControlReply::Done`].
    Channel(ChannelRequest),
}

/// A request that is about the server channel, which the loop has.
#[derive(Debug)]
pub enum ChannelRequest {
    /// This is the channel's socket.
    Open(OwnedFd),
    /// Tell of these events, and look at the groups so often.
    Subscribe(EventKinds, Option<Duration>),
    /// The client coordinates the resets, and calls this server so.
    Coordinate(MemberName),
    /// It says something as the broker.
    Broker(BrokerMessage),
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Negotiation {
    /// The extension is not there yet.
    Base,
    /// Protocol feature bit 62 is acknowledged: `VERSION` may come.
    FeatureAcknowledged,
    /// Everything may come that is of this minor version.
    Extension {
        /// The one agreed on.
        minor: u16,
    },
}

/// One control connection.
#[derive(Debug)]
pub struct ControlSession {
    owner: Owner,
    negotiation: Negotiation,
    acknowledged: ProtocolFeatures,
    last_failure: Option<LastFailure>,
}

impl ControlSession {
    /// A fresh connection.
    pub fn new(connection: ConnectionId) -> Self {
        Self {
            owner: Owner::Connection(connection),
            negotiation: Negotiation::Base,
            acknowledged: ProtocolFeatures::default(),
            last_failure: None,
        }
    }

    /// Whether a request needs what a job in flight may have taken along, so that it has to wait for that.
    pub const fn has_to_wait(request: &ControlRequest) -> bool {
        !matches!(
            request,
            ControlRequest::GetFeatures
                | ControlRequest::SetFeatures(_)
                | ControlRequest::SetOwner
                | ControlRequest::GetProtocolFeatures
                | ControlRequest::SetProtocolFeatures(_)
                | ControlRequest::GetMaxMemorySlots
                | ControlRequest::Version { .. }
                | ControlRequest::GetDeviceInfo(_)
                | ControlRequest::ListDevices
                | ControlRequest::LastFailure
                | ControlRequest::SetServerChannel(_)
                | ControlRequest::Subscribe { .. }
                | ControlRequest::Coordinate { .. }
                | ControlRequest::Broker(_)
        )
    }

    /// Whether a request would be refused for the sake of what a closed connection leaves behind, so that it has to wait until
    /// that is gone.
    pub fn needs_withdrawal_of(gone: ConnectionId, request: &ControlRequest, machine: &Machine) -> bool {
        match request {
            ControlRequest::SetIommufd { .. } | ControlRequest::AddDevice { .. } => true,
            ControlRequest::SetMemoryTable(_)
            | ControlRequest::AddMemoryRegion(_)
            | ControlRequest::RemoveMemoryRegion(_) => machine.has_memory_of(gone),
            _ => false,
        }
    }

    /// The device that a request needs at rest: while that is being reset, it has to wait.
    pub const fn device_at_rest(request: &ControlRequest) -> Option<Cookie> {
        match request {
            ControlRequest::GetResetGroup { cookie, .. }
            | ControlRequest::Serve { cookie, .. }
            | ControlRequest::RemoveDevice(cookie) => Some(*cookie),
            _ => None,
        }
    }

    /// Whether a base request is to be acknowledged.
    pub fn acknowledges(&self, needs_reply: bool) -> bool {
        needs_reply && self.acknowledged.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Carries a request out, or begins to.
    pub fn handle(&mut self, request: ControlRequest, machine: &mut Machine) -> Result<Step, Failure> {
        let owner = self.owner;
        let reply = match request {
            ControlRequest::GetFeatures => ControlReply::Features(VirtioFeatures::OFFERED),
            ControlRequest::SetFeatures(features) => accept_features(features)?,
            ControlRequest::SetOwner => ControlReply::Done,
            ControlRequest::GetProtocolFeatures => ControlReply::ProtocolFeatures(ProtocolFeatures::OFFERED),
            ControlRequest::SetProtocolFeatures(features) => self.acknowledge(features)?,
            ControlRequest::GetMaxMemorySlots => ControlReply::MaxMemorySlots(MAX_MEMORY_SLOTS.into()),
            ControlRequest::SetMemoryTable(regions) => {
                let regions = regions.into_iter().map(accept_region).collect::<Result<Vec<_>, _>>()?;
                return machine.change_memory(owner, |_| MemoryView::from_regions(regions)).map(Step::Job);
            }
            ControlRequest::AddMemoryRegion(region) => {
                let region = accept_region(region)?;
                return machine.change_memory(owner, |table| table.with(region)).map(Step::Job);
            }
            ControlRequest::RemoveMemoryRegion(MemoryRegion { guest_address, size, .. }) => {
                let address = GuestAddress(guest_address);
                return machine.change_memory(owner, |table| table.without(address, size)).map(Step::Job);
            }
            ControlRequest::Version { minor } => self.negotiate_version(minor),
            ControlRequest::LastFailure => ControlReply::LastFailure(self.last_failure.clone()),
            ControlRequest::SetIommufd { iommufd, ioas } => {
                let kernel_features = machine.set_iommufd(owner, iommufd, ioas)?;
                ControlReply::Iommufd(SetIommufdReply { kernel_features })
            }
            ControlRequest::AddDevice { cookie, device } => {
                return machine.add_device(owner, cookie, device).map(Step::Job);
            }
            ControlRequest::Serve { cookie, face, socket } => {
                return accept_face(cookie, face, socket, machine)
                    .map(|socket| Step::Serve(cookie, face, socket));
            }
            ControlRequest::RemoveDevice(cookie) => {
                return machine.remove_device(owner, cookie).map(Step::Job);
            }
            ControlRequest::ListDevices => ControlReply::Devices(machine.cookies().collect()),
            ControlRequest::GetDeviceInfo(cookie) => ControlReply::Device(machine.device_info(cookie)?),
            ControlRequest::GetResetGroup { cookie, first_row, max_rows } => {
                ControlReply::ResetGroup(machine.reset_group(cookie, first_row, max_rows)?)
            }
            ControlRequest::Reset { cookie, wish } => return machine.reset(cookie, wish).map(Step::Reset),
            ControlRequest::SetServerChannel(socket) => {
                return Ok(Step::Channel(ChannelRequest::Open(socket)));
            }
            ControlRequest::Subscribe { events, poll } => {
                return Ok(Step::Channel(ChannelRequest::Subscribe(events, poll)));
            }
            ControlRequest::Coordinate { name } => {
                return Ok(Step::Channel(ChannelRequest::Coordinate(name)));
            }
            ControlRequest::Broker(message) => return Ok(Step::Channel(ChannelRequest::Broker(message))),
        };
        Ok(Step::Reply(reply))
    }

    /// Whether the request may come now.
    ///
    /// # Errors
    ///
    /// It belongs to the extension, and that has not been negotiated so far; or it does not exist in the version and with
    /// the features agreed on.
    pub fn check_order(&self, request: RequestNumber) -> Result<(), Failure> {
        let has_channel = self.acknowledged.contains(ProtocolFeatures::BACKEND_REQ);
        if request == RequestNumber::SET_BACKEND_REQ_FD && !has_channel {
            return Err(Failure::unknown_request(request));
        }
        let allowed = match self.negotiation {
            Negotiation::Base => !request.is_extension(),
            Negotiation::FeatureAcknowledged => {
                !request.is_extension()
                    || matches!(request, RequestNumber::VERSION | RequestNumber::LAST_FAILURE)
            }
            Negotiation::Extension { minor } if request.minor() > minor => {
                return Err(Failure::unknown_request(request));
            }
            Negotiation::Extension { .. } => true,
        };
        if allowed { Ok(()) } else { Err(Failure::not_negotiated(request)) }
    }

    /// Remembers a refusal for `LAST_FAILURE`.
    pub fn note(&mut self, request: RequestNumber, reply: &ControlReply) {
        if let ControlReply::Refused { errno, failure } = reply {
            self.last_failure = Some(LastFailure { request, errno: *errno, failure: failure.clone() });
        }
    }

    fn acknowledge(&mut self, features: ProtocolFeatures) -> Result<ControlReply, Failure> {
        offered(features.0, ProtocolFeatures::OFFERED.0)?;
        self.acknowledged = features;
        self.negotiation = if features.contains(ProtocolFeatures::VFIO) {
            Negotiation::FeatureAcknowledged
        } else {
            Negotiation::Base
        };
        Ok(ControlReply::Done)
    }

    fn negotiate_version(&mut self, minor: u16) -> ControlReply {
        let reply = VersionReply::to(minor);
        self.negotiation = Negotiation::Extension { minor: reply.minor };
        ControlReply::Version(reply)
    }
}

/// What a finished job is to the client that asked for it.
impl From<Answer> for ControlReply {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::DeviceAdded(info) => Self::Device(info),
            Answer::Done | Answer::Memory(_) | Answer::DriveTaken(_) | Answer::Driven(..) => Self::Done,
            Answer::Reset(report) => Self::Reset(report),
        }
    }
}

fn accept_features(features: VirtioFeatures) -> Result<ControlReply, Failure> {
    offered(features.0, VirtioFeatures::OFFERED.0).map(|()| ControlReply::Done)
}

fn offered(bits: u64, offered: u64) -> Result<(), Failure> {
    let others = bits & !offered;
    if others == 0 { Ok(()) } else { Err(Failure::feature_not_offered(others)) }
}

fn accept_region(BackedRegion { region, file }: BackedRegion) -> Result<memory::MemoryRegion, Failure> {
    memory::MemoryRegion::sealed(GuestAddress(region.guest_address), region.size, region.offset, file)
}

fn accept_face(
    cookie: Cookie,
    face: Face,
    socket: OwnedFd,
    machine: &Machine,
) -> Result<FaceSocket, Failure> {
    machine.device(cookie)?;
    machine.unserved(cookie)?;
    machine.may_serve(cookie, face)?;
    FaceSocket::from_fd(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection on which this minor version was agreed on.
    fn agreed(minor: u16, acknowledged: ProtocolFeatures) -> ControlSession {
        let session = ControlSession::new(ConnectionId(1));
        ControlSession { negotiation: Negotiation::Extension { minor }, acknowledged, ..session }
    }

    #[test]
    fn a_client_of_an_older_minor_version_has_its_requests_and_no_others() {
        let session = agreed(0, ProtocolFeatures::VFIO);
        assert!(session.check_order(RequestNumber::LIST_DEVICES).is_ok());
        for request in [RequestNumber::SUBSCRIBE, RequestNumber::COORDINATE, RequestNumber::RESET_PREPARE] {
            assert_eq!(session.check_order(request).unwrap_err().id(), "unknown-request");
            assert!(agreed(1, ProtocolFeatures::VFIO).check_order(request).is_ok());
        }
    }

    #[test]
    fn the_server_channel_comes_with_its_feature() {
        let request = RequestNumber::SET_BACKEND_REQ_FD;
        let without = agreed(1, ProtocolFeatures::VFIO);
        assert_eq!(without.check_order(request).unwrap_err().id(), "unknown-request");
        let with = agreed(1, ProtocolFeatures::VFIO | ProtocolFeatures::BACKEND_REQ);
        assert!(with.check_order(request).is_ok());
    }
}
