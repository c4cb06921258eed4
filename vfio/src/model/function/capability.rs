// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Capabilities of a config space: what they hold, and which of their bits the hardware lets be written.

use crate::model::function::registers::{Registers, capability_id, extended_capability_id};
use crate::model::topology::KernelVersion;

/// A capability of the list that begins in the header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Capability {
    /// PCI PM 1.2, 3.2.
    PowerManagement {
        /// What the function can do.
        capabilities: u16,
        /// Whether going to sleep and back leaves it as it was, so that it is no reset.
        no_soft_reset: bool,
        /// Which bits of control and status can be written.
        writable: u16,
    },
    /// One message, at a 64-bit address.
    Msi {
        /// Whether it can be held back in the capability itself.
        is_maskable: bool,
    },
    /// Messages from a table.
    Msix {
        /// How many.
        vectors: u16,
        /// Where they are: BAR and offset.
        table: (u8, u32),
        /// Where those are that wait: BAR and offset.
        pending: (u8, u32),
    },
    /// PCIe 6.0, 7.5.3, of an endpoint.
    Express {
        /// The capability's version.
        version: u16,
        /// Which bits of device control can be written.
        control: u16,
        /// Whether writing one resets the function.
        function_level_reset: bool,
    },
    /// What conventional functions have instead for a function level reset.
    AdvancedFeatures,
    /// Virtio 1.3, 4.1.4: where a structure is.
    Virtio {
        /// Which structure.
        kind: VirtioStructure,
        /// Where it is in BAR 4.
        offset: u32,
    },
}

/// A structure of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VirtioStructure {
    /// What all devices have.
    Common,
    /// Doorbells, so many bytes apart.
    Notify { spacing: u32 },
    /// What interrupted.
    Isr,
    /// What this kind of device has.
    Device,
    /// Access to BARs through the config space.
    Window,
}

impl VirtioStructure {
    /// Its number in the capability.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Common => 1,
            Self::Notify { .. } => 2,
            Self::Isr => 3,
            Self::Device => 4,
            Self::Window => 5,
        }
    }
}

impl Capability {
    /// Offset of control and status in the power management capability.
    pub(crate) const POWER_CONTROL: usize = 4;
    /// The power state there.
    pub(crate) const POWER_STATE: u16 = 0b11;
    /// That sleeping is no reset.
    pub(crate) const NO_SOFT_RESET: u16 = 1 << 3;
    /// Offset of control in the MSI and MSI-X capabilities.
    pub(crate) const MESSAGE_CONTROL: usize = 2;
    /// The bit there that turns messages on.
    pub(crate) const MSI_ENABLE: u16 = 1 << 0;
    pub(crate) const MSIX_ENABLE: u16 = 1 << 15;
    /// The bit that says that MSI can be masked, and where.
    pub(crate) const MSI_MASKABLE: u16 = 1 << 8;
    pub(crate) const MSI_MASK: usize = 16;
    /// Offsets in the PCI Express capability.
    pub(crate) const EXPRESS_DEVICE_CAPABILITIES: usize = 4;
    pub(crate) const EXPRESS_DEVICE_CONTROL: usize = 8;
    pub(crate) const EXPRESS_FUNCTION_LEVEL_RESET: u32 = 1 << 28;

    /// Its id.
    pub(crate) const fn id(&self) -> u8 {
        match self {
            Self::PowerManagement { .. } => capability_id::POWER_MANAGEMENT,
            Self::Msi { .. } => capability_id::MSI,
            Self::Msix { .. } => capability_id::MSIX,
            Self::Express { .. } => capability_id::EXPRESS,
            Self::AdvancedFeatures => capability_id::ADVANCED_FEATURES,
            Self::Virtio { .. } => capability_id::VENDOR,
        }
    }

