// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the vfio-user face.

use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use protocol::vfio_user::{
    Capabilities, Command, DeviceFeature, DeviceInfo, DmaMapPayload, DmaUnmapPayload, IrqInfo, IrqSet,
    RegionAccess, RegionInfo, RegionIoFds, RegionWrite, ResetGroupWish,
};
use zerocopy::IntoBytes;

use super::descriptor::Descriptor;
use super::world::World;

/// A command, well-formed but for [`Self::Other`].
#[derive(Arbitrary, Debug)]
pub(super) enum DataMessage {
    Version {
        max_msg_fds: Option<u64>,
    },
    /// In pages, of which there are few, so that mappings meet.
    Map {
        page: u8,
        pages: u8,
        offset: u8,
        flags: u8,
        memory: Option<u8>,
    },
    Unmap {
        page: u8,
        pages: u8,
    },
    UnmapAll,
    GetInfo,
    GetRegionInfo(u8),
    GetIrqInfo(u8),
    SetIrqs {
        index: u8,
        start: u8,
        count: u8,
        action: u8,
        data: IrqData,
    },
    Read {
        region: u8,
        place: Place,
        count: u16,
    },
    Write {
        region: u8,
        place: Place,
        data: Data,
    },
    WriteMulti(Vec<Small>),
    GetRegionIoFds(u8),
    Feature {
        flags: u8,
        argsz: u16,
        first_row: u8,
    },
    Reset,
    Other {
        number: u8,
        body: Vec<u8>,
        descriptor: Option<Descriptor>,
    },
}

/// For which interrupts, and with what.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum IrqData {
    None,
    Bools(u8),
    Eventfds,
    NoEventfds,
}

/// Where in a region.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    /// One of the first registers.
    Register(u8),
    Offset(u16),
    /// From the end of a page on.
    EndOf(u8),
    Address(u64),
}

/// One of several writes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Small {
    region: u8,
    place: Place,
    count: u8,
    data: [u8; 8],
}

/// What is written.
#[derive(Arbitrary, Debug)]
pub(super) enum Data {
    Byte(u8),
    Half(u16),
    Word(u32),
    Double(u64),
    Bytes(Vec<u8>),
}

impl Place {
    fn offset(self) -> u64 {
        match self {
            Self::Register(number) => u64::from(number) << 2,
            Self::Offset(offset) => offset.into(),
            Self::EndOf(page) => ((u64::from(page) + 1) << 12) - 2,
            Self::Address(address) => address,
        }
    }
}

