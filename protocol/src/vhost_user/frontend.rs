// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small blocking vhost-user frontend.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::channel::FrontendChannel;
use super::config::ConfigAccess;
use super::memory::{MemoryRegion, MemoryTableHeader, SingleMemoryRegion};
use super::vring::{VringAddress, VringDescriptor, VringState};
use crate::connection::{Connection, ReceiveError, SendError};
use crate::extension::errno_from_wire;
use crate::features::{ProtocolFeatures, VirtioFeatures};
use crate::frame::Endpoint;
use crate::header::VhostUserHeader;
use crate::request_number::RequestNumber;

/// Why a call had no result.
#[derive(Debug, Error)]
pub enum FrontendError {
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
    /// The backend refused.
    #[error("{request} was refused{}", .errno.map(|errno| format!(": {errno}")).unwrap_or_default())]
    Refused {
        /// The request.
        request: RequestNumber,
        /// What the backend said, if it was an errno. To a request with a reply of its own it says nothing.
        errno: Option<Errno>,
    },
    /// The reply is not what the specification says, or not the reply to the request.
    #[error("the reply to {request} is malformed")]
    Malformed {
        /// The request.
        request: RequestNumber,
    },
    /// No socket could be made for the backend channel.
    #[error("no socket can be made for the backend channel")]
    Channel(#[source] std::io::Error),
}

/// How a ring is set up.
#[derive(Clone, Copy, Debug)]
pub struct Vring<'fd> {
    /// How many descriptors it has.
    pub size: u16,
    /// Where it begins.
    pub base: u32,
    /// Where the descriptors are.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// What the guest notifies it with.
    pub kick: BorrowedFd<'fd>,
    /// What it interrupts the guest with.
    pub call: BorrowedFd<'fd>,
}

/// One session with a device's vhost-user face.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection<VhostUserHeader>,
    timeout: Duration,
    features: ProtocolFeatures,
}

impl Frontend {
    /// A session on a connected socket, in which the backend may take `timeout` for each reply.
    pub fn new(stream: UnixStream, timeout: Duration) -> Self {
        let features = ProtocolFeatures::default();
        Self { connection: Connection::new(stream, Endpoint::Client), timeout, features }
    }

    /// Becomes the owner and agrees on those of the protocol features `wanted` that are offered. Gives what virtio features the
    /// device offers, and what protocol features were agreed on. The first thing to do, once.
    pub fn negotiate(
        &mut self,
        wanted: ProtocolFeatures,
    ) -> Result<(VirtioFeatures, ProtocolFeatures), FrontendError> {
        let offered = self.features()?;
        if offered.contains(VirtioFeatures::PROTOCOL_FEATURES) {
            let ProtocolFeatures(bits) = self.protocol_features()?;
            self.set_protocol_features(ProtocolFeatures(bits & wanted.0))?;
        }
        self.set_owner()?;
        Ok((offered, self.features))
    }

    /// The virtio features that the device offers.
    pub fn features(&mut self) -> Result<VirtioFeatures, FrontendError> {
        self.number(RequestNumber::GET_FEATURES).map(VirtioFeatures)
    }

    /// Tells which virtio features the guest's driver has chosen.
    pub fn set_features(&mut self, features: VirtioFeatures) -> Result<(), FrontendError> {
        self.command(RequestNumber::SET_FEATURES, features.as_bytes(), &[])
    }

    /// The protocol features that the backend offers.
    pub fn protocol_features(&mut self) -> Result<ProtocolFeatures, FrontendError> {
        self.number(RequestNumber::GET_PROTOCOL_FEATURES).map(ProtocolFeatures)
    }

    /// Agrees on protocol features. With `REPLY_ACK` everything is acknowledged from here on.
    pub fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<(), FrontendError> {
        self.features = features;
        self.command(RequestNumber::SET_PROTOCOL_FEATURES, features.as_bytes(), &[])
    }

    /// Begins the session.
    pub fn set_owner(&mut self) -> Result<(), FrontendError> {
        self.command(RequestNumber::SET_OWNER, &[], &[])
    }

