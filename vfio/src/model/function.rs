// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A PCI function: its hardware, as QEMU 11.1 emulates it, and what vfio-pci makes of that for whoever opened it.

mod bar_access;
mod bars;
mod capability;
mod edu;
mod eventfd;
mod interrupts;
mod io_eventfd;
mod part;
mod registers;
mod requests;
mod virtual_config;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::irq::IrqIndex;
use crate::model::function::bars::Bars;
use crate::model::function::capability::Capability;
use crate::model::function::eventfd::Eventfd;
use crate::model::function::interrupts::Interrupts;
use crate::model::function::io_eventfd::IoEventfds;
use crate::model::function::part::Layout;
use crate::model::function::registers::{Registers, capability_id, header};
use crate::model::function::virtual_config::{Effect, VirtualConfig};
use crate::model::memory_map::MemoryMap;
use crate::model::topology::{FunctionReset, KernelVersion, Part};

pub(crate) use crate::model::function::part::Role;

/// Positions in a device's file: the region's index, and the offset in it.
const REGION_SHIFT: u32 = 40;
const ROM_REGION: usize = 6;
const CONFIG_REGION: usize = 7;
const REGIONS: usize = 9;
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
        self.suspend();
    }

    /// The hardware was reset. What the user set up, in the config space and of interrupts, is put back.
    pub(crate) fn reset(&mut self, by: Reset) {
        let was_open = self.user.is_some();
        self.set_power_state(0);
        self.interrupts.reset(&mut self.registers);
        // QEMU's functions keep their registers when they come back from sleep.
        if by == Reset::Bus || self.reset != FunctionReset::PowerManagement {
            self.bars.reset(by);
        }
        if !was_open {
            self.suspend();
        }
    }

    /// The kernel puts a function to sleep that nobody uses.
    fn suspend(&mut self) {
        self.write_power_state(Capability::POWER_STATE);
    }

    fn resume(&mut self) {
        self.write_power_state(0);
    }

    fn write_power_state(&mut self, state: u16) {
        if let Some(start) = self.registers.capability(capability_id::POWER_MANAGEMENT) {
            let control = start + Capability::POWER_CONTROL;
            let value = self.registers.half(control) & !Capability::POWER_STATE;
            self.registers.write(control, &(value | state).to_le_bytes());
        }
    }

    /// What the kernel does to change the power state. Only D0 and D3 exist in these parts.
    fn set_power_state(&mut self, state: u16) {
        let was_asleep = self.registers.is_asleep();
        let forgets = self.registers.capability(capability_id::POWER_MANAGEMENT).is_some_and(|start| {
            self.registers.half(start + Capability::POWER_CONTROL) & Capability::NO_SOFT_RESET == 0
        });
        let awake = self.registers.clone();
        match state {
            0 | Capability::POWER_STATE => self.write_power_state(state),
            _ => return,
        }
        let Some(user) = &mut self.user else { return };
        match (was_asleep, self.registers.is_asleep()) {
            (false, true) if forgets => user.asleep = Some(awake),
            (true, false) => {
                if let Some(saved) = user.asleep.take() {
                    self.registers.restore(&saved);
                }
            }
            _ => {}
        }
    }

    /// Any access resumes a function that was suspended at the user's wish.
    fn wake(&mut self) {
        if let Some(user) = &mut self.user
            && let Some(LowPower { wakeup: Some(wakeup) }) = &user.low_power
        {
            wakeup.signal();
            user.low_power = None;
        }
    }

    /// Reads at a position in the device's file.
    ///
    /// # Errors
    ///
    /// `EINVAL` nothing is there; `EFAULT` beyond the config space; `EIO` the function does not decode.
    pub(crate) fn read(&mut self, position: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let (region, offset) = locate(position, data.len())?;
        if data.is_empty() {
            return Ok(0);
        }
        self.wake();
        match region {
            CONFIG_REGION => self.read_config(offset, data),
            ROM_REGION => self.read_rom(offset, data),
            ..ROM_REGION => self.read_bar(region, offset, data),
            _ => Err(Errno::INVAL),
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
        let (region, offset) = locate(position, data.len())?;
        if data.is_empty() {
            return Ok(0);
        }
        self.wake();
        match region {
            CONFIG_REGION => self.write_config(offset, data, memory),
            ..ROM_REGION => self.write_bar(region, offset, data, memory),
            _ => Err(Errno::INVAL),
        }
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let start = self.config_offset(offset, data.len())?;
        let user = self.user.as_ref().ok_or(Errno::INVAL)?;
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let length = user.config.chunk(start + done, rest.len());
            let chunk = rest.get_mut(..length).unwrap_or_default();
            user.config.read(&self.registers, start + done, chunk);
            done += length;
        }
        Ok(done)
    }

    fn write_config(&mut self, offset: u64, data: &[u8], memory: Option<&MemoryMap>) -> Result<usize, Errno> {
        let start = self.config_offset(offset, data.len())?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let user = self.user.as_mut().ok_or(Errno::INVAL)?;
            let length = user.config.chunk(start + done, rest.len());
            let chunk = rest.get(..length).unwrap_or_default();
            let effect = user.config.write(&mut self.registers, start + done, chunk);
            self.take_effect(effect, memory);
            done += length;
        }
        Ok(done)
    }

    /// Where a config access begins, if it ends inside; an access that does not is refused before anything is done.
    fn config_offset(&self, offset: u64, length: usize) -> Result<usize, Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::FAULT)?;
        start
            .checked_add(length)
            .filter(|end| *end <= self.registers.length())
            .map(|_| start)
            .ok_or(Errno::FAULT)
    }

    fn take_effect(&mut self, effect: Effect, memory: Option<&MemoryMap>) {
        let Some(user) = &mut self.user else { return };
        match effect {
            Effect::None => {}
            Effect::Command => {
                let is_disabled = user.config.command() & header::COMMAND_INTX_DISABLE != 0;
                self.interrupts.disable_line(&mut self.registers, is_disabled);
            }
            Effect::Power(state) => self.set_power_state(state),
            Effect::FunctionLevelReset => {
                // This way of resetting wakes the function without giving it back what it lost.
                user.asleep = None;
                self.reset(Reset::Function);
            }
            Effect::MessageControl(start) => {
                user.config.follow_message_control(&mut self.registers, start, self.interrupts.is_msi_on());
                if self.is_on(capability_id::MSI, Capability::MSI_ENABLE) {
                    self.interrupts.set_line(&mut self.registers, false);
                }
            }
            Effect::Vendor(_) => {}
        }
    }

    /// Whether BARs in memory space answer: the user says so, whatever the hardware would do.
    fn is_memory_decoded(&self) -> bool {
        let command = self.user.as_ref().map_or(0, |user| user.config.command());
        let is_enabled = self.role == Role::Virtual || command & header::COMMAND_MEMORY != 0;
        is_enabled && !self.registers.is_asleep()
    }

    fn is_virtual(&self) -> bool {
        self.role == Role::Virtual
    }

    /// Whether the hardware may access memory, and send messages.
    fn is_bus_master(&self) -> bool {
        self.registers.half(header::COMMAND) & header::COMMAND_BUS_MASTER != 0 && !self.registers.is_asleep()
    }

    /// Whether a kind of messages is on in the hardware.
    fn is_on(&self, id: u8, enable: u16) -> bool {
        let control = self.registers.capability(id).map(|start| start + Capability::MESSAGE_CONTROL);
        control.is_some_and(|control| self.registers.half(control) & enable != 0)
    }

    /// A file and the offset in it that stand for a range of a BAR. What is written there is not seen by a device that does
    /// something when it is written to.
    ///
    /// # Errors
    ///
    /// `EINVAL` where the range cannot be mapped.
    pub(crate) fn map(&self, position: u64, length: u64) -> Result<(BorrowedFd<'_>, u64), Errno> {
        let (region, offset) = locate(position, 0)?;
        let bar = self.layout.bar(region).ok_or(Errno::INVAL)?;
        self.bars.map(bar, offset, length)
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

/// The region and the offset in it that a position means.
fn locate(position: u64, length: usize) -> Result<(usize, u64), Errno> {
    let region = usize::try_from(position >> REGION_SHIFT).map_err(|_| Errno::INVAL)?;
    let end = position.checked_add(length as u64).ok_or(Errno::INVAL)?;
    if end > LAST_POSITION || (region >= REGIONS && length != 0) {
        return Err(Errno::INVAL);
    }
    Ok((region, position & ((1 << REGION_SHIFT) - 1)))
}
