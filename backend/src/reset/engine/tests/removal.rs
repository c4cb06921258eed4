// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn remove(desk: &mut Desk, device: u64) {
    desk.devices.retain(|present| *present != device);
    desk.tell(Event::DeviceRemoved(Cookie(device)));
}

#[test]
fn whoever_asked_for_a_removed_device_is_told() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(1);
    remove(&mut desk, 1);
    assert_eq!(desk.answer(request), &Err(Refusal::Removed));
    desk.run();
    assert!(desk.attempts.is_empty());
    desk.assert_at_rest();
}

#[test]
fn a_sibling_that_is_removed_at_any_moment_does_not_stop_the_reset() {
    for moment in 1..6 {
        let mut desk = Desk::with_group(2);
        let request = desk.ask(1);
        (0..moment).for_each(|_| drop(desk.step()));
        remove(&mut desk, 2);
        desk.run();
        assert_eq!(desk.report(request).reset.affected, [Cookie(1)], "after {moment} steps");
        let mut named = desk.report(request).lost.iter().map(|loss| (loss.device, loss.how));
        let gone = Some((Cookie(2), HowLost::Removed));
        assert_eq!(named.next_back(), gone, "after {moment} steps");
        desk.assert_at_rest();
    }
}

#[test]
fn a_target_that_is_removed_at_any_moment_leaves_its_siblings_in_order() {
    for moment in 1..6 {
        let mut desk = Desk::with_group(2);
        let removed = desk.ask(1);
        (0..moment).for_each(|_| drop(desk.step()));
        let sibling = desk.ask(2);
        remove(&mut desk, 1);
        assert_eq!(desk.answer(removed), &Err(Refusal::Removed), "after {moment} steps");
        desk.run();
        assert_eq!(desk.report(sibling).reset.affected, [Cookie(2)], "after {moment} steps");
        assert_eq!(desk.access(2), Access::Open);
        desk.assert_at_rest();
    }
}

#[test]
fn the_kernel_is_asked_through_a_sibling_when_the_target_is_gone() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.step();
    let request = desk.ask(2);
    remove(&mut desk, 1);
    desk.run();
    assert_eq!(desk.attempts, [(Cookie(2), ResetMethod::Hot)]);
    assert_eq!(desk.report(request).rung, Rung::Group);
}

#[test]
fn a_set_without_devices_is_not_reset() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.ask(2);
    desk.step();
    desk.step();
    remove(&mut desk, 1);
    remove(&mut desk, 2);
    desk.run();
    assert!(desk.attempts.is_empty());
    desk.assert_at_rest();
}

#[test]
fn a_device_that_comes_while_its_set_is_quiesced_is_quiesced_too() {
    let mut desk = Desk::with_group(1);
    desk.set_scope(&set_of(&[1, 2]));
    desk.tell(Event::BrokerFound);
    let functions = vec![function(1, Ownership::Ours), function(2, Ownership::Implied)];
    desk.set_scope(&Scope::Functions { is_available: true, functions });
    let request = desk.ask(1);
    desk.step();
    desk.add(2, FunctionReset::None);
    assert_eq!(desk.access(2), Access::HeldOff);
    desk.run();
    assert_eq!(desk.report(request).reset.affected, [Cookie(1), Cookie(2)]);
    assert_eq!(desk.access(2), Access::Open);
}

#[test]
fn a_device_that_comes_while_its_set_is_reset_is_restored_and_not_called_clean() {
    for moment in 2..4 {
        let mut desk = Desk::with_group(1);
        let functions = vec![function(1, Ownership::Ours), function(2, Ownership::Implied)];
        desk.set_scope(&Scope::Functions { is_available: true, functions });
        desk.ask(1);
        (0..moment).for_each(|_| drop(desk.step()));
        desk.add(2, FunctionReset::None);
        assert_eq!(desk.access(2), Access::HeldOff, "after {moment} steps");
        desk.run();
        assert_eq!(desk.engine.condition(Cookie(2)), Some(&Condition::Dirty), "after {moment} steps");
        assert_eq!(desk.access(2), Access::Open);
        desk.assert_at_rest();
    }
}

#[test]
fn a_reset_that_waits_goes_on_for_a_sibling_when_its_target_is_removed() {
    let mut desk =
        Desk::with(&[(1, FunctionReset::None), (2, FunctionReset::None), (3, FunctionReset::Full)]);
    desk.ask(3);
    let removed = desk.ask(1);
    desk.run_to_attempt();
    let function_reset = desk.steps.pop_front().unwrap();
    desk.run();
    let sibling = desk.ask(2);
    remove(&mut desk, 1);
    assert_eq!(desk.answer(removed), &Err(Refusal::Removed));
    desk.steps.push_back(function_reset);
    desk.run();
    assert_eq!(desk.report(sibling).reset.affected, [Cookie(2), Cookie(3)]);
    desk.assert_at_rest();
}

#[test]
fn a_set_that_is_asked_for_anew_is_so_through_a_sibling_when_the_target_is_removed() {
    let devices = [(1, FunctionReset::None), (2, FunctionReset::None), (3, FunctionReset::Full)];
    let mut desk = Desk::with(&devices);
    desk.ask(3);
    desk.ask(1);
    desk.run_to_attempt();
    let function_reset = desk.steps.pop_front().unwrap();
    desk.run();
    let sibling = desk.ask(2);
    desk.steps.push_back(function_reset);
    desk.step();
    desk.step();
    assert!(matches!(desk.steps.front(), Some(Action::Query(_, Cookie(1)))));
    remove(&mut desk, 1);
    desk.refuse(Errno::NODEV);
    desk.run();
    assert_eq!(desk.report(sibling).reset.affected, [Cookie(2), Cookie(3)]);
    desk.assert_at_rest();
}
