// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The config space as vfio-pci shows it to whoever opened the function: some bits are the hardware's, some are a copy that
//! the user may write without the hardware hearing of it.

use crate::model::function::capability::Capability;
use crate::model::function::part::{BarKind, Layout, Role};
use crate::model::function::registers::{Registers, capability_id, extended_capability_id, header};

/// What owns a byte; an access is cut where the owner changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Header,
    /// A capability's id, and where it begins.
    Capability(u8, usize),
    Extended(u16, usize),
    Nobody,
}

/// What a write brings about besides new values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The command register was written.
    Command,
    /// The function shall go to this power state.
    Power(u16),
    /// The function shall be reset.
    FunctionLevelReset,
    /// The capability's control was written, which starts here.
    MessageControl(usize),
}

/// The copy, and which bits are its own.
#[derive(Clone, Debug)]
pub(crate) struct VirtualConfig {
    copy: Vec<u8>,
    is_copied: Vec<u8>,
    writable: Vec<u8>,
    owners: Vec<Owner>,
}

/// A register of a capability: offset, which bits of it are the copy's, which of them can be written.
type Field = (usize, u32, u32);

const ALL: u32 = u32::MAX;
const HEADER: &[Field] = &[
    (header::VENDOR, ALL, 0),
    (header::COMMAND, 0x0010_0400, 0xffff),
    (header::CACHE_LINE_SIZE, 0, 0xff00_ffff),
    (header::CAPABILITIES, 0xff, 0),
    (header::INTERRUPT_LINE, 0xffff, 0xff),
];
/// It says that it decodes memory, since its physical function does that for it.
const VIRTUAL_FUNCTION: &[Field] = &[(header::COMMAND, 0x0010_0402, 0xffff)];
const POWER_MANAGEMENT: &[Field] = &[(0, 0xf800_ffff, 0), (4, 0x8100, !0x8103)];
const MSI: &[Field] = &[(0, 0x00ff_ffff, 0x00ff_0000), (4, ALL, ALL), (8, ALL, ALL), (12, 0xffff, 0xffff)];
const MSI_MASKABLE: &[Field] = &[(16, 0, ALL), (20, 0, ALL)];
const EXPRESS: &[Field] = &[(0, 0xffff, 0), (8, 0xf0e0, 0xfdff), (0x28, 0, 0xffdf)];
const ADVANCED_FEATURES: &[Field] = &[(0, 0xffff, 0), (4, 0x01, 0x01)];
const ERROR_REPORTING: &[Field] = &[
    (0, ALL, 0),
    (0x04, 0, 0x03ff_f031),
    (0x08, 0, 0x03ff_f031),
    (0x0c, 0, 0x03ff_f031),
    (0x10, 0, 0xf1c1),
    (0x14, 0, 0xf1c1),
    (0x18, 0, 0x0140),
];

const FUNCTION_LEVEL_RESET_BIT: u16 = 1 << 15;

impl VirtualConfig {
    /// The copy of what is there when the function is opened.
    pub(crate) fn new(registers: &Registers, layout: &Layout, role: Role) -> Self {
        let length = registers.length();
        let mut config = Self {
            copy: registers.bytes().to_vec(),
            is_copied: vec![0; length],
            writable: vec![0; length],
            owners: vec![Owner::Nobody; length],
        };
        config.lay(Owner::Header, 0, header::END, HEADER);
        for (id, start) in registers.capabilities() {
            config.lay_capability(registers, id, start);
        }
        for (id, start) in registers.extended_capabilities() {
            config.lay_extended(id, start);
        }
        // Devices hide registers between their capabilities, so all of that is let through.
        for (writable, owner) in config.writable.iter_mut().zip(&config.owners) {
            if *owner == Owner::Nobody {
                *writable = 0xff;
            }
        }
        config.lay_bars(layout);
        if role == Role::Virtual {
            config.keep(header::VENDOR, &layout.vendor.to_le_bytes());
            config.keep(header::DEVICE, &layout.device.to_le_bytes());
            config.keep(header::COMMAND, &header::COMMAND_MEMORY.to_le_bytes());
            config.lay(Owner::Header, 0, header::END, VIRTUAL_FUNCTION);
        }
        config
    }

