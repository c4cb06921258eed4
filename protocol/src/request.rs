// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control face's requests, typed: what a frame asks for once everything in it was checked that can be checked
//! without knowing the server's state.

mod coordination;

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::extension::{
    AddDeviceRequest, BrokerMessage, Cookie, CookieRequest, CoordinateRequest, EventKinds, Face,
    GrantRequest, IoasChoice, MAJOR, MemberName, ResetGroupRequest, ResetMethod, ResetPolicy, ResetRequest,
    ResetWish, ServeRequest, SetIommufdRequest, VersionRequest,
};
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::frame::Frame;
use crate::header::VhostUserHeader;
use crate::message::Message;
use crate::request_error::RequestError;
use crate::request_number::RequestNumber;
pub use crate::vhost_user::BackedRegion;
use crate::vhost_user::{MAX_TABLE_REGIONS, MemoryRegion};

/// What a client asks for on the control face. Descriptors are only counted, not yet looked at.
#[derive(Debug)]
pub enum ControlRequest {
    /// `GET_FEATURES`.
    GetFeatures,
    /// `SET_FEATURES`; may have bits that were not offered.
    SetFeatures(VirtioFeatures),
    /// `SET_OWNER`.
    SetOwner,
    /// `GET_PROTOCOL_FEATURES`.
    GetProtocolFeatures,
    /// `SET_PROTOCOL_FEATURES`; may have bits that were not offered.
    SetProtocolFeatures(ProtocolFeatures),
    /// `GET_MAX_MEM_SLOTS`.
    GetMaxMemorySlots,
    /// `SET_MEM_TABLE`: at most 8 regions, none to empty the table. They may overlap.
    SetMemoryTable(Vec<BackedRegion>),
    /// `ADD_MEM_REG`.
    AddMemoryRegion(BackedRegion),
    /// `REM_MEM_REG`.
    RemoveMemoryRegion(MemoryRegion),
    /// `VERSION` with our major version and the client's newest minor one.
    Version {
        /// The client's newest minor version.
        minor: u16,
    },
    /// `SET_IOMMUFD`.
    SetIommufd {
        /// The iommufd.
        iommufd: OwnedFd,
        /// Which address space of it to use.
        ioas: IoasChoice,
    },
    /// `ADD_DEVICE`.
    AddDevice {
        /// The name that the device gets.
        cookie: Cookie,
        /// The VFIO character device.
        device: OwnedFd,
    },
    /// `SERVE`.
    Serve {
        /// Which device.
        cookie: Cookie,
        /// With which protocol.
        face: Face,
        /// On which listening or connected socket.
        socket: OwnedFd,
    },
    /// `REMOVE_DEVICE`.
    RemoveDevice(Cookie),
    /// `GET_DEVICE_INFO`.
    GetDeviceInfo(Cookie),
    /// `GET_RESET_GROUP`.
    GetResetGroup {
        /// Which device's group.
        cookie: Cookie,
        /// The first row wanted.
        first_row: u32,
        /// Most rows wanted.
        max_rows: u32,
    },
    /// `RESET`.
    Reset {
        /// Which device.
        cookie: Cookie,
        /// How.
        wish: ResetWish,
    },
    /// `LAST_FAILURE`.
    LastFailure,
    /// `LIST_DEVICES`.
    ListDevices,
    /// `SET_BACKEND_REQ_FD`: the server channel.
    SetServerChannel(OwnedFd),
    /// `SUBSCRIBE`.
    Subscribe {
        /// To which events.
        events: EventKinds,
        /// How often groups are looked at; `None`: only when the server has changed something itself.
        poll: Option<Duration>,
    },
    /// `COORDINATE`.
    Coordinate {
        /// What the broker calls the server.
        name: MemberName,
    },
    /// `RESET_PREPARE`, `RESET_GRANT`, `RESET_DONE` and `RESET_ABORT`: from the broker.
    Broker(BrokerMessage),
}

impl ControlRequest {
    /// Reads a request. Descriptors that come with one that is refused are closed.
    pub fn parse(frame: Frame<VhostUserHeader>) -> Result<Self, RequestError> {
        let mut message = Message::new(frame, descriptors_allowed)?;
        if message.request.is_extension() { message.parse_extension() } else { message.parse_base() }
    }
}

/// How many descriptors (least, most) may come with `request`; `None` if there is no such request.
///
/// `REM_MEM_REG` needs none, but some frontends send the region's file again.
fn descriptors_allowed(request: RequestNumber) -> Option<(usize, usize)> {
    match request {
        RequestNumber::GET_FEATURES
        | RequestNumber::SET_FEATURES
        | RequestNumber::SET_OWNER
        | RequestNumber::GET_PROTOCOL_FEATURES
        | RequestNumber::SET_PROTOCOL_FEATURES
        | RequestNumber::GET_MAX_MEM_SLOTS => Some((0, 0)),
        RequestNumber::SET_MEM_TABLE => Some((0, MAX_TABLE_REGIONS)),
        RequestNumber::REM_MEM_REG => Some((0, 1)),
        RequestNumber::ADD_MEM_REG
        | RequestNumber::SET_BACKEND_REQ_FD
        | RequestNumber::SET_IOMMUFD
        | RequestNumber::ADD_DEVICE
        | RequestNumber::SERVE => Some((1, 1)),
        other if other.is_extension() => other.name().map(|_| (0, 0)),
        _ => None,
    }
}

