// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hardware page tables, and what the hardware that walks them says about itself: an Intel IOMMU in legacy mode, as QEMU
//! has it, with addresses of 48 bits.

use iommufd_bindings::{
    iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD,
    iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
    iommufd_hw_info_flags_IOMMU_HW_INFO_FLAG_INPUT_TYPE, iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID,
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID,
    iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
    iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
};
use rustix::io::Errno;

use super::locked_memory::LockedMemory;
use super::span::Span;
use super::{Context, Object};
use crate::model::argument::Argument;
use crate::model::topology::KernelVersion;

/// A page table over an IOAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hwpt {
    pub(super) ioas: u32,
    pub(super) origin: Origin,
    pub(super) translation: Translation,
}

/// Who made a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The kernel, for a device attached to the IOAS; it goes with the last device.
    Automatic,
    /// `IOMMU_HWPT_ALLOC`.
    Manual,
}

/// Who walks a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Translation {
    /// The IOMMU.
    Iommu,
    /// Nobody: the devices have no IOMMU, and the kernel only keeps the books.
    Missing,
}

impl Translation {
    /// The addresses a table cannot hold.
    pub(super) const fn out_of_reach(self) -> Option<Span> {
        match self {
            Self::Iommu => Some(Span { first: 1 << 48, last: u64::MAX }),
            Self::Missing => None,
        }
    }
}

impl Context {
    /// Makes a page table for a device, without attaching the device.
    pub(super) fn new_hwpt(&mut self, hwpt: Hwpt, locked: &mut LockedMemory) -> Result<u32, Errno> {
        let id = self.insert(Object::Hwpt(hwpt));
        let filled = self.fill_hwpt(id, locked);
        if filled.is_err() {
            self.drop_hwpt(id, locked);
        }
        filled.map(|()| id)
    }

    /// Puts what the IOAS maps into a new page table.
    pub(super) fn fill_hwpt(&mut self, id: u32, locked: &mut LockedMemory) -> Result<(), Errno> {
        let Hwpt { ioas, translation, .. } = self.hwpt(id)?;
        self.ioas_mut(ioas)?.add_hwpt(id, translation, locked)
    }

    pub(super) fn drop_hwpt(&mut self, id: u32, locked: &mut LockedMemory) {
        if let Some(Object::Hwpt(Hwpt { ioas, .. })) = self.objects.remove(&id)
            && let Ok(ioas) = self.ioas_mut(ioas)
        {
            ioas.remove_hwpt(id, locked);
        }
    }

    /// `IOMMU_HWPT_ALLOC`.
    pub(super) fn alloc_hwpt(
        &mut self,
        argument: &mut Argument<'_>,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        let (flags, device, page_table) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        let (reserved, data_type, data_length) = (argument.word(20)?, argument.word(24)?, argument.word(28)?);
        if reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if (data_type == 0) != (data_length == 0) {
            return Err(Errno::INVAL);
        }
        let device = self.device(device)?;
        match self.objects.get(&page_table) {
            Some(Object::Ioas(_)) => (),
            // A nested table needs data, and a parent made for it, which this hardware cannot be.
            Some(Object::Hwpt(_)) if data_length == 0 => return Err(Errno::OPNOTSUPP),
            Some(Object::Hwpt(_) | Object::Device(_)) | None => return Err(Errno::INVAL),
        }
        if data_length != 0 || flags & !self.hwpt_flags(device.translation()) != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let hwpt = Hwpt { ioas: page_table, origin: Origin::Manual, translation: device.translation() };
        let id = self.new_hwpt(hwpt, locked)?;
        if flags & iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID != 0 {
            // There are no fault queues to name.
            self.drop_hwpt(id, locked);
            return Err(Errno::NOENT);
        }
        argument.set_word(16, id)
    }