    fn lay_capability(&mut self, registers: &Registers, id: u8, start: usize) {
        const POINTER: &[Field] = &[(0, 0xffff, 0)];
        let is_maskable = registers.half(start + Capability::MESSAGE_CONTROL) & 0x100 != 0;
        let (length, fields) = match id {
            capability_id::POWER_MANAGEMENT => (8, POWER_MANAGEMENT),
            capability_id::MSI if is_maskable => (24, MSI),
            capability_id::MSI => (14, MSI),
            capability_id::MSIX => (12, POINTER),
            capability_id::EXPRESS if registers.half(start + 2) & 0xf == 1 => (0x14, EXPRESS),
            capability_id::EXPRESS => (0x3c, EXPRESS),
            capability_id::ADVANCED_FEATURES => (6, ADVANCED_FEATURES),
            capability_id::VENDOR => (registers.byte(start + 2).into(), POINTER),
            _ => return,
        };
        let owner = Owner::Capability(id, start);
        self.lay(owner, start, length, fields);
        match id {
            capability_id::MSI if is_maskable => self.lay(owner, start, length, MSI_MASKABLE),
            // What it is made of, only its device knows.
            capability_id::VENDOR => {
                set(&mut self.writable, start + 2, &vec![0xff; length.saturating_sub(2)]);
            }
            // Nobody but the host can handle a power management event.
            capability_id::POWER_MANAGEMENT => {
                let control = start + Capability::POWER_CONTROL;
                self.keep(start + 2, &(registers.half(start + 2) & !0xf800).to_le_bytes());
                self.keep(control, &(registers.half(control) & !0x8100).to_le_bytes());
            }
            _ => {}
        }
    }

    fn lay_extended(&mut self, id: u16, start: usize) {
        const POINTER: &[Field] = &[(0, ALL, 0)];
        let (length, fields) = match id {
            extended_capability_id::ADVANCED_ERROR_REPORTING => (0x2c, ERROR_REPORTING),
            extended_capability_id::SERIAL_NUMBER => (12, POINTER),
            extended_capability_id::ALTERNATIVE_ROUTING_ID => (8, POINTER),
            extended_capability_id::VIRTUAL_FUNCTIONS => (0x40, POINTER),
            _ => return,
        };
        self.lay(Owner::Extended(id, start), start, length, fields);
    }

    fn lay(&mut self, owner: Owner, start: usize, length: usize, fields: &[Field]) {
        for byte in self.owners.iter_mut().skip(start).take(length) {
            *byte = owner;
        }
        for (offset, copied, writable) in fields {
            let room = length.saturating_sub(*offset).min(4);
            set(&mut self.is_copied, start + offset, copied.to_le_bytes().get(..room).unwrap_or_default());
            set(&mut self.writable, start + offset, writable.to_le_bytes().get(..room).unwrap_or_default());
        }
    }

    /// BARs are the copy's; of their bits those can be written that tell a BAR's size.
    fn lay_bars(&mut self, layout: &Layout) {
        set(&mut self.is_copied, header::BAR0, &[0xff; 24]);
        set(&mut self.is_copied, header::ROM, &[0xff; 4]);
        for bar in &layout.bars {
            let register = header::BAR0 + 4 * bar.index;
            let low = bar.address | bar.kind.bits();
            self.keep(register, &low.to_le_bytes());
            set(&mut self.writable, register, &(!(bar.size - 1)).to_le_bytes());
            if matches!(bar.kind, BarKind::Memory64 | BarKind::PrefetchableMemory64) {
                set(&mut self.writable, register + 4, &[0xff; 4]);
            }
        }
        if let Some(rom) = layout.rom {
            // The lowest bit enables it.
            set(&mut self.writable, header::ROM, &(!(rom.size - 1) | 1).to_le_bytes());
        }
    }

