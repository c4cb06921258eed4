// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of the control face.

use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use protocol::RequestNumber;
use protocol::extension::{
    AddDeviceRequest, Cookie, CookieRequest, ResetGroupRequest, ResetRequest, ServeRequest,
    SetIommufdRequest, VersionRequest,
};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{MAX_TABLE_REGIONS, MemoryRegion, MemoryTableHeader, SingleMemoryRegion};
use zerocopy::IntoBytes;

use super::descriptor::Descriptor;
use super::world::World;

/// A request, well-formed but for [`Self::Other`].
#[derive(Arbitrary, Debug)]
pub(super) enum ControlMessage {
    GetFeatures,
    SetFeatures { others: u64 },
    SetOwner,
    GetProtocolFeatures,
    SetProtocolFeatures { taken_away: u64 },
    GetMaxMemorySlots,
    Version { minor: u16 },
    SetIommufd { which: u8, adopted: Option<u8> },
    AddDevice { cookie: Name, function: u8 },
    SetMemoryTable(Vec<Region>),
    AddMemoryRegion(Region),
    RemoveMemoryRegion(Region),
    Serve { cookie: Name, face: u8, listens: bool },
    RemoveDevice(Name),
    GetDeviceInfo(Name),
    GetResetGroup { cookie: Name, first_row: u8, max_rows: u8 },
    Reset { cookie: Name, method: u8, deadline: u8 },
    LastFailure,
    ListDevices,
    Other { number: u16, body: Vec<u8>, descriptor: Option<Descriptor> },
}

/// A device's: few, so that they meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Name(u8);

impl From<Name> for Cookie {
    fn from(Name(number): Name) -> Self {
        Self(u64::from(number) % 5)
    }
}

/// A range of guest memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Region {
    place: Place,
    pages: u8,
    file: u8,
    offset: u8,
}

/// Where it is.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Page(u8),
    /// Around the window for interrupt messages.
    Window(u8),
    /// Around the end of what an IOMMU can translate.
    End(u8),
    Address(u64),
}

impl From<&Region> for MemoryRegion {
    fn from(&Region { place, pages, offset, .. }: &Region) -> Self {
        let page = |number: u8| u64::from(number) << 12;
        let guest_address = match place {
            Place::Page(number) => page(number),
            Place::Window(number) => 0xfede_0000 + (u64::from(number) << 16),
            Place::End(number) => (1 << 48) - page(number),
            Place::Address(address) => address,
        };
        Self { guest_address, size: page(pages), user_address: 0, offset: page(offset) }
    }
}

/// Number, payload and descriptors.
pub(super) type Parts = (RequestNumber, Vec<u8>, Vec<OwnedFd>);

impl ControlMessage {
    /// What it takes to agree on the extension.
    pub(super) const NEGOTIATION: [Self; 2] =
        [Self::SetProtocolFeatures { taken_away: 0 }, Self::Version { minor: 1 }];

