// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of guest memory.

use rustix::io::Errno;
use vfio::{CallError, Iova};

use super::{Failure, failure, in_words};

/// Guest memory.
impl Failure {
    fn region(id: &str, errno: Errno, address: u64, why: impl AsRef<str>, fix: &str) -> Self {
        failure(id, errno, format!("the memory region at {address:#x} was refused"), why, fix)
    }

    /// Not a file that stays where it is.
    pub fn region_not_memory(address: u64) -> Self {
        let why = "its descriptor is not a memfd, shmem or hugetlbfs file";
        Self::region("region-not-memory", Errno::INVAL, address, why, "Use memory-backend-memfd,share=on")
    }

    /// Opened read-only.
    pub fn region_not_writable(address: u64) -> Self {
        let why = "its descriptor is not open for reading and writing";
        Self::region("region-not-writable", Errno::ACCESS, address, why, "Open the file with O_RDWR")
    }

    /// The file could shrink below the mapping.
    pub fn region_not_sealed(address: u64) -> Self {
        let why = "its file may shrink, and the device would go on using pages that nobody sees any more";
        Self::region("region-not-sealed", Errno::PERM, address, why, "Seal the memfd with F_SEAL_SHRINK")
    }

    /// Offset and size reach past the file's end.
    pub fn region_beyond_file(address: u64, file_size: u64) -> Self {
        let why = format!("it ends behind the end of its file, which has {file_size:#x} bytes");
        Self::region(
            "region-beyond-file",
            Errno::INVAL,
            address,
            why,
            "Make the file larger or the region smaller",
        )
    }

    /// Empty, unaligned, or wrapping around.
    pub fn region_unaligned(address: u64, alignment: u64) -> Self {
        let why =
            format!("address, size and file offset must be multiples of {alignment:#x}, and the size not 0");
        Self::region("region-unaligned", Errno::INVAL, address, why, "Align the region")
    }

    /// Two regions at one address.
    pub fn region_overlaps(address: u64, other: u64) -> Self {
        let why = format!("it overlaps the region at {other:#x}");
        Self::region("region-overlaps", Errno::EXIST, address, why, "Remove the other region first")
    }

    /// In a range that the IOMMU keeps for itself.
    pub fn region_reserved(address: u64, hole: &str) -> Self {
        let why = format!("the IOMMU cannot map {hole}, as it does not the window for interrupt messages");
        let fix = "Lay guest memory out around /sys/kernel/iommu_groups/GROUP/reserved_regions";
        Self::region("region-reserved", Errno::INVAL, address, why, fix)
    }

    /// One region too many.
    pub fn too_many_regions(address: u64, limit: usize) -> Self {
        let why = format!("the table has {limit} regions already");
        Self::region("too-many-regions", Errno::NOSPC, address, why, "Use fewer, larger regions")
    }

    /// Nothing of that address and size is in the table.
    pub fn region_unknown(address: u64) -> Self {
        let why = "the table has no region with this address and size";
        Self::region("region-unknown", Errno::NOENT, address, why, "Remove exactly what was added")
    }

    /// The kernel would not map.
    pub fn map(iova: Iova, size: u64, error: CallError) -> Self {
        let what = format!("{size:#x} bytes of guest memory cannot be mapped at {iova}");
        if error.errno == Errno::NOMEM {
            let fix = "Raise the limit by at least the guest's memory: LimitMEMLOCK= (systemd), \
                       <memtune><hard_limit> (libvirt), ulimit -l";
            return failure("memory-lock-limit", error.errno, what, in_words(error), fix);
        }
        failure("map-failed", error.errno, what, in_words(error), "See the kernel's log")
    }

    /// The kernel would not unmap.
    pub fn unmap(iova: Iova, error: CallError) -> Self {
        let what = format!("guest memory at {iova} cannot be unmapped");
        failure("unmap-failed", error.errno, what, in_words(error), "See the kernel's log")
    }

    /// Another process maps the adopted address space.
    pub fn memory_is_adopted() -> Self {
        failure(
            "memory-is-adopted",
            Errno::PERM,
            "the memory table was refused",
            "the address space was adopted, and whoever allocated it maps it",
            "Send the memory table there",
        )
    }
}
