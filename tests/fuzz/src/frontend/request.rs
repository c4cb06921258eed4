// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of the vhost-user face.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use protocol::RequestNumber;
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{
    ConfigAccess, MAX_TABLE_REGIONS, MemoryRegion, MemoryTableHeader, SingleMemoryRegion, VringAddress,
    VringDescriptor, VringState,
};
use rustix::event::{EventfdFlags, eventfd};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use zerocopy::IntoBytes;

/// Where the frontend has guest memory.
pub(super) const USER: u64 = 0x7f00_0000_0000;
/// What a driver of today wants, and that there are protocol features.
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 30;

/// A request, well-formed but for [`Self::Other`].
#[derive(Arbitrary, Debug)]
pub(super) enum Request {
    GetFeatures,
    SetFeatures { others: u64 },
    SetOwner,
    ResetOwner,
    GetProtocolFeatures,
    SetProtocolFeatures { taken_away: u64 },
    GetQueueNumber,
    GetMaxMemorySlots,
    SetMemoryTable(Vec<Region>),
    AddMemoryRegion(Region),
    RemoveMemoryRegion(Region),
    SetVringSize { ring: Ring, size: u16 },
    SetVringAddress { ring: Ring, descriptors: Place, available: Place, used: Place },
    SetVringBase { ring: Ring, base: u32 },
    GetVringBase(Ring),
    SetVringKick { ring: Ring, is_there: bool },
    SetVringCall { ring: Ring, is_there: bool },
    SetVringError { ring: Ring, is_there: bool },
    SetVringEnable { ring: Ring, is_enabled: bool },
    GetConfig { offset: u16, size: u8 },
    SetConfig { offset: u16, data: Vec<u8> },
    SetBackendChannel,
    ResetDevice,
    GetStatus,
    SetStatus(u8),
    Other { number: u8, body: Vec<u8>, descriptors: u8 },
}

/// A ring: mostly one that there is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Ring(u8);

impl Ring {
    pub(super) fn number(self) -> u8 {
        if self.0 < 0xf0 { self.0 % 4 } else { self.0 }
    }
}

/// A range of guest memory, in pages.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Region {
    page: u8,
    pages: u8,
    offset: u8,
}

impl Region {
    /// All that there is.
    pub(super) const ALL: Self = Self { page: 0, pages: 255, offset: 0 };
}

impl From<Region> for MemoryRegion {
    fn from(Region { page, pages, offset }: Region) -> Self {
        let [guest_address, size, offset] = [page, pages, offset].map(|number| u64::from(number) << 12);
        Self { guest_address, size, user_address: USER + guest_address, offset }
    }
}

/// Where a part of a ring is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    Page(u8),
    Byte(u16),
    OfFrontend(u16),
    Address(u64),
}

impl From<Place> for u64 {
    fn from(place: Place) -> Self {
        match place {
            Place::Page(page) => Self::from(page) << 12,
            Place::Byte(byte) => byte.into(),
            Place::OfFrontend(byte) => USER + Self::from(byte),
            Place::Address(address) => address,
        }
    }
}

/// Number, payload and descriptors.
pub(super) type Parts = (RequestNumber, Vec<u8>, Vec<OwnedFd>);

/// What comes back to the frontend, or stays with it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The last kick of each ring.
    pub(super) kicks: [Option<OwnedFd>; 4],
    /// The near end of the backend channel.
    pub(super) channel: Option<UnixStream>,
}

