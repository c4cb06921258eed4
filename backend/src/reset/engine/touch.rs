// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which accesses touch a device, so that it is not clean any more.
//!
//! After a reset the command register is off: whatever comes, nothing reaches the device but through its config space.
//! So it is writes there that count, except those that only the kernel's copy sees (the base addresses), and those that
//! a VMM makes around each reset: QEMU clears the command register before, and after it sets the base addresses to 0 and
//! arms `INTx` again.

use std::ops::Range;

/// Offset of the command register.
const COMMAND: u64 = 0x04;
/// I/O space, memory space and bus master enable, all in the register's first byte.
const COMMAND_ENABLES: u8 = 0x7;
/// The base addresses of a function.
const BASE_ADDRESSES: Range<u64> = 0x10..0x28;
/// The base address of the option ROM.
const ROM_ADDRESS: Range<u64> = 0x30..0x34;

/// Whether writing `data` to the config space from `offset` on touches the device.
pub fn config_write_touches(offset: u64, data: &[u8]) -> bool {
    (offset..=u64::MAX).zip(data).any(|(offset, byte)| match offset {
        COMMAND => byte & COMMAND_ENABLES != 0,
        // Of the command register's second byte: what is there says how interrupts and errors are told.
        0x05 => false,
        _ => !BASE_ADDRESSES.contains(&offset) && !ROM_ADDRESS.contains(&offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_something_on_touches_the_device() {
        for enable in [1_u16, 2, 4, 7] {
            assert!(config_write_touches(COMMAND, &enable.to_le_bytes()), "{enable:#x}");
        }
    }

    #[test]
    fn what_qemu_writes_around_a_reset_does_not() {
        let interrupt_disable = 0x0400_u16;
        assert!(!config_write_touches(COMMAND, &0_u16.to_le_bytes()));
        assert!(!config_write_touches(COMMAND, &interrupt_disable.to_le_bytes()));
        for bar in 0..6 {
            assert!(!config_write_touches(0x10 + 4 * bar, &[0; 4]));
        }
        assert!(!config_write_touches(0x30, &[0; 4]));
    }

    #[test]
    fn any_other_register_counts() {
        for offset in [0x06, 0x0c, 0x28, 0x2c, 0x34, 0x3c, 0x40, 0x100] {
            assert!(config_write_touches(offset, &[0]), "{offset:#x}");
        }
    }

    #[test]
    fn a_long_write_counts_as_its_bytes_do() {
        assert!(config_write_touches(0x00, &[0; 8]), "it begins with the ids");
        assert!(config_write_touches(0x24, &[0; 8]), "it ends behind the base addresses");
        assert!(!config_write_touches(0x10, &[0; 24]));
        assert!(config_write_touches(u64::MAX, &[0; 8]), "it goes nowhere, and harms nobody");
    }
}
