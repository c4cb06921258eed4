// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who finds a device as after power-on, who finds it as it was, and who is told that its state is lost.

use super::*;

const VM: Vm = Vm(7);
const OTHER: Vm = Vm(8);

/// A group whose devices are active, in the hands of these VMs.
fn in_use_by(vms: &[Vm]) -> Desk {
    let mut desk = Desk::with_group(vms.len().try_into().unwrap());
    for (device, vm) in (1..).zip(vms) {
        desk.tell(Event::Used(Cookie(device), Usage::Active(*vm)));
    }
    desk
}

/// The device's client asks, as far as it may.
fn ask_as(desk: &mut Desk, vm: Vm, device: u64) -> RequestId {
    let request = desk.request(device);
    desk.ask_so(Request { vm: Some(vm), policy: ResetPolicy::Force, ..request })
}

/// The host asks.
fn ask_as_host(desk: &mut Desk, device: u64) -> RequestId {
    let request = desk.request(device);
    desk.ask_so(Request { demand: Demand::Reset, policy: ResetPolicy::Force, ..request })
}

fn restored(desk: &Desk) -> Vec<Restoration> {
    desk.restored.values().copied().collect()
}

#[test]
fn who_has_asked_finds_its_device_cleared_and_who_has_not_finds_it_put_back() {
    let mut desk = in_use_by(&[VM, OTHER]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    assert_eq!(restored(&desk), [Restoration::Cleared, Restoration::PutBack]);
}

#[test]
fn a_device_that_nobody_uses_is_cleared() {
    let mut desk = Desk::with_group(2);
    ask_as_host(&mut desk, 1);
    desk.run();
    assert_eq!(restored(&desk), [Restoration::Cleared; 2]);
    assert_eq!(desk.errors, []);
}

#[test]
fn a_client_whose_device_the_host_resets_has_not_asked() {
    let mut desk = in_use_by(&[VM]);
    ask_as_host(&mut desk, 1);
    desk.run();
    assert_eq!((restored(&desk), &desk.errors), (vec![Restoration::PutBack], &vec![Cookie(1)]));
}

#[test]
fn another_vm_is_told_that_state_is_lost_and_the_vm_that_has_asked_is_not() {
    let mut desk = in_use_by(&[VM, VM, OTHER]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    assert_eq!(restored(&desk)[1..], [Restoration::PutBack; 2]);
    assert_eq!(desk.errors, [Cookie(3)]);
}

#[test]
fn a_device_that_is_still_has_no_state_to_lose() {
    let mut desk = in_use_by(&[VM, OTHER]);
    desk.tell(Event::Used(Cookie(2), Usage::Still(OTHER)));
    ask_as(&mut desk, VM, 1);
    desk.run();
    assert_eq!((restored(&desk)[1], &desk.errors), (Restoration::PutBack, &vec![]));
}

#[test]
fn a_vmm_that_asks_device_by_device_finds_each_cleared_after_one_reset() {
    let mut desk = in_use_by(&[VM, VM]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    let second = ask_as(&mut desk, VM, 2);
    assert_eq!(desk.access(2), Access::HeldOff, "while it is cleared");
    assert!(!desk.answers.contains_key(&second));
    desk.run();
    assert!(desk.report(second).is_from_epoch);
    assert_eq!((restored(&desk), desk.attempts.len()), (vec![Restoration::Cleared; 2], 1));
    assert_eq!((desk.engine.epoch(), desk.announced.len()), (Epoch(1), 3), "that is no reset");
    assert_eq!(desk.errors, []);
    let again = ask_as(&mut desk, VM, 2);
    assert!(desk.report(again).is_from_epoch, "at once");
    desk.assert_at_rest();
}

#[test]
fn a_vmm_that_takes_down_what_was_put_back_does_not_touch_it() {
    let mut desk = in_use_by(&[VM, VM]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    // Messages go first, then bus mastering.
    desk.tell(Event::Used(Cookie(2), Usage::Active(VM)));
    desk.tell(Event::Used(Cookie(2), Usage::Still(VM)));
    let second = ask_as(&mut desk, VM, 2);
    desk.run();
    assert!(desk.report(second).is_from_epoch);
}

#[test]
fn what_was_put_back_and_touched_is_reset_again() {
    let mut desk = in_use_by(&[VM, VM]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    desk.touch(2);
    let second = ask_as(&mut desk, VM, 2);
    desk.run();
    assert_eq!(desk.report(second).reset.epoch, Epoch(2));
}

#[test]
fn what_was_put_back_is_in_use() {
    let mut desk = in_use_by(&[VM, OTHER]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    desk.touch(1);
    let request = desk.request(1);
    let refused = desk.ask_so(Request { vm: Some(VM), ..request });
    desk.run();
    assert!(matches!(desk.reasons(refused)[1].1, Reason::Protected { .. }));
}

#[test]
fn who_asks_while_its_device_is_put_back_finds_it_cleared() {
    let mut desk = in_use_by(&[VM, OTHER]);
    ask_as(&mut desk, VM, 1);
    desk.run_to_attempt();
    desk.step();
    let late = ask_as(&mut desk, OTHER, 2);
    desk.run();
    assert_eq!((desk.restored[&Cookie(2)], desk.attempts.len()), (Restoration::Cleared, 1));
    assert!(desk.report(late).is_from_epoch);
    assert_eq!(desk.errors, [], "it has asked by now");
    desk.assert_at_rest();
}

#[test]
fn whoever_wants_a_reset_is_not_served_by_clearing() {
    let mut desk = in_use_by(&[VM, VM]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    let clean = ask_as(&mut desk, VM, 2);
    let reset = ask_as_host(&mut desk, 2);
    desk.run();
    assert_eq!((desk.report(clean).reset.epoch, desk.report(reset).reset.epoch), (Epoch(1), Epoch(2)));
}

#[test]
fn a_device_that_cannot_be_cleared_is_lost() {
    let mut desk = in_use_by(&[VM, VM]);
    ask_as(&mut desk, VM, 1);
    desk.run();
    let second = ask_as(&mut desk, VM, 2);
    desk.refuse(Errno::IO);
    let loss = Loss { device: Cookie(2), address: address(2), how: HowLost::NotRestored(Errno::IO) };
    assert_eq!(desk.answer(second), &Err(Refusal::Lost(loss)));
    assert_eq!(desk.access(2), Access::Lost);
}

#[test]
fn the_client_of_a_device_that_is_lost_is_told() {
    let mut desk = in_use_by(&[VM, OTHER]);
    ask_as(&mut desk, VM, 1);
    desk.step();
    desk.step();
    desk.refuse(Errno::IO);
    desk.run();
    assert_eq!((desk.restored[&Cookie(2)], &desk.errors), (Restoration::Cleared, &vec![Cookie(2)]));
}

#[test]
fn nobody_is_told_of_a_reset_that_was_surely_not_done() {
    for (errno, told) in [(Errno::INVAL, vec![]), (Errno::AGAIN, vec![]), (Errno::IO, vec![Cookie(2)])] {
        let mut desk = in_use_by(&[VM, OTHER]);
        let request = desk.request(1);
        let deadline = Deadline::at(desk.now + Settings::default().pause);
        desk.ask_so(Request { vm: Some(VM), policy: ResetPolicy::Force, deadline, ..request });
        desk.run_to_attempt();
        desk.refuse(errno);
        desk.run();
        assert_eq!((desk.restored[&Cookie(2)], &desk.errors), (Restoration::PutBack, &told), "{errno}");
    }
}

#[test]
fn a_client_that_did_not_wait_for_the_end_has_asked_all_the_same() {
    let mut desk = in_use_by(&[VM]);
    let request = desk.request(1);
    let deadline = Deadline::at(desk.now + Duration::from_secs(1));
    desk.ask_so(Request { vm: Some(VM), deadline, ..request });
    desk.run_to_attempt();
    desk.wait(Duration::from_secs(2));
    desk.run();
    assert_eq!((restored(&desk), &desk.errors), (vec![Restoration::PutBack], &vec![]));
}
