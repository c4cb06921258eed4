// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An iommufd context: address spaces, page tables and devices under one set of ids.
//!
//! Every rule is the kernel's own, in the order in which it looks, because who asks sees the first errno only. Not
//! modelled are nested translation (virtual IOMMUs, fault and event queues, hardware queues), dirty tracking, PASIDs,
//! dma-bufs, `IOMMU_IOAS_CHANGE_PROCESS`, physical addresses of devices without an IOMMU and mapping by the requests of
//! the legacy container: each is refused as by a kernel or hardware without it.

mod attachment;
mod hwpt;
mod ioas;
mod locked_memory;
mod mapping;
mod option;
mod pages;
mod request;
mod span;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use rustix::io::Errno;

use self::attachment::Device;
use self::hwpt::Hwpt;
use self::ioas::Ioas;
pub(crate) use self::locked_memory::LockedMemory;
use self::request::{Layout, Request};
use self::span::Span;
use super::argument::Argument;
use super::topology::KernelVersion;
use crate::iommufd::MemoryAccounting;

/// The size of a page in memory and the finest of the IOMMU.
const PAGE: u64 = 4096;

/// Who issued a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Its process id.
    pub(crate) process: i32,
    /// Its real user id.
    pub(crate) user: u32,
    /// `CAP_IPC_LOCK`.
    pub(crate) may_pin_without_limit: bool,
    /// `CAP_SYS_RESOURCE`.
    pub(crate) may_change_accounting: bool,
    /// `RLIMIT_MEMLOCK`, in bytes.
    pub(crate) memory_lock_limit: u64,
}

/// What an id can name.
#[derive(Debug)]
enum Object {
    Ioas(Ioas),
    Hwpt(Hwpt),
    Device(Device),
}

/// What an open `/dev/iommu` stands for.
#[derive(Debug)]
pub(crate) struct Context {
    kernel: KernelVersion,
    objects: BTreeMap<u32, Object>,
    accounting: MemoryAccounting,
    /// The IOAS of `IOMMU_VFIO_IOAS`.
    compatibility_ioas: Option<u32>,
}

impl Context {
    /// What opening `/dev/iommu` makes.
    pub(crate) const fn new(kernel: KernelVersion) -> Self {
        Self {
            kernel,
            objects: BTreeMap::new(),
            accounting: MemoryAccounting::User,
            compatibility_ioas: None,
        }
    }

    /// One ioctl by its whole number.
    ///
    /// `file` is what the descriptor in `IOMMU_IOAS_MAP_FILE` names or, for `IOMMU_IOAS_MAP`, what backs the caller's
    /// memory at `user_va`, and where in it. `array` is what a pointer in the structure points to: read by
    /// `IOMMU_IOAS_ALLOW_IOVAS`, written by `IOMMU_IOAS_IOVA_RANGES` and `IOMMU_GET_HW_INFO`, which expect it empty.
    pub(crate) fn ioctl(
        &mut self,
        number: u32,
        argument: &mut Argument<'_>,
        file: Option<(Arc<File>, u64)>,
        array: &mut Vec<u8>,
        caller: &Caller,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        let Some(layout) = Layout::of(number, self.kernel) else {
            return self.container_request(number);
        };
        let mut structure = layout.copy_in(argument)?;
        let known = &mut Argument(&mut structure);
        let result = match layout.request {
            Request::Destroy => self.destroy(known, locked),
            Request::IoasAlloc => self.alloc_ioas(known),
            Request::IoasAllowIovas => self.allow_iovas(known, array),
            Request::IoasCopy => self.copy(known, locked),
            Request::IoasIovaRanges => self.iova_ranges(known, array),
            Request::IoasMap => self.map(known, file, caller, locked),
            Request::IoasMapFile => self.map_file(known, file.map(|(file, _)| file), caller, locked),
            Request::IoasUnmap => self.unmap(known, locked),
            Request::Option => self.option(known, caller),
            Request::VfioIoas => self.vfio_ioas(known),
            Request::HwptAlloc => self.alloc_hwpt(known, locked),
            Request::GetHwInfo => self.hw_info(known, array),
            Request::HwptSetDirtyTracking => self.set_dirty_tracking(known),
            Request::HwptGetDirtyBitmap => self.dirty_bitmap(known),
            Request::HwptInvalidate => self.invalidate(known),
            Request::Unsupported => Err(Errno::OPNOTSUPP),
            Request::OfVirtualIommu => Err(Errno::NOENT),
        };
        layout.copy_out(&structure, argument)?;
        result
    }

