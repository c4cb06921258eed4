// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of guest memory.

use rustix::io::Errno;
use vfio::{CallError, Iova};

use super::{Failure, failure, in_words};
use crate::memory_lock::MemoryLockSettings;

/// What is known of memory that cannot be locked, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShortage {
    /// The whole table.
    pub needed: u64,
    /// How much this user's processes may lock.
    pub limit: u64,
    /// What this server had locked when that was refused.
    pub charged: u64,
    /// What was refused.
    pub refused: u64,
}

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

    /// Another client has other memory at the address.
    pub fn region_conflicts(address: u64, other: u64) -> Self {
        let why = format!(
            "another client of this server has other memory at {other:#x}, and devices of one server share an address space"
        );
        Self::region("region-conflicts", Errno::EXIST, address, why, "Start a server for each VM")
    }

    /// The server has something there.
    pub fn region_taken(address: u64, other: u64) -> Self {
        let why = format!("the control ring of a network device, which the server drives, is at {other:#x}");
        let fix = "Describe the memory before the device is started, or give the device one queue pair";
        Self::region("region-taken", Errno::EXIST, address, why, fix)
    }

    /// In a range that the IOMMU keeps for itself.
    pub fn region_reserved(address: u64, hole: &str) -> Self {
        let why = format!("the IOMMU cannot map {hole}, as it does not the window for interrupt messages");
        let fix = "Lay guest memory out around /sys/kernel/iommu_groups/GROUP/reserved_regions";
        Self::region("region-reserved", Errno::INVAL, address, why, fix)
    }

    /// One region too many.
    pub fn too_many_regions(address: u64, limit: usize) -> Self {
        let why = format!("there are {limit} already, which is the most");
        Self::region("too-many-regions", Errno::NOSPC, address, why, "Use fewer, larger regions")
    }

    /// Nothing of that address and size is in the table.
    pub fn region_unknown(address: u64) -> Self {
        let why = "there is none with this address and size";
        Self::region("region-unknown", Errno::NOENT, address, why, "Remove exactly what was added")
    }

    /// The kernel would not map.
    pub fn map(iova: Iova, size: u64, error: CallError) -> Self {
        let what = format!("{size:#x} bytes of guest memory cannot be mapped at {iova}");
        failure("map-failed", error.errno, what, in_words(error), "See the kernel's log")
    }

    /// More memory than may be locked.
    pub fn memory_lock_limit(shortage: &MemoryShortage) -> Self {
        let MemoryShortage { needed, limit, charged, refused } = *shortage;
        let what = format!("guest memory of {needed} bytes cannot be pinned");
        // The kernel refused because what is charged to others is in the way: at least so much.
        let others = limit.saturating_sub(charged).saturating_sub(refused);
        let (why, others) = if needed > limit {
            (format!("the limit of locked memory was {limit} bytes when the server started"), 0)
        } else {
            let why = format!(
                "the limit of locked memory is {limit} bytes, of which {charged} are charged to this server and more than {others} \
                 to other processes of its user"
            );
            (why, others)
        };
        let MemoryLockSettings { systemd, libvirt, shell } =
            MemoryLockSettings::new(needed.saturating_add(others), needed);
        let besides = if others > 0 { " and what the other processes need" } else { "" };
        let fix = format!(
            "Start the server with a limit of at least {needed} bytes{besides}: {systemd} (systemd), {libvirt} (libvirt), {shell} \
             (shell)"
        );
        failure("memory-lock-limit", Errno::NOMEM, what, why, fix)
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
            "the description of guest memory was refused",
            "the address space was adopted, and whoever allocated it maps it",
            "Describe the memory there, or give the server an address space of its own",
        )
    }

    /// The guest's memory is the VMM's alone.
    pub fn memory_is_private() -> Self {
        failure(
            "memory-is-private",
            Errno::INVAL,
            "the device was refused to its client",
            "guest memory came without a file, so that no device can reach it",
            "Add share=on to the VM's memory: -object memory-backend-memfd,id=m0,size=SIZE,share=on -machine memory-backend=m0",
        )
    }

    /// A mapping of an address space that other servers use would have to be split.
    pub fn memory_is_shared() -> Self {
        failure(
            "memory-is-shared",
            Errno::BUSY,
            "a part of guest memory cannot be taken away",
            "it was mapped as a whole, and devices of other servers are attached to the address space",
            "Give each server an address space of its own, or describe the memory once",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTAGE: MemoryShortage =
        MemoryShortage { needed: 16 << 30, limit: 8 << 30, charged: 0, refused: 16 << 30 };

    #[test]
    fn a_limit_that_is_too_low_is_told_with_the_one_that_is_needed() {
        let failure = Failure::memory_lock_limit(&SHORTAGE).to_string();
        for part in [
            "17179869184 bytes cannot",
            "was 8589934592 bytes",
            "LimitMEMLOCK=17179869184 (",
            "ulimit -l 16777216 ",
        ] {
            assert!(failure.contains(part), "{part}: {failure}");
        }
    }

    #[test]
    fn what_others_have_locked_is_added() {
        let shortage = MemoryShortage { limit: 20 << 30, charged: 2 << 30, refused: 14 << 30, ..SHORTAGE };
        let failure = Failure::memory_lock_limit(&shortage).to_string();
        let limit = format!("LimitMEMLOCK={}", 20_u64 << 30);
        for part in ["2147483648 are charged to this server", "more than 4294967296 to other", &limit] {
            assert!(failure.contains(part), "{part}: {failure}");
        }
    }
}