    /// How many rings the device has.
    pub fn queue_number(&mut self) -> Result<u64, FrontendError> {
        self.number(RequestNumber::GET_QUEUE_NUM)
    }

    /// Replaces the memory table: at most 8 regions, each with the file that backs it.
    pub fn set_memory_table(
        &mut self,
        regions: &[MemoryRegion],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        self.command(RequestNumber::SET_MEM_TABLE, &MemoryTableHeader::encode(regions), files)
    }

    /// How many regions the memory table may have.
    pub fn max_memory_slots(&mut self) -> Result<u64, FrontendError> {
        self.number(RequestNumber::GET_MAX_MEM_SLOTS)
    }

    /// Adds a region to the memory table.
    pub fn add_memory_region(
        &mut self,
        region: MemoryRegion,
        file: BorrowedFd<'_>,
    ) -> Result<(), FrontendError> {
        let body = SingleMemoryRegion { reserved: 0, region };
        self.command(RequestNumber::ADD_MEM_REG, body.as_bytes(), &[file])
    }

    /// Removes a region from the memory table.
    pub fn remove_memory_region(&mut self, region: MemoryRegion) -> Result<(), FrontendError> {
        let body = SingleMemoryRegion { reserved: 0, region };
        self.command(RequestNumber::REM_MEM_REG, body.as_bytes(), &[])
    }

    /// Sets a ring up and starts it; it does nothing before it is enabled.
    pub fn start_vring(&mut self, queue: u8, vring: &Vring<'_>) -> Result<(), FrontendError> {
        let Vring { size, base, descriptors: descriptor, available, used, kick, call } = *vring;
        let index = queue.into();
        let address = VringAddress { index, flags: 0, descriptor, used, available, log: 0 };
        self.set_vring_state(RequestNumber::SET_VRING_NUM, queue, size.into())?;
        self.set_vring_state(RequestNumber::SET_VRING_BASE, queue, base)?;
        self.command(RequestNumber::SET_VRING_ADDR, address.as_bytes(), &[])?;
        self.set_vring_call(queue, Some(call))?;
        self.set_vring_kick(queue, Some(kick))
    }

    /// Enables or disables a ring.
    pub fn set_vring_enable(&mut self, queue: u8, is_enabled: bool) -> Result<(), FrontendError> {
        self.set_vring_state(RequestNumber::SET_VRING_ENABLE, queue, is_enabled.into())
    }

    /// Stops a ring and gives how far the device has come.
    pub fn stop_vring(&mut self, queue: u8) -> Result<u32, FrontendError> {
        let request = RequestNumber::GET_VRING_BASE;
        let index = u32::from(queue);
        match self.call(request, VringState { index, num: 0 }.as_bytes(), &[])? {
            VringState { index: echo, num } if echo == index => Ok(num),
            _ => Err(FrontendError::Malformed { request }),
        }
    }

