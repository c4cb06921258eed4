// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The catalogue: what each part consists of, as QEMU 11.1 builds it. BARs are where the firmware put them when the test
//! machine had one of these parts.

use crate::model::function::capability::{Capability, ExtendedCapability, VirtioStructure};
use crate::model::function::registers::{EXTENDED, Registers, header};
use crate::model::function::virtio;
use crate::model::topology::{FunctionReset, KernelVersion, Part};

/// What a function is to the other functions of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It says nothing about others.
    Single,
    /// It says that there are others.
    FirstOfSeveral,
    /// It was made by another one (SR-IOV).
    Virtual,
}

/// What a BAR leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    Io,
    Memory32,
    PrefetchableMemory32,
    Memory64,
    PrefetchableMemory64,
}

impl BarKind {
    /// The bits of the register that say so.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Io => 0b0001,
            Self::Memory32 => 0b0000,
            Self::PrefetchableMemory32 => 0b1000,
            Self::Memory64 => 0b0100,
            Self::PrefetchableMemory64 => 0b1100,
        }
    }
}

/// A base address register and what is behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// 0 to 5.
    pub(crate) index: usize,
    pub(crate) kind: BarKind,
    /// Where the firmware put it.
    pub(crate) address: u32,
    /// In bytes; a power of two.
    pub(crate) size: u32,
}

/// An expansion ROM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rom {
    /// Where the firmware put it.
    pub(crate) address: u32,
    /// In bytes; a power of two.
    pub(crate) size: u32,
}

/// What a part consists of.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Base class, subclass and programming interface.
    pub(crate) class: u32,
    revision: u8,
    subsystem: [u16; 2],
    status: u16,
    /// Latency timer, minimum grant and maximum latency.
    timing: [u8; 3],
    interrupt_line: u8,
    pub(crate) bars: Vec<Bar>,
    pub(crate) rom: Option<Rom>,
    /// With their offsets, in the order of the list.
    pub(crate) capabilities: Vec<(u8, Capability)>,
    extended: Option<Vec<(u16, ExtendedCapability)>>,
}

const QEMU: [u16; 2] = [0x1af4, 0x1100];

impl Layout {
    /// What `part` consists of when it is reset that way. The config space says what ways there are.
    pub(crate) fn new(part: Part, reset: FunctionReset, role: Role) -> Self {
        let mut layout = match part {
            Part::Edu => edu(),
            Part::Igb => igb(),
            Part::E1000e => e1000e(),
            Part::I82559er => i82559er(),
            Part::Nvme => nvme(),
            Part::VirtioBlock => virtio_block(),
            Part::VirtioNet => virtio_net(),
            Part::VirtioEntropy => virtio_entropy(),
            Part::VirtioQueues(_) => virtio_queues(),
        };
        layout.offer(reset);
        if role == Role::Virtual && part == Part::Igb {
            layout.device = 0x10ca;
            layout.extended = Some(Vec::new());
        }
        layout
    }

    fn conventional(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        Self {
            vendor,
            device,
            class,
            revision,
            subsystem: QEMU,
            status: header::STATUS_CAPABILITY_LIST,
            timing: [0; 3],
            interrupt_line: 10,
            bars: Vec::new(),
            rom: None,
            capabilities: Vec::new(),
            extended: None,
        }
    }

    fn express(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        Self { extended: Some(Vec::new()), ..Self::conventional(vendor, device, class, revision) }
    }

    /// Whether it is a PCI Express function.
    pub(crate) const fn is_express(&self) -> bool {
        self.extended.is_some()
    }

    /// Whether a BAR or the ROM answers in memory or I/O space.
    pub(crate) fn bar(&self, index: usize) -> Option<&Bar> {
        self.bars.iter().find(|bar| bar.index == index)
    }

    /// Vectors of MSI-X, and where their table is: BAR and offset.
    pub(crate) fn msix(&self) -> Option<(u16, (u8, u32))> {
        self.capabilities.iter().find_map(|(_, capability)| match capability {
            Capability::Msix { vectors, table, .. } => Some((*vectors, *table)),
            _ => None,
        })
    }

    /// Whether it can make virtual functions.
    pub(crate) fn has_virtual_functions(&self) -> bool {
        let mut extended = self.extended.iter().flatten();
        extended.any(|(_, capability)| matches!(capability, ExtendedCapability::VirtualFunctions))
    }