    /// What the copy holds.
    fn keep(&mut self, offset: usize, data: &[u8]) {
        set(&mut self.copy, offset, data);
    }

    /// How many bytes an access at `offset` reaches at once: aligned, within four bytes and one owner.
    pub(crate) fn chunk(&self, offset: usize, length: usize) -> usize {
        let kind = |offset: usize| {
            self.owners.get(offset).map(|owner| match owner {
                Owner::Header => (0, 0),
                Owner::Capability(id, _) => (1, u16::from(*id)),
                Owner::Extended(id, _) => (2, *id),
                Owner::Nobody => (3, 0),
            })
        };
        let end = (offset + 1..).take(3).find(|next| next % 4 == 0 || kind(*next) != kind(offset));
        let reach = end.map_or(4, |end| end - offset).min(length);
        match reach {
            4.. if offset.is_multiple_of(4) => 4,
            2.. if offset.is_multiple_of(2) => 2,
            _ => 1,
        }
    }

    /// What the user reads.
    pub(crate) fn read(&self, registers: &Registers, offset: usize, data: &mut [u8]) {
        let copy = self.copy.iter().zip(&self.is_copied).zip(registers.bytes()).skip(offset);
        for (byte, ((copy, is_copied), register)) in data.iter_mut().zip(copy) {
            *byte = (copy & is_copied) | (register & !is_copied);
        }
    }

    /// The user writes one chunk.
    pub(crate) fn write(&mut self, registers: &mut Registers, offset: usize, data: &[u8]) -> Effect {
        let mut through = registers.bytes().get(offset..offset + data.len()).unwrap_or_default().to_vec();
        let masks = self.is_copied.iter().zip(&self.writable);
        let bytes = self.copy.iter_mut().zip(masks).skip(offset).zip(&mut through);
        let mut reaches_hardware = false;
        for (((copy, (is_copied, writable)), through), byte) in bytes.zip(data) {
            *copy = (*copy & !(is_copied & writable)) | (byte & is_copied & writable);
            *through = (*through & !(writable & !is_copied)) | (byte & writable & !is_copied);
            reaches_hardware |= writable & !is_copied != 0;
        }
        if reaches_hardware {
            registers.write(offset, &through);
        }
        self.effect(registers, offset, data)
    }

    fn effect(&mut self, registers: &Registers, offset: usize, data: &[u8]) -> Effect {
        let first = data.first().copied().unwrap_or_default();
        match self.owners.get(offset) {
            Some(Owner::Header) if offset == header::COMMAND => {
                let decodes = (header::COMMAND_MEMORY | header::COMMAND_IO).to_le_bytes()[0];
                let command = self.copy_byte(header::COMMAND);
                self.keep(header::COMMAND, &[(command & !decodes) | (first & decodes)]);
                Effect::Command
            }
            Some(Owner::Header) if offset == header::COMMAND + 1 => Effect::Command,
            Some(Owner::Capability(capability_id::POWER_MANAGEMENT, start))
                if offset == start + Capability::POWER_CONTROL =>
            {
                Effect::Power(u16::from(first) & Capability::POWER_STATE)
            }
            Some(Owner::Capability(capability_id::MSI, start))
                if (*start..=start + Capability::MESSAGE_CONTROL).contains(&offset)
                    && offset + data.len() >= start + Capability::MESSAGE_CONTROL =>
            {
                Effect::MessageControl(*start)
            }
            Some(Owner::Capability(capability_id::EXPRESS, start)) => self.express_effect(registers, *start),
            Some(Owner::Capability(capability_id::ADVANCED_FEATURES, start)) => {
                let control = start + 4;
                let is_asked = self.copy_byte(control) & 1 != 0;
                self.keep(control, &[0]);
                if is_asked { Effect::FunctionLevelReset } else { Effect::None }
            }
            _ => Effect::None,
        }
    }

