// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A PCI function: its hardware, as QEMU 11.1 emulates it, and what vfio-pci makes of that for whoever opened it.

mod bar_access;
mod bars;
mod capability;
mod config_access;
mod edu;
mod eventfd;
#[cfg(test)]
mod fixture;
mod interrupts;
mod io_eventfd;
mod part;
mod power;
#[cfg(test)]
mod property;
#[cfg(test)]
mod recorded;
mod registers;
mod requests;
#[cfg(test)]
mod tests;
mod virtio;
mod virtio_window;
mod virtual_config;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::irq::IrqIndex;
use crate::model::function::bars::Bars;
use crate::model::function::eventfd::Eventfd;
use crate::model::function::interrupts::Interrupts;
use crate::model::function::io_eventfd::IoEventfds;
use crate::model::function::part::Layout;
use crate::model::function::registers::{Registers, header};
use crate::model::function::virtual_config::VirtualConfig;
use crate::model::memory_map::MemoryMap;
use crate::model::topology::{FunctionReset, KernelVersion, Part};

pub(crate) use crate::model::function::part::Role;

/// Positions in a device's file: the region's index, and the offset in it.
const REGION_SHIFT: u32 = 40;
const ROM_REGION: usize = 6;
const CONFIG_REGION: usize = 7;
const VGA_REGION: usize = 8;
/// The file ends where offsets would be negative.
const LAST_POSITION: u64 = i64::MAX.cast_unsigned();

/// What resets a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// Its own way to be reset.
    Function,
    /// The bus it is on, or the slot it is in.
    Bus,
}

/// A PCI function and what vfio-pci keeps about it.
#[derive(Debug)]
pub(crate) struct Function {
    layout: Layout,
    role: Role,
    reset: FunctionReset,
    kernel: KernelVersion,
    registers: Registers,
    bars: Bars,
    interrupts: Interrupts,
    user: Option<User>,
}

/// What there is while somebody has the function open.
#[derive(Debug)]
struct User {
    config: VirtualConfig,
    /// What the user shall leave behind.
    pristine: Registers,
    has_function_reset: bool,
    io_eventfds: IoEventfds,
    /// What a function that loses it in D3 gets back.
    asleep: Option<Registers>,
    low_power: Option<LowPower>,
}

/// The user said that the function may be suspended.
#[derive(Debug)]
struct LowPower {
    /// Tells that it was resumed, and ends this.
    wakeup: Option<Eventfd>,
}

impl Function {
    /// A function that nobody has open.
    ///
    /// # Errors
    ///
    /// That of making a file for what is behind its BARs.
    pub(crate) fn new(
        part: Part,
        reset: FunctionReset,
        kernel: KernelVersion,
        role: Role,
    ) -> Result<Self, Errno> {
        let layout = Layout::new(part, reset, role);
        let mut function = Self {
            registers: layout.registers(role, kernel),
            bars: Bars::new(part, &layout)?,
            layout,
            role,
            reset,
            kernel,
            interrupts: Interrupts::default(),
            user: None,
        };
        function.suspend();
        Ok(function)
    }

    /// The platform cannot give MSI-X more vectors while it is on.
    pub(crate) const fn fix_vectors(&mut self) {
        self.interrupts.has_fixed_vectors = true;
    }

    /// The config space as sysfs shows it.
    pub(crate) fn config(&self) -> Vec<u8> {
        self.registers.bytes().to_vec()
    }

    pub(crate) const fn vendor(&self) -> u16 {
        self.layout.vendor
    }

    pub(crate) const fn device(&self) -> u16 {
        self.layout.device
    }

    /// Base class, subclass and programming interface.
    pub(crate) const fn class(&self) -> u32 {
        self.layout.class
    }

