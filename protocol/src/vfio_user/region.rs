// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a region is, and what of it a client may map; several writes to regions in one message.

use std::os::fd::{BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::command::Command;
use super::error::RequestError;
use super::message::{RegionAccess, RegionInfo};
use crate::extension::{read_all, split};

/// `struct vfio_region_info_cap_sparse_mmap` without its areas: its `vfio_info_cap_header`, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseMmap {
    /// 1: what follows are areas.
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Where the next capability is; 0.
    pub next: u32,
    /// Number of areas.
    pub nr_areas: u32,
    /// 0.
    pub reserved: u32,
}

impl SparseMmap {
    const ID: u16 = 1;
    const VERSION: u16 = 1;
}

/// `struct vfio_region_sparse_mmap_area`: a part of a region that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseMmapArea {
    /// Where in the region, in bytes; on a page.
    pub offset: u64,
    /// In bytes; whole pages.
    pub size: u64,
}

/// What `DEVICE_GET_REGION_INFO` is answered with.
#[derive(Debug)]
pub struct RegionDescription {
    /// The region, without capabilities.
    pub info: RegionInfo,
    /// What of it can be mapped where that is not all of it. Empty otherwise.
    pub areas: Vec<SparseMmapArea>,
    /// The file to map, where the region can be mapped: from `info.offset` on.
    pub file: Option<OwnedFd>,
}

impl RegionDescription {
    /// Most bytes that a client takes.
    const MAX_SIZE: u32 = 64 << 10;

    /// The reply's body for a client with room for `room` bytes. Where the capability does not fit, `argsz` says how much it takes,
    /// and nothing else tells of it: QEMU refuses the flag without an offset.
    pub(super) fn encode(&self, room: u32) -> Vec<u8> {
        let capability = self.capability();
        let size = u32::try_from(size_of::<RegionInfo>() + capability.len()).unwrap_or(u32::MAX);
        let info = RegionInfo { argsz: size, ..self.info };
        if capability.is_empty() || size > room {
            return info.as_bytes().to_vec();
        }
        let flags = info.flags | RegionInfo::CAPS;
        [RegionInfo { flags, cap_offset: RegionInfo::SIZE, ..info }.as_bytes(), &capability].concat()
    }

    fn capability(&self) -> Vec<u8> {
        if self.areas.is_empty() {
            return Vec::new();
        }
        let nr_areas = u32::try_from(self.areas.len()).unwrap_or(u32::MAX);
        let (id, version) = (SparseMmap::ID, SparseMmap::VERSION);
        let header = SparseMmap { id, version, next: 0, nr_areas, reserved: 0 };
        [header.as_bytes(), self.areas.as_bytes()].concat()
    }

    /// The descriptor that goes with the reply.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// How much room the whole description takes, if that is more than `room`.
    pub(super) fn more_than(body: &[u8], room: u32) -> Option<u32> {
        let (info, _) = RegionInfo::read_from_prefix(body).ok()?;
        Some(info.argsz).filter(|argsz| (room + 1..=Self::MAX_SIZE).contains(argsz))
    }

    /// Reads the reply's body; `None` if it is malformed. Other capabilities than ours are not looked for.
    pub(super) fn parse(body: &[u8], file: Option<OwnedFd>) -> Option<Self> {
        let (mut info, rest) = RegionInfo::read_from_prefix(body).ok()?;
        let mut areas = Vec::new();
        if info.flags & RegionInfo::CAPS != 0 {
            let (SparseMmap { id, nr_areas, .. }, entries) = split(rest)?;
            areas = read_all(entries)?;
            if info.cap_offset != RegionInfo::SIZE
                || id != SparseMmap::ID
                || usize::try_from(nr_areas) != Ok(areas.len())
            {
                return None;
            }
        } else if !rest.is_empty() {
            return None;
        }
        info.flags &= !RegionInfo::CAPS;
        info.cap_offset = 0;
        Some(Self { info, areas, file })
    }
}

