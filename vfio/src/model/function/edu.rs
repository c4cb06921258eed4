// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's teaching device (docs/specs/edu.rst), with a DMA mask of 48 bits. What takes it time there is done at once here.

use crate::ioas::Iova;
use crate::model::memory_map::MemoryMap;

mod register {
    pub(super) const IDENTIFICATION: u64 = 0x00;
    pub(super) const LIVENESS: u64 = 0x04;
    pub(super) const FACTORIAL: u64 = 0x08;
    pub(super) const STATUS: u64 = 0x20;
    pub(super) const INTERRUPT_STATUS: u64 = 0x24;
    pub(super) const INTERRUPT_RAISE: u64 = 0x60;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    /// From here on registers are 64 bits wide.
    pub(super) const WIDE: u64 = 0x80;
    pub(super) const DMA_SOURCE: u64 = 0x80;
    pub(super) const DMA_DESTINATION: u64 = 0x88;
    pub(super) const DMA_COUNT: u64 = 0x90;
    pub(super) const DMA_COMMAND: u64 = 0x98;
}

const IDENTIFICATION: u32 = 0x0100_00ed;
const INTERRUPT_AFTER_FACTORIAL: u32 = 0x80;
const FACTORIAL_INTERRUPT: u32 = 0x01;
const DMA_INTERRUPT: u32 = 0x100;
const DMA_START: u64 = 1;
const DMA_TO_MEMORY: u64 = 2;
const DMA_THEN_INTERRUPT: u64 = 4;
const DMA_MASK: u64 = 0xffff_ffff_ffff;
/// The DMA engine's buffer in the device's own address space.
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: usize = 4096;
const PAGE: u64 = 0x1000;

/// What a write did to the interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    Unchanged,
    Raised,
    /// No cause is left.
    Lowered,
}

/// The device.
#[derive(Debug)]
pub(crate) struct Edu {
    liveness: u32,
    factorial: u32,
    status: u32,
    interrupt_status: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    buffer: Box<[u8; BUFFER_SIZE]>,
}

impl Edu {
    /// As it is after power-on; a reset of its bus changes nothing in it.
    pub(crate) fn new() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            interrupt_status: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            buffer: Box::new([0; BUFFER_SIZE]),
        }
    }

    /// A read of `width` bytes, where `offset` is a multiple of `width`.
    pub(crate) fn read(&self, offset: u64, width: usize) -> u64 {
        match (offset, width) {
            // The bus refuses these before the device sees them.
            (_, ..4) => 0,
            (..register::WIDE, 8) => u64::MAX,
            (register::IDENTIFICATION, _) => IDENTIFICATION.into(),
            (register::LIVENESS, _) => self.liveness.into(),
            (register::FACTORIAL, _) => self.factorial.into(),
            (register::STATUS, _) => self.status.into(),
            (register::INTERRUPT_STATUS, _) => self.interrupt_status.into(),
            (register::DMA_SOURCE, _) => self.source,
            (register::DMA_DESTINATION, _) => self.destination,
            (register::DMA_COUNT, _) => self.count,
            (register::DMA_COMMAND, _) => self.command,
            _ => u64::MAX,
        }
    }

    /// A write, as [`Self::read`]. `memory` is what the device reaches by DMA: nothing while it is no bus master.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        width: usize,
        value: u64,
        memory: Option<&MemoryMap>,
    ) -> Interrupt {
        let low = low_half(value);
        match (offset, width) {
            (_, ..4) | (..register::WIDE, 8) => {}
            (register::LIVENESS, _) => self.liveness = !low,
            (register::FACTORIAL, _) => return self.compute(low),
            (register::STATUS, _) => self.status = low & INTERRUPT_AFTER_FACTORIAL,
            (register::INTERRUPT_RAISE, _) => return self.raise(low),
            (register::INTERRUPT_ACKNOWLEDGE, _) => return self.acknowledge(low),
            (register::DMA_SOURCE, _) => self.source = value,
            (register::DMA_DESTINATION, _) => self.destination = value,
            (register::DMA_COUNT, _) => self.count = value,
            (register::DMA_COMMAND, _) if value & DMA_START != 0 => return self.transfer(value, memory),
            _ => {}
        }
        Interrupt::Unchanged
    }

    fn compute(&mut self, number: u32) -> Interrupt {
        // From 34 on there are more than 31 factors of two in it, and in a loop over all numbers too much time.
        self.factorial = if number > 33 { 0 } else { (1..=number).fold(1, u32::wrapping_mul) };
        if self.status & INTERRUPT_AFTER_FACTORIAL == 0 {
            return Interrupt::Unchanged;
        }
        self.raise(FACTORIAL_INTERRUPT)
    }

    fn raise(&mut self, causes: u32) -> Interrupt {
        self.interrupt_status |= causes;
        if self.interrupt_status == 0 { Interrupt::Unchanged } else { Interrupt::Raised }
    }

    fn acknowledge(&mut self, causes: u32) -> Interrupt {
        self.interrupt_status &= !causes;
        if self.interrupt_status == 0 { Interrupt::Lowered } else { Interrupt::Unchanged }
    }

    fn transfer(&mut self, command: u64, memory: Option<&MemoryMap>) -> Interrupt {
        self.command = command & !DMA_START;
        if command & DMA_TO_MEMORY == 0 {
            let source = self.source & DMA_MASK;
            if let Some(part) = in_buffer(self.destination, self.count)
                && let Some(part) = self.buffer.get_mut(part)
            {
                read(memory, source, part);
            }
        } else if let Some(part) = in_buffer(self.source, self.count)
            && let Some(part) = self.buffer.get(part)
        {
            write(memory, self.destination & DMA_MASK, part);
        }
        if command & DMA_THEN_INTERRUPT == 0 { Interrupt::Unchanged } else { self.raise(DMA_INTERRUPT) }
    }
}

