// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function's config space as the hardware has it: bytes, and which of their bits can be written.

use crate::model::function::capability::Capability;

/// Registers of the type 0 header (PCI Local Bus 3.0, 6.1) and their bits.
pub(crate) mod header {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION_AND_CLASS: usize = 0x08;
    pub(crate) const CACHE_LINE_SIZE: usize = 0x0c;
    pub(crate) const LATENCY_TIMER: usize = 0x0d;
    pub(crate) const HEADER_TYPE: usize = 0x0e;
    pub(crate) const BAR0: usize = 0x10;
    pub(crate) const SUBSYSTEM: usize = 0x2c;
    pub(crate) const ROM: usize = 0x30;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
    pub(crate) const INTERRUPT_PIN: usize = 0x3d;
    pub(crate) const MINIMUM_GRANT: usize = 0x3e;
    pub(crate) const END: usize = 0x40;

    pub(crate) const COMMAND_IO: u16 = 1 << 0;
    pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
    pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
    pub(crate) const COMMAND_SYSTEM_ERROR: u16 = 1 << 8;
    pub(crate) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    pub(crate) const STATUS_INTERRUPT: u16 = 1 << 3;
    pub(crate) const STATUS_CAPABILITY_LIST: u16 = 1 << 4;
    pub(crate) const MULTIPLE_FUNCTIONS: u8 = 1 << 7;
}

/// Ids of capabilities in the list that begins in the header.
pub(crate) mod capability_id {
    pub(crate) const POWER_MANAGEMENT: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const VENDOR: u8 = 0x09;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
    pub(crate) const ADVANCED_FEATURES: u8 = 0x13;
}

/// Ids of capabilities in the list that begins at [`EXTENDED`].
pub(crate) mod extended_capability_id {
    pub(crate) const ADVANCED_ERROR_REPORTING: u16 = 0x01;
    pub(crate) const SERIAL_NUMBER: u16 = 0x03;
    pub(crate) const ALTERNATIVE_ROUTING_ID: u16 = 0x0e;
    pub(crate) const VIRTUAL_FUNCTIONS: u16 = 0x10;
}

/// Where the part of the config space begins that only PCI Express has.
pub(crate) const EXTENDED: usize = 0x100;

/// Capabilities are at multiples of four, so a list that is longer than this leads in a circle.
const MOST_CAPABILITIES: usize = 48;

/// The config space.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    values: Vec<u8>,
    writable: Vec<u8>,
}

impl Registers {
    /// A config space in which nothing is decided. QEMU leaves what no capability claims writable.
    pub(crate) fn new(length: usize) -> Self {
        let mut registers = Self { values: vec![0; length], writable: vec![0xff; length] };
        registers.claim(0, &[0; header::END]);
        registers.claim(EXTENDED, &[0; 4]);
        registers
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.values
    }

    /// In bytes.
    pub(crate) fn length(&self) -> usize {
        self.values.len()
    }

