// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Payloads of vfio-user's messages. The structures are those of `linux/vfio.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct vfio_device_info` as vfio-user has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Room for the reply, or its size, in bytes.
    pub argsz: u32,
    /// [`DeviceInfo::RESET`] and [`DeviceInfo::PCI`].
    pub flags: u32,
    /// Number of regions.
    pub num_regions: u32,
    /// Number of interrupt indexes.
    pub num_irqs: u32,
}

impl DeviceInfo {
    /// Bit 0 of the flags: the device can be reset.
    pub const RESET: u32 = 1;
    /// Bit 1 of the flags: it is a PCI device.
    pub const PCI: u32 = 2;
    /// Size of the structure in bytes.
    pub const SIZE: u32 = 16;
}

/// `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Room for the reply, or its size, in bytes.
    pub argsz: u32,
    /// [`RegionInfo::READ`], [`RegionInfo::WRITE`] and others of `linux/vfio.h`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where capabilities begin, 0 if there are none.
    pub cap_offset: u32,
    /// Size of the region in bytes, 0 if the device does not have it.
    pub size: u64,
    /// Where to map the region in the descriptor that came with the reply.
    pub offset: u64,
}

impl RegionInfo {
    /// Bit 0 of the flags: the region can be read.
    pub const READ: u32 = 1;
    /// Bit 1 of the flags: it can be written.
    pub const WRITE: u32 = 2;
    /// Bit 2 of the flags: it can be mapped.
    pub const MMAP: u32 = 4;
    /// Bit 3 of the flags: capabilities follow.
    pub const CAPS: u32 = 8;
    /// Size of the structure in bytes.
    pub const SIZE: u32 = 32;
}

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Room for the reply, or its size, in bytes.
    pub argsz: u32,
    /// [`IrqInfo::EVENTFD`] and others of `linux/vfio.h`.
    pub flags: u32,
    /// Which interrupt index.
    pub index: u32,
    /// Number of interrupts of the index, 0 if the device does not have it.
    pub count: u32,
}

impl IrqInfo {
    /// Bit 0 of the flags: interrupts are signalled through eventfds.
    pub const EVENTFD: u32 = 1;
    /// Bit 1 of the flags: they can be masked.
    pub const MASKABLE: u32 = 2;
    /// Bit 2 of the flags: they are masked when they fire.
    pub const AUTOMASKED: u32 = 4;
    /// Bit 3 of the flags: the number set up cannot be changed later.
    pub const NORESIZE: u32 = 8;
    /// Size of the structure in bytes.
    pub const SIZE: u32 = 16;
}

/// What `REGION_READ` and `REGION_WRITE` and their replies begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// How many bytes.
    pub count: u32,
}
