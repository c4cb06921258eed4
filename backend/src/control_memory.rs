// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of the server's own that devices reach: a page for each device whose control ring is driven here.
//!
//! It is one file, made before the sandbox closes: inside nothing can be made, and no file grows. What devices see of it is
//! not guest memory, and no client can name it; but the guest has the devices, and can have them write there what it likes.
//! Nothing that is read here is relied on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::extension::{Cookie, MAX_DEVICES};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use vfio::Access;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::failure::Failure;
use crate::memory::{GuestAddress, MemoryRegion};

/// The pages, and whose they are.
#[derive(Debug)]
pub struct ControlMemory {
    file: File,
    mapped: Arc<MmapRegion>,
    taken: BTreeMap<Cookie, usize>,
}

impl ControlMemory {
    /// A page for each device that there can be; one takes up room when it is used.
    ///
    /// # Errors
    ///
    /// That of making or mapping the file.
    pub fn new() -> io::Result<Self> {
        let length = usize::from(MAX_DEVICES) * rustix::param::page_size();
        let file = memfd_create("control-rings", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, u64::try_from(length).map_err(io::Error::other)?)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(file);
        let offset = FileOffset::new(file.try_clone()?, 0);
        let mapped = MmapRegion::from_file(offset, length).map_err(io::Error::other)?;
        Ok(Self { file, mapped: Arc::new(mapped), taken: BTreeMap::new() })
    }

    /// The page of a device, which it keeps until it is [given back](Self::give_back).
    ///
    /// # Errors
    ///
    /// There is no room for another descriptor, or no page left, of which there are as many as devices.
    pub fn page(&mut self, cookie: Cookie) -> Result<ControlPage, Failure> {
        let free = (0..usize::from(MAX_DEVICES)).find(|page| !self.taken.values().any(|taken| taken == page));
        let page = self.taken.get(&cookie).copied().or(free);
        let page = page.ok_or_else(|| Failure::control_memory("all pages for such rings are taken"))?;
        self.taken.insert(cookie, page);
        let size = rustix::param::page_size();
        let start = page * size;
        let no_descriptor = |error: Errno| Failure::control_memory(io::Error::from(error).to_string());
        let file = rustix::io::fcntl_dupfd_cloexec(self.file.as_fd(), 0).map_err(no_descriptor)?;
        let [length, offset] = [size, start].map(|value| u64::try_from(value).unwrap_or(u64::MAX));
        let region = MemoryRegion::new(GuestAddress(0), length, offset, file, Access::ReadWrite)?;
        Ok(ControlPage { mapped: Arc::clone(&self.mapped), start, size, region })
    }

    /// A device is gone.
    pub fn give_back(&mut self, cookie: Cookie) {
        self.taken.remove(&cookie);
    }
}

/// A page, for the device as well as for us.
#[derive(Clone, Debug)]
pub struct ControlPage {
    mapped: Arc<MmapRegion>,
    start: usize,
    size: usize,
    region: MemoryRegion,
}

impl ControlPage {
    /// What there is to map for the device, wherever.
    pub const fn region(&self) -> &MemoryRegion {
        &self.region
    }

    /// Makes all of it 0.
    pub fn clear(&self) {
        self.write(0, &vec![0; self.size]);
    }

    /// Writes to it.
    pub fn write(&self, offset: usize, data: &[u8]) {
        if let Some(place) = self.place(offset, data.len()) {
            // It is within what is mapped, and so nothing can fail.
            let _ = self.mapped.as_volatile_slice().write_slice(data, place);
        }
    }

    /// Reads a byte.
    pub fn byte(&self, offset: usize) -> Option<u8> {
        let place = self.place(offset, 1)?;
        self.mapped.as_volatile_slice().read_obj(place).ok()
    }

    /// Writes a half at a multiple of 2, after all that was written before.
    pub fn publish(&self, offset: usize, value: u16) {
        if let Some(place) = self.place(offset, 2) {
            // As above.
            let _ = self.mapped.as_volatile_slice().store(value.to_le(), place, Ordering::SeqCst);
        }
    }

    /// Reads a half at a multiple of 2, before all that is read later.
    pub fn look(&self, offset: usize) -> Option<u16> {
        let place = self.place(offset, 2)?;
        self.mapped.as_volatile_slice().load(place, Ordering::SeqCst).ok().map(u16::from_le)
    }

    fn place(&self, offset: usize, length: usize) -> Option<usize> {
        let end = offset.checked_add(length)?;
        (end <= self.size).then(|| self.start + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_page_of_its_own_and_keeps_it() {
        let mut memory = ControlMemory::new().unwrap();
        let [first, second] = [1, 2].map(|cookie| memory.page(Cookie(cookie)).unwrap());
        assert_ne!(first.region().offset(), second.region().offset());
        first.write(8, &[1, 2, 3]);
        second.publish(8, 0xffff);
        let again = memory.page(Cookie(1)).unwrap();
        assert_eq!((again.look(8), again.byte(10)), (Some(0x0201), Some(3)));
        again.clear();
        assert_eq!((first.byte(9), second.look(8)), (Some(0), Some(0xffff)));
    }

    #[test]
    fn the_page_of_a_device_that_is_gone_is_anothers() {
        let mut memory = ControlMemory::new().unwrap();
        for cookie in 0..u64::from(MAX_DEVICES) {
            memory.page(Cookie(cookie)).unwrap();
        }
        assert_eq!(memory.page(Cookie(1000)).unwrap_err().id(), "control-memory-missing");
        memory.give_back(Cookie(7));
        assert!(memory.page(Cookie(1000)).is_ok());
    }

    #[test]
    fn nothing_is_written_or_read_beside_a_page() {
        let mut memory = ControlMemory::new().unwrap();
        let [first, second] = [1, 2].map(|cookie| memory.page(Cookie(cookie)).unwrap());
        let size = rustix::param::page_size();
        first.write(size - 1, &[1, 1]);
        first.publish(size, 1);
        assert_eq!((second.byte(0), first.byte(size), first.look(usize::MAX)), (Some(0), None, None));
    }
}
