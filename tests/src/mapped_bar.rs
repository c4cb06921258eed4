// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A BAR that a client has mapped by the descriptor that it got for it.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use protocol::vfio_user::RegionDescription;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A part of a BAR in this process's memory.
#[derive(Debug)]
pub struct MappedBar {
    start: NonNull<u8>,
    length: usize,
}

impl MappedBar {
    /// Maps `length` bytes at `offset` of a region as its description says.
    ///
    /// # Errors
    ///
    /// That of the kernel, or of its model.
    pub fn new(region: &RegionDescription, offset: u64, length: usize) -> Result<Self, Errno> {
        let device = region.file.as_ref().expect("a descriptor came with the region");
        Self::of_device(device, region.info.offset + offset, length)
    }

    /// Maps `length` bytes at this position of a device's file.
    ///
    /// # Errors
    ///
    /// That of the kernel, or of its model.
    pub fn of_device(device: &OwnedFd, position: u64, length: usize) -> Result<Self, Errno> {
        let (file, position) = file_behind(device, position, length)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses where, so that nothing else is mapped over.
        let start = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file, position)? };
        Ok(Self { start: NonNull::new(start.cast()).expect("not at 0"), length })
    }

    /// Reads 4 bytes. The device must decode its memory, or this process gets SIGBUS.
    pub fn read(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length, "{offset:#x} is outside");
        // SAFETY: it is in the mapping, aligned, and no Rust reference leads there.
        unsafe { self.start.add(offset).cast::<u32>().read_volatile() }
    }

    /// Writes 2 bytes. The device must decode its memory, or this process gets SIGBUS.
    pub fn write_half(&self, offset: usize, value: u16) {
        assert!(offset.is_multiple_of(2) && offset + 2 <= self.length, "{offset:#x} is outside");
        // SAFETY: it is in the mapping, aligned, and no Rust reference leads there.
        unsafe { self.start.add(offset).cast::<u16>().write_volatile(value) }
    }
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        unmapped.expect("it is mapped");
    }
}

/// What is mapped in place of a device: on a modelled machine the memory that stands for its BARs.
fn file_behind(device: &OwnedFd, position: u64, length: usize) -> Result<(OwnedFd, u64), Errno> {
    match vfio::model::map(device.as_fd(), position, length as u64) {
        Err(Errno::NOTTY) => Ok((device.try_clone().expect("a copy"), position)),
        found => found,
    }
}