impl Message {
    fn parse_base(&mut self) -> Result<ControlRequest, RequestError> {
        Ok(match self.request {
            RequestNumber::GET_FEATURES => self.empty(ControlRequest::GetFeatures)?,
            RequestNumber::SET_FEATURES => ControlRequest::SetFeatures(self.payload()?),
            RequestNumber::SET_OWNER => self.empty(ControlRequest::SetOwner)?,
            RequestNumber::SET_MEM_TABLE => ControlRequest::SetMemoryTable(self.memory_table()?),
            RequestNumber::GET_PROTOCOL_FEATURES => self.empty(ControlRequest::GetProtocolFeatures)?,
            RequestNumber::SET_PROTOCOL_FEATURES => ControlRequest::SetProtocolFeatures(self.payload()?),
            RequestNumber::SET_BACKEND_REQ_FD => ControlRequest::SetServerChannel(self.lone_descriptor()?),
            RequestNumber::GET_MAX_MEM_SLOTS => self.empty(ControlRequest::GetMaxMemorySlots)?,
            RequestNumber::ADD_MEM_REG => ControlRequest::AddMemoryRegion(self.backed_region()?),
            RequestNumber::REM_MEM_REG => ControlRequest::RemoveMemoryRegion(self.region()?),
            request => return Err(RequestError::Unknown { request }),
        })
    }

    fn parse_extension(&mut self) -> Result<ControlRequest, RequestError> {
        Ok(match self.request {
            RequestNumber::VERSION => self.version()?,
            RequestNumber::SET_IOMMUFD => {
                let ioas = self.ioas_choice()?;
                ControlRequest::SetIommufd { iommufd: self.descriptor()?, ioas }
            }
            RequestNumber::ADD_DEVICE => {
                let AddDeviceRequest { cookie, flags, reserved } = self.payload()?;
                self.check(flags == 0, "flags", flags)?;
                self.check(reserved == 0, "reserved", reserved)?;
                ControlRequest::AddDevice { cookie, device: self.descriptor()? }
            }
            RequestNumber::SERVE => {
                let ServeRequest { cookie, face, flags } = self.payload()?;
                self.check(flags == 0, "flags", flags)?;
                let face = Face::try_from(face).map_err(|_| self.bad_field("face", face))?;
                ControlRequest::Serve { cookie, face, socket: self.descriptor()? }
            }
            RequestNumber::REMOVE_DEVICE => {
                let CookieRequest { cookie } = self.payload()?;
                ControlRequest::RemoveDevice(cookie)
            }
            RequestNumber::GET_DEVICE_INFO => {
                let CookieRequest { cookie } = self.payload()?;
                ControlRequest::GetDeviceInfo(cookie)
            }
            RequestNumber::GET_RESET_GROUP => {
                let ResetGroupRequest { cookie, first_row, max_rows } = self.payload()?;
                ControlRequest::GetResetGroup { cookie, first_row, max_rows }
            }
            RequestNumber::RESET => self.reset()?,
            RequestNumber::LAST_FAILURE => self.empty(ControlRequest::LastFailure)?,
            RequestNumber::LIST_DEVICES => self.empty(ControlRequest::ListDevices)?,
            RequestNumber::SUBSCRIBE => self.subscribe()?,
            RequestNumber::COORDINATE => {
                let CoordinateRequest { name } = self.payload()?;
                ControlRequest::Coordinate { name }
            }
            RequestNumber::RESET_PREPARE => ControlRequest::Broker(self.prepare()?),
            RequestNumber::RESET_GRANT => {
                let GrantRequest { coordination } = self.payload()?;
                self.check(coordination.0 != 0, "coordination", 0_u32)?;
                ControlRequest::Broker(BrokerMessage::Grant { coordination })
            }
            RequestNumber::RESET_DONE => ControlRequest::Broker(self.done()?),
            RequestNumber::RESET_ABORT => ControlRequest::Broker(self.abort()?),
            request => return Err(RequestError::Unknown { request }),
        })
    }

    fn version(&self) -> Result<ControlRequest, RequestError> {
        let VersionRequest { major, minor, flags } = self.payload()?;
        if major != MAJOR {
            return Err(RequestError::Major { major });
        }
        self.check(flags == 0, "flags", flags)?;
        Ok(ControlRequest::Version { minor })
    }

    fn ioas_choice(&self) -> Result<IoasChoice, RequestError> {
        let SetIommufdRequest { flags, ioas } = self.payload()?;
        match flags {
            0 if ioas == 0 => Ok(IoasChoice::Allocate),
            0 => Err(self.bad_field("ioas", ioas)),
            SetIommufdRequest::ADOPT_IOAS => Ok(IoasChoice::Adopt(ioas)),
            SetIommufdRequest::FILL_IOAS => Ok(IoasChoice::Fill(ioas)),
            _ => Err(self.bad_field("flags", flags)),
        }
    }

    fn reset(&self) -> Result<ControlRequest, RequestError> {
        let ResetRequest { cookie, method, policy, deadline_ms, reserved } = self.payload()?;
        self.check(reserved == 0, "reserved", reserved)?;
        let method = match method {
            0 => None,
            number => Some(ResetMethod::try_from(number).map_err(|_| self.bad_field("method", number))?),
        };
        let policy = match policy {
            0 => None,
            number => Some(ResetPolicy::try_from(number).map_err(|_| self.bad_field("policy", number))?),
        };
        let deadline = (deadline_ms != 0).then(|| Duration::from_millis(deadline_ms.into()));
        Ok(ControlRequest::Reset { cookie, wish: ResetWish { method, policy, deadline } })
    }
}

#[cfg(test)]
mod tests;