impl Data {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Byte(byte) => vec![*byte],
            Self::Half(half) => half.to_le_bytes().into(),
            Self::Word(word) => word.to_le_bytes().into(),
            Self::Double(double) => double.to_le_bytes().into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Small {
    fn write(&self) -> RegionWrite {
        let RegionAccess { offset, region, count } = access(self.region, self.place, (self.count % 9).into());
        RegionWrite { offset, region, count, data: self.data }
    }
}

/// Regions of a function, and one more.
const REGIONS: u8 = 10;
/// Interrupt indexes of a function, and one more.
const IRQS: u8 = 6;

impl DataMessage {
    /// What it is made of.
    pub(super) fn parts(&self, world: &mut World) -> (Command, Vec<u8>, Vec<OwnedFd>) {
        match self {
            Self::Version { max_msg_fds } => {
                let capabilities = Capabilities { max_msg_fds: *max_msg_fds, ..Capabilities::default() };
                (Command::VERSION, capabilities.encode(1), vec![])
            }
            Self::Map { page, pages, offset, flags, memory } => {
                let body = DmaMapPayload {
                    argsz: DmaMapPayload::SIZE,
                    flags: DmaMapPayload::READ | u32::from(*flags) & 0b110,
                    offset: in_pages(*offset),
                    address: in_pages(*page),
                    size: in_pages(*pages),
                };
                let memory = memory.map(|which| world.memory(which));
                (Command::DMA_MAP, body.as_bytes().into(), memory.into_iter().collect())
            }
            Self::Unmap { page, pages } => {
                let (address, size) = (in_pages(*page), in_pages(*pages));
                let body = DmaUnmapPayload { argsz: DmaUnmapPayload::SIZE, flags: 0, address, size };
                (Command::DMA_UNMAP, body.as_bytes().into(), vec![])
            }
            Self::UnmapAll => {
                let flags = DmaUnmapPayload::ALL;
                let body = DmaUnmapPayload { argsz: DmaUnmapPayload::SIZE, flags, address: 0, size: 0 };
                (Command::DMA_UNMAP, body.as_bytes().into(), vec![])
            }
            Self::GetInfo => {
                let body = DeviceInfo { argsz: DeviceInfo::SIZE, flags: 0, num_regions: 0, num_irqs: 0 };
                (Command::DEVICE_GET_INFO, body.as_bytes().into(), vec![])
            }
            Self::GetRegionInfo(index) => {
                let index = (index % REGIONS).into();
                let argsz = RegionInfo::SIZE;
                let body = RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
                (Command::DEVICE_GET_REGION_INFO, body.as_bytes().into(), vec![])
            }
            Self::GetIrqInfo(index) => {
                let index = (index % IRQS).into();
                let body = IrqInfo { argsz: IrqInfo::SIZE, flags: 0, index, count: 0 };
                (Command::DEVICE_GET_IRQ_INFO, body.as_bytes().into(), vec![])
            }
            Self::SetIrqs { index, start, count, action, data } => {
                let (data, bytes, descriptors) = data.parts(*count, world);
                let set = IrqSet {
                    argsz: 20,
                    flags: data | 1 << (3 + action % 3),
                    index: (index % IRQS).into(),
                    start: (start % 16).into(),
                    count: count_of(*count).into(),
                };
                (Command::DEVICE_SET_IRQS, [set.as_bytes(), &bytes].concat(), descriptors)
            }
            Self::Read { region, place, count } => {
                let access = access(*region, *place, (*count).into());
                (Command::REGION_READ, access.as_bytes().into(), vec![])
            }
            Self::Write { region, place, data } => {
                let data = data.bytes();
                let access = access(*region, *place, u32::try_from(data.len()).expect("a short input"));
                (Command::REGION_WRITE, [access.as_bytes(), &data].concat(), vec![])
            }
            Self::WriteMulti(writes) => {
                let count = u64::try_from(writes.len()).expect("a short input");
                let writes: Vec<_> = writes.iter().map(Small::write).collect();
                (Command::REGION_WRITE_MULTI, [count.as_bytes(), writes.as_bytes()].concat(), vec![])
            }
            Self::GetRegionIoFds(index) => {
                let index = (index % REGIONS).into();
                let body = RegionIoFds { argsz: RegionIoFds::SIZE, flags: 0, index, count: 0 };
                (Command::DEVICE_GET_REGION_IO_FDS, body.as_bytes().into(), vec![])
            }
            Self::Feature { flags, argsz, first_row } => {
                let flags = u32::from(*flags) << 16 | DeviceFeature::RESET_GROUP;
                let feature = DeviceFeature { argsz: (*argsz).into(), flags };
                let wish = ResetGroupWish { first_row: (*first_row).into(), reserved: 0 };
                (Command::DEVICE_FEATURE, [feature.as_bytes(), wish.as_bytes()].concat(), vec![])
            }
            Self::Reset => (Command::DEVICE_RESET, vec![], vec![]),
            Self::Other { number, body, descriptor } => {
                let descriptor = descriptor.and_then(|descriptor| descriptor.get(world));
                (Command((*number).into()), body.clone(), descriptor.into_iter().collect())
            }
        }
    }
}

fn in_pages(number: u8) -> u64 {
    u64::from(number % 8) << 12
}

fn access(region: u8, place: Place, count: u32) -> RegionAccess {
    RegionAccess { offset: place.offset(), region: (region % REGIONS).into(), count }
}

/// Most vectors at a time.
fn count_of(count: u8) -> u8 {
    count % 12
}

impl IrqData {
    /// Flag, bytes and eventfds.
    fn parts(self, count: u8, world: &mut World) -> (u32, Vec<u8>, Vec<OwnedFd>) {
        let count = count_of(count);
        match self {
            Self::None => (1, vec![], vec![]),
            Self::Bools(bits) => (1 << 1, (0..count).map(|bit| bits >> (bit % 8) & 1).collect(), vec![]),
            Self::Eventfds => {
                (1 << 2, vec![], (0..count).filter_map(|_| Descriptor::Eventfd.get(world)).collect())
            }
            Self::NoEventfds => (1 << 2, vec![], vec![]),
        }
    }
}
