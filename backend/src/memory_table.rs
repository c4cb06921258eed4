// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory as the frontend describes it: which file backs which guest-physical address.
//!
//! A pure data structure: it says what a change takes away and what it adds; the address space does that.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, FileType, OFlags, SealFlags};
use rustix::io::Errno;

use crate::failure::Failure;

/// Most regions a table has.
pub const MAX_REGIONS: usize = 256;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestAddress(pub u64);

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which file a descriptor is open on: two descriptors of one file back the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

/// A range of guest memory, backed by a file that cannot shrink.
#[derive(Clone, Debug)]
pub struct MemoryRegion {
    address: GuestAddress,
    size: u64,
    offset: u64,
    identity: FileIdentity,
    file: Arc<OwnedFd>,
}

/// Two regions are equal when a device cannot tell them apart.
impl PartialEq for MemoryRegion {
    fn eq(&self, other: &Self) -> bool {
        let place = |region: &Self| (region.address, region.size, region.offset);
        place(self) == place(other) && self.identity == other.identity
    }
}

impl Eq for MemoryRegion {}

impl MemoryRegion {
    /// Accepts a region after looking at its file.
    ///
    /// # Errors
    ///
    /// The file is not memory, not open for reading and writing, may shrink, or ends before the region does; the region
    /// is empty, not aligned to pages, or wraps around.
    pub fn new(address: GuestAddress, size: u64, offset: u64, file: OwnedFd) -> Result<Self, Failure> {
        let alignment = rustix::param::page_size() as u64;
        let aligned = [address.0, size, offset].iter().all(|value| value.is_multiple_of(alignment));
        if !aligned || size == 0 || address.0.checked_add(size).is_none() {
            return Err(Failure::region_unaligned(address.0, alignment));
        }
        let not_memory = |_: Errno| Failure::region_not_memory(address.0);
        let stat = fs::fstat(&file).map_err(not_memory)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Failure::region_not_memory(address.0));
        }
        // Only shmem and hugetlbfs files have seals.
        let seals = fs::fcntl_get_seals(&file).map_err(not_memory)?;
        let mode = fs::fcntl_getfl(&file).map_err(not_memory)?;
        // O_PATH descriptors fail the calls above; the rest of the access modes is told by these bits.
        if mode & OFlags::RWMODE != OFlags::RDWR {
            return Err(Failure::region_not_writable(address.0));
        }
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Failure::region_not_sealed(address.0));
        }
        let file_size = u64::try_from(stat.st_size).unwrap_or(0);
        if offset.checked_add(size).is_none_or(|end| end > file_size) {
            return Err(Failure::region_beyond_file(address.0, file_size));
        }
        let identity = FileIdentity { device: stat.st_dev, inode: stat.st_ino };
        Ok(Self { address, size, offset, identity, file: Arc::new(file) })
    }

    /// First guest-physical address.
    pub const fn address(&self) -> GuestAddress {
        self.address
    }

    /// In bytes; never 0.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Where the region begins in its file.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Last guest-physical address.
    pub const fn last(&self) -> u64 {
        self.address.0 + (self.size - 1)
    }

    /// The file.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.address.0 <= other.last() && other.address.0 <= self.last()
    }
}

/// All guest memory. No two regions overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTable {
    /// In ascending order of address.
    regions: Vec<MemoryRegion>,
}

/// How one table becomes another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryChange {
    /// To be unmapped, before anything is mapped.
    pub removed: Vec<MemoryRegion>,
    /// To be mapped.
    pub added: Vec<MemoryRegion>,
}

impl MemoryTable {
    /// A table of these regions.
    ///
    /// # Errors
    ///
    /// Two of them overlap, or there are more than [`MAX_REGIONS`].
    pub fn from_regions(regions: impl IntoIterator<Item = MemoryRegion>) -> Result<Self, Failure> {
        regions.into_iter().try_fold(Self::default(), Self::with)
    }

    /// This table and one more region.
    ///
    /// # Errors
    ///
    /// It overlaps another one, or there are [`MAX_REGIONS`] already.
    pub fn with(mut self, region: MemoryRegion) -> Result<Self, Failure> {
        if let Some(other) = self.regions.iter().find(|other| other.overlaps(&region)) {
            return Err(Failure::region_overlaps(region.address.0, other.address.0));
        }
        if self.regions.len() >= MAX_REGIONS {
            return Err(Failure::too_many_regions(region.address.0, MAX_REGIONS));
        }
        let place = self.regions.partition_point(|other| other.address < region.address);
        self.regions.insert(place, region);
        Ok(self)
    }

    /// This table without the region at `address`.
    ///
    /// # Errors
    ///
    /// There is none of that address and size.
    pub fn without(mut self, address: GuestAddress, size: u64) -> Result<Self, Failure> {
        let place = self.regions.iter().position(|region| region.address == address && region.size == size);
        let place = place.ok_or_else(|| Failure::region_unknown(address.0))?;
        self.regions.remove(place);
        Ok(self)
    }

    /// Takes a region out that is not mapped any more.
    pub fn forget(&mut self, lost: &MemoryRegion) {
        self.regions.retain(|region| region != lost);
    }

    /// What has to be done to come from this table to `next`. What is in both is left alone.
    pub fn change_to(&self, next: &Self) -> MemoryChange {
        let missing = |from: &Self, in_table: &Self| {
            from.regions.iter().filter(|region| !in_table.regions.contains(region)).cloned().collect()
        };
        MemoryChange { removed: missing(self, next), added: missing(next, self) }
    }

    /// How many bytes it has in all.
    pub fn size(&self) -> u64 {
        size_of_all(&self.regions)
    }

    /// The regions in ascending order of address.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }
}

