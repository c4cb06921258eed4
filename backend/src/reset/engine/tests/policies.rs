// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn ask_with(desk: &mut Desk, device: u64, policy: ResetPolicy) -> RequestId {
    let request = Request { policy, ..desk.request(device) };
    let id = desk.ask_so(request);
    desk.run();
    id
}

fn protected(sibling: u64, policy: ResetPolicy) -> (Rung, Reason) {
    (Rung::Group, Reason::Protected { sibling: address(sibling), policy })
}

#[test]
fn the_policy_function_spares_every_sibling() {
    let mut desk = Desk::with_group(2);
    let request = ask_with(&mut desk, 1, ResetPolicy::Function);
    assert_eq!(desk.reasons(request)[1], protected(2, ResetPolicy::Function));
}

#[test]
fn the_policy_function_spares_siblings_that_nobody_has_opened() {
    let mut desk = Desk::with_group(1);
    let functions = vec![function(1, Ownership::Ours), function(2, Ownership::Implied)];
    desk.set_scope(&Scope::Functions { is_available: true, functions });
    let request = ask_with(&mut desk, 1, ResetPolicy::Function);
    assert_eq!(desk.reasons(request)[1], protected(2, ResetPolicy::Function));
}

#[test]
fn a_set_of_one_has_no_sibling_to_spare() {
    let mut desk = Desk::with_group(1);
    let request = ask_with(&mut desk, 1, ResetPolicy::Function);
    assert_eq!(desk.report(request).rung, Rung::Group);
}

#[test]
fn the_policy_group_spares_a_sibling_that_is_in_use() {
    let mut desk = Desk::with_group(2);
    desk.activate(2);
    let request = ask_with(&mut desk, 1, ResetPolicy::Group);
    assert_eq!(desk.reasons(request)[1], protected(2, ResetPolicy::Group));
    assert!(desk.attempts.is_empty());
    assert_eq!(desk.access(2), Access::Open);
}

#[test]
fn the_policy_group_resets_a_sibling_that_is_still() {
    let mut desk = Desk::with_group(2);
    desk.activate(2);
    desk.tell(Event::Used(Cookie(2), Usage::Still(Vm(2))));
    let request = ask_with(&mut desk, 1, ResetPolicy::Group);
    assert_eq!(desk.report(request).reset.affected, [Cookie(1), Cookie(2)]);
}

#[test]
fn the_device_itself_may_be_in_use() {
    let mut desk = Desk::with_group(2);
    desk.activate(1);
    let request = ask_with(&mut desk, 1, ResetPolicy::Group);
    assert_eq!(desk.report(request).rung, Rung::Group);
}

#[test]
fn the_policy_group_resets_a_sibling_whose_vm_has_asked_too() {
    let mut desk = Desk::with_group(2);
    desk.activate(1);
    desk.activate(2);
    let first = ask_with(&mut desk, 1, ResetPolicy::Group);
    assert_eq!(desk.reasons(first)[1], protected(2, ResetPolicy::Group));
    let second = ask_with(&mut desk, 2, ResetPolicy::Group);
    assert_eq!(desk.report(second).reset.affected, [Cookie(1), Cookie(2)]);
}

#[test]
fn a_wish_is_withdrawn_by_using_the_device() {
    let mut desk = Desk::with_group(2);
    desk.activate(1);
    desk.activate(2);
    ask_with(&mut desk, 1, ResetPolicy::Group);
    desk.touch(1);
    let second = ask_with(&mut desk, 2, ResetPolicy::Group);
    assert_eq!(desk.reasons(second)[1], protected(1, ResetPolicy::Group));
}

#[test]
fn a_wish_does_not_outlive_the_epoch() {
    let mut desk = Desk::with_group(2);
    desk.activate(1);
    desk.activate(2);
    ask_with(&mut desk, 1, ResetPolicy::Group);
    ask_with(&mut desk, 2, ResetPolicy::Group);
    desk.activate(1);
    desk.activate(2);
    let request = ask_with(&mut desk, 2, ResetPolicy::Group);
    assert_eq!(desk.reasons(request)[1], protected(1, ResetPolicy::Group));
}

#[test]
fn a_request_speaks_for_all_devices_that_its_vm_uses() {
    let mut desk = Desk::with_group(3);
    for device in 1..=2 {
        desk.tell(Event::Used(Cookie(device), Usage::Active(Vm(7))));
    }
    let request = Request { vm: Some(Vm(7)), ..desk.request(1) };
    let request = desk.ask_so(request);
    desk.run();
    assert_eq!(desk.report(request).reset.affected, [Cookie(1), Cookie(2), Cookie(3)]);
}

#[test]
fn a_request_does_not_speak_for_another_vm() {
    let mut desk = Desk::with_group(2);
    desk.tell(Event::Used(Cookie(1), Usage::Active(Vm(7))));
    desk.tell(Event::Used(Cookie(2), Usage::Active(Vm(8))));
    let request = Request { vm: Some(Vm(7)), ..desk.request(1) };
    let request = desk.ask_so(request);
    desk.run();
    assert_eq!(desk.reasons(request)[1], protected(2, ResetPolicy::Group));
}

#[test]
fn the_policy_force_spares_nobody() {
    let mut desk = Desk::with_group(2);
    desk.activate(2);
    let request = ask_with(&mut desk, 1, ResetPolicy::Force);
    assert_eq!(desk.report(request).reset.affected, [Cookie(1), Cookie(2)]);
}

#[test]
fn whoever_may_not_cause_a_reset_has_it_all_the_same_if_somebody_else_may() {
    let mut desk = Desk::with_group(2);
    desk.activate(2);
    let timid = desk.request(1);
    let timid = desk.ask_so(Request { policy: ResetPolicy::Function, ..timid });
    let bold = desk.request(1);
    let bold = desk.ask_so(Request { policy: ResetPolicy::Force, ..bold });
    desk.run();
    assert_eq!(desk.report(timid).reset, desk.report(bold).reset);
    assert_eq!(desk.attempts.len(), 1);
}

#[test]
fn a_protected_sibling_leaves_the_power_management_reset() {
    let mut desk = Desk::with(&[(1, FunctionReset::PowerManagement), (2, FunctionReset::None)]);
    desk.activate(2);
    let request = ask_with(&mut desk, 1, ResetPolicy::Group);
    assert_eq!(desk.report(request).rung, Rung::PowerManagement);
    assert_eq!(desk.report(request).reset.affected, [Cookie(1)]);
}

#[test]
fn a_device_does_not_protect_itself() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(1);
    desk.activate(1);
    desk.run();
    assert_eq!(desk.report(request).rung, Rung::Group);
}
