// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::irq::IrqAction;
use crate::irq::IrqIndex::{self, Intx, Msi, Msix};
use crate::model::function::Reset;
use crate::model::function::fixture::{CONFIG, Opened, count, interrupt, open, words};
use crate::model::function::registers::{capability_id, header};
use crate::model::topology::Part;

const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

/// An edu whose interrupts of one kind are on.
fn listening(index: IrqIndex) -> (Opened, OwnedFd) {
    let mut opened = open(Part::Edu);
    let eventfd = interrupt();
    opened.arm(index, 0, &[Some(&eventfd)]).unwrap();
    (opened, eventfd)
}

#[test]
fn a_raised_line_fires_once_and_is_masked() {
    let (mut edu, eventfd) = listening(Intx);
    edu.set_word(0, RAISE, 1);
    edu.set_word(0, RAISE, 2);
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn unmasking_a_line_that_is_still_raised_fires_again() {
    let (mut edu, eventfd) = listening(Intx);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
    edu.act(Intx, IrqAction::Unmask, 0, 1).unwrap();
    assert_eq!(count(&eventfd), 1);
    edu.set_word(0, ACKNOWLEDGE, 1);
    edu.act(Intx, IrqAction::Unmask, 0, 1).unwrap();
    assert_eq!(count(&eventfd), 0);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn a_masked_line_fires_when_it_is_unmasked() {
    let (mut edu, eventfd) = listening(Intx);
    edu.act(Intx, IrqAction::Mask, 0, 1).unwrap();
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 0);
    edu.act(Intx, IrqAction::Unmask, 0, 1).unwrap();
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn the_command_register_holds_the_line_back() {
    let (mut edu, eventfd) = listening(Intx);
    edu.set_command(header::COMMAND_MEMORY | header::COMMAND_INTX_DISABLE);
    edu.set_word(0, RAISE, 1);
    edu.act(Intx, IrqAction::Unmask, 0, 1).unwrap();
    edu.act(Intx, IrqAction::Trigger, 0, 1).unwrap();
    assert_eq!(count(&eventfd), 0);
    edu.set_command(header::COMMAND_MEMORY);
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn an_eventfd_lets_the_line_through_again() {
    let (mut edu, eventfd) = listening(Intx);
    let resample = interrupt();
    edu.give(Intx, IrqAction::Unmask, 0, &[Some(&resample)]).unwrap();
    assert_eq!(edu.give(Intx, IrqAction::Unmask, 0, &[Some(&resample)]), Err(Errno::BUSY));
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
    rustix::io::write(&resample, &1_u64.to_ne_bytes()).unwrap();
    edu.function.hear(None);
    assert_eq!((count(&eventfd), count(&resample)), (1, 0));
    edu.give(Intx, IrqAction::Unmask, 0, &[None]).unwrap();
    assert_eq!(edu.function.listening().count(), 0);
}

#[test]
fn a_line_that_is_up_already_tells_a_new_listener_nothing() {
    let mut edu = open(Part::Edu);
    let eventfd = interrupt();
    edu.set_word(0, RAISE, 1);
    edu.arm(Intx, 0, &[Some(&eventfd)]).unwrap();
    assert_eq!(count(&eventfd), 0);
    edu.set_word(0, ACKNOWLEDGE, 1);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn a_reset_lets_go_of_the_line_and_leaves_it_masked() {
    let (mut edu, eventfd) = listening(Intx);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
    edu.function.reset(Reset::Bus);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 0);
    edu.act(Intx, IrqAction::Unmask, 0, 1).unwrap();
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn a_message_is_sent_by_a_bus_master_only() {
    let (mut edu, eventfd) = listening(Msi);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
    edu.set_word(0, RAISE, 0);
    assert_eq!(count(&eventfd), 1);
    edu.set_command(header::COMMAND_MEMORY);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 0);
}

#[test]
fn msi_turned_off_by_its_capability_makes_the_device_use_its_line() {
    let (mut edu, eventfd) = listening(Msi);
    let control = edu.capability(capability_id::MSI) + 2;
    edu.set_half(CONFIG, control, 0);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 0);
    assert_eq!(edu.half(CONFIG, 6) & header::STATUS_INTERRUPT, header::STATUS_INTERRUPT);
    edu.set_half(CONFIG, control, 1);
    assert_eq!(edu.half(CONFIG, 6) & header::STATUS_INTERRUPT, 0);
    edu.set_word(0, RAISE, 1);
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn a_message_for_a_vector_that_was_never_armed_waits() {
    let mut edu = open(Part::Edu);
    let eventfd = interrupt();
    edu.arm(Msi, 0, &[None]).unwrap();
    edu.set_word(0, RAISE, 1);
    edu.set_word(0, RAISE, 1);
    edu.function.reset(Reset::Bus);
    edu.arm(Msi, 0, &[Some(&eventfd)]).unwrap();
    assert_eq!(count(&eventfd), 1);
    edu.arm(Msi, 0, &[None]).unwrap();
    edu.set_word(0, RAISE, 1);
    edu.arm(Msi, 0, &[Some(&eventfd)]).unwrap();
    assert_eq!(count(&eventfd), 0);
}

#[test]
fn messages_are_not_turned_on_by_their_capability() {
    let mut edu = open(Part::Edu);
    let control = edu.capability(capability_id::MSI) + 2;
    edu.set_half(CONFIG, control, 0xffff);
    assert_eq!(edu.half(CONFIG, control), 0x008e);
    edu.set_word(0, RAISE, 1);
    assert_eq!(edu.half(CONFIG, 6) & header::STATUS_INTERRUPT, header::STATUS_INTERRUPT);
}

#[test]
fn one_kind_of_interrupt_is_on_at_a_time() {
    for (first, second) in [(Intx, Msi), (Msi, Msix), (Msix, Intx)] {
        let mut igb = open(Part::Igb);
        let eventfd = interrupt();
        igb.arm(first, 0, &[Some(&eventfd)]).unwrap();
        assert_eq!(igb.arm(second, 0, &[Some(&eventfd)]), Err(Errno::INVAL));
        igb.act(first, IrqAction::Trigger, 0, 0).unwrap();
        assert_eq!(igb.arm(second, 0, &[Some(&eventfd)]), Ok(0));
    }
}

#[test]
fn what_is_off_can_be_neither_fired_nor_turned_off() {
    let mut igb = open(Part::Igb);
    for index in IrqIndex::ALL {
        assert_eq!(igb.act(index, IrqAction::Trigger, 0, 1), Err(Errno::INVAL), "{index:?}");
        assert_eq!(igb.act(index, IrqAction::Trigger, 0, 0), Err(Errno::INVAL), "{index:?}");
    }
}

#[test]
fn vectors_are_added_taken_away_and_fired_one_by_one() {
    let mut igb = open(Part::Igb);
    let [first, second, third] = [interrupt(), interrupt(), interrupt()];
    igb.arm(Msix, 0, &[Some(&first), Some(&second)]).unwrap();
    igb.arm(Msix, 9, &[Some(&third)]).unwrap();
    igb.arm(Msix, 1, &[None]).unwrap();
    igb.act(Msix, IrqAction::Trigger, 0, 10).unwrap();
    assert_eq!([&first, &second, &third].map(count), [1, 0, 1]);
    assert_eq!(igb.arm(Msix, 10, &[Some(&first)]), Err(Errno::INVAL));
}

#[test]
fn a_vector_that_cannot_be_set_takes_its_neighbours_with_it() {
    let mut igb = open(Part::Igb);
    let eventfd = interrupt();
    let other: OwnedFd = tempfile::tempfile().unwrap().into();
    igb.arm(Msix, 2, &[Some(&eventfd)]).unwrap();
    assert_eq!(igb.arm(Msix, 0, &[Some(&eventfd), Some(&other)]), Err(Errno::INVAL));
    igb.act(Msix, IrqAction::Trigger, 0, 3).unwrap();
    assert_eq!(count(&eventfd), 1);
}

#[test]
fn where_vectors_are_fixed_there_are_as_many_as_messages_were_turned_on_with() {
    let mut igb = open(Part::Igb);
    igb.function.fix_vectors();
    assert_eq!(igb.irq(Msix).unwrap(), (0x9, 10), "NORESIZE");
    let [first, second] = [interrupt(), interrupt()];
    igb.arm(Msix, 1, &[Some(&first)]).unwrap();
    assert_eq!(igb.arm(Msix, 1, &[Some(&first), Some(&second)]), Err(Errno::INVAL));
    igb.act(Msix, IrqAction::Trigger, 0, 10).unwrap();
    assert_eq!(count(&first), 0, "what could not be set has taken its neighbour with it");
    igb.arm(Msix, 0, &[Some(&second), None, None]).unwrap();
    igb.act(Msix, IrqAction::Trigger, 0, 10).unwrap();
    assert_eq!(count(&second), 1);
    igb.act(Msix, IrqAction::Trigger, 0, 0).unwrap();
    igb.arm(Msix, 0, &[Some(&first), None, Some(&second)]).unwrap();
}

#[test]
fn turning_messages_on_with_something_else_than_an_eventfd_leaves_them_off() {
    let mut igb = open(Part::Igb);
    let other: OwnedFd = tempfile::tempfile().unwrap().into();
    assert_eq!(igb.arm(Msix, 0, &[Some(&other)]), Err(Errno::INVAL));
    assert_eq!(igb.arm(Intx, 0, &[Some(&interrupt())]), Ok(0));
}

#[test]
fn messages_for_no_vector_at_all_are_erange() {
    assert_eq!(open(Part::Igb).arm(Msix, 0, &[]), Err(Errno::RANGE));
    assert_eq!(open(Part::Igb).arm(Intx, 0, &[]), Err(Errno::INVAL));
}

#[test]
fn messages_and_the_hosts_interrupts_cannot_be_masked() {
    let mut igb = open(Part::Igb);
    for index in [Msi, Msix, IrqIndex::Err, IrqIndex::Req] {
        assert_eq!(igb.act(index, IrqAction::Mask, 0, 1), Err(Errno::NOTTY));
        assert_eq!(igb.act(index, IrqAction::Unmask, 0, 1), Err(Errno::NOTTY));
    }
    assert_eq!(igb.act(Intx, IrqAction::Mask, 0, 1), Err(Errno::INVAL));
}

#[test]
fn booleans_choose_which_vectors_fire() {
    let mut igb = open(Part::Igb);
    let [first, second] = [interrupt(), interrupt()];
    igb.arm(Msix, 0, &[Some(&first), Some(&second)]).unwrap();
    let mut argument = words(&[22, 0x22, Msix.number(), 0, 2]);
    argument.extend([0, 1]);
    igb.ioctl(crate::ioctl::DEVICE_SET_IRQS, &mut argument).unwrap();
    assert_eq!([&first, &second].map(count), [0, 1]);
}

#[test]
fn a_malformed_change_is_einval() {
    let mut igb = open(Part::Igb);
    let changes = [
        // Too short, an unknown flag, no kind of data, two kinds, no such index, no such vector, no room for the data.
        [19, 0x21, 0, 0, 0],
        [20, 0x61, 0, 0, 0],
        [20, 0x20, 0, 0, 0],
        [20, 0x23, 0, 0, 0],
        [20, 0x21, 5, 0, 0],
        [20, 0x21, 0, 1, 0],
        [20, 0x21, 2, 9, 2],
        [20, 0x21, 2, u32::MAX, 1],
        [20, 0x24, 0, 0, 1],
        [20, 0x22, 0, 0, 1],
    ];
    for change in changes {
        assert_eq!(
            igb.ioctl(crate::ioctl::DEVICE_SET_IRQS, &mut words(&change)),
            Err(Errno::INVAL),
            "{change:?}"
        );
    }
    for action in [0x01, 0x31, 0x39] {
        let mut argument = words(&[20, action, 0, 0, 1]);
        assert_eq!(igb.ioctl(crate::ioctl::DEVICE_SET_IRQS, &mut argument), Err(Errno::NOTTY));
    }
}

#[test]
fn a_number_without_a_descriptor_is_ebadf() {
    let mut igb = open(Part::Igb);
    let mut argument = words(&[24, 0x24, Msix.number(), 0, 1, 77]);
    assert_eq!(igb.ioctl(crate::ioctl::DEVICE_SET_IRQS, &mut argument), Err(Errno::BADF));
}

#[test]
fn msi_that_can_be_masked_is_masked_while_nobody_listens() {
    let mut igb = open(Part::Igb);
    let mask = igb.capability(capability_id::MSI) + 16;
    igb.arm(Msi, 0, &[None]).unwrap();
    assert_eq!(igb.word(CONFIG, mask), 1);
    igb.arm(Msi, 0, &[Some(&interrupt())]).unwrap();
    assert_eq!(igb.word(CONFIG, mask), 0);
}
