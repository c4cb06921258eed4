// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as a VMM has it: a sealed memfd.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use protocol::vhost_user::MemoryRegion;
use rustix::fs::{MemfdFlags, SealFlags};

/// A file of memory at a guest-physical address.
#[derive(Debug)]
pub struct GuestMemory {
    file: File,
    address: u64,
    size: u64,
}

/// A memfd of `size` bytes with these seals.
pub fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("guest", flags).expect("a memfd");
    rustix::fs::ftruncate(&file, size).expect("its size");
    rustix::fs::fcntl_add_seals(&file, seals).expect("its seals");
    file
}

impl GuestMemory {
    /// Zeroed memory at `address`, sealed against shrinking.
    pub fn new(address: u64, size: u64) -> Self {
        Self { file: memfd(size, SealFlags::SHRINK).into(), address, size }
    }

    /// How the memory stands in a table.
    pub fn region(&self) -> MemoryRegion {
        MemoryRegion { guest_address: self.address, size: self.size, user_address: self.address, offset: 0 }
    }

    /// Writes at a guest-physical address.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.file.write_all_at(data, address - self.address).expect("guest memory can be written");
    }

    /// Reads at a guest-physical address.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, address - self.address).expect("guest memory can be read");
        data
    }
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