/// How many bytes these regions have in all.
pub fn size_of_all(regions: &[MemoryRegion]) -> u64 {
    regions.iter().fold(0, |total, region| total.saturating_add(region.size()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;

    use super::*;

    const PAGE: u64 = 4096;

    fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
        let file = fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        fs::ftruncate(&file, size).unwrap();
        fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn region(address: u64, pages: u64) -> MemoryRegion {
        MemoryRegion::new(GuestAddress(address), pages * PAGE, 0, memfd(pages * PAGE, SealFlags::SHRINK))
            .unwrap()
    }

    fn refusal(size: u64, offset: u64, file: OwnedFd) -> String {
        MemoryRegion::new(GuestAddress(0), size, offset, file).unwrap_err().id().to_owned()
    }

    #[test]
    fn a_sealed_memfd_is_accepted() {
        let region = region(0x10_0000, 16);
        assert_eq!((region.address(), region.last()), (GuestAddress(0x10_0000), 0x10_ffff));
    }

    #[test]
    fn a_memfd_that_may_shrink_is_refused() {
        assert_eq!(refusal(PAGE, 0, memfd(PAGE, SealFlags::GROW)), "region-not-sealed");
    }

    #[test]
    fn a_read_only_descriptor_is_refused() {
        let file = memfd(PAGE, SealFlags::SHRINK);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let read_only = std::fs::File::open(path).unwrap();
        assert_eq!(refusal(PAGE, 0, read_only.into()), "region-not-writable");
    }

    #[test]
    fn what_is_not_memory_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let binary = std::fs::File::open("/proc/self/exe").unwrap();
        for file in [OwnedFd::from(null), binary.into()] {
            assert_eq!(refusal(PAGE, 0, file), "region-not-memory");
        }
    }

    #[test]
    fn a_region_beyond_the_files_end_is_refused() {
        for (size, offset) in [(2 * PAGE, 0), (PAGE, PAGE), (PAGE, u64::MAX - PAGE + 1)] {
            assert_eq!(refusal(size, offset, memfd(PAGE, SealFlags::SHRINK)), "region-beyond-file");
        }
    }

    #[test]
    fn an_empty_or_unaligned_region_is_refused() {
        for (size, offset) in [(0, 0), (1, 0), (PAGE, 1)] {
            assert_eq!(refusal(size, offset, memfd(PAGE, SealFlags::SHRINK)), "region-unaligned");
        }
    }

    /// Sums that wrap around would pass for small ones.
    #[test]
    fn no_address_size_and_offset_overflow() {
        const FILE: u64 = 16 * PAGE;
        let edges = [0, PAGE, FILE, 1 << 32, 1 << 63, u64::MAX - 2 * PAGE + 1, u64::MAX - PAGE + 1, u64::MAX];
        let sizes_and_offsets = edges.map(|size| edges.map(|offset| (size, offset))).concat();
        for (address, (size, offset)) in edges.into_iter().flat_map(|address| {
            sizes_and_offsets.iter().map(move |size_and_offset| (address, *size_and_offset))
        }) {
            let made = MemoryRegion::new(GuestAddress(address), size, offset, memfd(FILE, SealFlags::SHRINK));
            let is_whole = [address, size, offset].iter().all(|value| value.is_multiple_of(PAGE));
            let is_in_file = u128::from(offset) + u128::from(size) <= FILE.into();
            let has_end = u128::from(address) + u128::from(size) <= u64::MAX.into();
            let is_good = is_whole && size > 0 && is_in_file && has_end;
            assert_eq!(made.is_ok(), is_good, "{size:#x} at {address:#x} from {offset:#x}");
        }
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let table = MemoryTable::from_regions([region(0, 4)]).unwrap();
        let refused = table.with(region(3 * PAGE, 4)).unwrap_err();
        assert_eq!((refused.id(), refused.errno), ("region-overlaps", Errno::EXIST));
    }

    #[test]
    fn a_region_is_removed_only_as_it_was_added() {
        let table = MemoryTable::from_regions([region(0, 4)]).unwrap();
        assert_eq!(table.clone().without(GuestAddress(0), PAGE).unwrap_err().id(), "region-unknown");
        assert_eq!(table.without(GuestAddress(0), 4 * PAGE).unwrap(), MemoryTable::default());
    }

    #[test]
    fn the_same_file_through_another_descriptor_is_the_same_region() {
        let first = region(0, 4);
        let again = first.file().try_clone().unwrap();
        let second = MemoryRegion::new(first.address(), first.size(), first.offset(), again).unwrap();
        let table = |region| MemoryTable::from_regions([region]).unwrap();
        assert_eq!(table(first).change_to(&table(second)), MemoryChange::default());
    }

    #[test]
    fn another_file_at_the_same_address_is_another_region() {
        let table = |region| MemoryTable::from_regions([region]).unwrap();
        let change = table(region(0, 4)).change_to(&table(region(0, 4)));
        assert_eq!((change.removed.len(), change.added.len()), (1, 1));
    }

    proptest! {
        #[test]
        fn following_a_change_leads_from_one_table_to_the_other(from in any::<u8>(), to in any::<u8>()) {
            let all: Vec<_> = (0..8).map(|number| region(number * PAGE, 1)).collect();
            let table = |bits: u8| {
                let chosen = all.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, region)| region.clone());
                MemoryTable::from_regions(chosen).unwrap()
            };
            let (from, to) = (table(from), table(to));
            let change = from.change_to(&to);
            let without = change.removed.iter().try_fold(from, |table, region| table.without(region.address(), region.size()));
            let reached = change.added.into_iter().try_fold(without.unwrap(), MemoryTable::with).unwrap();
            prop_assert_eq!(reached, to);
        }
    }
}
