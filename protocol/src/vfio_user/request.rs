// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vfio-user commands that a data face answers, typed, and their replies.

use std::os::fd::BorrowedFd;

use zerocopy::{FromBytes, IntoBytes};

use super::command::Command;
use super::dma::{DmaMap, DmaUnmap, DmaUnmapPayload};
use super::error::RequestError;
use super::feature::{self, FeatureRequest};
use super::header::{MAX_DATA, VfioUserHeader};
use super::irq::SetIrqs;
use super::message::{DeviceInfo, IrqInfo, RegionAccess, RegionInfo};
use super::region::{RegionDescription, RegionIoFds, RegionWrite};
use super::version::Proposal;
use crate::extension::ResetGroupPage;
use crate::frame::{Descriptors, Frame};

/// What a client asks for on the vfio-user face. Nothing is known yet about indexes, offsets and descriptors.
#[derive(Debug)]
pub enum Request {
    /// `VERSION`.
    Version(Proposal),
    /// `DMA_MAP`.
    DmaMap(DmaMap),
    /// `DMA_UNMAP`, and the payload that it came with.
    DmaUnmap(DmaUnmap, DmaUnmapPayload),
    /// `DEVICE_GET_INFO`.
    GetInfo,
    /// `DEVICE_GET_REGION_INFO`.
    GetRegionInfo {
        /// Which region.
        index: u32,
        /// How many bytes of reply the client has room for, at least 32.
        argsz: u32,
    },
    /// `DEVICE_GET_REGION_IO_FDS`.
    GetRegionIoFds {
        /// Which region.
        index: u32,
    },
    /// `DEVICE_GET_IRQ_INFO`.
    GetIrqInfo {
        /// Which interrupt index.
        index: u32,
    },
    /// `DEVICE_SET_IRQS`.
    SetIrqs(SetIrqs),
    /// `REGION_READ` of 1 byte to 1 MiB; the end does not wrap around.
    RegionRead(RegionAccess),
    /// `REGION_WRITE` of 1 byte to 1 MiB; the end does not wrap around.
    RegionWrite {
        /// Where; `count` is the size of `data`.
        access: RegionAccess,
        /// What to write.
        data: Vec<u8>,
    },
    /// `REGION_WRITE_MULTI` of 1 to [`MAX_WRITES`](super::MAX_WRITES) writes of 1 to 8 bytes; no end wraps around.
    RegionWriteMulti(Vec<RegionWrite>),
    /// `DEVICE_RESET`.
    DeviceReset,
    /// `DEVICE_FEATURE`.
    DeviceFeature(FeatureRequest),
}

impl Request {
    /// Reads a command. Descriptors that come with one that is refused are closed.
    pub fn parse(frame: Frame<VfioUserHeader>) -> Result<Self, RequestError> {
        let command = frame.header.command;
        let Descriptors::Complete(descriptors) = frame.descriptors else {
            return Err(RequestError::TooManyDescriptors { command });
        };
        match command {
            Command::DEVICE_SET_IRQS => return SetIrqs::parse(&frame.body, descriptors).map(Self::SetIrqs),
            Command::DMA_MAP => return DmaMap::parse(&frame.body, descriptors).map(Self::DmaMap),
            _ => {}
        }
        let message = Message { command, body: frame.body };
        let request = message.parse()?;
        if descriptors.is_empty() {
            Ok(request)
        } else {
            Err(RequestError::Descriptors { command, actual: descriptors.len() })
        }
    }
}

struct Message {
    command: Command,
    body: Vec<u8>,
}

impl Message {
    fn parse(self) -> Result<Request, RequestError> {
        match self.command {
            Command::VERSION => Proposal::parse(&self.body).map(Request::Version),
            Command::DMA_UNMAP => {
                DmaUnmap::parse(&self.body).map(|(unmap, echo)| Request::DmaUnmap(unmap, echo))
            }
            Command::DEVICE_GET_INFO => {
                let DeviceInfo { argsz, .. } = self.payload()?;
                self.check(argsz >= DeviceInfo::SIZE, "argsz", argsz.into())?;
                Ok(Request::GetInfo)
            }
            Command::DEVICE_GET_REGION_INFO => {
                let RegionInfo { argsz, index, .. } = self.payload()?;
                self.check(argsz >= RegionInfo::SIZE, "argsz", argsz.into())?;
                Ok(Request::GetRegionInfo { index, argsz })
            }
            Command::DEVICE_GET_REGION_IO_FDS => {
                let RegionIoFds { argsz, flags, index, count } = self.payload()?;
                self.check(argsz >= RegionIoFds::SIZE, "argsz", argsz.into())?;
                self.check(flags == 0, "flags", flags.into())?;
                self.check(count == 0, "count", count.into())?;
                Ok(Request::GetRegionIoFds { index })
            }
            Command::DEVICE_GET_IRQ_INFO => {
                let IrqInfo { argsz, index, .. } = self.payload()?;
                self.check(argsz >= IrqInfo::SIZE, "argsz", argsz.into())?;
                Ok(Request::GetIrqInfo { index })
            }
            Command::REGION_READ => {
                let access = self.payload()?;
                self.check_access(&access)?;
                Ok(Request::RegionRead(access))
            }
            Command::REGION_WRITE => self.region_write(),
            Command::REGION_WRITE_MULTI => RegionWrite::parse_all(&self.body).map(Request::RegionWriteMulti),
            Command::DEVICE_FEATURE => FeatureRequest::parse(&self.body).map(Request::DeviceFeature),
            Command::DEVICE_RESET if self.body.is_empty() => Ok(Request::DeviceReset),
            Command::DEVICE_RESET => Err(self.bad_size(0)),
            command => Err(RequestError::Unsupported { command }),
        }
    }

