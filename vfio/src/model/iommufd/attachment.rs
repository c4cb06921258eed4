// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which page table a device's DMA goes through. The devices of an IOMMU group cannot be told apart by the IOMMU: what is
//! attached is the group, and any of its devices speaks for it.

use rustix::io::Errno;

use super::hwpt::{Hwpt, Origin, Translation};
use super::ioas::ReservedFor;
use super::locked_memory::LockedMemory;
use super::span::Span;
use super::{Context, Object};
use crate::model::memory_map::MemoryMap;

/// Where writes are interrupt messages, and so cannot be memory.
const INTERRUPT_MESSAGES: Span = Span { first: 0xfee0_0000, last: 0xfeef_ffff };

/// A device that is bound to the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// `None` for a device without an IOMMU, which is alone.
    pub(super) iommu_group: Option<u32>,
    /// What it is attached to.
    pub(super) hwpt: Option<u32>,
}

impl Device {
    pub(super) const fn translation(self) -> Translation {
        match self.iommu_group {
            Some(_) => Translation::Iommu,
            None => Translation::Missing,
        }
    }
}

impl Context {
    /// A device was bound. Returns the id of its object.
    pub(crate) fn add_device(&mut self, iommu_group: Option<u32>) -> u32 {
        self.insert(Object::Device(Device { iommu_group, hwpt: None }))
    }

    /// The file that a device was bound through was closed.
    pub(crate) fn remove_device(&mut self, id: u32, locked: &mut LockedMemory) {
        self.detach(id, locked);
        if self.device(id).is_ok() {
            self.objects.remove(&id);
        }
    }

    /// Whether a device of the group is bound, which is to own the whole group.
    pub(crate) fn has_device_of_group(&self, iommu_group: u32) -> bool {
        self.devices().any(|(_, device)| device.iommu_group == Some(iommu_group))
    }

    /// What a device finds behind which address; `None` while its group is blocked, and for a device without an IOMMU,
    /// whose addresses are not translated.
    pub(crate) fn memory(&self, id: u32) -> Option<&MemoryMap> {
        let group = self.device(id).ok()?.iommu_group?;
        let hwpt = self.hwpt_of_group(group)?;
        let ioas = self.ioas(self.hwpt(hwpt).ok()?.ioas).ok()?;
        Some(&ioas.memory)
    }

    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`. A device that is attached moves, and its group with it.
    ///
    /// Returns the page table's id, which for an IOAS may be that of a new one.
    ///
    /// # Errors
    ///
    /// `ENOENT` no such object; `EINVAL` not an IOAS or a page table, or not the one that the group is attached to;
    /// `EADDRINUSE` something is mapped where interrupt messages go, or too fine; those of pinning.
    pub(crate) fn attach(
        &mut self,
        id: u32,
        page_table: u32,
        locked: &mut LockedMemory,
    ) -> Result<u32, Errno> {
        match self.objects.get(&page_table).ok_or(Errno::NOENT)? {
            Object::Device(_) => Err(Errno::INVAL),
            Object::Hwpt(_) => self.attach_to_hwpt(id, page_table, locked).map(|()| page_table),
            Object::Ioas(ioas) => {
                let hwpts = ioas.hwpts.clone();
                self.attach_to_ioas(id, page_table, hwpts, locked)
            }
        }
    }

    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`: a device that is not attached is none the worse.
    pub(crate) fn detach(&mut self, id: u32, locked: &mut LockedMemory) {
        if let Some(hwpt) = self.leave(id) {
            self.drop_if_unused(hwpt, locked);
        }
    }

    /// Any automatic page table of the IOAS will do; only if none does, one is made.
    fn attach_to_ioas(
        &mut self,
        id: u32,
        ioas: u32,
        hwpts: Vec<u32>,
        locked: &mut LockedMemory,
    ) -> Result<u32, Errno> {
        for hwpt in hwpts {
            if self.hwpt(hwpt)?.origin == Origin::Automatic {
                match self.attach_to_hwpt(id, hwpt, locked) {
                    // Of another kind, or the group is elsewhere.
                    Err(Errno::INVAL) => (),
                    result => return result.map(|()| hwpt),
                }
            }
        }
        let device = self.device(id)?;
        let hwpt = Hwpt { ioas, origin: Origin::Automatic, translation: device.translation() };
        if device.hwpt.is_some() {
            let hwpt = self.new_hwpt(hwpt, locked)?;
            let moved = self.attach_to_hwpt(id, hwpt, locked);
            if moved.is_err() {
                self.drop_hwpt(hwpt, locked);
            }
            return moved.map(|()| hwpt);
        }
        // A first attachment comes before the table is filled, so that its errors come first.
        let hwpt = self.insert(Object::Hwpt(hwpt));
        let attached = self.attach_to_hwpt(id, hwpt, locked).and_then(|()| self.fill_hwpt(hwpt, locked));
        if attached.is_err() {
            self.leave(id);
            self.drop_hwpt(hwpt, locked);
        }
        attached.map(|()| hwpt)
    }

