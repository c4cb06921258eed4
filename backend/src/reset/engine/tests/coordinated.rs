// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One reset across several servers.

use super::house::{House, Move, name};
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

/// What a request was answered when `event` happened after `moment` moves; `None` once the reset was over by then.
fn after(
    moment: usize,
    asker: u64,
    event: impl Fn(&mut House),
) -> Option<(House, Result<Report, Refusal>, usize)> {
    let mut house = House::with(&[&[1], &[2], &[3]]);
    let request = house.ask(asker, asker);
    for _ in 0..moment {
        if !house.step() {
            return None;
        }
    }
    let attempts = house.attempts.len();
    event(&mut house);
    house.settle();
    house.assert_at_rest();
    let answer = house.answer(request).clone();
    Some((house, answer, attempts))
}

#[test]
fn a_server_that_dies_at_any_moment_is_named_and_leaves_the_others_in_order() {
    for victim in 2..=3 {
        let mut outcomes = [0, 0, 0];
        for moment in 0.. {
            let Some((house, answer, _)) = after(moment, 1, |house| house.kill(victim)) else { break };
            let dead = format!("server{victim}");
            match &answer {
                // Before it took part, or after all had heard the end.
                Ok(report) if report.missing.is_none() => outcomes[0] += 1,
                Ok(report) => {
                    assert_eq!(report.missing, Some(name(victim)), "moment {moment}");
                    assert_eq!(house.attempts.len(), 1, "moment {moment}: the reset was granted");
                    outcomes[1] += 1;
                }
                Err(refusal) => {
                    assert!(
                        refusal.to_string().contains(&format!("{dead} is gone")),
                        "moment {moment}: {refusal}"
                    );
                    assert!(house.attempts.is_empty(), "moment {moment}: nothing was reset");
                    outcomes[2] += 1;
                }
            }
        }
        assert!(outcomes.iter().all(|count| *count > 0), "every outcome was seen: {outcomes:?}");
    }
}

#[test]
fn a_server_that_dies_with_the_grant_is_named_to_those_who_wait() {
    let mut house = House::with(&[&[1], &[2]]);
    house.ask(1, 1);
    house.run_to_attempt();
    let other = house.ask(2, 2);
    house.kill(1);
    house.settle();
    assert!(house.reason(other).contains("the server server1 is gone"), "{}", house.reason(other));
    assert_eq!(
        house.servers[&2].engine.condition(Cookie(2)),
        Some(&Condition::Dirty),
        "it may have been reset"
    );
    assert_eq!(house.last_losses(), (vec!["server1".to_owned()], [address(1)].into()));
    house.assert_at_rest();
    let again = house.ask(2, 2);
    house.settle();
    assert!(house.answer(again).is_ok(), "the dead server is in nobody's way");
}

#[test]
fn a_server_that_hangs_at_any_moment_is_named_and_leaves_the_others_in_order() {
    let mut outcomes = [0, 0, 0];
    for moment in 0.. {
        let hang = |house: &mut House| house.server(3).is_hung = true;
        let Some((house, answer, _)) = after(moment, 1, hang) else { break };
        match &answer {
            Ok(_) if house.last_losses().0.is_empty() => outcomes[0] += 1,
            Ok(_) => {
                assert_eq!(house.last_losses(), (vec!["server3".to_owned()], [address(3)].into()));
                outcomes[1] += 1;
            }
            Err(refusal) => {
                let refusal = refusal.to_string();
                assert!(refusal.contains("server3 does not answer"), "moment {moment}: {refusal}");
                assert!(house.attempts.is_empty(), "moment {moment}: nothing was reset");
                outcomes[2] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "every outcome was seen: {outcomes:?}");
}

#[test]
fn a_server_that_hangs_with_the_grant_is_named_and_no_other_reset_is_granted_meanwhile() {
    let mut house = House::with(&[&[1], &[2]]);
    house.ask(1, 1);
    house.run_to_attempt();
    let waiting = house.ask_within(2, 2, Duration::from_mins(5));
    house.server(1).is_hung = true;
    house.settle();
    assert!(
        house.reason(waiting).contains("the server server1 does not answer"),
        "{}",
        house.reason(waiting)
    );
    let again = house.ask(2, 2);
    house.settle();
    assert!(house.reason(again).contains("the server server1 does not answer"), "{}", house.reason(again));
    assert_eq!(house.attempts, [1]);
    house.server(1).is_hung = false;
    house.server(1).was_hung = true;
    house.settle();
    house.assert_at_rest();
    house.ask(2, 2);
    house.settle();
    assert_eq!(house.attempts.len(), 2, "it is back, and so are resets");
}

#[test]
fn a_broker_that_dies_at_any_moment_leaves_every_server_in_order() {
    let mut outcomes = [0, 0];
    for moment in 0.. {
        let Some((house, answer, attempts)) = after(moment, 1, House::kill_broker) else { break };
        match &answer {
            Ok(_) => outcomes[0] += 1,
            Err(refusal) => {
                let refusal = refusal.to_string();
                let is_named =
                    refusal.contains("the broker is gone") || refusal.contains("there is no broker");
                assert!(is_named, "moment {moment}: {refusal}");
                assert_eq!(attempts, 0, "moment {moment}: nothing had been reset");
                outcomes[1] += 1;
            }
        }
        assert!(house.attempts.len() <= 1);
    }
    assert!(outcomes.iter().all(|count| *count > 0), "every outcome was seen: {outcomes:?}");
}

#[test]
fn a_broker_that_falls_silent_is_given_up() {
    for moment in 1..12 {
        let mut house = House::with(&[&[1], &[2]]);
        let request = house.ask_within(1, 1, Duration::from_mins(10));
        for _ in 0..moment {
            house.step();
        }
        // It reads nothing and says nothing any more.
        house.broker = None;
        house.is_orderly = false;
        house.settle();
        house.assert_at_rest();
        assert!(house.servers[&1].answers.contains_key(&request), "moment {moment}");
    }
}

#[test]
fn a_new_broker_takes_over() {
    let mut house = House::with(&[&[1], &[2]]);
    house.ask(1, 1);
    house.run_to_attempt();
    house.run_others();
    house.kill_broker();
    house.connect_broker();
    let request = house.ask(2, 2);
    house.settle();
    assert!(house.answer(request).is_ok(), "{}", house.reason(request));
    house.assert_at_rest();
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
    while !matches!(house.servers[&1].to_server.front(), Some(BrokerMessage::Grant { .. })) {
        assert!(house.step());
    }
    house.now += Duration::from_secs(1);
    house.settle();
    assert!(house.attempts.is_empty(), "others may use their devices again");
    assert!(house.answer(request).is_err());
    house.assert_at_rest();
}
