// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One reset across several servers.

use protocol::extension::{AbortCause, CoordinationId, Preparation};

use super::house::{House, Move};
use super::*;

#[test]
fn every_server_is_quiesced_before_one_of_them_resets_the_set_and_all_are_restored() {
    let mut house = House::with(&[&[1, 2], &[3], &[4]]);
    let request = house.ask(1, 1);
    assert_eq!(house.run_to_attempt(), 1, "whoever asked is granted it");
    for (number, server) in &house.servers {
        for device in &server.devices {
            assert_eq!(server.engine.access(Cookie(*device)), Access::HeldOff, "server {number}");
        }
    }
    house.run();
    let report = house.answer(request).as_ref().unwrap();
    assert_eq!((report.rung, &report.reset.affected), (Rung::Group, &vec![Cookie(1), Cookie(2)]));
    for server in house.servers.values() {
        for device in &server.devices {
            assert!(matches!(server.engine.condition(Cookie(*device)), Some(Condition::Clean(_))));
        }
    }
    assert_eq!(house.last_losses(), (vec![], [].into()));
    house.assert_at_rest();
}

#[test]
fn a_sibling_in_another_server_that_is_clean_since_is_answered_at_once() {
    let mut house = House::with(&[&[1], &[2], &[3]]);
    house.ask(1, 1);
    house.settle();
    for server in 2..=3 {
        let request = house.ask(server, server);
        assert!(house.answer(request).as_ref().unwrap().is_from_epoch);
    }
    assert_eq!(house.attempts, [1]);
}

#[test]
fn requests_of_several_servers_at_once_are_one_reset() {
    let mut house = House::with(&[&[1], &[2], &[3]]);
    let requests = [house.ask(1, 1), house.ask(2, 2), house.ask(3, 3)];
    house.settle();
    for request in requests {
        assert!(house.answer(request).is_ok(), "{:?}", house.answer(request));
    }
    assert_eq!(house.attempts.len(), 1);
    house.assert_at_rest();
}

#[test]
fn a_server_protects_a_device_in_use_and_the_refusal_names_both() {
    let mut house = House::with(&[&[1], &[2]]);
    house.tell(2, Event::Used(Cookie(2), Usage::Active(Vm(2))));
    let request = house.ask(1, 1);
    house.settle();
    let reason = house.reason(request);
    assert!(reason.contains("the server server2 has 0000:01:00.2 in use"), "{reason}");
    assert!(house.attempts.is_empty());
    house.assert_at_rest();
}

#[test]
fn the_policy_group_reaches_a_server_whose_vm_has_asked_too() {
    let mut house = House::with(&[&[1], &[2]]);
    for server in 1..=2 {
        house.tell(server, Event::Used(Cookie(server), Usage::Active(Vm(server))));
    }
    let first = house.ask(1, 1);
    house.settle();
    assert!(house.answer(first).is_err());
    let second = house.ask(2, 2);
    house.settle();
    assert!(house.answer(second).is_ok(), "{}", house.reason(second));
    assert_eq!(house.attempts, [2]);
}

#[test]
fn what_is_refused_to_one_is_done_for_another_who_may_reach_further() {
    let mut house = House::with(&[&[1], &[2], &[3]]);
    house.tell(3, Event::Used(Cookie(3), Usage::Active(Vm(3))));
    let timid = house.ask(1, 1);
    let bold = house.ask_with(2, 2, ResetPolicy::Force, Duration::from_mins(1));
    house.settle();
    assert!(house.reason(timid).contains("server3 has 0000:01:00.3 in use"), "{}", house.reason(timid));
    assert!(house.answer(bold).is_ok(), "{}", house.reason(bold));
    assert_eq!(house.attempts, [2]);
}

#[test]
fn a_kernel_that_refuses_leaves_every_server_in_order_and_tells_all_why() {
    let mut house = House::with(&[&[1], &[2]]);
    let own = house.ask(1, 1);
    house.run_to_attempt();
    let other = house.ask(2, 2);
    house.make(Move::Kernel(1), Some(Errno::IO));
    house.settle();
    assert!(house.reason(own).contains("1 attempts"), "{}", house.reason(own));
    assert!(
        house.reason(other).contains("the kernel refused it to the server server1"),
        "{}",
        house.reason(other)
    );
    house.assert_at_rest();
}

#[test]
fn a_busy_kernel_is_asked_again_by_the_one_that_was_granted() {
    let mut house = House::with(&[&[1], &[2]]);
    let request = house.ask(1, 1);
    house.run_to_attempt();
    house.make(Move::Kernel(1), Some(Errno::BUSY));
    house.settle();
    assert_eq!(house.answer(request).as_ref().unwrap().reset.attempts, 2);
    assert_eq!(house.attempts, [1, 1]);
}

#[test]
fn a_function_that_nobody_known_holds_is_named() {
    let mut house = House::with(&[&[1], &[2]]);
    let function_reset = FunctionReset::None;
    house.tell(2, Event::DeviceAdded { device: Cookie(9), address: address(9), function_reset });
    house.server(2).devices.push(9);
    house.functions.insert(9);
    let request = house.ask(1, 1);
    house.settle();
    assert!(
        house.reason(request).contains("0000:01:01.1 is bound by a process"),
        "{}",
        house.reason(request)
    );
    house.assert_at_rest();
}