    /// What it is made of. What a client would need for it first happens on the way: nodes are opened, sockets made.
    pub(super) fn parts(&self, world: &mut World) -> Parts {
        type Number = RequestNumber;
        let none = Vec::new;
        let one = |descriptor: Option<OwnedFd>| descriptor.into_iter().collect();
        match self {
            Self::GetFeatures => (Number::GET_FEATURES, none(), vec![]),
            Self::SetFeatures { others } => {
                let features = VirtioFeatures(VirtioFeatures::OFFERED.0 ^ others);
                (Number::SET_FEATURES, features.as_bytes().into(), vec![])
            }
            Self::SetOwner => (Number::SET_OWNER, none(), vec![]),
            Self::GetProtocolFeatures => (Number::GET_PROTOCOL_FEATURES, none(), vec![]),
            Self::SetProtocolFeatures { taken_away } => {
                let features = ProtocolFeatures(ProtocolFeatures::OFFERED.0 & !taken_away);
                (Number::SET_PROTOCOL_FEATURES, features.as_bytes().into(), vec![])
            }
            Self::GetMaxMemorySlots => (Number::GET_MAX_MEM_SLOTS, none(), vec![]),
            Self::Version { minor } => {
                let body = VersionRequest { major: 1, minor: *minor, flags: 0 };
                (Number::VERSION, body.as_bytes().into(), vec![])
            }
            Self::SetIommufd { which, adopted } => {
                let body = SetIommufdRequest {
                    flags: adopted.is_some().into(),
                    ioas: adopted.unwrap_or_default().into(),
                };
                (Number::SET_IOMMUFD, body.as_bytes().into(), one(world.iommufd(*which)))
            }
            Self::AddDevice { cookie, function } => {
                let body = AddDeviceRequest { cookie: (*cookie).into(), flags: 0, reserved: 0 };
                (Number::ADD_DEVICE, body.as_bytes().into(), one(world.open_cdev(*function)))
            }
            Self::SetMemoryTable(regions) => memory_table(regions, world),
            Self::AddMemoryRegion(region) => {
                let body = SingleMemoryRegion { reserved: 0, region: region.into() };
                (Number::ADD_MEM_REG, body.as_bytes().into(), vec![world.memory(region.file)])
            }
            Self::RemoveMemoryRegion(region) => {
                let body = SingleMemoryRegion { reserved: 0, region: region.into() };
                (Number::REM_MEM_REG, body.as_bytes().into(), vec![])
            }
            Self::Serve { cookie, face, listens } => {
                let body = ServeRequest { cookie: (*cookie).into(), face: 1, flags: 0 };
                (Number::SERVE, body.as_bytes().into(), vec![world.socket_of_face(*face, *listens)])
            }
            Self::RemoveDevice(cookie) => (Number::REMOVE_DEVICE, cookie_payload(*cookie), vec![]),
            Self::GetDeviceInfo(cookie) => (Number::GET_DEVICE_INFO, cookie_payload(*cookie), vec![]),
            Self::GetResetGroup { cookie, first_row, max_rows } => {
                let body = ResetGroupRequest {
                    cookie: (*cookie).into(),
                    first_row: (*first_row).into(),
                    max_rows: (*max_rows).into(),
                };
                (Number::GET_RESET_GROUP, body.as_bytes().into(), vec![])
            }
            Self::Reset { cookie, method, deadline } => {
                let body = ResetRequest {
                    cookie: (*cookie).into(),
                    method: u32::from(*method) % 4,
                    policy: u32::from(*method) / 4 % 5,
                    reserved: 0,
                    // Not the server's default, which is a minute.
                    deadline_ms: u32::from(*deadline) % 32 + 1,
                };
                (Number::RESET, body.as_bytes().into(), vec![])
            }
            Self::LastFailure => (Number::LAST_FAILURE, none(), vec![]),
            Self::ListDevices => (Number::LIST_DEVICES, none(), vec![]),
            Self::Other { number, body, descriptor } => {
                let body = body.iter().copied().take(4096).collect();
                let descriptor = descriptor.and_then(|descriptor| descriptor.get(world));
                (RequestNumber((*number).into()), body, one(descriptor))
            }
        }
    }
}

fn cookie_payload(cookie: Name) -> Vec<u8> {
    CookieRequest { cookie: cookie.into() }.as_bytes().into()
}

fn memory_table(regions: &[Region], world: &mut World) -> Parts {
    let regions = &regions[..regions.len().min(MAX_TABLE_REGIONS + 1)];
    let count = u32::try_from(regions.len()).expect("a few");
    let mut body = MemoryTableHeader { count, reserved: 0 }.as_bytes().to_vec();
    for region in regions {
        body.extend(MemoryRegion::from(region).as_bytes());
    }
    let files = regions.iter().map(|region| world.memory(region.file)).collect();
    (RequestNumber::SET_MEM_TABLE, body, files)
}
