// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Payloads about guest memory, of the control face and of the vhost-user face (QEMU's vhost-user.rst, "Memory region
//! description").

use std::fmt;
use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most regions in one `SET_MEM_TABLE`; more need `ADD_MEM_REG`.
pub const MAX_TABLE_REGIONS: usize = 8;

/// A range of guest memory, with the layout of `VhostUserMemoryRegion`. All fields are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Guest physical address of the first byte, and the IO virtual address at which devices see it.
    pub guest_address: u64,
    /// Size; not 0.
    pub size: u64,
    /// Address in the client. Only a name, which ring addresses may be given in: the server never uses it to reach memory.
    pub user_address: u64,
    /// Where the region begins in the file that comes with it.
    pub offset: u64,
}

impl MemoryRegion {
    /// Whether the region is not empty and neither end of it wraps around, in any of the three address spaces.
    pub fn is_valid(&self) -> bool {
        self.size != 0
            && [self.guest_address, self.user_address, self.offset]
                .iter()
                .all(|start| start.checked_add(self.size).is_some())
    }
}

impl fmt::Display for MemoryRegion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest_address, size, offset, .. } = self;
        write!(formatter, "{size:#x} bytes at guest address {guest_address:#x} from file offset {offset:#x}")
    }
}

/// A region of guest memory together with the file that backs it.
#[derive(Debug)]
pub struct BackedRegion {
    /// Where it is.
    pub region: MemoryRegion,
    /// What it is; nothing is known about this descriptor yet.
    pub file: OwnedFd,
}

/// What `SET_MEM_TABLE` begins with; the regions follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryTableHeader {
    /// Number of regions, at most [`MAX_TABLE_REGIONS`]. 0 empties the table.
    pub count: u32,
    /// 0.
    pub reserved: u32,
}

impl MemoryTableHeader {
    /// Payload of `SET_MEM_TABLE` with these regions.
    pub(crate) fn encode(regions: &[MemoryRegion]) -> Vec<u8> {
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        [Self { count, reserved: 0 }.as_bytes(), regions.as_bytes()].concat()
    }
}

/// Payload of `ADD_MEM_REG` and `REM_MEM_REG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SingleMemoryRegion {
    /// 0.
    pub reserved: u64,
    /// The region.
    pub region: MemoryRegion,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use vhost::vhost_user::message::{VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion};

    use super::*;

    #[test]
    fn payloads_have_the_layout_of_the_vhost_crate() {
        assert_eq!(size_of::<MemoryRegion>(), size_of::<VhostUserMemoryRegion>());
        assert_eq!(size_of::<MemoryTableHeader>(), size_of::<VhostUserMemory>());
        assert_eq!(size_of::<SingleMemoryRegion>(), size_of::<VhostUserSingleMemoryRegion>());
        for (ours, theirs) in [
            (offset_of!(MemoryRegion, guest_address), offset_of!(VhostUserMemoryRegion, guest_phys_addr)),
            (offset_of!(MemoryRegion, size), offset_of!(VhostUserMemoryRegion, memory_size)),
            (offset_of!(MemoryRegion, user_address), offset_of!(VhostUserMemoryRegion, user_addr)),
            (offset_of!(MemoryRegion, offset), offset_of!(VhostUserMemoryRegion, mmap_offset)),
            (offset_of!(MemoryTableHeader, count), offset_of!(VhostUserMemory, num_regions)),
        ] {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn a_region_must_not_be_empty_or_wrap_around_anywhere() {
        let region = MemoryRegion { guest_address: 0, size: 0x1000, user_address: 0, offset: 0 };
        let last_page = u64::MAX - 0xfff;
        assert!(region.is_valid());
        assert!(!MemoryRegion { size: 0, ..region }.is_valid());
        assert!(!MemoryRegion { guest_address: last_page, ..region }.is_valid());
        assert!(!MemoryRegion { user_address: last_page, ..region }.is_valid());
        assert!(!MemoryRegion { offset: last_page, ..region }.is_valid());
    }
}