/// The part of the buffer that a transfer is about. QEMU ends at one that leaves the buffer; here it moves nothing.
fn in_buffer(address: u64, count: u64) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(address.checked_sub(BUFFER)?).ok()?;
    let end = start.checked_add(usize::try_from(count).ok()?)?;
    (end <= BUFFER_SIZE).then_some(start..end)
}

/// Reads page by page, as the IOMMU translates. What cannot be read is zero.
fn read(memory: Option<&MemoryMap>, address: u64, data: &mut [u8]) {
    let mut address = address;
    let mut rest = data;
    while !rest.is_empty() {
        let (part, behind) = rest.split_at_mut(to_page_end(address, rest.len()));
        if memory.is_none_or(|memory| memory.read(Iova(address), part).is_err()) {
            part.fill(0);
        }
        address += part.len() as u64;
        rest = behind;
    }
}

/// Writes page by page. What cannot be written is lost.
fn write(memory: Option<&MemoryMap>, address: u64, data: &[u8]) {
    let mut address = address;
    let mut rest = data;
    while let Some((part, behind)) = rest.split_at_checked(to_page_end(address, rest.len()))
        && !part.is_empty()
    {
        if let Some(memory) = memory {
            // A fault is for the host's log.
            let _ = memory.write(Iova(address), part);
        }
        address += part.len() as u64;
        rest = behind;
    }
}

fn to_page_end(address: u64, length: usize) -> usize {
    usize::try_from(PAGE - address % PAGE).map_or(length, |room| room.min(length))
}