    /// Somebody begins to use the function, which is as good as new if `has_function_reset`.
    pub(crate) fn open(&mut self, has_function_reset: bool) {
        self.resume();
        self.registers.assign(header::COMMAND, header::COMMAND_BUS_MASTER, false);
        self.registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, false);
        if self.role != Role::Virtual {
            self.registers.assign(header::COMMAND, header::COMMAND_IO | header::COMMAND_MEMORY, true);
        }
        self.user = Some(User {
            config: VirtualConfig::new(&self.registers, &self.layout, self.role),
            pristine: self.registers.clone(),
            has_function_reset,
            io_eventfds: IoEventfds::default(),
            asleep: None,
            low_power: None,
        });
    }

    /// Nobody uses the function any more: it neither accesses memory nor interrupts, and is left as it was found.
    pub(crate) fn close(&mut self) {
        let Some(user) = self.user.take() else { return };
        self.resume();
        self.interrupts.close(&mut self.registers);
        self.registers.restore(&user.pristine);
        self.stop_unless_bus_master();
        self.suspend();
    }

    /// The hardware was reset. What the user set up, in the config space and of interrupts, is put back.
    pub(crate) fn reset(&mut self, by: Reset) {
        let was_open = self.user.is_some();
        self.set_power_state(0);
        self.interrupts.reset(&mut self.registers);
        // QEMU's functions keep their registers when they come back from sleep.
        if by == Reset::Bus || self.reset != FunctionReset::PowerManagement {
            self.bars.reset();
        }
        if !was_open {
            self.suspend();
        }
    }

    /// Reads at a position in the device's file.
    ///
    /// # Errors
    ///
    /// `EINVAL` nothing is there; `EFAULT` beyond the config space; `EIO` the function does not decode.
    pub(crate) fn read(&mut self, position: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let (place, offset) = locate(position, data.len())?;
        if data.is_empty() {
            return Ok(0);
        }
        self.wake();
        match place {
            Place::Bar(bar) => self.read_bar(bar, offset, data),
            Place::Rom => self.read_rom(offset, data),
            Place::Config => self.read_config(offset, data),
            Place::Nowhere => Err(Errno::INVAL),
        }
    }

    /// Writes at a position in the device's file. `memory` is what the function finds behind its addresses, `None` while it
    /// is blocked.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub(crate) fn write(
        &mut self,
        position: u64,
        data: &[u8],
        memory: Option<&MemoryMap>,
    ) -> Result<usize, Errno> {
        let (place, offset) = locate(position, data.len())?;
        if data.is_empty() {
            return Ok(0);
        }
        self.wake();
        match place {
            Place::Bar(bar) => self.write_bar(bar, offset, data, memory),
            Place::Config => self.write_config(offset, data, memory),
            Place::Rom | Place::Nowhere => Err(Errno::INVAL),
        }
    }

    /// A file and the offset in it that stand for a range of a BAR. What is written there is not seen by a device that does
    /// something when it is written to.
    ///
    /// # Errors
    ///
    /// `EINVAL` where the range cannot be mapped.
    pub(crate) fn map(&self, position: u64, length: u64) -> Result<(BorrowedFd<'_>, u64), Errno> {
        let (place, offset) = locate(position, 0)?;
        let Place::Bar(bar) = place else { return Err(Errno::INVAL) };
        self.bars.map(self.layout.bar(bar).ok_or(Errno::INVAL)?, offset, length)
    }

    /// Fires the error or the request interrupt. Whether anybody hears it.
    pub(crate) fn signal(&mut self, index: u32) -> bool {
        IrqIndex::from_number(index).is_some_and(|index| self.interrupts.signal(index))
    }

    /// Eventfds that make something happen when they become readable.
    pub(crate) fn listening(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let writes = self.user.iter().flat_map(|user| user.io_eventfds.eventfds());
        writes.chain(self.interrupts.resample()).map(AsFd::as_fd)
    }

    /// Does what those of [`Self::listening`] ask for that were signalled.
    pub(crate) fn hear(&mut self, memory: Option<&MemoryMap>) {
        self.interrupts.hear(&mut self.registers);
        let writes = self.user.as_ref().map(|user| user.io_eventfds.take()).unwrap_or_default();
        for write in writes {
            // Nothing happens while the BAR is not decoded.
            let _ = self.write_bar(write.bar, write.offset, &write.data, memory);
        }
    }
}

/// What a position in a device's file leads to.
enum Place {
    Bar(usize),
    Rom,
    Config,
    /// Legacy VGA, which no part has, or what lies beyond.
    Nowhere,
}

/// The place that a position is in, and where in it.
///
/// # Errors
///
/// `EINVAL` the access would leave the file.
fn locate(position: u64, length: usize) -> Result<(Place, u64), Errno> {
    let end = position.checked_add(length as u64).ok_or(Errno::INVAL)?;
    if end > LAST_POSITION {
        return Err(Errno::INVAL);
    }
    let place = match usize::try_from(position >> REGION_SHIFT).map_err(|_| Errno::INVAL)? {
        bar @ 0..ROM_REGION => Place::Bar(bar),
        ROM_REGION => Place::Rom,
        CONFIG_REGION => Place::Config,
        _ => Place::Nowhere,
    };
    Ok((place, position & ((1 << REGION_SHIFT) - 1)))
}
