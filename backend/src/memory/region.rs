// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A range of guest memory and the file behind it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::fs::{self, FileType, OFlags, SealFlags};
use rustix::io::Errno;
use vfio::Access;

use crate::failure::Failure;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestAddress(pub u64);

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Some guest-physical addresses, one behind the other: at least one, and what follows the last one is an address, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    address: GuestAddress,
    size: u64,
}

impl GuestRange {
    /// `size` addresses; `None` for 0, and for more than there are.
    pub fn new(address: GuestAddress, size: u64) -> Option<Self> {
        (size > 0 && address.0.checked_add(size).is_some()).then_some(Self { address, size })
    }

    /// From `first` to before `end`; `None` where nothing is between them.
    pub fn between(first: u64, end: u64) -> Option<Self> {
        end.checked_sub(first).and_then(|size| Self::new(GuestAddress(first), size))
    }

    /// The first address.
    pub const fn address(&self) -> GuestAddress {
        self.address
    }

    /// In bytes; never 0.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Behind the last address.
    pub const fn end(&self) -> u64 {
        self.address.0 + self.size
    }

    /// The last address.
    pub const fn last(&self) -> u64 {
        self.end() - 1
    }

    /// The addresses that are in both.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::between(self.address.0.max(other.address.0), self.end().min(other.end()))
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.address.0, self.last())
    }
}

/// Which file a descriptor is open on: two descriptors of one file back the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

/// A place in a file.
#[derive(Clone, Debug)]
struct Backing {
    identity: FileIdentity,
    /// Whether the file is open for writing, too.
    is_writable: bool,
    file: Arc<OwnedFd>,
    offset: u64,
}

/// Two places are equal when a device cannot tell them apart.
impl PartialEq for Backing {
    fn eq(&self, other: &Self) -> bool {
        (self.identity, self.offset) == (other.identity, other.offset)
    }
}

impl Eq for Backing {}

/// A range of guest memory, the file behind it, and what a device may do there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    range: GuestRange,
    backing: Backing,
    access: Access,
}

impl MemoryRegion {
    /// Accepts a region after looking at its file.
    ///
    /// # Errors
    ///
    /// The file is not memory, not open for what a device may do, or ends before the region does; the region is empty, not
    /// aligned to pages, or wraps around.
    pub fn new(
        address: GuestAddress,
        size: u64,
        offset: u64,
        file: OwnedFd,
        access: Access,
    ) -> Result<Self, Failure> {
        let alignment = rustix::param::page_size() as u64;
        let aligned = [address.0, size, offset].iter().all(|value| value.is_multiple_of(alignment));
        let range = GuestRange::new(address, size).filter(|_| aligned);
        let range = range.ok_or_else(|| Failure::region_unaligned(address.0, alignment))?;
        let not_memory = |_: Errno| Failure::region_not_memory(address.0);
        let stat = fs::fstat(&file).map_err(not_memory)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Failure::region_not_memory(address.0));
        }
        // Only shmem and hugetlbfs files have seals, be it that nothing can be sealed.
        fs::fcntl_get_seals(&file).map_err(not_memory)?;
        // O_PATH descriptors fail the call above; the rest of the access modes is told by these bits. The kernel would not
        // ask: it lets a device write to a file that is open for reading.
        let mode = fs::fcntl_getfl(&file).map_err(not_memory)? & OFlags::RWMODE;
        if mode != OFlags::RDWR && (access == Access::ReadWrite || mode != OFlags::RDONLY) {
            return Err(Failure::region_not_writable(address.0));
        }
        let file_size = u64::try_from(stat.st_size).unwrap_or(0);
        if offset.checked_add(size).is_none_or(|end| end > file_size) {
            return Err(Failure::region_beyond_file(address.0, file_size));
        }
        let identity = FileIdentity { device: stat.st_dev, inode: stat.st_ino };
        let is_writable = mode == OFlags::RDWR;
        let backing = Backing { identity, is_writable, file: Arc::new(file), offset };
        Ok(Self { range, backing, access })
    }

    /// The same of a region whose file nobody can truncate: a device would go on using pages that nobody sees any more.
    ///
    /// # Errors
    ///
    /// Also where the file may shrink.
    pub fn sealed(address: GuestAddress, size: u64, offset: u64, file: OwnedFd) -> Result<Self, Failure> {
        let region = Self::new(address, size, offset, file, Access::ReadWrite)?;
        let seals = fs::fcntl_get_seals(region.file()).map_err(|_| Failure::region_not_memory(address.0))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Failure::region_not_sealed(address.0));
        }
        Ok(region)
    }

    /// Where it is.
    pub const fn range(&self) -> &GuestRange {
        &self.range
    }

    /// First guest-physical address.
    pub const fn address(&self) -> GuestAddress {
        self.range.address
    }

    /// In bytes; never 0.
    pub const fn size(&self) -> u64 {
        self.range.size
    }

    /// What a device may do there.
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Where the region begins in its file.
    pub const fn offset(&self) -> u64 {
        self.backing.offset
    }

    /// The file.
    pub fn file(&self) -> &OwnedFd {
        &self.backing.file
    }

    /// Whether both lead to the same memory where they overlap.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let Some(common) = self.range.intersection(&other.range) else { return true };
        self.part(common).backing == other.part(common).backing
    }

    /// What of it is in `range`, all of which it has.
    #[must_use]
    pub fn part(&self, range: GuestRange) -> Self {
        let distance = range.address.0.saturating_sub(self.range.address.0);
        let backing =
            Backing { offset: self.backing.offset.saturating_add(distance), ..self.backing.clone() };
        Self { range, backing, access: self.access }
    }

    /// The same memory elsewhere; `None` where there are not so many addresses.
    #[must_use]
    pub fn moved_to(self, address: GuestAddress) -> Option<Self> {
        let range = GuestRange::new(address, self.range.size)?;
        Some(Self { range, ..self })
    }

    /// The same with another permission.
    #[must_use]
    pub fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// This and what directly follows it, in memory and in the file, as one.
    pub fn joined_with(&self, other: &Self) -> Option<Self> {
        let range = GuestRange::between(self.address().0, other.range.end())?;
        let joined = Self { range, ..self.clone() };
        let follows = self.range.end() == other.address().0 && joined.part(other.range) == *other;
        follows.then_some(joined)
    }

    /// Uses the descriptor through which the file is open already, if there is one, instead of one more.
    pub fn share_file(&mut self, files: &mut OpenFiles) {
        let Backing { identity, is_writable, file, .. } = &mut self.backing;
        let key = (*identity, *is_writable);
        if let Some(open) = files.0.get(&key).and_then(Weak::upgrade) {
            *file = open;
            return;
        }
        files.0.retain(|_, file| file.strong_count() > 0);
        files.0.insert(key, Arc::downgrade(file));
    }
}