/// The lower half, which is what a write of 4 bytes consists of.
fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::function::fixture::{MEMORY, MEMORY_SIZE, Opened, open};
    use crate::model::function::registers::header;
    use crate::model::topology::Part;

    /// Has the device move bytes, and wait for nothing.
    fn transfer(edu: &mut Opened, source: u64, destination: u64, count: u64, command: u64) {
        for (register, value) in [
            (register::DMA_SOURCE, source),
            (register::DMA_DESTINATION, destination),
            (register::DMA_COUNT, count),
            (register::DMA_COMMAND, DMA_START | command),
        ] {
            assert_eq!(edu.write(0, register, &value.to_le_bytes()), Ok(8));
        }
        assert_eq!(u64::from(edu.word(0, register::DMA_COMMAND)) & DMA_START, 0);
    }

    /// What is in the buffer, by way of guest memory.
    fn buffer(edu: &mut Opened, length: usize) -> Vec<u8> {
        transfer(edu, BUFFER, MEMORY + 0x8000, length as u64, DMA_TO_MEMORY);
        edu.get(MEMORY + 0x8000, length)
    }

    #[test]
    fn memory_is_copied_by_way_of_the_buffer() {
        let mut edu = open(Part::Edu);
        edu.put(MEMORY + 0xffe, b"across a page");
        transfer(&mut edu, MEMORY + 0xffe, BUFFER + 7, 13, 0);
        assert_eq!(buffer(&mut edu, 20), b"\0\0\0\0\0\0\0across a page");
    }

    #[test]
    fn what_cannot_be_read_is_zero() {
        let mut edu = open(Part::Edu);
        let end = MEMORY + MEMORY_SIZE;
        edu.put(end - 4, b"last");
        transfer(&mut edu, MEMORY, BUFFER, 8, 0);
        transfer(&mut edu, end - 4, BUFFER, 8, 0);
        assert_eq!(buffer(&mut edu, 8), b"last\0\0\0\0");
    }

    #[test]
    fn a_function_that_is_no_bus_master_moves_nothing() {
        let mut edu = open(Part::Edu);
        edu.put(MEMORY, b"data");
        transfer(&mut edu, MEMORY, BUFFER, 4, 0);
        edu.set_command(header::COMMAND_MEMORY);
        transfer(&mut edu, BUFFER, MEMORY + 0x100, 4, DMA_TO_MEMORY);
        assert_eq!(edu.get(MEMORY + 0x100, 4), [0; 4]);
    }

    #[test]
    fn a_transfer_that_leaves_the_buffer_moves_nothing() {
        let mut edu = open(Part::Edu);
        edu.put(MEMORY, &[1; 4096]);
        transfer(&mut edu, MEMORY, BUFFER + 1, 4096, 0);
        transfer(&mut edu, MEMORY, BUFFER - 1, 8, 0);
        transfer(&mut edu, MEMORY, u64::MAX, u64::MAX, 0);
        assert_eq!(buffer(&mut edu, 4096), [0; 4096]);
        transfer(&mut edu, MEMORY, BUFFER, 4096, 0);
        assert_eq!(buffer(&mut edu, 4096), [1; 4096]);
    }

    #[test]
    fn addresses_have_48_bits() {
        let mut edu = open(Part::Edu);
        edu.put(MEMORY, b"data");
        transfer(&mut edu, MEMORY | (0xabcd << 48), BUFFER, 4, 0);
        assert_eq!(buffer(&mut edu, 4), b"data");
    }

    #[test]
    fn a_transfer_interrupts_if_asked_to() {
        let mut edu = open(Part::Edu);
        transfer(&mut edu, MEMORY, BUFFER, 4, 0);
        assert_eq!(edu.word(0, register::INTERRUPT_STATUS), 0);
        transfer(&mut edu, MEMORY, BUFFER, 4, DMA_THEN_INTERRUPT);
        assert_eq!(edu.word(0, register::INTERRUPT_STATUS), DMA_INTERRUPT);
    }

    #[test]
    fn registers_answer_to_accesses_of_their_width() {
        let mut edu = Edu::new();
        assert_eq!(edu.read(register::IDENTIFICATION, 4), 0x0100_00ed);
        assert_eq!(edu.read(register::IDENTIFICATION, 8), u64::MAX);
        assert_eq!(edu.read(register::IDENTIFICATION, 2), 0);
        edu.write(register::LIVENESS, 4, 0x1234_5678, None);
        edu.write(register::LIVENESS, 1, 0, None);
        assert_eq!(edu.read(register::LIVENESS, 4), 0xedcb_a987);
    }

    #[test]
    fn factorials_wrap() {
        let mut edu = Edu::new();
        for (number, expected) in [(0, 1), (5, 120), (13, 1_932_053_504), (34, 0), (u64::from(u32::MAX), 0)] {
            assert_eq!(edu.write(register::FACTORIAL, 4, number, None), Interrupt::Unchanged);
            assert_eq!(edu.read(register::FACTORIAL, 4), expected);
        }
        edu.write(register::STATUS, 4, 0xff, None);
        assert_eq!(edu.write(register::FACTORIAL, 4, 3, None), Interrupt::Raised);
        assert_eq!(edu.write(register::INTERRUPT_ACKNOWLEDGE, 4, 1, None), Interrupt::Lowered);
    }
}