/// Payload of `DEVICE_GET_REGION_IO_FDS`, and of the reply, after which descriptors' uses would follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionIoFds {
    /// Room for the reply, or its size, in bytes.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Number of descriptors' uses; 0 in the command.
    pub count: u32,
}

impl RegionIoFds {
    /// Size of the structure in bytes.
    pub const SIZE: u32 = 16;
}

/// One of the writes of `REGION_WRITE_MULTI`, behind their number, a `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionWrite {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// How many bytes, 1 to 8.
    pub count: u32,
    /// The bytes; those beyond `count` do not count.
    pub data: [u8; 8],
}

/// Most writes of one `REGION_WRITE_MULTI`.
pub const MAX_WRITES: usize = 256;

impl RegionWrite {
    /// Where it goes.
    pub const fn access(&self) -> RegionAccess {
        let Self { offset, region, count, .. } = *self;
        RegionAccess { offset, region, count }
    }

    /// What is written.
    pub fn bytes(&self) -> &[u8] {
        let count = usize::try_from(self.count).unwrap_or(usize::MAX);
        self.data.get(..count).unwrap_or(&self.data)
    }

    /// Reads the command's payload.
    pub(super) fn parse_all(body: &[u8]) -> Result<Vec<Self>, RequestError> {
        const FIXED: usize = size_of::<u64>();
        let command = Command::REGION_WRITE_MULTI;
        let bad_field = |field, value| RequestError::Field { command, field, value };
        let bad_size = |expected| RequestError::Size { command, expected, actual: body.len() };
        let (number, entries) = u64::read_from_prefix(body).map_err(|_| bad_size(FIXED))?;
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        if !(1..=MAX_WRITES).contains(&count) {
            return Err(bad_field("wr_cnt", number));
        }
        let writes: Vec<Self> = read_all(entries)
            .filter(|writes: &Vec<Self>| writes.len() == count)
            .ok_or_else(|| bad_size(FIXED + count * size_of::<Self>()))?;
        for RegionWrite { offset, count, data, .. } in &writes {
            if !(1..=data.len()).contains(&usize::try_from(*count).unwrap_or(usize::MAX)) {
                return Err(bad_field("count", (*count).into()));
            }
            if offset.checked_add((*count).into()).is_none() {
                return Err(bad_field("offset", *offset));
            }
        }
        Ok(writes)
    }

    /// The command's payload.
    pub(super) fn encode_all(writes: &[Self]) -> Vec<u8> {
        let count = u64::try_from(writes.len()).unwrap_or(u64::MAX);
        [count.as_bytes(), writes.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AREA: SparseMmapArea = SparseMmapArea { offset: 0x3000, size: 0x1000 };

    fn description(areas: Vec<SparseMmapArea>) -> RegionDescription {
        let flags = RegionInfo::READ | RegionInfo::WRITE | RegionInfo::MMAP;
        let info = RegionInfo { argsz: 0, flags, index: 3, cap_offset: 0, size: 0x4000, offset: 3 << 40 };
        RegionDescription { info, areas, file: None }
    }

    fn info_of(body: &[u8]) -> RegionInfo {
        RegionInfo::read_from_prefix(body).unwrap().0
    }

    #[test]
    fn areas_follow_where_there_is_room() {
        let body = description(vec![AREA]).encode(64);
        let info = info_of(&body);
        assert_eq!((info.argsz, info.cap_offset, info.flags), (64, 32, 0xf));
        let words: Vec<_> =
            body[32..].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1 | 1 << 16, 0, 1, 0, 0x3000, 0, 0x1000, 0]);
    }

    #[test]
    fn without_room_for_areas_only_the_size_tells_of_them() {
        for room in [32, 63] {
            let body = description(vec![AREA]).encode(room);
            let info = info_of(&body);
            assert_eq!((body.len(), info.argsz, info.cap_offset, info.flags), (32, 64, 0, 7));
            assert_eq!(RegionDescription::more_than(&body, 32), Some(64));
        }
    }