    fn region_write(mut self) -> Result<Request, RequestError> {
        const ACCESS: usize = size_of::<RegionAccess>();

        let (access, _) = RegionAccess::read_from_prefix(&self.body).map_err(|_| self.bad_size(ACCESS))?;
        let count = self.check_access(&access)?;
        if self.body.len() != ACCESS + count {
            return Err(self.bad_size(ACCESS + count));
        }
        Ok(Request::RegionWrite { access, data: self.body.split_off(ACCESS) })
    }

    /// The body as a `T`, which it must fill exactly.
    fn payload<T: FromBytes>(&self) -> Result<T, RequestError> {
        T::read_from_bytes(&self.body).map_err(|_| self.bad_size(size_of::<T>()))
    }

    /// The number of bytes that `access` is about.
    fn check_access(&self, access: &RegionAccess) -> Result<usize, RequestError> {
        let count = usize::try_from(access.count).unwrap_or(usize::MAX);
        self.check((1..=MAX_DATA).contains(&count), "count", access.count.into())?;
        let end = access.offset.checked_add(access.count.into());
        self.check(end.is_some(), "offset", access.offset)?;
        Ok(count)
    }

    fn check(&self, good: bool, field: &'static str, value: u64) -> Result<(), RequestError> {
        if good { Ok(()) } else { Err(self.bad_field(field, value)) }
    }

    fn bad_field(&self, field: &'static str, value: u64) -> RequestError {
        RequestError::Field { command: self.command, field, value }
    }

    fn bad_size(&self, expected: usize) -> RequestError {
        RequestError::Size { command: self.command, expected, actual: self.body.len() }
    }
}

/// What a command that was done is answered with. One that was not gets [`VfioUserHeader::error_reply`] alone.
#[derive(Debug)]
pub enum Reply {
    /// To `DMA_MAP`, `DEVICE_SET_IRQS` and `DEVICE_RESET`.
    Done,
    /// To `VERSION`: what [`Proposal::reply`] gave.
    Version(Vec<u8>),
    /// To `DMA_UNMAP`: the payload that it came with.
    DmaUnmap(DmaUnmapPayload),
    /// To `DEVICE_GET_INFO`.
    Info(DeviceInfo),
    /// To `DEVICE_GET_REGION_INFO`.
    RegionInfo {
        /// The region.
        description: RegionDescription,
        /// How many bytes the client has room for.
        room: u32,
    },
    /// To `DEVICE_GET_REGION_IO_FDS`: no descriptors.
    RegionIoFds {
        /// Which region.
        index: u32,
    },
    /// To `DEVICE_GET_IRQ_INFO`.
    IrqInfo(IrqInfo),
    /// To `REGION_READ`.
    RegionRead {
        /// Where it was read; `count` is the size of `data`.
        access: RegionAccess,
        /// What was read.
        data: Vec<u8>,
    },
    /// To `REGION_WRITE`: where it was written.
    RegionWrite(RegionAccess),
    /// To `REGION_WRITE_MULTI`: how many writes were done.
    RegionWriteMulti(u64),
    /// To a `DEVICE_FEATURE` that only asks whether it can be done: it can.
    FeatureProbed {
        /// Those of the command.
        flags: u32,
    },
    /// To a `DEVICE_FEATURE` that gets the reset group.
    ResetGroup(ResetGroupPage),
}

impl Reply {
    /// The body of the reply.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Done => Vec::new(),
            Self::Version(body) => body.clone(),
            Self::DmaUnmap(echo) => echo.as_bytes().to_vec(),
            Self::Info(info) => info.as_bytes().to_vec(),
            Self::RegionInfo { description, room } => description.encode(*room),
            Self::RegionIoFds { index } => {
                let info = RegionIoFds { argsz: RegionIoFds::SIZE, flags: 0, index: *index, count: 0 };
                info.as_bytes().to_vec()
            }
            Self::IrqInfo(info) => info.as_bytes().to_vec(),
            Self::RegionRead { access, data } => [access.as_bytes(), data].concat(),
            Self::RegionWrite(access) => access.as_bytes().to_vec(),
            Self::RegionWriteMulti(count) => count.as_bytes().to_vec(),
            Self::FeatureProbed { flags } => feature::encode_probe(*flags),
            Self::ResetGroup(page) => feature::encode_reset_group(page),
        }
    }

    /// The descriptor that goes with the reply, if one does.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::RegionInfo { description, .. } => description.descriptor(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
