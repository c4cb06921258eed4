// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Registers of bound devices: of the config space, and the few of each device that show what has become of it.

use vfio::config_space::command;
use vfio::{Device, RegionIndex};

use crate::answer::{Answer, answer};

pub(crate) const COMMAND: u64 = 0x04;
pub(crate) const STATUS: u64 = 0x06;
pub(crate) const CACHE_LINE_SIZE: u64 = 0x0c;
pub(crate) const BAR0: u64 = 0x10;
pub(crate) const CAPABILITIES: u64 = 0x34;
pub(crate) const INTERRUPT_LINE: u64 = 0x3c;
/// Of [`STATUS`]: the function has its interrupt line raised, whether or not that is held back.
const INTERRUPT_RAISED: u16 = 1 << 3;
/// Ids of capabilities.
pub(crate) const POWER_MANAGEMENT: u8 = 0x01;
pub(crate) const EXPRESS: u8 = 0x10;

const BAR_0: RegionIndex = RegionIndex(0);
/// igb's VLAN `EtherType` register: any reset brings it back to its default.
const IGB_VET: u64 = 0x38;
pub(crate) const IGB_VET_DEFAULT: u32 = 0x8100_8100;

/// Reads as many bytes as the answer has.
pub(crate) fn read<const N: usize>(device: &Device, region: RegionIndex, offset: u64) -> Answer<[u8; N]> {
    let mut data = [0; N];
    answer(device.read_region(region, offset, &mut data)).map(|()| data)
}

pub(crate) fn read_config_word(device: &Device, offset: u64) -> u16 {
    u16::from_le_bytes(read(device, RegionIndex::CONFIG, offset).expect("the config space can be read"))
}

pub(crate) fn read_config_double_word(device: &Device, offset: u64) -> u32 {
    u32::from_le_bytes(read(device, RegionIndex::CONFIG, offset).expect("the config space can be read"))
}

pub(crate) fn write_config(device: &Device, offset: u64, data: &[u8]) {
    device.write_region(RegionIndex::CONFIG, offset, data).expect("the config space can be written");
}

/// Memory decoding and bus mastering on, as a guest's driver does.
pub(crate) fn enable(device: &Device) {
    set_command(device, command::MEMORY | command::BUS_MASTER);
}

pub(crate) fn set_command(device: &Device, value: u16) {
    write_config(device, COMMAND, &value.to_le_bytes());
}

pub(crate) fn command(device: &Device) -> u16 {
    read_config_word(device, COMMAND)
}

/// Whether the function raises its interrupt line.
pub(crate) fn raises_interrupt(device: &Device) -> bool {
    read_config_word(device, STATUS) & INTERRUPT_RAISED != 0
}

/// Ids of the capabilities, in the order of the list, with their offsets.
pub(crate) fn capabilities(device: &Device) -> Vec<(u8, u64)> {
    let mut found = Vec::new();
    let [mut next] = read(device, RegionIndex::CONFIG, CAPABILITIES).expect("the list's head");
    while next != 0 && found.len() < 48 {
        let [id, following] = read_config_word(device, next.into()).to_le_bytes();
        found.push((id, u64::from(next)));
        next = following;
    }
    found
}

/// Where the capability with this id is.
pub(crate) fn capability(device: &Device, id: u8) -> u64 {
    let list = capabilities(device);
    list.iter().find(|(found, _)| *found == id).unwrap_or_else(|| panic!("{list:x?} has no {id:#x}")).1
}

/// Sends the function to a power state: 0 is on, 3 asleep.
pub(crate) fn set_power_state(device: &Device, state: u16) {
    let control = capability(device, POWER_MANAGEMENT) + 4;
    let value = read_config_word(device, control) & !0b11 | state;
    write_config(device, control, &value.to_le_bytes());
}

pub(crate) fn power_state(device: &Device) -> u16 {
    read_config_word(device, capability(device, POWER_MANAGEMENT) + 4) & 0b11
}

/// Changes igb's register that shows whether it was reset.
pub(crate) fn soil_igb(device: &Device) {
    enable(device);
    device.write_region(BAR_0, IGB_VET, &0x1234_u32.to_le_bytes()).expect("the register can be written");
    assert_eq!(igb_vet(device), 0x1234);
}

/// igb's register that shows whether it was reset.
pub(crate) fn igb_vet(device: &Device) -> u32 {
    enable(device);
    u32::from_le_bytes(read(device, BAR_0, IGB_VET).expect("the register can be read"))
}
