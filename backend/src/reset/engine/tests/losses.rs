// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server or the broker that dies or hangs in the middle of a coordinated reset.

use super::house::{House, name};
use super::*;

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
fn a_server_that_dies_at_any_moment_of_its_own_reset_leaves_the_others_an_answer() {
    let mut outcomes = [0, 0];
    for moment in 0.. {
        let mut house = House::with(&[&[1], &[2], &[3]]);
        house.ask(1, 1);
        let waiting = house.ask(2, 2);
        if !(0..moment).all(|_| house.step()) {
            break;
        }
        house.kill(1);
        house.settle();
        house.assert_at_rest();
        match house.answer(waiting) {
            Ok(_) => outcomes[0] += 1,
            Err(refusal) => {
                let refusal = refusal.to_string();
                assert!(refusal.contains("the server server1 is gone"), "moment {moment}: {refusal}");
                outcomes[1] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "every outcome was seen: {outcomes:?}");
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