    /// The bytes from `offset` on; ones beyond the end.
    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.values.get(offset..).and_then(|rest| rest.first_chunk().copied()).unwrap_or([0xff; N])
    }

    pub(crate) fn byte(&self, offset: usize) -> u8 {
        let [byte] = self.read(offset);
        byte
    }

    pub(crate) fn half(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    pub(crate) fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    /// Somebody writes: bits that cannot be written keep their value.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let rest = self.values.iter_mut().zip(&self.writable).skip(offset);
        for ((value, writable), byte) in rest.zip(data) {
            *value = (*value & !writable) | (byte & writable);
        }
    }

    /// The hardware itself changes what is there.
    pub(crate) fn set(&mut self, offset: usize, data: &[u8]) {
        for (value, byte) in self.values.iter_mut().skip(offset).zip(data) {
            *value = *byte;
        }
    }

    /// The hardware sets or clears bits.
    pub(crate) fn assign(&mut self, offset: usize, bits: u16, on: bool) {
        let value = self.half(offset);
        let value = if on { value | bits } else { value & !bits };
        self.set(offset, &value.to_le_bytes());
    }

    /// Read-only registers, as a capability consists of until [`Self::allow`] says which bits of it can be written.
    pub(crate) fn claim(&mut self, offset: usize, data: &[u8]) {
        self.set(offset, data);
        self.allow(offset, &vec![0; data.len()]);
    }

    /// Which bits can be written.
    pub(crate) fn allow(&mut self, offset: usize, bits: &[u8]) {
        for (writable, bits) in self.writable.iter_mut().skip(offset).zip(bits) {
            *writable = *bits;
        }
    }

    /// The capabilities of the list, first to last: id and offset.
    pub(crate) fn capabilities(&self) -> Vec<(u8, usize)> {
        let mut found = Vec::new();
        let mut next = usize::from(self.byte(header::CAPABILITIES) & !0b11);
        while next >= header::END && found.len() < MOST_CAPABILITIES {
            found.push((self.byte(next), next));
            next = usize::from(self.byte(next + 1) & !0b11);
        }
        found
    }

    /// Where a capability is.
    pub(crate) fn capability(&self, id: u8) -> Option<usize> {
        self.capabilities().into_iter().find_map(|(found, offset)| (found == id).then_some(offset))
    }

    /// Whether the function is in the power state D3.
    pub(crate) fn is_asleep(&self) -> bool {
        self.capability(capability_id::POWER_MANAGEMENT).is_some_and(|start| {
            self.half(start + Capability::POWER_CONTROL) & Capability::POWER_STATE == Capability::POWER_STATE
        })
    }

    /// The extended capabilities, first to last.
    pub(crate) fn extended_capabilities(&self) -> Vec<(u16, usize)> {
        let mut found = Vec::new();
        let mut next = EXTENDED;
        while next >= EXTENDED && next < self.length() && found.len() < MOST_CAPABILITIES {
            let [id_low, id_high, version_and_next, next_high] = self.read(next);
            let id = u16::from_le_bytes([id_low, id_high]);
            if id == 0 {
                break;
            }
            found.push((id, next));
            next = usize::from(u16::from_le_bytes([version_and_next, next_high]) >> 4);
        }
        found
    }

    /// Says, where there is room for it, which function comes next.
    pub(crate) fn set_next_function(&mut self, function: u8) {
        let mut extended = self.extended_capabilities().into_iter();
        if let Some((_, start)) =
            extended.find(|(id, _)| *id == extended_capability_id::ALTERNATIVE_ROUTING_ID)
        {
            self.set(start + 5, &[function]);
        }
    }

    /// Writes back what the PCI core saves and restores around a reset: the header, and the control registers of PCI
    /// Express and of error reporting.
    pub(crate) fn restore(&mut self, saved: &Self) {
        const EXPRESS: usize = 0x3c;
        const ERROR_REPORTING: usize = 0x2c;
        let express = self.capability(capability_id::EXPRESS).map(|start| start..start + EXPRESS);
        let mut extended = self.extended_capabilities().into_iter();
        let errors = extended
            .find(|(id, _)| *id == extended_capability_id::ADVANCED_ERROR_REPORTING)
            .map(|(_, start)| start..start + ERROR_REPORTING);
        for range in [Some(0..header::END), express, errors].into_iter().flatten() {
            self.write(range.start, saved.values.get(range).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_capabilities(list: &[(u8, u8)]) -> Registers {
        let mut registers = Registers::new(256);
        let mut pointer = header::CAPABILITIES;
        for (id, offset) in list {
            registers.set(pointer, &[*offset]);
            registers.claim((*offset).into(), &[*id, 0]);
            pointer = usize::from(*offset) + 1;
        }
        registers
    }

    #[test]
    fn a_read_only_bit_keeps_its_value() {
        let mut registers = Registers::new(256);
        registers.claim(0x40, &[0xf0, 0x0f]);
        registers.allow(0x40, &[0x3c]);
        registers.write(0x40, &[0x0f, 0xff, 0xaa]);
        assert_eq!(registers.bytes()[0x40..0x43], [0xcc, 0x0f, 0xaa]);
    }

    #[test]
    fn the_list_of_capabilities_is_followed_in_its_order() {
        let registers = with_capabilities(&[(0x11, 0xa0), (0x01, 0x40), (0x10, 0x60)]);
        assert_eq!(registers.capabilities(), [(0x11, 0xa0), (0x01, 0x40), (0x10, 0x60)]);
        assert_eq!(registers.capability(0x10), Some(0x60));
        assert_eq!(registers.capability(0x05), None);
    }

    #[test]
    fn a_list_that_leads_in_a_circle_ends() {
        let mut registers = with_capabilities(&[(0x01, 0x40)]);
        registers.set(0x41, &[0x40]);
        assert_eq!(registers.capabilities().len(), MOST_CAPABILITIES);
    }

    #[test]
    fn there_are_ones_beyond_the_end() {
        let registers = Registers::new(256);
        assert_eq!(registers.word(0xfe), u32::MAX);
    }
}
