// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The config space of a bound device, as far as stopping, restoring and mapping it needs.

use std::ops::Range;

use rustix::io::Errno;

use crate::device::Device;
use crate::error::{CallError, Object};
use crate::msix::Msix;
use crate::region::RegionIndex;

/// Registers of the type 0 header (PCI Local Bus 3.0, 6.1).
mod register {
    pub(super) const COMMAND: u16 = 0x04;
    pub(super) const STATUS: u16 = 0x06;
    pub(super) const BAR0: u16 = 0x10;
    pub(super) const CAPABILITIES: u16 = 0x34;
}

const STATUS_CAPABILITY_LIST: u16 = 1 << 4;
/// Power management (PCI PM 1.2, 3.2): its control and status register, the state in it, and whether waking up keeps the
/// device's context, so that going to sleep and back is no reset.
mod power_management {
    pub(super) const ID: u8 = 0x01;
    pub(super) const CONTROL: u16 = 4;
    pub(super) const STATE: u16 = 0b11;
    pub(super) const NO_SOFT_RESET: u16 = 1 << 3;
}
/// The PCI Express capability (PCIe 6.0, 7.5.3): device capabilities and control, with the function level reset.
mod express {
    pub(super) const ID: u8 = 0x10;
    pub(super) const CAPABILITIES_HIGH: u16 = 6;
    pub(super) const FUNCTION_LEVEL_RESET: u16 = 1 << (28 - 16);
    pub(super) const CONTROL: u16 = 8;
}
/// Advanced features of conventional PCI: capabilities and control of its function level reset.
mod advanced_features {
    pub(super) const ID: u8 = 0x13;
    pub(super) const CAPABILITIES: u16 = 2;
    /// Pending transactions can be seen, and the function be reset; in the high byte of the word.
    pub(super) const FUNCTION_LEVEL_RESET: u16 = 0b11 << 8;
    pub(super) const CONTROL: u16 = 4;
}
/// Message signalled interrupts with a table (PCIe 6.0, 7.7.2).
const MSIX: u8 = 0x11;
/// Capabilities begin behind the header, on a multiple of four.
const FIRST_CAPABILITY: u8 = 0x40;
const MAX_CAPABILITIES: usize = 48;
const BARS: u16 = 6;

/// Bits of the command register.
pub mod command {
    /// I/O space decoding.
    pub const IO: u16 = 1 << 0;
    /// Memory space decoding.
    pub const MEMORY: u16 = 1 << 1;
    /// Bus mastering: the device's own accesses, DMA and message signalled interrupts.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The interrupt line is held back.
    pub const INTX_DISABLE: u16 = 1 << 10;

    /// What the register holds after `data` was written to the config space from `offset` on, if it held `present`.
    pub fn after_write(present: u16, offset: u64, data: &[u8]) -> u16 {
        let mut bytes = present.to_le_bytes();
        for (register, byte) in (u64::from(super::register::COMMAND)..).zip(&mut bytes) {
            let place = register.checked_sub(offset).and_then(|place| usize::try_from(place).ok());
            if let Some(written) = place.and_then(|place| data.get(place)) {
                *byte = *written;
            }
        }
        u16::from_le_bytes(bytes)
    }
}

/// A device's config space.
#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace<'a> {
    device: &'a Device,
}

impl<'a> ConfigSpace<'a> {
    /// The config space of `device`.
    pub const fn new(device: &'a Device) -> Self {
        Self { device }
    }

    /// The command register.
    pub fn command(self) -> Result<u16, CallError> {
        self.read_word(register::COMMAND)
    }

    /// Stops the device from decoding and from accessing memory, and lets go of its interrupt line's disable bit.
    pub fn disable_command(self) -> Result<(), CallError> {
        let active = command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        let value = self.command()?;
        self.write_word(register::COMMAND, value & !active)
    }

    /// Sets the command register.
    pub fn set_command(self, value: u16) -> Result<(), CallError> {
        self.write_word(register::COMMAND, value)
    }

    /// Brings the device to D0, which a reset needs. A device without power management is there already.
    ///
    /// The kernel gives a device that lost its context in D3 its old command register back: clear it afterwards.
    ///
    /// # Errors
    ///
    /// `EIO` where it stays in another state.
    pub fn power_on(self) -> Result<(), CallError> {
        let Some(capability) = self.find_capability(power_management::ID)? else { return Ok(()) };
        let control = capability + power_management::CONTROL;
        let value = self.read_word(control)?;
        if value & power_management::STATE == 0 {
            return Ok(());
        }
        self.write_word(control, value & !power_management::STATE)?;
        match self.read_word(control)? & power_management::STATE {
            0 => Ok(()),
            _ => Err(CallError {
                call: "pread",
                object: Object::Device(self.device.address()),
                errno: Errno::IO,
            }),
        }
    }

