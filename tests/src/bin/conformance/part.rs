// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is expected of each emulated device, wherever it is.

/// A device that QEMU emulates.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) class: u32,
    /// Flags (read 1, write 2, mmap 4) and size of each region.
    pub(crate) regions: [(u32, u64); 9],
    /// Number of vectors and flags (eventfd 1, maskable 2, automasked 4, no resize 8) of `INTx`, MSI, MSI-X, ERR, REQ.
    pub(crate) irqs: [(u32, u32); 5],
    /// Whether it speaks PCI Express.
    pub(crate) is_express: bool,
    /// The command register of a freshly bound device.
    pub(crate) command: u16,
    /// Ids of the capabilities, in the order of the list.
    pub(crate) capabilities: &'static [u8],
    pub(crate) has_function_level_reset: bool,
    pub(crate) has_power_management_reset: bool,
    /// Where the registers that take time begin and end.
    pub(crate) slow_registers: &'static [(u64, u64)],
    /// Region and offset of the MSI-X table.
    pub(crate) msix_table: Option<(u32, u64)>,
}

/// Flags of regions: registers, which can be mapped; ports and config space; code.
const MEMORY: u32 = 7;
const ACCESSED: u32 = 3;
const READ_ONLY: u32 = 1;
const NONE: (u32, u64) = (0, 0);
/// Interrupt indexes as they are everywhere: with one vector where there are any.
const LINE: (u32, u32) = (1, 0b0111);
const MESSAGE: (u32, u32) = (1, 0b1001);
const NO_MESSAGE: (u32, u32) = (0, 0b1001);
const EVENT: (u32, u32) = (1, 0b1001);
/// MSI-X that is not there; where it is, vectors can be added.
const NO_TABLE: (u32, u32) = (0, 0b1001);
/// I/O and memory decoding, and reports of system errors: as the kernel enables a device, without bus mastering.
const ENABLED: u16 = 0x103;

/// Ids of capabilities.
const POWER_MANAGEMENT: u8 = 0x01;
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

pub(crate) const EDU: Part = Part {
    vendor: 0x1234,
    device: 0x11e8,
    class: 0x00_ff00,
    regions: [(MEMORY, 0x10_0000), NONE, NONE, NONE, NONE, NONE, NONE, (ACCESSED, 0x100), NONE],
    irqs: [LINE, MESSAGE, NO_TABLE, EVENT, EVENT],
    is_express: false,
    command: ENABLED,
    capabilities: &[MSI],
    has_function_level_reset: false,
    has_power_management_reset: false,
    slow_registers: &[],
    msix_table: None,
};

pub(crate) const IGB: Part = Part {
    vendor: 0x8086,
    device: 0x10c9,
    class: 0x02_0000,
    regions: [
        (MEMORY, 0x2_0000),
        (MEMORY, 0x2_0000),
        (ACCESSED, 0x20),
        (MEMORY, 0x4000),
        NONE,
        NONE,
        NONE,
        (ACCESSED, 0x1000),
        NONE,
    ],
    irqs: [LINE, MESSAGE, (10, 1), EVENT, EVENT],
    is_express: true,
    command: ENABLED,
    capabilities: &[POWER_MANAGEMENT, MSI, MSIX, EXPRESS],
    has_function_level_reset: true,
    has_power_management_reset: true,
    slow_registers: &[(0xa8, 0xaa), (0x44, 0x46)],
    msix_table: Some((3, 0)),
};

pub(crate) const E1000E: Part = Part {
    vendor: 0x8086,
    device: 0x10d3,
    class: 0x02_0000,
    regions: [
        (MEMORY, 0x2_0000),
        (MEMORY, 0x2_0000),
        (ACCESSED, 0x20),
        (MEMORY, 0x4000),
        NONE,
        NONE,
        (READ_ONLY, 0x4_0000),
        (ACCESSED, 0x1000),
        NONE,
    ],
    irqs: [LINE, MESSAGE, (5, 1), EVENT, EVENT],
    is_express: true,
    command: ENABLED,
    capabilities: &[POWER_MANAGEMENT, MSI, EXPRESS, MSIX],
    has_function_level_reset: false,
    has_power_management_reset: true,
    slow_registers: &[(0xe8, 0xea), (0xcc, 0xce)],
    msix_table: Some((3, 0)),
};

