// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Regions of a VFIO PCI device: `VFIO_DEVICE_GET_REGION_INFO`.

use std::ops::Range;

use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

/// The number of a region (`VFIO_PCI_*_REGION_INDEX`): 0-5 the BARs, 6 the ROM, 7 the config space, 8 VGA, from 9 on what
/// a device adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegionIndex(pub u32);

impl RegionIndex {
    /// The config space.
    pub const CONFIG: Self = Self(7);

    /// Whether it is a BAR.
    pub const fn is_bar(self) -> bool {
        self.0 < 6
    }
}

/// Longest capability list that is believed, in bytes.
pub(crate) const MAX_INFO_SIZE: u32 = 64 << 10;

/// What the kernel says about a region (`struct vfio_region_info` and its capabilities).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// `VFIO_REGION_INFO_FLAG_READ`, `_WRITE` and `_MMAP`; nothing else.
    pub flags: u32,
    /// In bytes; 0 for a region the device does not have.
    pub size: u64,
    /// Where the region begins in the device's file.
    pub offset: u64,
    /// Parts that may be mapped, when not the whole region may (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
    pub sparse_areas: Vec<Range<u64>>,
}

impl Region {
    /// Whether an access of `count` bytes at `offset` stays within the region.
    pub fn contains(&self, offset: u64, count: u64) -> bool {
        offset.checked_add(count).is_some_and(|end| end <= self.size)
    }

    /// Whether the region can be read.
    pub const fn is_readable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_READ != 0
    }

    /// Whether the region can be written.
    pub const fn is_writable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_WRITE != 0
    }

    /// The parts, in whole pages of `page` bytes, that may be mapped and have nothing of `taken` in them; in ascending order.
    /// What shares a page with something else, because the region is smaller than that, is not among them.
    pub fn mappable_areas(&self, page: u64, taken: &[Range<u64>]) -> Vec<Range<u64>> {
        if self.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Vec::new();
        }
        let whole = 0..self.size;
        let offered =
            if self.sparse_areas.is_empty() { std::slice::from_ref(&whole) } else { &self.sparse_areas };
        let mut areas: Vec<_> =
            offered.iter().filter_map(|area| whole_pages(area, self.size, page)).collect();
        for hole in taken {
            areas = areas.into_iter().flat_map(|area| without(area, hole, page)).collect();
        }
        areas.sort_by_key(|area| area.start);
        areas
    }

    /// Decodes what the kernel wrote; `None` for a malformed answer.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = word(bytes, 4)?;
        let sparse_areas = if flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
            Vec::new()
        } else {
            sparse_areas(bytes, word(bytes, 12)?)?
        };
        let known = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
        Some(Self {
            flags: flags & known,
            size: double_word(bytes, 16)?,
            offset: double_word(bytes, 24)?,
            sparse_areas,
        })
    }
}

/// What of an area is whole pages within a region of `size` bytes.
fn whole_pages(area: &Range<u64>, size: u64, page: u64) -> Option<Range<u64>> {
    let start = area.start.checked_next_multiple_of(page)?;
    let end = area.end.min(size);
    let end = end - end.checked_rem(page)?;
    (start < end).then_some(start..end)
}

/// What is left of an area on either side of the pages of a hole.
fn without(area: Range<u64>, hole: &Range<u64>, page: u64) -> impl Iterator<Item = Range<u64>> {
    let from = hole.start - hole.start.checked_rem(page).unwrap_or(0);
    let to = hole.end.checked_next_multiple_of(page).unwrap_or(u64::MAX);
    let parts = [area.start..area.end.min(from), area.start.max(to)..area.end];
    parts.into_iter().filter(|part| part.start < part.end)
}

/// Walks the capability list that begins at `next`. Offsets must grow, which bounds the walk by the buffer.
fn sparse_areas(bytes: &[u8], mut next: u32) -> Option<Vec<Range<u64>>> {
    const HEADER: u32 = 8;
    let mut areas = Vec::new();
    while next != 0 {
        let here = next;
        let id = u32::from(u16::from_ne_bytes(chunk(bytes, here)?));
        next = word(bytes, here.checked_add(4)?)?;
        if next != 0 && next < here.checked_add(HEADER)? {
            return None;
        }
        if id == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            areas.extend(areas_of(bytes, here.checked_add(HEADER)?)?);
        }
    }
    Some(areas)
}

/// The body of a sparse-mmap capability: count, reserved, then offset and size of each area.
fn areas_of(bytes: &[u8], start: u32) -> Option<Vec<Range<u64>>> {
    let count = word(bytes, start)?;
    (0..count)
        .map(|number| {
            let entry = start.checked_add(8)?.checked_add(number.checked_mul(16)?)?;
            let offset = double_word(bytes, entry)?;
            let size = double_word(bytes, entry.checked_add(8)?)?;
            Some(offset..offset.checked_add(size)?)
        })
        .collect()
}

fn word(bytes: &[u8], offset: u32) -> Option<u32> {
    chunk(bytes, offset).map(u32::from_ne_bytes)
}

fn double_word(bytes: &[u8], offset: u32) -> Option<u64> {
    chunk(bytes, offset).map(u64::from_ne_bytes)
}