    /// Whether messages go so far. A device that has but one has it anyway.
    pub(crate) fn has_vector(&self, vector: u16) -> bool {
        vector < self.msix().map_or(1, |(vectors, _)| vectors)
    }

    /// Makes the capabilities tell of one way to reset the function, or of none.
    fn offer(&mut self, reset: FunctionReset) {
        let flr = reset == FunctionReset::FunctionLevel;
        let sleep = reset == FunctionReset::PowerManagement;
        let (mut is_flr_told, mut is_sleep_told) = (false, false);
        for (_, capability) in &mut self.capabilities {
            match capability {
                Capability::Express { function_level_reset, .. } => {
                    *function_level_reset = flr;
                    is_flr_told = true;
                }
                Capability::PowerManagement { no_soft_reset, .. } => {
                    // A function that has a better reset may have this one too.
                    *no_soft_reset = !sleep && (*no_soft_reset || !flr);
                    is_sleep_told = true;
                }
                _ => {}
            }
        }
        if flr && !is_flr_told {
            self.capabilities.push((0xf0, Capability::AdvancedFeatures));
        }
        if sleep && !is_sleep_told {
            let capability =
                Capability::PowerManagement { capabilities: 3, no_soft_reset: false, writable: 3 };
            self.capabilities.push((0xf0, capability));
        }
    }

    /// The config space of the part when the firmware has set it up.
    pub(crate) fn registers(&self, role: Role, kernel: KernelVersion) -> Registers {
        let mut registers = Registers::new(if self.is_express() { 0x1000 } else { EXTENDED });
        self.place_header(&mut registers);
        let mut pointer = header::CAPABILITIES;
        for (offset, capability) in &self.capabilities {
            capability.place(&mut registers, (*offset).into());
            registers.set(pointer, &[*offset]);
            pointer = usize::from(*offset) + 1;
        }
        let mut extended = self.extended.iter().flatten().peekable();
        while let Some((offset, capability)) = extended.next() {
            let next = extended.peek().map_or(0, |(next, _)| *next);
            capability.place(&mut registers, (*offset).into(), next, kernel);
        }
        match role {
            Role::Single => {}
            Role::FirstOfSeveral => {
                registers.set(header::HEADER_TYPE, &[header::MULTIPLE_FUNCTIONS]);
                registers.set_next_function(1);
            }
            Role::Virtual => make_virtual(&mut registers),
        }
        registers
    }

    fn place_header(&self, registers: &mut Registers) {
        let decodes = header::COMMAND_IO | header::COMMAND_MEMORY;
        let writable = decodes
            | header::COMMAND_BUS_MASTER
            | header::COMMAND_SYSTEM_ERROR
            | header::COMMAND_INTX_DISABLE;
        let [latency_timer, minimum_grant, maximum_latency] = self.timing;
        let [subsystem_vendor, subsystem] = self.subsystem;
        registers.set(header::VENDOR, &self.vendor.to_le_bytes());
        registers.set(header::DEVICE, &self.device.to_le_bytes());
        registers.set(header::COMMAND, &(decodes | header::COMMAND_SYSTEM_ERROR).to_le_bytes());
        registers.allow(header::COMMAND, &writable.to_le_bytes());
        registers.set(header::STATUS, &self.status.to_le_bytes());
        let class = (self.class << 8) | u32::from(self.revision);
        registers.set(header::REVISION_AND_CLASS, &class.to_le_bytes());
        registers.allow(header::CACHE_LINE_SIZE, &[0xff]);
        registers.set(header::LATENCY_TIMER, &[latency_timer]);
        for bar in &self.bars {
            let register = header::BAR0 + 4 * bar.index;
            registers.set(register, &(bar.address | bar.kind.bits()).to_le_bytes());
        }
        registers.set(header::SUBSYSTEM, &subsystem_vendor.to_le_bytes());
        registers.set(header::SUBSYSTEM + 2, &subsystem.to_le_bytes());
        if let Some(rom) = self.rom {
            registers.set(header::ROM, &rom.address.to_le_bytes());
        }
        registers.set(header::INTERRUPT_LINE, &[self.interrupt_line]);
        registers.allow(header::INTERRUPT_LINE, &[0xff]);
        registers.set(header::INTERRUPT_PIN, &[1]);
        registers.set(header::MINIMUM_GRANT, &[minimum_grant, maximum_latency]);
    }
}

