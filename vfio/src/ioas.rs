// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An I/O address space: which memory a device finds behind which address.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings::{
    iommu_ioas_alloc, iommu_ioas_copy, iommu_ioas_map_file, iommu_ioas_unmap, iommu_iova_range,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use rustix::io::Errno;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};

use crate::error::CallError;
use crate::ioctl;
use crate::iommufd::Iommufd;
use crate::sys::{self, IovaRangesError};

/// Most usable ranges an IOAS is believed to have.
const MAX_RANGES: u32 = 4096;

/// An address as the device uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iova(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of IOVAs, both ends included (`struct iommu_iova_range`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// First address.
    pub start: Iova,
    /// Last address.
    pub last: Iova,
}

/// The addresses an IOAS can map now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IovaRanges {
    /// In ascending order. The holes between them are reserved, for example for interrupt messages.
    pub usable: Vec<IovaRange>,
    /// What start and length of a mapping must be a multiple of, in bytes; a power of two.
    pub alignment: u64,
}

/// What a device may do with mapped memory, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

/// An IOAS of an iommufd, ours or somebody else's.
#[derive(Debug)]
pub struct Ioas {
    iommufd: Arc<Iommufd>,
    id: u32,
    ownership: IoasOwnership,
    /// Without `IOMMU_IOAS_MAP_FILE` the kernel maps what this process has mapped; kept for as long as the IOVAs are.
    /// A copy in another IOAS leads to the same.
    process_mappings: BTreeMap<Iova, Arc<MmapRegion>>,
}

/// Who allocated an IOAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IoasOwnership {
    /// We did, and destroy it.
    Ours,
    /// Another process did, maps it and destroys it.
    Adopted,
}

impl Ioas {
    /// Allocates a new, empty IOAS.
    pub fn allocate(iommufd: Arc<Iommufd>) -> Result<Self, CallError> {
        let mut argument = iommu_ioas_alloc::default();
        sys::call(iommufd.fd(), &mut argument)
            .map_err(|errno| Iommufd::error(ioctl::IOMMU_IOAS_ALLOC, errno))?;
        let process_mappings = BTreeMap::new();
        Ok(Self { iommufd, id: argument.out_ioas_id, ownership: IoasOwnership::Ours, process_mappings })
    }

    /// Takes the IOAS that another holder of the same iommufd allocated and maps. It is never destroyed from here.
    ///
    /// # Errors
    ///
    /// `ENOENT` where the id is not an IOAS's.
    pub fn adopt(iommufd: Arc<Iommufd>, id: u32) -> Result<Self, CallError> {
        let ioas = Self { iommufd, id, ownership: IoasOwnership::Adopted, process_mappings: BTreeMap::new() };
        ioas.iova_ranges()?;
        Ok(ioas)
    }

    /// Whether another process maps this IOAS.
    pub fn is_adopted(&self) -> bool {
        self.ownership == IoasOwnership::Adopted
    }

    /// The id, by which another holder of the iommufd can adopt the IOAS. Ids are reused at once: it dies with the IOAS.
    pub const fn id(&self) -> u32 {
        self.id
    }

    pub(crate) const fn iommufd(&self) -> &Arc<Iommufd> {
        &self.iommufd
    }

    /// What can be mapped. It narrows when a device is attached.
    pub fn iova_ranges(&self) -> Result<IovaRanges, CallError> {
        let mut room = 16_u32;
        loop {
            let mut ranges = vec![iommu_iova_range::default(); usize::try_from(room).unwrap_or(0)];
            match sys::iova_ranges(self.iommufd.fd(), self.id, &mut ranges) {
                Ok((count, alignment)) => {
                    ranges.truncate(usize::try_from(count).unwrap_or(usize::MAX));
                    let usable = ranges
                        .iter()
                        .map(|range| IovaRange { start: Iova(range.start), last: Iova(range.last) });
                    return Ok(IovaRanges { usable: usable.collect(), alignment });
                }
                Err(IovaRangesError::MoreThanRoom(count)) if count > room && count <= MAX_RANGES => {
                    room = count;
                }
                Err(IovaRangesError::MoreThanRoom(_)) => {
                    return Err(Iommufd::error(ioctl::IOMMU_IOAS_IOVA_RANGES, Errno::PROTO));
                }
                Err(IovaRangesError::Errno(errno)) => {
                    return Err(Iommufd::error(ioctl::IOMMU_IOAS_IOVA_RANGES, errno));
                }
            }
        }
    }