    /// The last file that kept the context was closed: nothing stays pinned.
    pub(crate) fn close(mut self, locked: &mut LockedMemory) {
        for object in self.objects.values_mut() {
            if let Object::Ioas(ioas) = object {
                // Everything is contained in all addresses.
                let _unmapped = ioas.unmap(Span::ALL, locked);
            }
        }
    }

    /// How many bytes are mapped in all address spaces together, whether or not a device sees them.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        let ioases = self.objects.values().filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas),
            Object::Hwpt(_) | Object::Device(_) => None,
        });
        let areas = ioases.flat_map(|ioas| ioas.areas.values());
        areas.fold(0, |sum, area| sum.saturating_add(area.slice.length))
    }

    /// Every id in use.
    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.objects.keys().copied()
    }

    /// Gives an object the lowest free id, whatever had it before.
    fn insert(&mut self, object: Object) -> u32 {
        let taken = |(lowest, id): &(u32, &u32)| lowest == *id;
        let below = (1..).zip(self.objects.keys()).take_while(taken).count();
        // There is no room for more objects than ids.
        let id = u32::try_from(below).map_or(u32::MAX, |below| below + 1);
        self.objects.insert(id, object);
        id
    }

    fn ioas(&self, id: u32) -> Result<&Ioas, Errno> {
        match self.objects.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::NOENT),
        }
    }

    fn ioas_mut(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        match self.objects.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::NOENT),
        }
    }

    fn hwpt(&self, id: u32) -> Result<Hwpt, Errno> {
        match self.objects.get(&id) {
            Some(Object::Hwpt(hwpt)) => Ok(*hwpt),
            _ => Err(Errno::NOENT),
        }
    }

    fn device(&self, id: u32) -> Result<Device, Errno> {
        match self.objects.get(&id) {
            Some(Object::Device(device)) => Ok(*device),
            _ => Err(Errno::NOENT),
        }
    }

    fn device_mut(&mut self, id: u32) -> Result<&mut Device, Errno> {
        match self.objects.get_mut(&id) {
            Some(Object::Device(device)) => Ok(device),
            _ => Err(Errno::NOENT),
        }
    }

    fn devices(&self) -> impl Iterator<Item = (u32, Device)> {
        self.objects.iter().filter_map(|(id, object)| match object {
            Object::Device(device) => Some((*id, *device)),
            Object::Ioas(_) | Object::Hwpt(_) => None,
        })
    }

    /// `IOMMU_IOAS_ALLOC`.
    fn alloc_ioas(&mut self, argument: &mut Argument<'_>) -> Result<(), Errno> {
        if argument.word(4)? != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let id = self.insert(Object::Ioas(Ioas::new()));
        argument.set_word(8, id)
    }

    /// `IOMMU_DESTROY`, of what nothing else needs. A device goes when its file is closed, and not before.
    fn destroy(&mut self, argument: &Argument<'_>, locked: &mut LockedMemory) -> Result<(), Errno> {
        let id = argument.word(4)?;
        let needed = match self.objects.get(&id).ok_or(Errno::NOENT)? {
            Object::Device(_) => true,
            Object::Ioas(ioas) => !ioas.hwpts.is_empty(),
            Object::Hwpt(_) => self.is_attached_to(id),
        };
        if needed {
            return Err(Errno::BUSY);
        }
        if self.hwpt(id).is_ok() {
            self.drop_hwpt(id, locked);
        } else {
            // Without page tables nothing of it is pinned.
            self.objects.remove(&id);
            self.compatibility_ioas = self.compatibility_ioas.filter(|ioas| *ioas != id);
        }
        Ok(())
    }

    /// An iommufd takes the requests of the legacy container too, for the address space that was set for them. What they
    /// would do to it is not modelled.
    fn container_request(&self, number: u32) -> Result<(), Errno> {
        match number {
            // VFIO_GET_API_VERSION, whose answer is 0.
            0x3b64 => Ok(()),
            // VFIO_SET_IOMMU, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA
            0x3b66 | 0x3b70..=0x3b72 if self.compatibility_ioas.is_none() => Err(Errno::NODEV),
            _ => Err(Errno::NOTTY),
        }
    }
}