/// A virtual function has no ids, no BARs, no decoding and no interrupt line of its own (PCIe 6.0, 9.3.4).
fn make_virtual(registers: &mut Registers) {
    registers.claim(header::VENDOR, &[0xff; 4]);
    registers.claim(header::COMMAND, &[0; 2]);
    registers.allow(header::COMMAND, &header::COMMAND_BUS_MASTER.to_le_bytes());
    registers.claim(header::BAR0, &[0; 24]);
    registers.claim(header::ROM, &[0; 4]);
    registers.claim(header::INTERRUPT_LINE, &[0; 2]);
}

/// QEMU's teaching device.
fn edu() -> Layout {
    Layout {
        bars: vec![Bar { index: 0, kind: BarKind::Memory32, address: 0xfe40_0000, size: 1 << 20 }],
        capabilities: vec![(0x40, Capability::Msi { is_maskable: false })],
        ..Layout::conventional(0x1234, 0x11e8, 0x00_ff00, 0x10)
    }
}

/// Intel 82576.
fn igb() -> Layout {
    Layout {
        bars: vec![
            Bar { index: 0, kind: BarKind::Memory32, address: 0xfe40_0000, size: 0x2_0000 },
            Bar { index: 1, kind: BarKind::Memory32, address: 0xfe42_0000, size: 0x2_0000 },
            Bar { index: 2, kind: BarKind::Io, address: 0xc000, size: 0x20 },
            Bar { index: 3, kind: BarKind::Memory64, address: 0xfe44_0000, size: 0x4000 },
        ],
        capabilities: vec![
            (
                0x40,
                Capability::PowerManagement { capabilities: 0x0022, no_soft_reset: false, writable: 0x1f03 },
            ),
            (0x50, Capability::Msi { is_maskable: true }),
            (0x70, Capability::Msix { vectors: 10, table: (3, 0), pending: (3, 0x2000) }),
            (0xa0, Capability::Express { version: 2, control: 0, function_level_reset: true }),
        ],
        extended: Some(vec![
            (0x100, ExtendedCapability::ErrorReporting { version: 1 }),
            (0x150, ExtendedCapability::AlternativeRoutingId),
            (0x160, ExtendedCapability::VirtualFunctions),
        ]),
        ..Layout::express(0x8086, 0x10c9, 0x02_0000, 1)
    }
}

/// Intel 82574L.
fn e1000e() -> Layout {
    Layout {
        subsystem: [0x8086, 0],
        bars: vec![
            Bar { index: 0, kind: BarKind::Memory32, address: 0xfe44_0000, size: 0x2_0000 },
            Bar { index: 1, kind: BarKind::Memory32, address: 0xfe46_0000, size: 0x2_0000 },
            Bar { index: 2, kind: BarKind::Io, address: 0xc000, size: 0x20 },
            Bar { index: 3, kind: BarKind::Memory32, address: 0xfe48_0000, size: 0x4000 },
        ],
        rom: Some(Rom { address: 0xfe40_0000, size: 0x4_0000 }),
        capabilities: vec![
            (
                0xc8,
                Capability::PowerManagement { capabilities: 0x0022, no_soft_reset: false, writable: 0x1f03 },
            ),
            (0xd0, Capability::Msi { is_maskable: false }),
            (0xe0, Capability::Express { version: 1, control: 0, function_level_reset: false }),
            (0xa0, Capability::Msix { vectors: 5, table: (3, 0), pending: (3, 0x2000) }),
        ],
        extended: Some(vec![
            (0x100, ExtendedCapability::ErrorReporting { version: 2 }),
            (0x140, ExtendedCapability::SerialNumber([0x56, 0x34, 0x12, 0xff, 0xff, 0x00, 0x54, 0x52])),
        ]),
        ..Layout::express(0x8086, 0x10d3, 0x02_0000, 0)
    }
}

