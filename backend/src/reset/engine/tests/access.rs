// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn accesses_are_held_off_from_the_first_quiesce_to_the_last_restore() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    assert_eq!(desk.access(2), Access::Open, "nobody knows yet that it is affected");
    desk.step();
    while !desk.steps.is_empty() {
        assert_eq!((desk.access(1), desk.access(2)), (Access::HeldOff, Access::HeldOff));
        desk.step();
    }
    assert_eq!((desk.access(1), desk.access(2)), (Access::Open, Access::Open));
}

#[test]
fn a_device_of_another_set_is_never_held_off() {
    let mut desk = Desk::with_group(2);
    desk.set_scope(&set_of(&[1]));
    desk.ask(1);
    while !desk.steps.is_empty() {
        assert_eq!(desk.access(2), Access::Open);
        desk.step();
    }
}

#[test]
fn accesses_that_would_wait_too_long_are_answered() {
    let mut desk = Desk::with_group(1);
    desk.ask(1);
    desk.run_to_attempt();
    desk.wait(Settings::default().hold_off.checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(desk.access(1), Access::HeldOff);
    desk.wait(Duration::from_millis(1));
    assert_eq!(desk.access(1), Access::Busy);
    desk.run();
    assert_eq!(desk.access(1), Access::Open);
}

#[test]
fn an_unknown_device_is_not_accessed() {
    assert_eq!(Desk::with_group(1).access(2), Access::Lost);
}