    /// Puts it into the config space, all but the pointer to the next one.
    pub(crate) fn place(&self, registers: &mut Registers, start: usize) {
        let body = self.body();
        registers.claim(start, &[self.id(), 0]);
        registers.claim(start + 2, &body);
        match *self {
            Self::PowerManagement { writable, .. } => {
                registers.allow(start + Self::POWER_CONTROL, &writable.to_le_bytes());
            }
            Self::Msi { is_maskable } => {
                // Enable and the number of messages, the address, the data, the mask.
                registers.allow(start + Self::MESSAGE_CONTROL, &[0x71]);
                registers.allow(start + 4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
                if is_maskable {
                    registers.allow(start + 16, &[1]);
                }
            }
            Self::Msix { .. } => registers.allow(start + Self::MESSAGE_CONTROL, &0xc000_u16.to_le_bytes()),
            Self::Express { version, control, .. } => {
                registers.allow(start + Self::EXPRESS_DEVICE_CONTROL, &control.to_le_bytes());
                if version > 1 {
                    registers.allow(start + 0x28, &0x8000_u16.to_le_bytes());
                }
            }
            Self::Virtio { kind: VirtioStructure::Window, .. } => {
                registers.allow(start + 4, &[0xff]);
                registers.allow(start + 8, &[0xff; 12]);
            }
            Self::AdvancedFeatures | Self::Virtio { .. } => {}
        }
    }

    /// What follows the id and the pointer to the next one.
    fn body(&self) -> Vec<u8> {
        match *self {
            Self::PowerManagement { capabilities, no_soft_reset, .. } => {
                let control = if no_soft_reset { Self::NO_SOFT_RESET } else { 0 };
                [capabilities.to_le_bytes(), control.to_le_bytes(), [0; 2]].concat()
            }
            Self::Msi { is_maskable } => {
                let mut body = vec![0; if is_maskable { 22 } else { 12 }];
                body.splice(..2, [0x80, u8::from(is_maskable)]);
                body
            }
            Self::Msix { vectors, table, pending } => {
                let mut body = vectors.saturating_sub(1).to_le_bytes().to_vec();
                for (bar, offset) in [table, pending] {
                    body.extend((offset | u32::from(bar)).to_le_bytes());
                }
                body
            }
            Self::Express { version, function_level_reset, .. } => {
                let reset = if function_level_reset { Self::EXPRESS_FUNCTION_LEVEL_RESET } else { 0 };
                let mut body = version.to_le_bytes().to_vec();
                // Role-based error reporting, extended tags; a link that runs at 2.5 GT/s on one lane.
                body.extend((0x8020 | reset).to_le_bytes());
                body.extend([0; 4]);
                body.extend(0x0411_u32.to_le_bytes());
                body.extend([0, 0, 0x11, 0]);
                if version > 1 {
                    body.extend([0; 0x10]);
                    // End-end prefixes.
                    body.extend(0x0030_0000_u32.to_le_bytes());
                    body.extend([0; 0x14]);
                }
                body
            }
            // Its length, that pending transactions show, that there is a reset.
            Self::AdvancedFeatures => vec![6, 3, 0, 0],
            Self::Virtio { kind, offset } => virtio_body(kind, offset),
        }
    }
}

/// QEMU leaves room for so many, whatever a device has.
const VIRTIO_QUEUES: u32 = 1024;

fn virtio_body(kind: VirtioStructure, offset: u32) -> Vec<u8> {
    let (bar, length, tail) = match kind {
        VirtioStructure::Common | VirtioStructure::Isr | VirtioStructure::Device => (4, 0x1000, None),
        VirtioStructure::Notify { spacing } => (4, spacing * VIRTIO_QUEUES, Some(spacing)),
        VirtioStructure::Window => (0, 0, Some(0)),
    };
    let mut body = vec![if tail.is_some() { 0x14 } else { 0x10 }, kind.number(), bar, 0, 0, 0];
    body.extend(u32::to_le_bytes(offset));
    body.extend(u32::to_le_bytes(length));
    body.extend(tail.map(u32::to_le_bytes).into_iter().flatten());
    body
}

/// A capability of the list that only PCI Express has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ExtendedCapability {
    /// Advanced error reporting.
    ErrorReporting {
        /// The capability's version.
        version: u16,
    },
    /// Serial number.
    SerialNumber([u8; 8]),
    /// Alternative routing ids: more than eight functions.
    AlternativeRoutingId,
    /// SR-IOV.
    VirtualFunctions,
}

impl ExtendedCapability {
    /// Puts it into the config space; `next` is where the next one is, or 0.
    pub(crate) fn place(&self, registers: &mut Registers, start: usize, next: u16, kernel: KernelVersion) {
        let (id, version, body) = match *self {
            Self::ErrorReporting { version } => {
                (extended_capability_id::ADVANCED_ERROR_REPORTING, version, error_reporting(kernel))
            }
            Self::SerialNumber(number) => (extended_capability_id::SERIAL_NUMBER, 1, number.to_vec()),
            Self::AlternativeRoutingId => (extended_capability_id::ALTERNATIVE_ROUTING_ID, 1, vec![0; 4]),
            Self::VirtualFunctions => (extended_capability_id::VIRTUAL_FUNCTIONS, 1, virtual_functions()),
        };
        registers.claim(start, &id.to_le_bytes());
        registers.claim(start + 2, &(version | (next << 4)).to_le_bytes());
        registers.claim(start + 4, &body);
        if let Self::ErrorReporting { .. } = self {
            // Masks of uncorrectable errors, their severity, masks of correctable ones, what is checked.
            for (offset, bits) in [(0x08, 0x03ff_f030), (0x0c, 0x03ff_f030), (0x14, 0xf1c1), (0x18, 0x140)] {
                registers.allow(start + offset, &u32::to_le_bytes(bits));
            }
        }
    }
}

/// The masks and severities that are set by default, and ECRC, which can be generated and checked.
fn error_reporting(kernel: KernelVersion) -> Vec<u8> {
    let mut words = [0_u32; 15];
    // 7.3 wants to hear of errors that are only advice.
    let masked = match kernel {
        KernelVersion::Linux6_12 => 0xe000,
        KernelVersion::Linux7_3 => 0xc000,
    };
    let [_, mask, severity, _, correctable, control, ..] = &mut words;
    (*mask, *severity, *correctable, *control) = (0x0240_0000, 0x0046_2030, masked, 0xa0);
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Eight functions in pairs, of which none is enabled, with two BARs each.
fn virtual_functions() -> Vec<u8> {
    let words: [u32; 15] = [
        0,
        0x10,
        0x0008_0008,
        0,
        0x0002_0080,
        0x10ca_0000,
        0x0553,
        1,
        0xfe80_000c,
        0,
        0,
        0xfe82_000c,
        0,
        0,
        0,
    ];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