    /// Sets what the guest notifies a ring with.
    pub fn set_vring_kick(
        &mut self,
        queue: u8,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontendError> {
        self.set_vring_descriptor(RequestNumber::SET_VRING_KICK, queue, eventfd)
    }

    /// Sets what a ring interrupts the guest with.
    pub fn set_vring_call(
        &mut self,
        queue: u8,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontendError> {
        self.set_vring_descriptor(RequestNumber::SET_VRING_CALL, queue, eventfd)
    }

    /// Sets what a ring tells an error with.
    pub fn set_vring_error(
        &mut self,
        queue: u8,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontendError> {
        self.set_vring_descriptor(RequestNumber::SET_VRING_ERR, queue, eventfd)
    }

    /// Reads `data.len()` bytes, 1 to 4084, at `offset` of the configuration space.
    pub fn config(&mut self, offset: u32, data: &mut [u8]) -> Result<(), FrontendError> {
        let request = RequestNumber::GET_CONFIG;
        let access = config_access(offset, data);
        let reply = self.exchange(request, &[access.as_bytes(), data].concat(), &[])?;
        match ConfigAccess::read_from_prefix(&reply) {
            Ok((echo, read)) if echo == access && read.len() == data.len() => data.copy_from_slice(read),
            _ => return Err(FrontendError::Malformed { request }),
        }
        Ok(())
    }

    /// Writes `data`, 1 to 4084 bytes, at `offset` of the configuration space.
    pub fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), FrontendError> {
        let body = [config_access(offset, data).as_bytes(), data].concat();
        self.command(RequestNumber::SET_CONFIG, &body, &[])
    }

    /// Hands over one end of a new socket, on which the backend sends its own requests, and gives the other.
    pub fn open_backend_channel(&mut self) -> Result<FrontendChannel, FrontendError> {
        let (ours, theirs) = UnixStream::pair().map_err(FrontendError::Channel)?;
        self.command(RequestNumber::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Ok(FrontendChannel::new(ours))
    }

    /// Resets the device.
    pub fn reset_device(&mut self) -> Result<(), FrontendError> {
        self.command(RequestNumber::RESET_DEVICE, &[], &[])
    }

    /// The device status.
    pub fn status(&mut self) -> Result<u64, FrontendError> {
        self.number(RequestNumber::GET_STATUS)
    }

    /// Writes the device status.
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        self.command(RequestNumber::SET_STATUS, u64::from(status).as_bytes(), &[])
    }

    fn set_vring_state(&mut self, request: RequestNumber, queue: u8, num: u32) -> Result<(), FrontendError> {
        self.command(request, VringState { index: queue.into(), num }.as_bytes(), &[])
    }

    fn set_vring_descriptor(
        &mut self,
        request: RequestNumber,
        queue: u8,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontendError> {
        let no_descriptor = if eventfd.is_some() { 0 } else { VringDescriptor::NO_DESCRIPTOR };
        let body = VringDescriptor(u64::from(queue) | no_descriptor);
        self.command(request, body.as_bytes(), eventfd.as_slice())
    }

    /// A request that is answered with a number.
    fn number(&mut self, request: RequestNumber) -> Result<u64, FrontendError> {
        self.call(request, &[], &[])
    }

    /// A request that has no reply of its own; acknowledged once that is agreed on.
    fn command(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        if !self.acknowledges() {
            return self.send(request, body, descriptors);
        }
        match self.call(request, body, descriptors)? {
            0_u64 => Ok(()),
            number => {
                let errno = u32::try_from(number).ok().and_then(errno_from_wire);
                Err(FrontendError::Refused { request, errno })
            }
        }
    }

    /// A request whose reply is a `Reply`.
    fn call<Reply: FromBytes + Immutable>(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, FrontendError> {
        let reply = self.exchange(request, body, descriptors)?;
        Reply::read_from_bytes(&reply).map_err(|_| FrontendError::Malformed { request })
    }

    /// A request and the body of its reply, which is not empty.
    fn exchange(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, FrontendError> {
        self.send(request, body, descriptors)?;
        let frame = self
            .connection
            .receive_within(self.timeout)
            .map_err(|source| FrontendError::Receive { request, source })?;
        if frame.header.request != request {
            return Err(FrontendError::Malformed { request });
        }
        if frame.body.is_empty() {
            return Err(FrontendError::Refused { request, errno: None });
        }
        Ok(frame.body)
    }

    fn send(
        &mut self,
        request: RequestNumber,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let header = VhostUserHeader::request(request, self.acknowledges());
        self.connection
            .send_within(header, body, descriptors, self.timeout)
            .map_err(|source| FrontendError::Send { request, source })
    }

    fn acknowledges(&self) -> bool {
        self.features.contains(ProtocolFeatures::REPLY_ACK)
    }
}

/// What an access to the configuration space begins with.
fn config_access(offset: u32, data: &[u8]) -> ConfigAccess {
    ConfigAccess { offset, size: u32::try_from(data.len()).unwrap_or(u32::MAX), flags: 0 }
}
