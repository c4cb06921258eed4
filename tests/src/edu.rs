// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's `edu` device (docs/specs/edu.rst): a DMA engine with a buffer of a page, and an interrupt that can be raised. QEMU
//! does not reset its registers when its bus is reset; what a reset does to a device's registers shows on igb.

use std::fmt;

use vfio::{Device, RegionIndex};

use crate::pci_function::PciFunction;
use crate::server_process::wait_until;

/// All registers are in BAR 0.
const BAR: u32 = 0;
mod register {
    pub(super) const IDENTIFICATION: u64 = 0x00;
    pub(super) const INTERRUPT_RAISE: u64 = 0x60;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    pub(super) const DMA_SOURCE: u64 = 0x80;
    pub(super) const DMA_DESTINATION: u64 = 0x88;
    pub(super) const DMA_COUNT: u64 = 0x90;
    pub(super) const DMA_COMMAND: u64 = 0x98;
}
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// The engine's buffer in the device's own address space; a transfer of its whole 4096 bytes stops some QEMU versions.
const BUFFER: u64 = 0x4_0000;

/// Who reads and writes the device's registers.
pub trait Registers: fmt::Debug {
    /// Reads 4 bytes of a region.
    fn read_register(&mut self, region: u32, offset: u64) -> u32;

    /// Writes as many bytes as there are.
    fn write_register(&mut self, region: u32, offset: u64, data: &[u8]);
}

/// A server.
impl Registers for &mut PciFunction {
    fn read_register(&mut self, region: u32, offset: u64) -> u32 {
        self.read(region, offset)
    }

    fn write_register(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.client.region_write(region, offset, data).expect("the register can be written");
    }
}

/// The kernel.
impl Registers for &Device {
    fn read_register(&mut self, region: u32, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read_region(RegionIndex(region), offset, &mut data).expect("the register can be read");
        u32::from_le_bytes(data)
    }

    fn write_register(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.write_region(RegionIndex(region), offset, data).expect("the register can be written");
    }
}

/// An edu device whose memory decoding is on.
#[derive(Debug)]
pub struct Edu<'a> {
    registers: Box<dyn Registers + 'a>,
}

impl<'a> Edu<'a> {
    /// The device behind `registers`.
    pub fn new(registers: impl Registers + 'a) -> Self {
        Self { registers: Box::new(registers) }
    }

    /// Version and magic number.
    pub fn identification(&mut self) -> u32 {
        self.registers.read_register(BAR, register::IDENTIFICATION)
    }

    /// Raises the device's interrupt.
    pub fn raise_interrupt(&mut self) {
        self.registers.write_register(BAR, register::INTERRUPT_RAISE, &1_u32.to_le_bytes());
    }

    /// Takes the interrupt back.
    pub fn acknowledge_interrupt(&mut self) {
        self.registers.write_register(BAR, register::INTERRUPT_ACKNOWLEDGE, &1_u32.to_le_bytes());
    }

    /// Has the device copy memory by way of its buffer. Whether it arrives is for the caller to see.
    pub fn copy(&mut self, from: u64, to: u64, length: u64) {
        self.transfer(from, BUFFER, length, 0);
        self.transfer(BUFFER, to, length, TO_MEMORY);
    }

    fn transfer(&mut self, source: u64, destination: u64, length: u64, direction: u64) {
        self.write_wide(register::DMA_SOURCE, source);
        self.write_wide(register::DMA_DESTINATION, destination);
        self.write_wide(register::DMA_COUNT, length);
        self.write_wide(register::DMA_COMMAND, START | direction);
        let done =
            wait_until(|| u64::from(self.registers.read_register(BAR, register::DMA_COMMAND)) & START == 0);
        assert!(done, "the DMA engine does not come to an end");
    }

    fn write_wide(&mut self, offset: u64, value: u64) {
        self.registers.write_register(BAR, offset, &value.to_le_bytes());
    }
}
