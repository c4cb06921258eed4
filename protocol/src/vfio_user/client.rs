// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small blocking vfio-user client.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::command::Command;
use super::dma::{DmaMap, DmaMapPayload, DmaUnmapPayload};
use super::error::RequestError;
use super::feature::{self, DeviceFeature};
use super::header::{MAX_DATA, VfioUserHeader};
use super::irq::{IrqData, SetIrqs};
use super::message::{DeviceInfo, IrqInfo, RegionAccess, RegionInfo};
use super::region::{RegionDescription, RegionIoFds, RegionWrite};
use super::version::{Capabilities, MINOR, Proposal};
use crate::connection::{Connection, ReceiveError, SendError};
use crate::extension::ResetGroupPage;
use crate::frame::{Descriptors, Endpoint, Frame};

/// Why a call had no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The command could not be sent.
    #[error("cannot send {command}")]
    Send {
        /// The command.
        command: Command,
        /// Why.
        source: SendError,
    },
    /// No reply came. The connection is of no use any more: the reply may still come.
    #[error("no reply to {command}")]
    Receive {
        /// The command.
        command: Command,
        /// Why.
        source: ReceiveError,
    },
    /// The server refused.
    #[error("{command} was refused: {errno}")]
    Refused {
        /// The command.
        command: Command,
        /// The server's errno.
        errno: Errno,
    },
    /// The reply is not what the specification says, or not the reply to the command.
    #[error("the reply to {command} is malformed")]
    Malformed {
        /// The command.
        command: Command,
    },
    /// The server's reply to VERSION is malformed or of another major version.
    #[error("cannot agree on a version")]
    Version(#[source] RequestError),
}

/// One session with a device's data face.
#[derive(Debug)]
pub struct Client {
    connection: Connection<VfioUserHeader>,
    timeout: Duration,
    next_id: u16,
}

impl Client {
    /// A session on a connected socket, in which the server may take `timeout` for each reply.
    pub fn new(stream: UnixStream, timeout: Duration) -> Self {
        Self { connection: Connection::new(stream, Endpoint::Client), timeout, next_id: 0 }
    }

    /// Agrees on version and capabilities: tells ours and returns the server's. The first thing to do, once.
    pub fn version(&mut self, ours: &Capabilities) -> Result<Proposal, ClientError> {
        let reply = self.call(Command::VERSION, &ours.encode(MINOR), &[])?;
        Proposal::parse(&reply).map_err(ClientError::Version)
    }

    /// Lets the device reach memory, with the file that is behind it.
    pub fn dma_map(&mut self, memory: &DmaMap) -> Result<(), ClientError> {
        let DmaMap { address, size, offset, is_writable, ref file } = *memory;
        let flags = DmaMapPayload::READ | if is_writable { DmaMapPayload::WRITE } else { 0 };
        let request = DmaMapPayload { argsz: DmaMapPayload::SIZE, flags, offset, address, size };
        let file: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        let reply = self.call(Command::DMA_MAP, request.as_bytes(), &file)?;
        expect_empty(Command::DMA_MAP, &reply)
    }