/// Intel 82559ER.
fn i82559er() -> Layout {
    Layout {
        status: 0x0290,
        timing: [0x20, 8, 0x18],
        interrupt_line: 11,
        bars: vec![
            Bar { index: 0, kind: BarKind::PrefetchableMemory32, address: 0xfe80_0000, size: 0x1000 },
            Bar { index: 1, kind: BarKind::Io, address: 0xc000, size: 0x40 },
            Bar { index: 2, kind: BarKind::Memory32, address: 0xfe20_0000, size: 0x2_0000 },
        ],
        rom: Some(Rom { address: 0xfe22_0000, size: 0x2_0000 }),
        // It says that it can sleep, but does not.
        capabilities: vec![(
            0xdc,
            Capability::PowerManagement { capabilities: 0x7e21, no_soft_reset: false, writable: 0 },
        )],
        ..Layout::conventional(0x8086, 0x1209, 0x02_0000, 9)
    }
}

/// QEMU's `NVMe` controller.
fn nvme() -> Layout {
    Layout {
        bars: vec![Bar { index: 0, kind: BarKind::Memory64, address: 0xfe40_0000, size: 0x4000 }],
        capabilities: vec![
            (0x40, Capability::Msix { vectors: 65, table: (0, 0x2000), pending: (0, 0x3000) }),
            (0x80, Capability::Express { version: 2, control: 0x000f, function_level_reset: true }),
            (0x60, Capability::PowerManagement { capabilities: 3, no_soft_reset: true, writable: 3 }),
        ],
        ..Layout::express(0x1b36, 0x0010, 0x01_0802, 2)
    }
}

fn virtio_block() -> Layout {
    Layout {
        bars: virtio_bars(0xfe84_0000, 0xfd00_0000, virtio::PAGED_DOORBELLS),
        capabilities: virtio_capabilities(3, virtio::PAGED_DOORBELLS),
        ..Layout::express(0x1af4, 0x1042, 0x01_0000, 1)
    }
}

fn virtio_net() -> Layout {
    Layout {
        bars: virtio_bars(0xfe84_1000, 0xfd80_0000, virtio::DENSE_DOORBELLS),
        rom: Some(Rom { address: 0xfe80_0000, size: 0x4_0000 }),
        capabilities: virtio_capabilities(4, virtio::DENSE_DOORBELLS),
        ..Layout::express(0x1af4, 0x1041, 0x02_0000, 1)
    }
}

/// A network device of two queue pairs, with a vector for each queue.
fn virtio_queues() -> Layout {
    Layout {
        bars: virtio_bars(0xfe44_0000, 0xfe80_0000, virtio::DENSE_DOORBELLS),
        rom: Some(Rom { address: 0xfe40_0000, size: 0x4_0000 }),
        capabilities: virtio_capabilities(6, virtio::DENSE_DOORBELLS),
        ..virtio_net()
    }
}

fn virtio_entropy() -> Layout {
    Layout {
        bars: virtio_bars(0xfe40_0000, 0xfe80_0000, virtio::DENSE_DOORBELLS),
        capabilities: virtio_capabilities(2, virtio::DENSE_DOORBELLS),
        ..Layout::express(0x1af4, 0x1044, 0x00_ff00, 1)
    }
}

/// The tables of MSI-X, and the structures, of which the doorbells are the last.
fn virtio_bars(tables: u32, structures: u32, spacing: u32) -> Vec<Bar> {
    let size = if spacing == virtio::PAGED_DOORBELLS { 0x80_0000 } else { 0x4000 };
    vec![
        Bar { index: 1, kind: BarKind::Memory32, address: tables, size: 0x1000 },
        Bar { index: 4, kind: BarKind::PrefetchableMemory64, address: structures, size },
    ]
}

fn virtio_capabilities(vectors: u16, spacing: u32) -> Vec<(u8, Capability)> {
    let structure = |kind, offset| Capability::Virtio { kind, offset };
    vec![
        (0xdc, Capability::Msix { vectors, table: (1, 0), pending: (1, 0x800) }),
        (0xc8, structure(VirtioStructure::Window, 0)),
        (0xb4, structure(VirtioStructure::Notify { spacing }, 0x3000)),
        (0xa4, structure(VirtioStructure::Device, 0x2000)),
        (0x94, structure(VirtioStructure::Isr, 0x1000)),
        (0x84, structure(VirtioStructure::Common, 0)),
        (0x7c, Capability::PowerManagement { capabilities: 3, no_soft_reset: false, writable: 3 }),
        (0x40, Capability::Express { version: 2, control: 0x000f, function_level_reset: true }),
    ]
}
