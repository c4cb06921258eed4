// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::OwnedFd;

use super::capability::Capability;
use super::fixture::{CONFIG, Opened, PARTS, closed, count, interrupt, open, open_as, word_of, words};
use super::registers::capability_id;
use super::*;
use crate::ioctl;
use crate::irq::IrqAction;
use crate::model::argument::Argument;

/// igb's VLAN type, which has a default; and the same of e1000e.
const VLAN_TYPE: u64 = 0x38;
const MEMORY_AND_MASTER: u16 = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;

#[test]
fn what_a_user_did_to_the_config_space_ends_with_the_use() {
    for (part, _) in PARTS {
        let before = closed(part).config();
        let mut opened = open(part);
        let eventfd = interrupt();
        opened.set_word(CONFIG, 0x0c, u32::MAX);
        opened.set_word(CONFIG, 0x10, 0);
        for index in [IrqIndex::Msix, IrqIndex::Msi, IrqIndex::Intx] {
            let _ = opened.arm(index, 0, &[Some(&eventfd)]);
        }
        opened.function.close();
        assert_eq!(opened.function.config(), before, "{part:?}");
    }
}

#[test]
fn a_closed_function_is_no_bus_master_and_interrupts_nobody() {
    let mut opened = open(Part::Edu);
    let eventfd = interrupt();
    opened.arm(IrqIndex::Req, 0, &[Some(&eventfd)]).unwrap();
    opened.function.close();
    assert_eq!(opened.function.registers.half(header::COMMAND) & header::COMMAND_BUS_MASTER, 0);
    assert!(!opened.function.signal(IrqIndex::Req.number()));
    assert_eq!(count(&eventfd), 0);
}

#[test]
fn the_host_is_heard_by_whoever_armed_the_interrupt() {
    let mut opened = open(Part::Nvme);
    let eventfd = interrupt();
    assert!(!opened.function.signal(IrqIndex::Err.number()));
    opened.arm(IrqIndex::Err, 0, &[Some(&eventfd)]).unwrap();
    assert!(opened.function.signal(IrqIndex::Err.number()));
    assert_eq!(count(&eventfd), 1);
    assert!(!opened.function.signal(77));
}

#[test]
fn bars_tell_their_size_when_ones_are_written() {
    let mut opened = open(Part::Igb);
    for (register, expected) in [
        (0x10, 0xfffe_0000),
        (0x18, 0xffff_ffe1),
        (0x1c, 0xffff_c004),
        (0x20, u32::MAX),
        (0x24, 0),
        (0x30, 0),
    ] {
        opened.set_word(CONFIG, register, u32::MAX);
        assert_eq!(opened.word(CONFIG, register), expected, "{register:#x}");
    }
    let hardware = closed(Part::Igb).config();
    assert_eq!(opened.function.config()[0x10..0x28], hardware[0x10..0x28]);
}

#[test]
fn a_bar_that_is_not_decoded_is_eio() {
    let mut opened = open(Part::Edu);
    assert_eq!(opened.word(0, 0), 0x0100_00ed);
    opened.set_command(0);
    assert_eq!(opened.read(0, 0, 4), Err(Errno::IO));
    assert_eq!(opened.write(0, 0, &[0; 4]), Err(Errno::IO));
}

#[test]
fn io_space_that_is_not_decoded_reads_as_ones() {
    let mut opened = open(Part::Igb);
    opened.set_command(0);
    assert_eq!(opened.read(2, 0, 4), Ok(vec![0xff; 4]));
}

#[test]
fn an_access_ends_at_the_end_of_a_bar() {
    let mut opened = open(Part::Edu);
    assert_eq!(opened.read(0, 0xf_fffc, 8).unwrap().len(), 4);
    assert_eq!(opened.read(0, 0x10_0000, 1), Err(Errno::INVAL));
    assert_eq!(opened.read(1, 0, 4), Err(Errno::INVAL));
    assert_eq!(opened.read(8, 0, 4), Err(Errno::INVAL));
    assert_eq!(opened.read(20, 0, 4), Err(Errno::INVAL));
    assert_eq!(opened.read(20, 0, 0), Ok(vec![]));
}

#[test]
fn a_config_access_that_ends_outside_does_nothing() {
    let mut opened = open(Part::Edu);
    assert_eq!(opened.read(CONFIG, 0xff, 2), Err(Errno::FAULT));
    assert_eq!(opened.write(CONFIG, 0x3c, &[0x55; 0x100]), Err(Errno::FAULT));
    assert_eq!(opened.read(CONFIG, 0x3c, 1), Ok(vec![10]));
}