/// Files of guest memory that are open, for as long as any region is of them.
#[derive(Debug, Default)]
pub struct OpenFiles(BTreeMap<(FileIdentity, bool), Weak<OwnedFd>>);

#[cfg(test)]
pub(super) mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    pub(in crate::memory) const PAGE: u64 = 4096;

    fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
        let file = fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        fs::ftruncate(&file, size).unwrap();
        fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    /// A region of a file of its own.
    pub(in crate::memory) fn region(address: u64, pages: u64) -> MemoryRegion {
        MemoryRegion::sealed(GuestAddress(address), pages * PAGE, 0, memfd(pages * PAGE, SealFlags::SHRINK))
            .unwrap()
    }

    fn refusal(size: u64, offset: u64, file: OwnedFd) -> String {
        MemoryRegion::sealed(GuestAddress(0), size, offset, file).unwrap_err().id().to_owned()
    }

    fn reopened_for_reading(file: &OwnedFd) -> OwnedFd {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_sealed_memfd_is_accepted() {
        let region = region(0x10_0000, 16);
        assert_eq!((region.address(), region.range().last()), (GuestAddress(0x10_0000), 0x10_ffff));
    }

    #[test]
    fn a_memfd_that_may_shrink_is_refused() {
        assert_eq!(refusal(PAGE, 0, memfd(PAGE, SealFlags::GROW)), "region-not-sealed");
    }

    #[test]
    fn where_no_seal_is_asked_for_a_memfd_that_may_shrink_is_accepted() {
        let file = memfd(PAGE, SealFlags::empty());
        assert!(MemoryRegion::new(GuestAddress(0), PAGE, 0, file, Access::ReadWrite).is_ok());
    }

    #[test]
    fn a_read_only_descriptor_is_good_for_reading_only() {
        let file = memfd(PAGE, SealFlags::SHRINK);
        let region =
            |access| MemoryRegion::new(GuestAddress(0), PAGE, 0, reopened_for_reading(&file), access);
        assert_eq!(region(Access::ReadWrite).unwrap_err().id(), "region-not-writable");
        assert!(region(Access::Read).is_ok());
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
            let file = memfd(FILE, SealFlags::SHRINK);
            let made = MemoryRegion::sealed(GuestAddress(address), size, offset, file);
            let is_whole = [address, size, offset].iter().all(|value| value.is_multiple_of(PAGE));
            let is_in_file = u128::from(offset) + u128::from(size) <= FILE.into();
            let has_end = u128::from(address) + u128::from(size) <= u64::MAX.into();
            let is_good = is_whole && size > 0 && is_in_file && has_end;
            assert_eq!(made.is_ok(), is_good, "{size:#x} at {address:#x} from {offset:#x}");
        }
    }

    #[test]
    fn two_descriptors_of_a_file_lead_to_the_same_memory() {
        let first = region(0, 4);
        let again = first.file().try_clone().unwrap();
        let second = MemoryRegion::sealed(GuestAddress(PAGE), 2 * PAGE, PAGE, again).unwrap();
        assert!(first.agrees_with(&second));
        assert!(!first.agrees_with(&region(PAGE, 2)), "another file");
        assert!(!first.agrees_with(&first.part(*second.range()).moved_by_a_page()), "another offset");
        assert!(first.agrees_with(&region(4 * PAGE, 1)), "they have nothing in common");
    }

    impl MemoryRegion {
        fn moved_by_a_page(mut self) -> Self {
            self.backing.offset += PAGE;
            self
        }
    }
}