    /// What a page table may be asked to do. Nesting and dirty tracking are beyond this hardware.
    const fn hwpt_flags(&self, translation: Translation) -> u32 {
        let fault = iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
        match (translation, self.kernel) {
            (Translation::Iommu, KernelVersion::Linux7_3) => {
                fault | iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID
            }
            (Translation::Iommu, KernelVersion::Linux6_12) => fault,
            (Translation::Missing, _) => 0,
        }
    }

    /// `IOMMU_GET_HW_INFO`; the description of the hardware goes to `array`.
    pub(super) fn hw_info(&self, argument: &mut Argument<'_>, array: &mut Vec<u8>) -> Result<(), Errno> {
        let (flags, device, room) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        let [first, rest @ ..] = argument.word(28)?.to_ne_bytes();
        let (known_flags, reserved, capabilities) = match self.kernel {
            KernelVersion::Linux6_12 => (0, first != 0 || rest != [0; 3], 0),
            KernelVersion::Linux7_3 => (
                iommufd_hw_info_flags_IOMMU_HW_INFO_FLAG_INPUT_TYPE,
                rest != [0; 3],
                iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
            ),
        };
        if flags & !known_flags != 0 || reserved {
            return Err(Errno::OPNOTSUPP);
        }
        let wanted = if flags == 0 { 0 } else { argument.word(24)? };
        let missing = self.device(device)?.translation() == Translation::Missing;
        if missing || wanted > iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD {
            return Err(Errno::OPNOTSUPP);
        }
        // The caller's room is filled up with zeros; more than a page of them is not sent around.
        let room = usize::try_from(room.min(4096)).map_err(|_| Errno::FAULT)?;
        array.extend(intel_vtd().into_iter().chain(std::iter::repeat(0)).take(room));
        argument.set_word(12, INTEL_VTD_LENGTH)?;
        argument.set_word(24, iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD)?;
        argument.set_word(28, 0)?;
        argument.set_double(32, u64::from(capabilities))
    }

    /// `IOMMU_HWPT_SET_DIRTY_TRACKING`: this hardware cannot.
    pub(super) fn set_dirty_tracking(&self, argument: &Argument<'_>) -> Result<(), Errno> {
        let (flags, hwpt) = (argument.word(4)?, argument.word(8)?);
        if flags & !iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        self.hwpt(hwpt).and(Err(Errno::OPNOTSUPP))
    }

    /// `IOMMU_HWPT_GET_DIRTY_BITMAP`: this hardware cannot.
    pub(super) fn dirty_bitmap(&self, argument: &Argument<'_>) -> Result<(), Errno> {
        let (hwpt, flags, reserved) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        let known = iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
        if flags & !known != 0 || reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        self.hwpt(hwpt).and(Err(Errno::OPNOTSUPP))
    }

    /// `IOMMU_HWPT_INVALIDATE`, which is for nested tables only: there are none.
    pub(super) fn invalidate(&self, argument: &mut Argument<'_>) -> Result<(), Errno> {
        let (hwpt, reserved) = (argument.word(4)?, argument.word(28)?);
        argument.set_word(24, 0)?;
        if reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if self.objects.contains_key(&hwpt) { Err(Errno::INVAL) } else { Err(Errno::NOENT) }
    }
}

/// `sizeof(struct iommu_hw_info_vtd)`.
const INTEL_VTD_LENGTH: u32 = 24;

/// `struct iommu_hw_info_vtd`.
fn intel_vtd() -> impl IntoIterator<Item = u8> {
    /// Three- and four-level tables, 48 bits, pages of 4 KiB, 2 MiB and 1 GiB.
    const CAPABILITIES: u64 = 0x00d2_008c_222f_0686;
    /// Queued invalidation and interrupt remapping; no scalable mode.
    const EXTENDED_CAPABILITIES: u64 = 0x00f0_0f5a;
    [0, CAPABILITIES, EXTENDED_CAPABILITIES].into_iter().flat_map(u64::to_ne_bytes)
}