    #[test]
    fn a_region_that_is_mapped_whole_has_no_areas() {
        let body = description(vec![]).encode(u32::MAX);
        assert_eq!((body.len(), info_of(&body).argsz, info_of(&body).flags), (32, 32, 7));
        assert_eq!(RegionDescription::more_than(&body, 32), None);
    }

    #[test]
    fn a_server_that_claims_too_much_is_not_believed() {
        let mut body = description(vec![]).encode(32);
        body[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(RegionDescription::more_than(&body, 32), None);
    }

    #[test]
    fn areas_that_contradict_themselves_are_malformed() {
        let body = description(vec![AREA, AREA]).encode(128);
        let broken = |offset: usize, byte: u8| {
            let mut body = body.clone();
            body[offset] = byte;
            RegionDescription::parse(&body, None).is_none()
        };
        assert!(!broken(0, body[0]), "nothing is");
        assert!(broken(12, 33), "another place");
        assert!(broken(32, 2), "another capability");
        assert!(broken(40, 3), "another count");
        assert!(broken(4, 7), "no capability");
        assert!(RegionDescription::parse(&body[..body.len() - 1], None).is_none());
    }

    fn writes(count: u64, entries: &[RegionWrite]) -> Result<Vec<RegionWrite>, RequestError> {
        RegionWrite::parse_all(&[count.as_bytes(), entries.as_bytes()].concat())
    }

    const WRITE: RegionWrite = RegionWrite { offset: 8, region: 2, count: 4, data: [1, 2, 3, 4, 5, 6, 7, 8] };

    #[test]
    fn a_write_has_as_many_bytes_as_it_says() {
        let parsed = writes(1, &[WRITE]).unwrap();
        assert_eq!((parsed[0].bytes(), parsed[0].access().count), ([1, 2, 3, 4].as_slice(), 4));
    }

    #[test]
    fn writes_that_cannot_be_are_refused() {
        for count in [0, 2, MAX_WRITES as u64 + 1, u64::MAX] {
            assert!(writes(count, &[WRITE]).is_err(), "{count}");
        }
        assert!(writes(MAX_WRITES as u64, &[WRITE; MAX_WRITES]).is_ok());
        assert!(writes(MAX_WRITES as u64 + 1, &[WRITE; MAX_WRITES + 1]).is_err());
        for count in [0, 9, u32::MAX] {
            assert!(writes(1, &[RegionWrite { count, ..WRITE }]).is_err(), "{count} bytes");
        }
        assert!(writes(1, &[RegionWrite { offset: u64::MAX - 3, ..WRITE }]).is_err());
    }

    proptest! {
        #[test]
        fn descriptions_survive_the_wire(areas in prop::collection::vec((any::<u64>(), any::<u64>()), 0..5), index: u32) {
            let areas: Vec<_> = areas.into_iter().map(|(offset, size)| SparseMmapArea { offset, size }).collect();
            let mut sent = description(areas.clone());
            sent.info.index = index;
            let body = sent.encode(u32::MAX);
            prop_assert_eq!(usize::try_from(info_of(&body).argsz), Ok(body.len()));
            let came = RegionDescription::parse(&body, None).unwrap();
            prop_assert_eq!(came.info, RegionInfo { argsz: info_of(&body).argsz, ..sent.info });
            prop_assert_eq!(came.areas, areas);
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(body in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = RegionDescription::more_than(&body, 32);
            let _ = RegionDescription::parse(&body, None);
            let _ = RegionWrite::parse_all(&body);
        }

        #[test]
        fn writes_survive_the_wire(entries in prop::collection::vec((0..1_u64 << 40, any::<u32>(), 1..=8_u32, any::<[u8; 8]>()), 1..9)) {
            let sent: Vec<_> = entries
                .into_iter()
                .map(|(offset, region, count, data)| RegionWrite { offset, region, count, data })
                .collect();
            prop_assert_eq!(RegionWrite::parse_all(&RegionWrite::encode_all(&sent)), Ok(sent));
        }
    }
}