    fn attach_to_hwpt(&mut self, id: u32, hwpt: u32, locked: &mut LockedMemory) -> Result<(), Errno> {
        let device = self.device(id)?;
        let translation = self.hwpt(hwpt)?.translation;
        // A device without an IOMMU takes any table, as nobody walks it.
        if device.translation() == Translation::Iommu && translation == Translation::Missing {
            return Err(Errno::INVAL);
        }
        match device.hwpt {
            Some(current) if current == hwpt => Ok(()),
            Some(current) => {
                self.move_group(id, current, hwpt)?;
                self.drop_if_unused(current, locked);
                Ok(())
            }
            None => {
                let group = device.iommu_group.and_then(|group| self.hwpt_of_group(group));
                if group.is_some_and(|current| current != hwpt) {
                    return Err(Errno::INVAL);
                }
                self.join(id, hwpt)
            }
        }
    }

    /// A device that is not attached joins its group, or is the first of it.
    fn join(&mut self, id: u32, hwpt: u32) -> Result<(), Errno> {
        self.keep_messages_free(id, self.hwpt(hwpt)?.ioas)?;
        self.device_mut(id)?.hwpt = Some(hwpt);
        Ok(())
    }

    /// Returns the page table that the device was attached to.
    fn leave(&mut self, id: u32) -> Option<u32> {
        let hwpt = self.device_mut(id).ok()?.hwpt.take()?;
        let Hwpt { ioas, .. } = self.hwpt(hwpt).ok()?;
        self.ioas_mut(ioas).ok()?.release(ReservedFor::Device(id));
        Some(hwpt)
    }

    /// Moves every attached device of the device's group, or none.
    fn move_group(&mut self, id: u32, from: u32, to: u32) -> Result<(), Errno> {
        let group = self.device(id)?.iommu_group;
        let moves = |(other, device): &(u32, Device)| {
            device.hwpt.is_some() && (*other == id || group.is_some() && device.iommu_group == group)
        };
        let attached: Vec<u32> = self.devices().filter(moves).map(|(id, _)| id).collect();
        let (old, new) = (self.hwpt(from)?.ioas, self.hwpt(to)?.ioas);
        if old != new {
            // All want the same addresses free: the first one fails, or none does.
            for id in &attached {
                self.keep_messages_free(*id, new)?;
            }
            for id in &attached {
                self.ioas_mut(old)?.release(ReservedFor::Device(*id));
            }
        }
        for id in attached {
            self.device_mut(id)?.hwpt = Some(to);
        }
        Ok(())
    }

    fn keep_messages_free(&mut self, id: u32, ioas: u32) -> Result<(), Errno> {
        match self.device(id)?.translation() {
            Translation::Iommu => self.ioas_mut(ioas)?.reserve(ReservedFor::Device(id), INTERRUPT_MESSAGES),
            Translation::Missing => Ok(()),
        }
    }

    fn drop_if_unused(&mut self, hwpt: u32, locked: &mut LockedMemory) {
        let automatic = self.hwpt(hwpt).is_ok_and(|hwpt| hwpt.origin == Origin::Automatic);
        if automatic && !self.is_attached_to(hwpt) {
            self.drop_hwpt(hwpt, locked);
        }
    }

    pub(super) fn is_attached_to(&self, hwpt: u32) -> bool {
        self.devices().any(|(_, device)| device.hwpt == Some(hwpt))
    }

    fn hwpt_of_group(&self, iommu_group: u32) -> Option<u32> {
        self.devices()
            .filter(|(_, device)| device.iommu_group == Some(iommu_group))
            .find_map(|(_, device)| device.hwpt)
    }
}
