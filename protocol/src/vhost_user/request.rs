// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests that the vhost-user face answers, typed: what a frame asks for once everything in it was checked that can
//! be checked without knowing the device.

use std::os::fd::OwnedFd;

use zerocopy::FromBytes;

use super::config::ConfigAccess;
use super::memory::{BackedRegion, MAX_TABLE_REGIONS, MemoryRegion};
use super::vring::{MAX_VRING_SIZE, VringAddress, VringDescriptor, VringState};
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::frame::Frame;
use crate::header::VhostUserHeader;
use crate::message::Message;
use crate::request_error::RequestError;
use crate::request_number::RequestNumber;

/// What a frontend asks for. Nothing is known yet about descriptors, nor whether the device has the ring.
#[derive(Debug)]
pub enum DeviceRequest {
    /// `GET_FEATURES`.
    GetFeatures,
    /// `SET_FEATURES`; may have bits that were not offered.
    SetFeatures(VirtioFeatures),
    /// `SET_OWNER`.
    SetOwner,
    /// `RESET_OWNER`.
    ResetOwner,
    /// `GET_PROTOCOL_FEATURES`.
    GetProtocolFeatures,
    /// `SET_PROTOCOL_FEATURES`; may have bits that were not offered.
    SetProtocolFeatures(ProtocolFeatures),
    /// `GET_QUEUE_NUM`.
    GetQueueNumber,
    /// `SET_MEM_TABLE`: at most 8 regions. They may overlap.
    SetMemoryTable(Vec<BackedRegion>),
    /// `GET_MAX_MEM_SLOTS`.
    GetMaxMemorySlots,
    /// `ADD_MEM_REG`.
    AddMemoryRegion(BackedRegion),
    /// `REM_MEM_REG`.
    RemoveMemoryRegion(MemoryRegion),
    /// A request about one ring.
    Vring {
        /// Which ring.
        queue: u8,
        /// What about it.
        request: VringRequest,
    },
    /// `GET_CONFIG`.
    GetConfig(ConfigAccess),
    /// `SET_CONFIG`.
    SetConfig {
        /// Where; `size` is the size of `data`.
        access: ConfigAccess,
        /// What to write.
        data: Vec<u8>,
    },
    /// `SET_BACKEND_REQ_FD`: the backend channel.
    SetBackendChannel(OwnedFd),
    /// `RESET_DEVICE`.
    ResetDevice,
    /// `GET_STATUS`.
    GetStatus,
    /// `SET_STATUS`.
    SetStatus(u8),
}

/// A request about one ring.
#[derive(Debug)]
pub enum VringRequest {
    /// `SET_VRING_NUM`: how many descriptors it has, 1 to [`MAX_VRING_SIZE`].
    SetSize(u16),
    /// `SET_VRING_ADDR`; the addresses are aligned as virtio has it.
    SetAddress {
        /// Where the descriptors are.
        descriptors: u64,
        /// Where the available ring is; of a packed ring the driver's event suppression.
        available: u64,
        /// Where the used ring is; of a packed ring the device's event suppression.
        used: u64,
    },
    /// `SET_VRING_BASE`: where it begins; bits 0-15 of a split ring, all of a packed one.
    SetBase(u32),
    /// `GET_VRING_BASE`.
    GetBase,
    /// `SET_VRING_KICK`: what the guest notifies it with; `None`: it is to be polled.
    SetKick(Option<OwnedFd>),
    /// `SET_VRING_CALL`: what it interrupts the guest with; `None`: it does not.
    SetCall(Option<OwnedFd>),
    /// `SET_VRING_ERR`: what it tells an error with; `None`: it does not.
    SetError(Option<OwnedFd>),
    /// `SET_VRING_ENABLE`: whether it is to be enabled.
    SetEnabled(bool),
}

impl DeviceRequest {
    /// The ring that the request describes, whether or not the rest of it can be read. If it is refused, the ring is not
    /// as the frontend thinks.
    pub fn described_vring(frame: &Frame<VhostUserHeader>) -> Option<u8> {
        match frame.header.request {
            RequestNumber::SET_VRING_NUM | RequestNumber::SET_VRING_ADDR | RequestNumber::SET_VRING_BASE => {
                let (index, _) = u32::read_from_prefix(&frame.body).ok()?;
                u8::try_from(index).ok()
            }
            _ => None,
        }
    }

    /// Reads a request. Descriptors that come with one that is refused are closed.
    pub fn parse(frame: Frame<VhostUserHeader>) -> Result<Self, RequestError> {
        let mut message = Message::new(frame, descriptors_allowed)?;
        Ok(match message.request {
            RequestNumber::GET_FEATURES => message.empty(Self::GetFeatures)?,
            RequestNumber::SET_FEATURES => Self::SetFeatures(message.payload()?),
            RequestNumber::SET_OWNER => message.empty(Self::SetOwner)?,
            RequestNumber::RESET_OWNER => message.empty(Self::ResetOwner)?,
            RequestNumber::GET_PROTOCOL_FEATURES => message.empty(Self::GetProtocolFeatures)?,
            RequestNumber::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(message.payload()?),
            RequestNumber::GET_QUEUE_NUM => message.empty(Self::GetQueueNumber)?,
            RequestNumber::SET_MEM_TABLE => Self::SetMemoryTable(message.memory_table()?),
            RequestNumber::GET_MAX_MEM_SLOTS => message.empty(Self::GetMaxMemorySlots)?,
            RequestNumber::ADD_MEM_REG => Self::AddMemoryRegion(message.backed_region()?),
            RequestNumber::REM_MEM_REG => Self::RemoveMemoryRegion(message.region()?),
            RequestNumber::GET_CONFIG => Self::GetConfig(message.config_access()?),
            RequestNumber::SET_CONFIG => {
                let access = message.config_access()?;
                Self::SetConfig { access, data: message.body.split_off(size_of::<ConfigAccess>()) }
            }
            RequestNumber::SET_BACKEND_REQ_FD => Self::SetBackendChannel(message.lone_descriptor()?),
            RequestNumber::RESET_DEVICE => message.empty(Self::ResetDevice)?,
            RequestNumber::GET_STATUS => message.empty(Self::GetStatus)?,
            RequestNumber::SET_STATUS => Self::SetStatus(message.status()?),
            _ => return message.vring_request(),
        })
    }
}

