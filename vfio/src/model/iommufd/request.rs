// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests an iommufd knows, and how a structure that may be older or newer than the kernel gets in and out.

use rustix::io::Errno;

use crate::model::argument::Argument;
use crate::model::topology::KernelVersion;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Destroy,
    IoasAlloc,
    IoasAllowIovas,
    IoasCopy,
    IoasIovaRanges,
    IoasMap,
    IoasUnmap,
    Option,
    VfioIoas,
    HwptAlloc,
    GetHwInfo,
    HwptSetDirtyTracking,
    HwptGetDirtyBitmap,
    HwptInvalidate,
    IoasMapFile,
    /// Not modelled: answered as for hardware or a configuration without it.
    Unsupported,
    /// Not modelled: names a virtual IOMMU, and there is none.
    OfVirtualIommu,
}

/// A request's structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    command: u8,
    pub(super) request: Request,
    /// What a caller has to pass.
    least: usize,
    /// What the kernel knows.
    size: usize,
}

/// The longest structure.
const LONGEST: usize = 48;

/// `IOMMU_IOAS_CHANGE_PROCESS` (0x92) is missing: the model is a kernel before it.
#[rustfmt::skip]
const LAYOUTS: &[Layout] = &[
    Layout { command: 0x80, request: Request::Destroy, least: 8, size: 8 },
    Layout { command: 0x81, request: Request::IoasAlloc, least: 12, size: 12 },
    Layout { command: 0x82, request: Request::IoasAllowIovas, least: 24, size: 24 },
    Layout { command: 0x83, request: Request::IoasCopy, least: 40, size: 40 },
    Layout { command: 0x84, request: Request::IoasIovaRanges, least: 32, size: 32 },
    Layout { command: 0x85, request: Request::IoasMap, least: 40, size: 40 },
    Layout { command: 0x86, request: Request::IoasUnmap, least: 24, size: 24 },
    Layout { command: 0x87, request: Request::Option, least: 24, size: 24 },
    Layout { command: 0x88, request: Request::VfioIoas, least: 12, size: 12 },
    Layout { command: 0x89, request: Request::HwptAlloc, least: 24, size: 48 },
    Layout { command: 0x8a, request: Request::GetHwInfo, least: 32, size: 40 },
    Layout { command: 0x8b, request: Request::HwptSetDirtyTracking, least: 16, size: 16 },
    Layout { command: 0x8c, request: Request::HwptGetDirtyBitmap, least: 48, size: 48 },
    Layout { command: 0x8d, request: Request::HwptInvalidate, least: 32, size: 32 },
    // IOMMU_FAULT_QUEUE_ALLOC
    Layout { command: 0x8e, request: Request::Unsupported, least: 16, size: 16 },
    Layout { command: 0x8f, request: Request::IoasMapFile, least: 40, size: 40 },
    // IOMMU_VIOMMU_ALLOC
    Layout { command: 0x90, request: Request::Unsupported, least: 24, size: 40 },
    // IOMMU_VDEVICE_ALLOC, IOMMU_VEVENTQ_ALLOC, IOMMU_HW_QUEUE_ALLOC
    Layout { command: 0x91, request: Request::OfVirtualIommu, least: 24, size: 24 },
    Layout { command: 0x93, request: Request::OfVirtualIommu, least: 28, size: 32 },
    Layout { command: 0x94, request: Request::OfVirtualIommu, least: 40, size: 40 },
    // IOMMU_IOAS_NOIOMMU_GET_PA
    Layout { command: 0x95, request: Request::Unsupported, least: 40, size: 40 },
];

impl Layout {
    /// `None` for what this kernel does not know.
    pub(super) fn of(number: u32, kernel: KernelVersion) -> Option<Self> {
        let newest = match kernel {
            KernelVersion::Linux6_12 => 0x8e,
            KernelVersion::Linux7_3 => 0x95,
        };
        let known = |layout: &&Self| 0x3b00 | u32::from(layout.command) == number && layout.command <= newest;
        LAYOUTS.iter().find(known).copied()
    }

    /// The structure as this kernel knows it: what an older caller left out is zero.
    ///
    /// # Errors
    ///
    /// `EINVAL` too short, `E2BIG` a newer caller wants something that this kernel does not know.
    pub(super) fn copy_in(self, argument: &Argument<'_>) -> Result<[u8; LONGEST], Errno> {
        let size = usize::try_from(argument.word(0)?).map_err(|_| Errno::FAULT)?;
        if size < self.least {
            return Err(Errno::INVAL);
        }
        let passed = argument.0.get(..size).ok_or(Errno::FAULT)?;
        let (known, unknown) = passed.split_at(size.min(self.size));
        if unknown.iter().any(|byte| *byte != 0) {
            return Err(Errno::TOOBIG);
        }
        let mut structure = [0; LONGEST];
        Argument(&mut structure).set(0, known)?;
        Ok(structure)
    }

    /// Answers with as much of the structure as the caller knows.
    pub(super) fn copy_out(
        self,
        structure: &[u8; LONGEST],
        argument: &mut Argument<'_>,
    ) -> Result<(), Errno> {
        let size = usize::try_from(argument.word(0)?).map_err(|_| Errno::FAULT)?;
        let known = structure.get(..size.min(self.size)).ok_or(Errno::FAULT)?;
        argument.set(0, known)
    }
}