pub(crate) const I82559ER: Part = Part {
    vendor: 0x8086,
    device: 0x1209,
    class: 0x02_0000,
    regions: [
        (MEMORY, 0x1000),
        (ACCESSED, 0x40),
        (MEMORY, 0x2_0000),
        NONE,
        NONE,
        NONE,
        (READ_ONLY, 0x2_0000),
        (ACCESSED, 0x100),
        NONE,
    ],
    irqs: [LINE, NO_MESSAGE, NO_TABLE, EVENT, EVENT],
    is_express: false,
    command: ENABLED,
    capabilities: &[POWER_MANAGEMENT],
    has_function_level_reset: false,
    has_power_management_reset: true,
    slow_registers: &[(0xe0, 0xe2)],
    msix_table: None,
};

pub(crate) const NVME: Part = Part {
    vendor: 0x1b36,
    device: 0x0010,
    class: 0x01_0802,
    regions: [(MEMORY, 0x4000), NONE, NONE, NONE, NONE, NONE, NONE, (ACCESSED, 0x1000), NONE],
    irqs: [LINE, NO_MESSAGE, (65, 1), EVENT, EVENT],
    is_express: true,
    command: ENABLED,
    capabilities: &[MSIX, EXPRESS, POWER_MANAGEMENT],
    has_function_level_reset: true,
    has_power_management_reset: false,
    slow_registers: &[(0x88, 0x8a), (0x64, 0x66)],
    msix_table: Some((0, 0x2000)),
};

pub(crate) const VIRTIO_BLK: Part = Part {
    vendor: 0x1af4,
    device: 0x1042,
    class: 0x01_0000,
    regions: [NONE, (MEMORY, 0x1000), NONE, NONE, (MEMORY, 0x80_0000), NONE, NONE, (ACCESSED, 0x1000), NONE],
    irqs: [LINE, NO_MESSAGE, (3, 1), EVENT, EVENT],
    is_express: true,
    command: ENABLED,
    capabilities: &[MSIX, VENDOR, VENDOR, VENDOR, VENDOR, VENDOR, POWER_MANAGEMENT, EXPRESS],
    has_function_level_reset: true,
    has_power_management_reset: true,
    slow_registers: &[(0x48, 0x4a), (0x80, 0x82)],
    msix_table: Some((1, 0)),
};

pub(crate) const VIRTIO_NET: Part = Part {
    device: 0x1041,
    class: 0x02_0000,
    regions: [
        NONE,
        (MEMORY, 0x1000),
        NONE,
        NONE,
        (MEMORY, 0x4000),
        NONE,
        (READ_ONLY, 0x4_0000),
        (ACCESSED, 0x1000),
        NONE,
    ],
    irqs: [LINE, NO_MESSAGE, (4, 1), EVENT, EVENT],
    ..VIRTIO_BLK
};

pub(crate) const VIRTIO_RNG: Part = Part {
    device: 0x1044,
    class: 0x00_ff00,
    regions: [NONE, (MEMORY, 0x1000), NONE, NONE, (MEMORY, 0x4000), NONE, NONE, (ACCESSED, 0x1000), NONE],
    irqs: [LINE, NO_MESSAGE, (2, 1), EVENT, EVENT],
    ..VIRTIO_BLK
};
pub(crate) const VIRTIO_QUEUES: Part = Part { irqs: [LINE, NO_MESSAGE, (6, 1), EVENT, EVENT], ..VIRTIO_NET };