    /// The bit that resets always reads as zero.
    fn express_effect(&mut self, registers: &Registers, start: usize) -> Effect {
        let register = start + Capability::EXPRESS_DEVICE_CONTROL;
        let control = u16::from_le_bytes([self.copy_byte(register), self.copy_byte(register + 1)]);
        self.keep(register, &(control & !FUNCTION_LEVEL_RESET_BIT).to_le_bytes());
        let capabilities = registers.word(start + Capability::EXPRESS_DEVICE_CAPABILITIES);
        let is_able = capabilities & Capability::EXPRESS_FUNCTION_LEVEL_RESET != 0;
        if is_able && control & FUNCTION_LEVEL_RESET_BIT != 0 {
            Effect::FunctionLevelReset
        } else {
            Effect::None
        }
    }

    fn copy_byte(&self, offset: usize) -> u8 {
        self.copy.get(offset).copied().unwrap_or_default()
    }

    /// The command register as the user left it, whatever the hardware made of it.
    pub(crate) fn command(&self) -> u16 {
        u16::from_le_bytes([self.copy_byte(header::COMMAND), self.copy_byte(header::COMMAND + 1)])
    }

    /// Makes the hardware follow the control of the MSI capability that starts there: messages are turned on with
    /// `VFIO_DEVICE_SET_IRQS`, and there is but one.
    pub(crate) fn follow_message_control(&mut self, registers: &mut Registers, start: usize, is_on: bool) {
        let register = start + Capability::MESSAGE_CONTROL;
        let mut control =
            u16::from_le_bytes([self.copy_byte(register), self.copy_byte(register + 1)]) & !0x70;
        if !is_on {
            control &= !Capability::MSI_ENABLE;
        }
        self.keep(register, &control.to_le_bytes());
        registers.write(register, &control.to_le_bytes());
    }
}

fn set(bytes: &mut [u8], offset: usize, data: &[u8]) {
    for (byte, value) in bytes.iter_mut().skip(offset).zip(data) {
        *byte = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topology::{FunctionReset, KernelVersion, Part};

    /// That of a virtio device, whose capabilities follow each other closely.
    fn config() -> (Registers, VirtualConfig) {
        let layout = Layout::new(Part::VirtioBlock, FunctionReset::FunctionLevel, Role::Single);
        let registers = layout.registers(Role::Single, KernelVersion::Linux7_3);
        let config = VirtualConfig::new(&registers, &layout, Role::Single);
        (registers, config)
    }

    #[test]
    fn an_access_is_cut_into_aligned_words() {
        let (_, config) = config();
        let cuts = [(0x00, 8, 4), (0x01, 8, 1), (0x02, 8, 2), (0x02, 1, 1), (0x04, 3, 2), (0x80, 4, 4)];
        for (offset, length, expected) in cuts {
            assert_eq!(config.chunk(offset, length), expected, "{offset:#x}+{length}");
        }
    }

    #[test]
    fn an_access_is_cut_where_a_capability_ends() {
        let layout = Layout::new(Part::Edu, FunctionReset::Missing, Role::Single);
        let registers = layout.registers(Role::Single, KernelVersion::Linux7_3);
        let config = VirtualConfig::new(&registers, &layout, Role::Single);
        // MSI ends in the middle of a word.
        assert_eq!(config.chunk(0x4c, 4), 2);
        assert_eq!(config.chunk(0x48, 4), 4);
    }

    #[test]
    fn what_no_capability_claims_is_the_hardwares() {
        let (mut registers, mut config) = config();
        assert_eq!(config.write(&mut registers, 0xf0, &[1, 2, 3, 4]), Effect::None);
        assert_eq!(registers.word(0xf0), 0x0403_0201);
    }

    #[test]
    fn a_capability_cannot_be_moved_or_renamed() {
        let (mut registers, mut config) = config();
        let before = registers.bytes().to_vec();
        for (_, start) in registers.capabilities() {
            config.write(&mut registers, start, &[0xff, 0xff]);
        }
        let mut seen = vec![0; before.len()];
        config.read(&registers, 0, &mut seen);
        assert_eq!(registers.bytes(), before);
        assert_eq!(seen, before);
    }
}