    /// Takes away what was mapped at `address` with this size.
    pub fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), ClientError> {
        let request = DmaUnmapPayload { argsz: DmaUnmapPayload::SIZE, flags: 0, address, size };
        match self.exchange(Command::DMA_UNMAP, &request)? {
            echo if echo == request => Ok(()),
            _ => Err(ClientError::Malformed { command: Command::DMA_UNMAP }),
        }
    }

    /// Describes the device.
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let request = DeviceInfo { argsz: DeviceInfo::SIZE, flags: 0, num_regions: 0, num_irqs: 0 };
        self.exchange(Command::DEVICE_GET_INFO, &request)
    }

    /// Describes a region.
    pub fn region_info(&mut self, index: u32) -> Result<RegionInfo, ClientError> {
        let request =
            RegionInfo { argsz: RegionInfo::SIZE, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        self.exchange(Command::DEVICE_GET_REGION_INFO, &request)
    }

    /// Describes a region, with what of it can be mapped and by which file.
    pub fn region(&mut self, index: u32) -> Result<RegionDescription, ClientError> {
        let command = Command::DEVICE_GET_REGION_INFO;
        let mut request =
            RegionInfo { argsz: RegionInfo::SIZE, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        let mut reply = self.exchange_frame(command, request.as_bytes(), &[])?;
        if let Some(argsz) = RegionDescription::more_than(&reply.body, request.argsz) {
            request.argsz = argsz;
            reply = self.exchange_frame(command, request.as_bytes(), &[])?;
        }
        let file = match reply.descriptors {
            Descriptors::Complete(mut files) => files.pop(),
            Descriptors::Truncated => None,
        };
        RegionDescription::parse(&reply.body, file).ok_or(ClientError::Malformed { command })
    }

    /// How many descriptors stand for parts of a region.
    pub fn region_io_fds(&mut self, index: u32) -> Result<u32, ClientError> {
        let request = RegionIoFds { argsz: RegionIoFds::SIZE, flags: 0, index, count: 0 };
        self.exchange(Command::DEVICE_GET_REGION_IO_FDS, &request).map(|reply: RegionIoFds| reply.count)
    }

    /// Describes an interrupt index.
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, ClientError> {
        let request = IrqInfo { argsz: IrqInfo::SIZE, flags: 0, index, count: 0 };
        self.exchange(Command::DEVICE_GET_IRQ_INFO, &request)
    }

    /// Sets up, masks, unmasks or fires interrupts.
    pub fn set_irqs(&mut self, change: &SetIrqs) -> Result<(), ClientError> {
        let command = Command::DEVICE_SET_IRQS;
        let eventfds: Vec<_> = match &change.data {
            IrqData::Eventfds(eventfds) => eventfds.iter().map(AsFd::as_fd).collect(),
            IrqData::None | IrqData::Bools(_) => Vec::new(),
        };
        let reply = self.call(command, &change.encode(), &eventfds)?;
        expect_empty(command, &reply)
    }

    /// Reads `data.len()` bytes, 1 to 1 MiB, at `offset` of `region`.
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        let command = Command::REGION_READ;
        let access = RegionAccess { offset, region, count: access_count(command, data)? };
        let reply = self.call(command, access.as_bytes(), &[])?;
        match RegionAccess::read_from_prefix(&reply) {
            Ok((echo, read)) if echo == access && read.len() == data.len() => data.copy_from_slice(read),
            _ => return Err(ClientError::Malformed { command }),
        }
        Ok(())
    }

    /// Writes `data`, 1 byte to 1 MiB, at `offset` of `region`.
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let command = Command::REGION_WRITE;
        let access = RegionAccess { offset, region, count: access_count(command, data)? };
        let reply = self.call(command, &[access.as_bytes(), data].concat(), &[])?;
        match RegionAccess::read_from_bytes(&reply) {
            Ok(echo) if echo == access => Ok(()),
            _ => Err(ClientError::Malformed { command }),
        }
    }

    /// Writes to regions, one after the other, and gives how many of the writes were done.
    pub fn region_write_multi(&mut self, writes: &[RegionWrite]) -> Result<u64, ClientError> {
        let command = Command::REGION_WRITE_MULTI;
        let reply = self.call(command, &RegionWrite::encode_all(writes), &[])?;
        u64::read_from_bytes(&reply).map_err(|_| ClientError::Malformed { command })
    }

    /// Whether the server tells of the device's reset group.
    pub fn has_reset_group(&mut self) -> Result<bool, ClientError> {
        let feature = DeviceFeature {
            argsz: 8,
            flags: DeviceFeature::PROBE | DeviceFeature::GET | DeviceFeature::RESET_GROUP,
        };
        match self.exchange(Command::DEVICE_FEATURE, &feature) {
            Ok(reply) => Ok(reply == feature),
            Err(ClientError::Refused { errno: Errno::NOTTY | Errno::OPNOTSUPP, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The device's reset group, and at most `max_rows` of its rows from `first_row` on.
    pub fn reset_group(&mut self, first_row: u32, max_rows: u32) -> Result<ResetGroupPage, ClientError> {
        let command = Command::DEVICE_FEATURE;
        let reply = self.call(command, &feature::encode_wish(first_row, max_rows), &[])?;
        feature::decode_reset_group(&reply).ok_or(ClientError::Malformed { command })
    }

    /// Resets the device.
    pub fn device_reset(&mut self) -> Result<(), ClientError> {
        let reply = self.call(Command::DEVICE_RESET, &[], &[])?;
        expect_empty(Command::DEVICE_RESET, &reply)
    }

    /// A command whose payload and reply are a `T`.
    fn exchange<T>(&mut self, command: Command, request: &T) -> Result<T, ClientError>
    where
        T: FromBytes + IntoBytes + zerocopy::Immutable,
    {
        let reply = self.call(command, request.as_bytes(), &[])?;
        T::read_from_bytes(&reply).map_err(|_| ClientError::Malformed { command })
    }

    fn call(
        &mut self,
        command: Command,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, ClientError> {
        self.exchange_frame(command, body, descriptors).map(|frame| frame.body)
    }

    fn exchange_frame(
        &mut self,
        command: Command,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Frame<VfioUserHeader>, ClientError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.connection
            .send_within(VfioUserHeader::command(id, command), body, descriptors, self.timeout)
            .map_err(|source| ClientError::Send { command, source })?;
        let frame = self
            .connection
            .receive_within(self.timeout)
            .map_err(|source| ClientError::Receive { command, source })?;
        if (frame.header.id, frame.header.command) != (id, command) {
            return Err(ClientError::Malformed { command });
        }
        match frame.header.error() {
            Some(errno) => Err(ClientError::Refused { command, errno }),
            None => Ok(frame),
        }
    }
}

fn access_count(command: Command, data: &[u8]) -> Result<u32, ClientError> {
    let source = SendError::TooLarge { body: data.len(), descriptors: 0 };
    match u32::try_from(data.len()) {
        Ok(count) if data.len() <= MAX_DATA => Ok(count),
        _ => Err(ClientError::Send { command, source }),
    }
}

fn expect_empty(command: Command, reply: &[u8]) -> Result<(), ClientError> {
    if reply.is_empty() { Ok(()) } else { Err(ClientError::Malformed { command }) }
}

#[cfg(test)]
mod tests;