#[test]
fn a_device_that_is_not_quiesced_elsewhere_does_not_stop_the_reset_and_is_known_to_be_lost() {
    let mut house = House::with(&[&[1], &[2]]);
    let request = house.ask(1, 1);
    while !matches!(house.servers[&2].steps.front(), Some(Action::Quiesce(..))) {
        assert!(house.step());
    }
    house.make(Move::Kernel(2), Some(Errno::IO));
    house.settle();
    assert!(house.answer(request).is_ok());
    assert_eq!(house.last_losses().1, [address(2)].into());
    assert!(matches!(house.servers[&2].engine.condition(Cookie(2)), Some(Condition::Lost(_))));
}

#[test]
fn a_set_of_one_servers_own_devices_needs_no_broker() {
    let mut house = House::with(&[&[1, 2]]);
    let request = house.ask(1, 1);
    house.run();
    assert!(house.answer(request).is_ok());
    assert!(house.concluded.is_empty());
}

#[test]
fn a_server_that_reads_its_grant_too_late_does_not_use_it() {
    let mut house = House::with(&[&[1], &[2]]);
    let request = house.ask_within(1, 1, Duration::from_secs(1));
    while !matches!(house.servers[&1].inbox.front(), Some(BrokerMessage::Grant { .. })) {
        assert!(house.step());
    }
    house.now += Duration::from_secs(1);
    house.settle();
    assert!(house.attempts.is_empty(), "others may use their devices again");
    assert!(house.answer(request).is_err());
    house.assert_at_rest();
}

#[test]
fn a_request_that_crosses_a_reset_that_fails_takes_its_turn() {
    let mut house = House::with(&[&[1], &[2]]);
    let failed = house.ask(1, 1);
    let waiting = house.ask(2, 2);
    house.make(Move::Kernel(2), None);
    assert_eq!(
        house.servers[&2].outbox.len(),
        1,
        "it has asked the broker before it hears of the other reset"
    );
    assert_eq!(house.run_to_attempt(), 1);
    house.make(Move::Kernel(1), Some(Errno::IO));
    house.settle();
    assert!(house.answer(failed).is_err());
    assert!(house.answer(waiting).is_ok(), "{}", house.reason(waiting));
    assert_eq!(house.attempts, [1, 2]);
}

#[test]
fn requests_of_one_server_are_one_request_to_the_broker() {
    let mut house = House::with(&[&[1, 2], &[3]]);
    house.ask(1, 1);
    house.ask(1, 2);
    house.make(Move::Kernel(1), None);
    house.make(Move::Kernel(1), None);
    assert_eq!(house.servers[&1].outbox.len(), 1);
    house.settle();
    assert_eq!(house.attempts, [1]);
}

/// A server that has one of the two devices of a set that the broker has told it to prepare.
fn prepared() -> Desk {
    let mut desk = Desk::with_group(1);
    desk.tell(Event::BrokerFound);
    desk.tell(Event::BrokerSaid(BrokerMessage::Prepare(Preparation {
        coordination: CoordinationId(5),
        target: address(2),
        policy: ResetPolicy::Group,
        tries: Duration::from_secs(1),
        patience: Duration::from_secs(2),
        functions: vec![address(1), address(2)],
    })));
    desk
}

#[test]
fn a_server_says_that_its_devices_are_restored_only_when_they_are() {
    let mut desk = prepared();
    desk.wait(Duration::from_secs(2));
    let cause = AbortCause::DeadlinePassed;
    let coordination = Some(CoordinationId(5));
    desk.tell(Event::BrokerSaid(BrokerMessage::Abort { coordination, request: None, cause }));
    assert_eq!(desk.told, [], "the quiesce takes its time");
    desk.run();
    assert_eq!(desk.told, [MemberMessage::Restored { coordination: CoordinationId(5), lost: vec![] }]);
    desk.assert_at_rest();
}

#[test]
fn whoever_asks_a_server_that_takes_part_in_a_reset_has_what_comes_of_it() {
    let mut desk = prepared();
    let request = desk.ask(1);
    desk.run();
    desk.tell(Event::BrokerSaid(BrokerMessage::Done {
        coordination: CoordinationId(5),
        request: None,
        outcome: ResetOutcome::LinkUnconfirmed,
        attempts: 3,
        missing: None,
    }));
    desk.run();
    let reset = &desk.report(request).reset;
    assert_eq!((reset.outcome, reset.attempts), (ResetOutcome::LinkUnconfirmed, 3));
    assert!(desk.attempts.is_empty());
}

#[test]
fn what_the_broker_says_about_nothing_is_answered_so_that_it_does_not_wait() {
    let mut desk = Desk::with_group(1);
    desk.tell(Event::BrokerFound);
    let coordination = CoordinationId(9);
    desk.tell(Event::BrokerSaid(BrokerMessage::Grant { coordination }));
    let cause = AbortCause::DeadlinePassed;
    let abort = BrokerMessage::Abort { coordination: Some(coordination), request: None, cause };
    desk.tell(Event::BrokerSaid(abort));
    assert_eq!(
        desk.told,
        [
            MemberMessage::Fired { coordination, result: Err(Errno::PROTO), attempts: 0 },
            MemberMessage::Restored { coordination, lost: vec![] },
        ]
    );
}