/// How many descriptors (least, most) may come with `request`; `None` if the face has no such request.
///
/// `REM_MEM_REG` needs none, but some frontends send the region's file again.
fn descriptors_allowed(request: RequestNumber) -> Option<(usize, usize)> {
    match request {
        RequestNumber::SET_MEM_TABLE => Some((0, MAX_TABLE_REGIONS)),
        RequestNumber::ADD_MEM_REG | RequestNumber::SET_BACKEND_REQ_FD => Some((1, 1)),
        RequestNumber::REM_MEM_REG
        | RequestNumber::SET_VRING_KICK
        | RequestNumber::SET_VRING_CALL
        | RequestNumber::SET_VRING_ERR => Some((0, 1)),
        // Whatever else has a name below the extension's belongs to this face.
        other if other == RequestNumber::NONE || other.is_extension() || other.is_from_server() => None,
        other => other.name().map(|_| (0, 0)),
    }
}

impl Message {
    fn vring_request(&mut self) -> Result<DeviceRequest, RequestError> {
        type Request = VringRequest;
        let (queue, request) = match self.request {
            RequestNumber::SET_VRING_NUM => {
                let (queue, number) = self.vring_state()?;
                let size = u16::try_from(number).ok().filter(|size| (1..=MAX_VRING_SIZE).contains(size));
                (queue, Request::SetSize(size.ok_or_else(|| self.bad_field("num", number))?))
            }
            RequestNumber::SET_VRING_ADDR => self.vring_address()?,
            RequestNumber::SET_VRING_BASE => {
                let (queue, base) = self.vring_state()?;
                (queue, Request::SetBase(base))
            }
            RequestNumber::GET_VRING_BASE => (self.vring_state()?.0, Request::GetBase),
            RequestNumber::SET_VRING_KICK => self.vring_eventfd(Request::SetKick)?,
            RequestNumber::SET_VRING_CALL => self.vring_eventfd(Request::SetCall)?,
            RequestNumber::SET_VRING_ERR => self.vring_eventfd(Request::SetError)?,
            RequestNumber::SET_VRING_ENABLE => {
                let (queue, number) = self.vring_state()?;
                self.check(number <= 1, "num", number)?;
                (queue, Request::SetEnabled(number == 1))
            }
            request => return Err(RequestError::Unknown { request }),
        };
        Ok(DeviceRequest::Vring { queue, request })
    }

    fn vring_state(&self) -> Result<(u8, u32), RequestError> {
        let VringState { index, num } = self.payload()?;
        Ok((self.queue(index)?, num))
    }

    fn vring_address(&self) -> Result<(u8, VringRequest), RequestError> {
        let VringAddress { index, flags, descriptor: descriptors, used, available, log: _ } =
            self.payload()?;
        let queue = self.queue(index)?;
        self.check(flags == 0, "flags", flags)?;
        self.check(descriptors.is_multiple_of(16), "descriptor", descriptors)?;
        self.check(used.is_multiple_of(4), "used", used)?;
        self.check(available.is_multiple_of(2), "available", available)?;
        Ok((queue, VringRequest::SetAddress { descriptors, available, used }))
    }

    /// The ring, and what is to become of the eventfd, which came just if the payload says so.
    fn vring_eventfd(
        &mut self,
        request: impl FnOnce(Option<OwnedFd>) -> VringRequest,
    ) -> Result<(u8, VringRequest), RequestError> {
        let VringDescriptor(word) = self.payload()?;
        let index = word & !VringDescriptor::NO_DESCRIPTOR;
        let queue = u8::try_from(index).map_err(|_| self.bad_field("u64", word))?;
        let expected = usize::from(word & VringDescriptor::NO_DESCRIPTOR == 0);
        let actual = self.descriptors.len();
        if actual != expected {
            return Err(RequestError::Descriptors { request: self.request, expected, actual });
        }
        Ok((queue, request(self.descriptors.pop())))
    }

    /// Where in the configuration space; as many bytes follow as it says.
    fn config_access(&self) -> Result<ConfigAccess, RequestError> {
        const HEADER: usize = size_of::<ConfigAccess>();

        let (access, data) = ConfigAccess::read_from_prefix(&self.body).map_err(|_| self.bad_size(HEADER))?;
        self.check(access.is_within(), "size", access.size)?;
        self.check(access.flags <= ConfigAccess::MAX_FLAGS, "flags", access.flags)?;
        let size = usize::try_from(access.size).unwrap_or(usize::MAX);
        if data.len() == size { Ok(access) } else { Err(self.bad_size(HEADER.saturating_add(size))) }
    }

    fn status(&self) -> Result<u8, RequestError> {
        let status: u64 = self.payload()?;
        u8::try_from(status).map_err(|_| self.bad_field("status", status))
    }

    fn queue(&self, index: u32) -> Result<u8, RequestError> {
        u8::try_from(index).map_err(|_| self.bad_field("index", index))
    }
}

#[cfg(test)]
mod tests;