impl Request {
    /// What it is made of.
    pub(super) fn parts(&self, memory: &GuestMemory, kept: &mut Kept) -> Parts {
        type Number = RequestNumber;
        let none = |number| (number, vec![], vec![]);
        match self {
            Self::GetFeatures => none(Number::GET_FEATURES),
            Self::SetFeatures { others } => {
                (Number::SET_FEATURES, VirtioFeatures(FEATURES ^ others).as_bytes().into(), vec![])
            }
            Self::SetOwner => none(Number::SET_OWNER),
            Self::ResetOwner => none(Number::RESET_OWNER),
            Self::GetProtocolFeatures => none(Number::GET_PROTOCOL_FEATURES),
            Self::SetProtocolFeatures { taken_away } => {
                let features = ProtocolFeatures(ProtocolFeatures::OF_DEVICES.0 & !taken_away);
                (Number::SET_PROTOCOL_FEATURES, features.as_bytes().into(), vec![])
            }
            Self::GetQueueNumber => none(Number::GET_QUEUE_NUM),
            Self::GetMaxMemorySlots => none(Number::GET_MAX_MEM_SLOTS),
            Self::SetMemoryTable(regions) => memory_table(regions, memory),
            Self::AddMemoryRegion(region) => {
                let body = SingleMemoryRegion { reserved: 0, region: (*region).into() };
                (Number::ADD_MEM_REG, body.as_bytes().into(), vec![copy_of(memory)])
            }
            Self::RemoveMemoryRegion(region) => {
                let body = SingleMemoryRegion { reserved: 0, region: (*region).into() };
                (Number::REM_MEM_REG, body.as_bytes().into(), vec![])
            }
            Self::GetConfig { offset, size } => {
                let access = config_access(*offset, (*size).into());
                let body = [access.as_bytes(), &vec![0; usize::from(*size)]].concat();
                (Number::GET_CONFIG, body, vec![])
            }
            Self::SetConfig { offset, data } => {
                let data = &data[..data.len().min(256)];
                let access = config_access(*offset, u32::try_from(data.len()).expect("a few bytes"));
                (Number::SET_CONFIG, [access.as_bytes(), data].concat(), vec![])
            }
            Self::SetBackendChannel => {
                let (near, far) = UnixStream::pair().expect("a socket pair");
                kept.channel = Some(near);
                (Number::SET_BACKEND_REQ_FD, vec![], vec![far.into()])
            }
            Self::ResetDevice => none(Number::RESET_DEVICE),
            Self::GetStatus => none(Number::GET_STATUS),
            Self::SetStatus(status) => (Number::SET_STATUS, u64::from(*status).as_bytes().into(), vec![]),
            Self::Other { number, body, descriptors } => {
                let descriptors = (0..descriptors % 10).map(|_| eventfd_of()).collect();
                (RequestNumber((*number).into()), body.iter().copied().take(4096).collect(), descriptors)
            }
            about_ring => about_ring.ring_parts(kept),
        }
    }

    fn ring_parts(&self, kept: &mut Kept) -> Parts {
        type Number = RequestNumber;
        match *self {
            Self::SetVringSize { ring, size } => (Number::SET_VRING_NUM, state(ring, size.into()), vec![]),
            Self::SetVringAddress { ring, descriptors, available, used } => {
                let body = VringAddress {
                    index: ring.number().into(),
                    flags: 0,
                    descriptor: descriptors.into(),
                    used: used.into(),
                    available: available.into(),
                    log: 0,
                };
                (Number::SET_VRING_ADDR, body.as_bytes().into(), vec![])
            }
            Self::SetVringBase { ring, base } => (Number::SET_VRING_BASE, state(ring, base), vec![]),
            Self::GetVringBase(ring) => (Number::GET_VRING_BASE, state(ring, 0), vec![]),
            Self::SetVringKick { ring, is_there } => {
                let (body, eventfds) = descriptor(ring, is_there);
                if let Some(kick) = kept.kicks.get_mut(usize::from(ring.number())) {
                    *kick = eventfds.first().and_then(|eventfd| eventfd.try_clone().ok());
                }
                (Number::SET_VRING_KICK, body, eventfds)
            }
            Self::SetVringCall { ring, is_there } => {
                let (body, eventfds) = descriptor(ring, is_there);
                (Number::SET_VRING_CALL, body, eventfds)
            }
            Self::SetVringError { ring, is_there } => {
                let (body, eventfds) = descriptor(ring, is_there);
                (Number::SET_VRING_ERR, body, eventfds)
            }
            Self::SetVringEnable { ring, is_enabled } => {
                (Number::SET_VRING_ENABLE, state(ring, is_enabled.into()), vec![])
            }
            _ => unreachable!("it is about a ring"),
        }
    }
}

fn state(ring: Ring, num: u32) -> Vec<u8> {
    VringState { index: ring.number().into(), num }.as_bytes().into()
}

fn descriptor(ring: Ring, is_there: bool) -> (Vec<u8>, Vec<OwnedFd>) {
    let none = if is_there { 0 } else { VringDescriptor::NO_DESCRIPTOR };
    let body = VringDescriptor(u64::from(ring.number()) | none).as_bytes().into();
    (body, is_there.then(eventfd_of).into_iter().collect())
}

pub(super) fn eventfd_of() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

fn copy_of(memory: &GuestMemory) -> OwnedFd {
    memory.as_fd().try_clone_to_owned().expect("a second descriptor")
}

fn config_access(offset: u16, size: u32) -> ConfigAccess {
    ConfigAccess { offset: offset.into(), size, flags: 0 }
}

fn memory_table(regions: &[Region], memory: &GuestMemory) -> Parts {
    let regions = &regions[..regions.len().min(MAX_TABLE_REGIONS + 1)];
    let count = u32::try_from(regions.len()).expect("a few");
    let mut body = MemoryTableHeader { count, reserved: 0 }.as_bytes().to_vec();
    for region in regions {
        body.extend(MemoryRegion::from(*region).as_bytes());
    }
    (RequestNumber::SET_MEM_TABLE, body, regions.iter().map(|_| copy_of(memory)).collect())
}
