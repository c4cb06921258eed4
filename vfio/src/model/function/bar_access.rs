// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading and writing BARs through the device's file.

use std::ops::Range;

use rustix::io::Errno;

use crate::model::function::Function;
use crate::model::function::bars::Signal;
use crate::model::function::capability::Capability;
use crate::model::function::part::{Bar, BarKind};
use crate::model::function::registers::{capability_id, header};
use crate::model::memory_map::MemoryMap;

/// An entry of the table of MSI-X, in bytes.
const TABLE_ENTRY: u64 = 16;

impl Function {
    /// Where in a BAR the table of MSI-X is, which the kernel keeps for itself: it reads as ones.
    pub(super) fn table(&self, bar: usize) -> Range<u64> {
        match self.layout.msix() {
            Some((vectors, (at, offset))) if usize::from(at) == bar => {
                u64::from(offset)..u64::from(offset) + u64::from(vectors) * TABLE_ENTRY
            }
            _ => 0..0,
        }
    }

    pub(super) fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let (bar, length) = self.accessed(bar, offset, data.len())?;
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..length).filter(|rest| !rest.is_empty()) {
            let offset = offset + done as u64;
            let (chunk, is_table) = self.chunk(bar, offset, rest.len());
            let rest = rest.get_mut(..chunk).unwrap_or_default();
            if is_table {
                rest.fill(0xff);
            } else {
                self.may_access(bar)?;
                let mut signals = Vec::new();
                if self.is_decoded(bar) {
                    self.bars.read(bar, offset, rest, &mut signals);
                } else {
                    rest.fill(0xff);
                }
                self.deliver(signals);
            }
            done += chunk;
        }
        Ok(done)
    }

    pub(super) fn write_bar(
        &mut self,
        bar: usize,
        offset: u64,
        data: &[u8],
        memory: Option<&MemoryMap>,
    ) -> Result<usize, Errno> {
        let (bar, length) = self.accessed(bar, offset, data.len())?;
        let mut done = 0;
        while let Some(rest) = data.get(done..length).filter(|rest| !rest.is_empty()) {
            let offset = offset + done as u64;
            let (chunk, is_table) = self.chunk(bar, offset, rest.len());
            let rest = rest.get(..chunk).unwrap_or_default();
            if !is_table {
                self.may_access(bar)?;
                if self.is_decoded(bar) {
                    let signals = self.bars.write(bar, offset, rest, self.reached(memory));
                    self.deliver(signals);
                }
            }
            done += chunk;
        }
        Ok(done)
    }

    /// The ROM's contents are not modelled beyond what makes them one.
    pub(super) fn read_rom(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        const SIGNATURE: [u8; 2] = [0x55, 0xaa];
        let rom = self.layout.rom.filter(|rom| offset < rom.size.into()).ok_or(Errno::INVAL)?;
        // The kernel looks for the signature first, and does not find it.
        if !self.is_memory_decoded() {
            return Err(Errno::NOMEM);
        }
        let length = usize::try_from(u64::from(rom.size) - offset).unwrap_or(usize::MAX).min(data.len());
        for (byte, offset) in data.iter_mut().take(length).zip(offset..) {
            let content = usize::try_from(offset).ok().and_then(|offset| SIGNATURE.get(offset));
            *byte = content.copied().unwrap_or_default();
        }
        Ok(length)
    }

    /// The BAR of an access, and how much of the access is inside.
    fn accessed(&self, bar: usize, offset: u64, length: usize) -> Result<(Bar, usize), Errno> {
        let bar = *self.layout.bar(bar).ok_or(Errno::INVAL)?;
        let room = u64::from(bar.size).checked_sub(offset).filter(|room| *room != 0).ok_or(Errno::INVAL)?;
        Ok((bar, usize::try_from(room).unwrap_or(usize::MAX).min(length)))
    }

    /// How many bytes are accessed at once, and whether they are of the table of MSI-X.
    fn chunk(&self, bar: Bar, offset: u64, length: usize) -> (usize, bool) {
        let table = self.table(bar.index);
        let up_to = |end: u64| usize::try_from(end - offset).unwrap_or(usize::MAX).min(length);
        if table.contains(&offset) {
            return (up_to(table.end), true);
        }
        let room = if offset < table.start { up_to(table.start) } else { length };
        let width = [8_u8, 4, 2]
            .into_iter()
            .find(|width| room >= usize::from(*width) && offset.is_multiple_of((*width).into()));
        (width.map_or(1, usize::from), false)
    }

    /// The kernel does not let a user run into a BAR that it believes is off.
    fn may_access(&self, bar: Bar) -> Result<(), Errno> {
        if bar.kind == BarKind::Io || self.is_memory_decoded() { Ok(()) } else { Err(Errno::IO) }
    }

    /// Whether the hardware answers.
    fn is_decoded(&self, bar: Bar) -> bool {
        let bit = if bar.kind == BarKind::Io { header::COMMAND_IO } else { header::COMMAND_MEMORY };
        self.is_virtual() || self.registers.half(header::COMMAND) & bit != 0
    }

    /// What the function finds behind its addresses.
    pub(super) fn reached<'a>(&self, memory: Option<&'a MemoryMap>) -> Option<&'a MemoryMap> {
        memory.filter(|_| self.is_bus_master())
    }

    /// Passes on what the device has to say, in the one way that is on.
    pub(super) fn deliver(&mut self, signals: Vec<Signal>) {
        let has_msix = self.is_on(capability_id::MSIX, Capability::MSIX_ENABLE);
        let has_messages = has_msix || self.is_on(capability_id::MSI, Capability::MSI_ENABLE);
        for signal in signals {
            match signal {
                Signal::Raise { vector } if has_messages => {
                    let vector = if has_msix { vector } else { 0 };
                    if self.is_bus_master() && self.layout.has_vector(vector) {
                        self.interrupts.send_message(vector.into());
                    }
                }
                Signal::Raise { .. } => self.interrupts.set_line(&mut self.registers, true),
                Signal::Lower if has_messages => {}
                Signal::Lower => self.interrupts.set_line(&mut self.registers, false),
            }
        }
    }
}