    /// Whether the function has a function level reset, of either kind.
    pub fn has_function_level_reset(self) -> Result<bool, CallError> {
        if let Some(capability) = self.find_capability(express::ID)? {
            return Ok(self.read_word(capability + express::CAPABILITIES_HIGH)?
                & express::FUNCTION_LEVEL_RESET
                != 0);
        }
        let Some(capability) = self.find_capability(advanced_features::ID)? else { return Ok(false) };
        let capabilities = self.read_word(capability + advanced_features::CAPABILITIES)?;
        Ok(capabilities & advanced_features::FUNCTION_LEVEL_RESET == advanced_features::FUNCTION_LEVEL_RESET)
    }

    /// Whether sending the function to sleep and waking it resets it.
    pub fn has_power_management_reset(self) -> Result<bool, CallError> {
        let Some(capability) = self.find_capability(power_management::ID)? else { return Ok(false) };
        Ok(self.read_word(capability + power_management::CONTROL)? & power_management::NO_SOFT_RESET == 0)
    }

    /// The registers that the kernel carries out when they are written, which takes time: a function level reset waits for
    /// the device for up to a minute, a change of power state for milliseconds.
    pub fn slow_registers(self) -> Result<Vec<Range<u64>>, CallError> {
        let registers = [
            (express::ID, express::CONTROL),
            (advanced_features::ID, advanced_features::CONTROL),
            (power_management::ID, power_management::CONTROL),
        ];
        let mut slow = Vec::new();
        for (id, register) in registers {
            if let Some(capability) = self.find_capability(id)? {
                let start = u64::from(capability + register);
                slow.push(start..start + 2);
            }
        }
        Ok(slow)
    }

    /// Where the structures of MSI-X are, if the function has it.
    pub fn msix(self) -> Result<Option<Msix>, CallError> {
        let Some(capability) = self.find_capability(MSIX)? else { return Ok(None) };
        let mut bytes = [0; Msix::LENGTH];
        self.device.read_region(RegionIndex::CONFIG, capability.into(), &mut bytes)?;
        Ok(Some(Msix::decode(bytes)))
    }

    /// Zeroes the base addresses, which the kernel keeps for us across a reset although the device lost them.
    pub fn clear_bars(self) -> Result<(), CallError> {
        (0..BARS).try_for_each(|bar| {
            let register = register::BAR0 + 4 * bar;
            self.device.write_region(RegionIndex::CONFIG, register.into(), &0_u32.to_le_bytes())
        })
    }

    /// Offset of the first capability with this id. A list that leads nowhere ends the search.
    fn find_capability(self, id: u8) -> Result<Option<u16>, CallError> {
        if self.read_word(register::STATUS)? & STATUS_CAPABILITY_LIST == 0 {
            return Ok(None);
        }
        let [mut next, _] = self.read_word(register::CAPABILITIES)?.to_le_bytes();
        for _ in 0..MAX_CAPABILITIES {
            next &= !0b11;
            if next < FIRST_CAPABILITY {
                break;
            }
            let [found, following] = self.read_word(next.into())?.to_le_bytes();
            if found == id {
                return Ok(Some(next.into()));
            }
            next = following;
        }
        Ok(None)
    }

    fn read_word(self, register: u16) -> Result<u16, CallError> {
        let mut bytes = [0; 2];
        self.device.read_region(RegionIndex::CONFIG, register.into(), &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn write_word(self, register: u16, value: u16) -> Result<(), CallError> {
        self.device.write_region(RegionIndex::CONFIG, register.into(), &value.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_register_holds_what_was_last_written() {
        assert_eq!(command::after_write(0, 0x04, &[0x06, 0x04]), 0x0406);
        assert_eq!(command::after_write(0x0406, 0x04, &[0x02]), 0x0402);
        assert_eq!(command::after_write(0x0406, 0x05, &[0x00]), 0x0006);
        assert_eq!(command::after_write(0x0406, 0x00, &[1, 2, 3, 4, 5, 6, 7]), 0x0605);
        for (offset, data) in [(0x00, [1; 4].as_slice()), (0x06, &[1; 4]), (u64::MAX, &[1; 4]), (0x04, &[])] {
            assert_eq!(command::after_write(0x0406, offset, data), 0x0406, "{offset:#x}");
        }
    }
}
