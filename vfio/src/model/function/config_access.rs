// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading and writing the config space through the device's file.

use rustix::io::Errno;

use crate::model::function::capability::Capability;
use crate::model::function::registers::{capability_id, header};
use crate::model::function::virtual_config::Effect;
use crate::model::function::{Function, Reset, Role, User};
use crate::model::memory_map::MemoryMap;

impl Function {
    pub(super) fn read_config(&mut self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let start = self.config_offset(offset, data.len())?;
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let length = self.user()?.config.chunk(start + done, rest.len());
            let chunk = rest.get_mut(..length).unwrap_or_default();
            self.read_window(start + done..start + done + length);
            self.user()?.config.read(&self.registers, start + done, chunk);
            done += length;
        }
        Ok(done)
    }

    pub(super) fn write_config(
        &mut self,
        offset: u64,
        data: &[u8],
        memory: Option<&MemoryMap>,
    ) -> Result<usize, Errno> {
        let start = self.config_offset(offset, data.len())?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let user = self.user.as_mut().ok_or(Errno::INVAL)?;
            let length = user.config.chunk(start + done, rest.len());
            let chunk = rest.get(..length).unwrap_or_default();
            let effect = user.config.write(&mut self.registers, start + done, chunk);
            self.take_effect(effect);
            self.write_window(start + done..start + done + length, memory);
            done += length;
        }
        Ok(done)
    }

    fn user(&self) -> Result<&User, Errno> {
        self.user.as_ref().ok_or(Errno::INVAL)
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

    fn take_effect(&mut self, effect: Effect) {
        let Some(user) = &mut self.user else { return };
        match effect {
            Effect::None => {}
            Effect::Command => {
                let is_disabled = user.config.command() & header::COMMAND_INTX_DISABLE != 0;
                self.interrupts.disable_line(&mut self.registers, is_disabled);
                self.stop_unless_bus_master();
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
        }
    }

    /// Whether BARs in memory space answer: the user says so, whatever the hardware would do.
    pub(super) fn is_memory_decoded(&self) -> bool {
        let command = self.user.as_ref().map_or(0, |user| user.config.command());
        let is_enabled = self.role == Role::Virtual || command & header::COMMAND_MEMORY != 0;
        is_enabled && !self.registers.is_asleep()
    }

    pub(super) fn is_virtual(&self) -> bool {
        self.role == Role::Virtual
    }

    /// Whether the hardware may access memory, and send messages.
    pub(super) fn is_bus_master(&self) -> bool {
        self.registers.half(header::COMMAND) & header::COMMAND_BUS_MASTER != 0 && !self.registers.is_asleep()
    }

    pub(super) fn stop_unless_bus_master(&mut self) {
        if self.registers.half(header::COMMAND) & header::COMMAND_BUS_MASTER == 0 {
            self.bars.stop();
        }
    }

    /// Whether a kind of messages is on in the hardware.
    pub(super) fn is_on(&self, id: u8, enable: u16) -> bool {
        let control = self.registers.capability(id).map(|start| start + Capability::MESSAGE_CONTROL);
        control.is_some_and(|control| self.registers.half(control) & enable != 0)
    }
}