#[test]
fn the_table_of_msix_is_the_kernels() {
    let mut opened = open(Part::Nvme);
    opened.set_word(0, 0x2000, 1);
    assert_eq!(opened.read(0, 0x1ffc, 8).unwrap(), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(opened.word(0, 0x2000 + 65 * 16), 0);
}

#[test]
fn a_rom_is_read_and_never_written() {
    let mut opened = open(Part::E1000e);
    assert_eq!(opened.read(6, 0, 2).unwrap(), [0x55, 0xaa]);
    assert_eq!(opened.write(6, 0, &[0; 2]), Err(Errno::INVAL));
    opened.set_command(0);
    assert_eq!(opened.read(6, 0, 2), Err(Errno::NOMEM));
}

#[test]
fn regions_are_those_of_the_part() {
    let mut opened = open(Part::E1000e);
    let sizes: Vec<u64> = (0..8).map(|index| opened.region(index).unwrap().size).collect();
    assert_eq!(sizes, [0x2_0000, 0x2_0000, 0x20, 0x4000, 0, 0, 0x4_0000, 0x1000]);
    let flags: Vec<u32> = (0..8).map(|index| opened.region(index).unwrap().flags).collect();
    assert_eq!(flags, [7, 7, 3, 7, 0, 0, 1, 3]);
    assert_eq!(opened.region(2).unwrap().offset, 2 << 40);
    assert_eq!(opened.region(8), Err(Errno::INVAL));
}

#[test]
fn a_bar_with_the_table_of_msix_says_so_where_there_is_room() {
    let mut opened = open(Part::Nvme);
    let mut argument = words(&[32, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(opened.ioctl(ioctl::DEVICE_GET_REGION_INFO, &mut argument), Ok(0));
    assert_eq!([0, 4, 12].map(|offset| word_of(&argument, offset)), [40, 0xf, 0]);
    assert_eq!(opened.ioctl(ioctl::DEVICE_GET_REGION_INFO, &mut argument), Ok(0));
    assert_eq!([0, 4, 12, 32, 36].map(|offset| word_of(&argument, offset)), [40, 0xf, 32, 0x0001_0003, 0]);
}

#[test]
fn an_old_structure_is_not_written_beyond_its_end() {
    let mut opened = open(Part::Igb);
    let mut argument = words(&[16, 9, 9, 9, 9, 9]);
    assert_eq!(opened.ioctl(ioctl::DEVICE_GET_INFO, &mut argument), Ok(0));
    assert_eq!(argument, words(&[16, 3, 9, 5, 9, 9]));
    assert_eq!(opened.ioctl(ioctl::DEVICE_GET_INFO, &mut words(&[15, 0, 0, 0])), Err(Errno::INVAL));
    assert_eq!(opened.ioctl(ioctl::DEVICE_GET_REGION_INFO, &mut words(&[31; 8])), Err(Errno::INVAL));
    assert_eq!(opened.ioctl(ioctl::DEVICE_GET_IRQ_INFO, &mut words(&[15, 0, 0, 0])), Err(Errno::INVAL));
    assert_eq!(opened.ioctl(ioctl::DEVICE_BIND_IOMMUFD, &mut words(&[16; 4])), Err(Errno::NOTTY));
}

#[test]
fn the_error_interrupt_is_for_express_only_until_7_3() {
    for (part, expected) in [(Part::Edu, Err(Errno::INVAL)), (Part::Nvme, Ok((9, 1)))] {
        let (_, reset) = PARTS.into_iter().find(|(candidate, _)| *candidate == part).unwrap();
        let old = Function::new(part, reset, KernelVersion::Linux6_12, Role::Single).unwrap();
        assert_eq!(open_as(old, true).irq(IrqIndex::Err), expected);
        assert_eq!(open(part).irq(IrqIndex::Err), Ok((9, 1)));
    }
}

#[test]
fn a_bus_reset_puts_registers_back_and_leaves_alone_what_the_user_set_up() {
    let mut opened = open(Part::Igb);
    let eventfd = interrupt();
    opened.arm(IrqIndex::Msix, 3, &[Some(&eventfd)]).unwrap();
    opened.set_word(CONFIG, 0x10, 0xfe00_0000);
    opened.set_word(0, VLAN_TYPE, 7);
    let before = opened.read(CONFIG, 0, 0x1000).unwrap();
    opened.function.reset(Reset::Bus);
    assert_eq!(opened.read(CONFIG, 0, 0x1000).unwrap(), before);
    assert_eq!(opened.word(0, VLAN_TYPE), 0x8100_8100);
    opened.act(IrqIndex::Msix, IrqAction::Trigger, 3, 1).unwrap();
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn only_a_bus_reset_reaches_registers_that_survive_sleep() {
    let mut opened = open(Part::E1000e);
    opened.set_word(0, VLAN_TYPE, 7);
    opened.function.reset(Reset::Function);
    assert_eq!(opened.word(0, VLAN_TYPE), 7);
    opened.function.reset(Reset::Bus);
    assert_eq!(opened.word(0, VLAN_TYPE), 0x8100);
}

#[test]
fn edu_does_not_care_about_resets_but_lets_go_of_its_line() {
    let mut opened = open(Part::Edu);
    opened.set_word(0, 0x04, 0x55);
    opened.set_word(0, 0x60, 1);
    assert_eq!(opened.half(CONFIG, 6) & header::STATUS_INTERRUPT, header::STATUS_INTERRUPT);
    opened.function.reset(Reset::Bus);
    assert_eq!((opened.word(0, 0x04), opened.word(0, 0x24)), (!0x55, 1));
    assert_eq!(opened.half(CONFIG, 6) & header::STATUS_INTERRUPT, 0);
}

#[test]
fn the_bit_for_a_function_level_reset_resets_and_reads_as_zero() {
    for (part, expected) in [(Part::Igb, 0x8100_8100), (Part::E1000e, 7)] {
        let mut opened = open(part);
        let control = opened.capability(capability_id::EXPRESS) + 8;
        opened.set_word(0, VLAN_TYPE, 7);
        opened.set_half(CONFIG, control, 0xa000);
        assert_eq!(opened.half(CONFIG, control), 0x2000);
        assert_eq!(opened.word(0, VLAN_TYPE), expected);
    }
}

#[test]
fn a_sleeping_function_answers_to_nothing_but_the_config_space() {
    for part in [Part::Igb, Part::Nvme] {
        let mut opened = open(part);
        let control = opened.capability(capability_id::POWER_MANAGEMENT) + 4;
        opened.set_half(CONFIG, control, 3);
        assert_eq!(opened.half(CONFIG, control) & 3, 3);
        assert_eq!(opened.read(0, 0, 4), Err(Errno::IO));
        assert_eq!(opened.arm(IrqIndex::Msix, 0, &[Some(&interrupt())]), Err(Errno::INVAL));
        opened.set_half(CONFIG, control, 0);
        assert_eq!(opened.read(0, 0, 4).unwrap().len(), 4);
    }
}

#[test]
fn a_function_that_forgets_in_its_sleep_gets_its_header_back() {
    for (part, expected) in [(Part::Igb, MEMORY_AND_MASTER), (Part::Nvme, 0)] {
        let mut opened = open(part);
        let control = opened.capability(capability_id::POWER_MANAGEMENT) + 4;
        opened.set_half(CONFIG, control, 3);
        opened.set_command(0);
        opened.set_half(CONFIG, control, 0);
        assert_eq!(opened.command(), expected, "{part:?}");
    }
}

#[test]
fn a_reset_wakes_a_function() {
    let mut opened = open(Part::Nvme);
    let control = opened.capability(capability_id::POWER_MANAGEMENT) + 4;
    opened.set_half(CONFIG, control, 3);
    opened.function.reset(Reset::Bus);
    assert_eq!(opened.half(CONFIG, control), 8);
}

#[test]
fn a_suspended_function_tells_that_it_was_resumed_once() {
    let mut opened = open(Part::Igb);
    let eventfd = interrupt();
    let mut argument = words(&[16, 4 | (1 << 17), 0, 0]);
    let fds = vec![Some(eventfd.try_clone().unwrap())];
    assert_eq!(opened.function.ioctl(0x3b75, &mut Argument(&mut argument), fds), Ok(0));
    assert_eq!(count(&eventfd), 0);
    opened.word(CONFIG, 0);
    opened.word(CONFIG, 0);
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn features_are_probed_before_they_are_used() {
    let mut opened = open(Part::E1000e);
    let mut feature =
        |flags: u32| opened.function.ioctl(0x3b75, &mut Argument(&mut words(&[8, flags])), vec![]);
    assert_eq!(feature(3 | (1 << 18)), Ok(0));
    assert_eq!(feature(3 | (1 << 18) | (1 << 16)), Err(Errno::INVAL));
    assert_eq!(feature(3 | (1 << 17)), Ok(0));
    assert_eq!(feature(3 | (1 << 17)), Err(Errno::INVAL));
    assert_eq!(feature(5 | (1 << 17)), Ok(0));
    assert_eq!(feature(1 | (1 << 18)), Err(Errno::NOTTY));
    assert_eq!(feature(1 << 19), Err(Errno::INVAL));
}

#[test]
fn an_eventfd_can_stand_for_a_write() {
    let mut opened = open(Part::Edu);
    let eventfd = interrupt();
    let set = |opened: &mut Opened, offset: u64, fd: Option<&OwnedFd>| {
        let mut argument = words(&[32, 4]);
        argument.extend(offset.to_ne_bytes());
        argument.extend(0xffff_0000_u64.to_ne_bytes());
        argument.extend(fd.map_or(-1_i32, |_| 0).to_ne_bytes());
        argument.extend([0; 4]);
        let fds = vec![fd.map(|fd| fd.try_clone().unwrap())];
        opened.function.ioctl(0x3b74, &mut Argument(&mut argument), fds)
    };
    assert_eq!(set(&mut opened, 4, None), Err(Errno::NODEV));
    assert_eq!(set(&mut opened, 4, Some(&eventfd)), Ok(0));
    assert_eq!(set(&mut opened, 4, Some(&eventfd)), Err(Errno::EXIST));
    assert_eq!(set(&mut opened, 0x10_0000, Some(&eventfd)), Err(Errno::INVAL));
    rustix::io::write(&eventfd, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(opened.function.listening().count(), 1);
    opened.function.hear(None);
    assert_eq!(opened.word(0, 4), 0x0000_ffff);
    assert_eq!(set(&mut opened, 4, None), Ok(0));
    assert_eq!(opened.function.listening().count(), 0);
}

#[test]
fn a_range_of_a_bar_is_mapped_where_it_is_in_the_file() {
    let mut opened = open(Part::Igb);
    opened.set_word(3, 0x1004, 0x1234_5678);
    let (file, offset) = opened.function.map((3 << 40) + 0x1000, 0x1000).unwrap();
    let mut data = [0; 4];
    rustix::io::pread(file, &mut data, offset + 4).unwrap();
    assert_eq!(u32::from_le_bytes(data), 0x1234_5678);
}

#[test]
fn what_cannot_be_mapped_is_einval() {
    let opened = open(Part::Igb);
    let ranges = [
        // I/O, the config space, no BAR, the ROM.
        (2_u64 << 40, 0x1000),
        (7 << 40, 0x1000),
        (5 << 40, 0x1000),
        (6 << 40, 0x1000),
        // Beyond the end, nothing, between pages.
        ((3 << 40) + 0x4000, 0x1000),
        (3 << 40, 0x4001),
        (3 << 40, 0),
        ((3 << 40) + 1, 0x1000),
        (3 << 40, u64::MAX),
    ];
    for (position, length) in ranges {
        assert_eq!(
            opened.function.map(position, length).err(),
            Some(Errno::INVAL),
            "{position:#x}+{length:#x}"
        );
    }
}

#[test]
fn a_virtual_function_has_no_ids_and_no_line_of_its_own() {
    let function =
        Function::new(Part::Igb, FunctionReset::FunctionLevel, KernelVersion::Linux7_3, Role::Virtual)
            .unwrap();
    assert_eq!(function.config()[..4], [0xff; 4]);
    assert_eq!((function.vendor(), function.device()), (0x8086, 0x10ca));
    let mut opened = open_as(function, true);
    assert_eq!(opened.word(CONFIG, 0), 0x10ca_8086);
    assert_eq!(opened.irq(IrqIndex::Intx), Ok((7, 0)));
    assert_eq!(opened.command() & header::COMMAND_MEMORY, header::COMMAND_MEMORY);
    opened.set_command(0);
    assert_eq!(opened.word(0, VLAN_TYPE), 0x8100_8100);
    opened.set_word(CONFIG, 0x10, u32::MAX);
    assert_eq!(opened.word(CONFIG, 0x10), 0xfffe_0000);
}

#[test]
fn a_way_to_be_reset_that_is_not_the_parts_own_shows_in_the_config_space() {
    let make = |part, reset| Function::new(part, reset, KernelVersion::Linux7_3, Role::Single).unwrap();
    let edu = make(Part::Edu, FunctionReset::FunctionLevel);
    assert!(edu.registers.capability(capability_id::ADVANCED_FEATURES).is_some());
    let igb = make(Part::Igb, FunctionReset::Missing);
    assert_eq!(igb.registers.word(0xa0 + 4) & Capability::EXPRESS_FUNCTION_LEVEL_RESET, 0);
    assert_ne!(igb.registers.half(0x40 + 4) & Capability::NO_SOFT_RESET, 0);
    let nvme = make(Part::Nvme, FunctionReset::PowerManagement);
    assert_eq!(nvme.registers.half(0x60 + 4) & Capability::NO_SOFT_RESET, 0);
}

#[test]
fn a_function_level_reset_of_a_conventional_part_is_asked_for_in_its_own_capability() {
    let edu = Function::new(Part::Edu, FunctionReset::FunctionLevel, KernelVersion::Linux7_3, Role::Single)
        .unwrap();
    let mut opened = open_as(edu, true);
    let control = opened.capability(capability_id::ADVANCED_FEATURES) + 4;
    opened.set_word(0, 0x60, 1);
    opened.write(CONFIG, control, &[1]).unwrap();
    assert_eq!(opened.read(CONFIG, control, 1).unwrap(), [0]);
    assert_eq!(opened.half(CONFIG, 6) & header::STATUS_INTERRUPT, 0);
}