fn chunk<const N: usize>(bytes: &[u8], offset: u32) -> Option<[u8; N]> {
    bytes.get(usize::try_from(offset).ok()?..)?.first_chunk().copied()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(flags: u32, capabilities: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [0, flags, 0, capabilities].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend([0x4000_u64, 1 << 40].into_iter().flat_map(u64::to_ne_bytes));
        bytes
    }

    fn capability(id: u16, next: u32, body: &[u64]) -> Vec<u8> {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body.iter().flat_map(|value| value.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_plain_region_has_no_sparse_areas() {
        let region = Region::decode(&info(7, 0)).unwrap();
        assert_eq!(region, Region { flags: 7, size: 0x4000, offset: 1 << 40, sparse_areas: vec![] });
    }

    #[test]
    fn sparse_areas_are_found_behind_an_unknown_capability() {
        let mut bytes = info(0xf, 32);
        bytes.extend(capability(9, 40, &[]));
        bytes.extend(capability(1, 0, &[2, 0, 0x1000, 0x2000, 0x800]));
        assert_eq!(Region::decode(&bytes).unwrap().sparse_areas, [0..0x1000, 0x2000..0x2800]);
    }

    #[test]
    fn a_capability_list_that_loops_is_malformed() {
        let mut bytes = info(0xf, 32);
        bytes.extend(capability(9, 32, &[]));
        assert_eq!(Region::decode(&bytes), None);
    }

    #[test]
    fn an_access_that_wraps_around_is_outside() {
        let region = Region { size: 0x1000, ..Region::default() };
        assert!(region.contains(0xffc, 4));
        assert!(!region.contains(0xffd, 4));
        assert!(!region.contains(u64::MAX, 2));
    }

    #[test]
    fn no_offset_and_count_overflow() {
        let edges = [0, 1, 0xfff, 0x1000, 0x1001, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX];
        for size in edges {
            let region = Region { size, ..Region::default() };
            for (offset, count) in
                edges.iter().flat_map(|offset| edges.iter().map(move |count| (*offset, *count)))
            {
                let is_inside = u128::from(offset) + u128::from(count) <= size.into();
                assert_eq!(
                    region.contains(offset, count),
                    is_inside,
                    "{count:#x} at {offset:#x} of {size:#x}"
                );
            }
        }
    }

    const PAGE: u64 = 0x1000;

    fn mappable(size: u64) -> Region {
        Region { flags: 7, size, ..Region::default() }
    }

    #[test]
    fn a_region_without_holes_is_mapped_whole() {
        assert_eq!(mappable(0x4000).mappable_areas(PAGE, &[]), [0..0x4000]);
    }

    #[test]
    fn the_pages_of_holes_are_left_out() {
        let region = mappable(0x8000);
        let areas = |taken: &[Range<u64>]| region.mappable_areas(PAGE, taken);
        assert_eq!(areas(&[0x2000..0x2410, 0x3000..0x3010]), [0..0x2000, 0x4000..0x8000]);
        assert_eq!(areas(&[0..0x10]), [0x1000..0x8000]);
        assert_eq!(areas(&[0x7ff8..0x8000]), [0..0x7000]);
        assert_eq!(areas(&[0x1fff..0x2001]), [0..0x1000, 0x3000..0x8000]);
        assert_eq!(areas(&[0..0x8000]), []);
    }

    #[test]
    fn of_less_than_a_page_nothing_is_mapped() {
        assert_eq!(mappable(0x800).mappable_areas(PAGE, &[]), []);
        assert_eq!(mappable(0x1800).mappable_areas(PAGE, &[]), [0..0x1000]);
    }

    #[test]
    fn what_the_kernel_does_not_map_is_not_mapped() {
        let ports = Region { flags: 3, size: 0x4000, ..Region::default() };
        assert_eq!(ports.mappable_areas(PAGE, &[]), []);
        let sparse_areas = vec![0x3000..0x4000, 0x1000..0x2000, 0x7800..0x9000];
        let sparse = Region { sparse_areas, ..mappable(0x8000) };
        assert_eq!(sparse.mappable_areas(PAGE, &[]), [0x1000..0x2000, 0x3000..0x4000]);
    }

    proptest! {
        #[test]
        fn mappable_areas_are_pages_inside_without_holes_and_in_order(
            size in prop_oneof![0..0x2_0000_u64, any::<u64>()],
            holes in proptest::collection::vec((prop_oneof![0..0x2_0000_u64, any::<u64>()], any::<u16>()), 0..4),
            sparse in proptest::collection::vec((any::<u16>().prop_map(u64::from), any::<u64>()), 0..4),
        ) {
            let range = |start: u64, length: u64| start..start.saturating_add(length);
            let sparse_areas: Vec<_> = sparse.into_iter().map(|(start, length)| range(start, length)).collect();
            let region = Region { sparse_areas, ..mappable(size) };
            let holes: Vec<_> = holes.into_iter().map(|(start, length)| range(start, length.into())).collect();
            let areas = region.mappable_areas(PAGE, &holes);
            for area in &areas {
                prop_assert!(area.start.is_multiple_of(PAGE) && area.end.is_multiple_of(PAGE));
                prop_assert!(area.start < area.end && area.end <= size);
                for hole in holes.iter().filter(|hole| !hole.is_empty()) {
                    prop_assert!(hole.end <= area.start || area.end <= hole.start, "{hole:x?} in {area:x?}");
                }
            }
            prop_assert!(areas.is_sorted_by_key(|area| area.start));
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Region::decode(&bytes);
        }
    }
}