    /// Maps `length` bytes of `file` from `start` at `iova`.
    ///
    /// With no device attached the kernel checks nothing: what is wrong then shows at the first attachment.
    ///
    /// # Errors
    ///
    /// `EEXIST` something is mapped there; `EINVAL` unaligned, reserved, beyond the address width or beyond the file's
    /// end, which is `EFAULT` before 6.13; `ENOMEM` over the memory-lock limit; `EFAULT` memory that cannot be pinned.
    pub fn map_file(
        &mut self,
        file: &OwnedFd,
        start: u64,
        length: u64,
        iova: Iova,
        access: Access,
    ) -> Result<(), CallError> {
        if self.iommufd.has_map_file() {
            let mut argument = iommu_ioas_map_file {
                flags: map_flags(access),
                ioas_id: self.id,
                fd: file.as_raw_fd(),
                start,
                length,
                iova: iova.0,
                ..Default::default()
            };
            return sys::call(self.iommufd.fd(), &mut argument)
                .map(drop)
                .map_err(|errno| Iommufd::error(ioctl::IOMMU_IOAS_MAP_FILE, errno));
        }
        self.map_through_process(file, start, length, iova, access)
            .map_err(|errno| Iommufd::error(ioctl::IOMMU_IOAS_MAP, errno))
    }

    /// The way of kernels before 6.13: the file is mapped here, and the kernel maps that.
    fn map_through_process(
        &mut self,
        file: &OwnedFd,
        start: u64,
        length: u64,
        iova: Iova,
        access: Access,
    ) -> Result<(), Errno> {
        let file = File::from(file.as_fd().try_clone_to_owned().map_err(|error| errno_of(&error))?);
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let memory = MmapRegionBuilder::new(length)
            .with_file_offset(FileOffset::new(file, start))
            .with_mmap_prot(protection)
            .with_mmap_flags(libc::MAP_NORESERVE | libc::MAP_SHARED)
            .build()
            .map_err(|error| match error {
                MmapRegionError::Mmap(error) => errno_of(&error),
                _ => Errno::INVAL,
            })?;
        sys::ioas_map(self.iommufd.fd(), self.id, map_flags(access), &memory, iova.0)?;
        self.process_mappings.insert(iova, Arc::new(memory));
        Ok(())
    }

    /// Maps at `iova` what `length` bytes from `iova` on of another IOAS of the same iommufd lead to: all of one mapping or a
    /// part of it. Both share the pages, which stay pinned when either goes, and are charged once.
    ///
    /// # Errors
    ///
    /// `ENOENT` where nothing is mapped there; `EPERM` for writing to what was mapped for reading; otherwise as
    /// [`Self::map_file`].
    pub fn copy_from(
        &mut self,
        other: &Self,
        iova: Iova,
        length: u64,
        access: Access,
    ) -> Result<(), CallError> {
        let mut argument = iommu_ioas_copy {
            flags: map_flags(access),
            dst_ioas_id: self.id,
            src_ioas_id: other.id,
            length,
            dst_iova: iova.0,
            src_iova: iova.0,
            ..Default::default()
        };
        sys::call(self.iommufd.fd(), &mut argument)
            .map_err(|errno| Iommufd::error(ioctl::IOMMU_IOAS_COPY, errno))?;
        let behind = other.process_mappings.range(..=iova).next_back();
        self.process_mappings.extend(behind.map(|(_, memory)| (iova, Arc::clone(memory))));
        Ok(())
    }

    /// Unmaps exactly what one call of [`Self::map_file`] mapped.
    ///
    /// # Errors
    ///
    /// `ENOENT` where no such mapping is, or only a part of one.
    pub fn unmap(&mut self, iova: Iova, length: u64) -> Result<(), CallError> {
        let mut argument = iommu_ioas_unmap { ioas_id: self.id, iova: iova.0, length, ..Default::default() };
        sys::call(self.iommufd.fd(), &mut argument)
            .map_err(|errno| Iommufd::error(ioctl::IOMMU_IOAS_UNMAP, errno))?;
        // What was refused may be mapped still, and then the kernel may look at the memory again.
        self.process_mappings.remove(&iova);
        Ok(())
    }
}

impl Drop for Ioas {
    /// Destroys an IOAS of our own, and every mapping with it. Whoever still uses it is told by the log, not by a panic.
    fn drop(&mut self) {
        if self.ownership == IoasOwnership::Ours
            && let Err(error) = self.iommufd.destroy(self.id)
        {
            log::warn!("event=ioas-not-destroyed errno={}", error.errno.raw_os_error());
        }
    }
}

const fn map_flags(access: Access) -> u32 {
    let fixed =
        iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    match access {
        Access::Read => fixed,
        Access::ReadWrite => fixed | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
