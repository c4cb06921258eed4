// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn one_reset_answers_a_vmm_that_asks_device_by_device() {
    let mut desk = Desk::with_group(4);
    let requests: Vec<_> = (1..=4)
        .map(|device| {
            let request = desk.ask(device);
            desk.run();
            request
        })
        .collect();
    assert_eq!(desk.attempts, [(Cookie(1), ResetMethod::Hot)]);
    let first = desk.report(requests[0]).clone();
    assert!(!first.is_from_epoch);
    for request in &requests[1..] {
        let report = desk.report(*request);
        assert_eq!((report.is_from_epoch, &report.reset), (true, &first.reset));
    }
}

#[test]
fn one_reset_answers_all_who_ask_while_it_goes_on() {
    let mut desk = Desk::with_group(3);
    let mut requests = vec![desk.ask(1)];
    let mut ask = 1;
    while !desk.steps.is_empty() {
        requests.push(desk.ask(ask % 3 + 1));
        desk.step();
        ask += 1;
    }
    desk.run();
    let epochs: Vec<_> = requests.iter().map(|request| desk.report(*request).reset.epoch).collect();
    assert_eq!((desk.attempts.len(), epochs), (1, vec![Epoch(1); requests.len()]));
    desk.assert_at_rest();
}

#[test]
fn requests_whose_queries_cross_are_one_reset() {
    let mut desk = Desk::with_group(2);
    let first = desk.ask(1);
    let second = desk.ask(2);
    assert_eq!(desk.steps.len(), 2, "nobody knows yet that they are of one set");
    desk.run();
    assert_eq!(desk.report(first).reset, desk.report(second).reset);
    assert_eq!(desk.attempts.len(), 1);
}

#[test]
fn a_touched_device_is_reset_again() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.run();
    desk.touch(2);
    let clean = desk.ask(1);
    assert!(desk.report(clean).is_from_epoch);
    let dirty = desk.ask(2);
    desk.run();
    assert_eq!((desk.report(dirty).is_from_epoch, desk.report(dirty).reset.epoch), (false, Epoch(2)));
}

#[test]
fn what_is_activated_is_touched() {
    let mut desk = Desk::with_group(1);
    desk.ask(1);
    desk.run();
    desk.tell(Event::Used(Cookie(1), Usage::Still(Vm(1))));
    assert!(matches!(desk.engine.condition(Cookie(1)), Some(Condition::Clean(_))));
    desk.activate(1);
    assert_eq!(desk.engine.condition(Cookie(1)), Some(&Condition::Dirty));
}

#[test]
fn a_device_that_is_touched_while_it_is_reset_is_not_clean() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.run_to_attempt();
    desk.touch(2);
    desk.run();
    assert!(matches!(desk.engine.condition(Cookie(1)), Some(Condition::Clean(_))));
    assert_eq!(desk.engine.condition(Cookie(2)), Some(&Condition::Dirty));
}

#[test]
fn whoever_wants_a_reset_has_one_although_the_device_is_clean() {
    let mut desk = Desk::with_group(1);
    desk.ask(1);
    desk.run();
    let request = desk.request(1);
    let request = desk.ask_so(Request { demand: Demand::Reset, ..request });
    desk.run();
    assert_eq!(desk.report(request).reset.epoch, Epoch(2));
}

#[test]
fn whoever_wants_a_reset_is_served_by_one_under_way() {
    let mut desk = Desk::with_group(1);
    desk.ask(1);
    desk.run_to_attempt();
    let request = desk.request(1);
    let request = desk.ask_so(Request { demand: Demand::Reset, ..request });
    desk.run();
    assert_eq!((desk.report(request).reset.epoch, desk.attempts.len()), (Epoch(1), 1));
}

#[test]
fn a_hot_reset_that_is_asked_for_waits_for_a_function_reset_and_is_done_then() {
    let mut desk = Desk::with(&[(1, FunctionReset::Full), (2, FunctionReset::None)]);
    let function = desk.ask(1);
    desk.run_to_attempt();
    let hot = desk.request(1);
    let hot = desk.ask_so(Request { demand: Demand::Reset, method: Some(ResetMethod::Hot), ..hot });
    desk.run();
    assert_eq!(desk.report(function).rung, Rung::Function);
    assert_eq!((desk.report(hot).rung, desk.report(hot).reset.epoch), (Rung::Group, Epoch(2)));
}

#[test]
fn a_group_waits_for_the_function_reset_of_a_member_and_asks_for_the_set_anew() {
    let mut desk = Desk::with(&[(1, FunctionReset::None), (2, FunctionReset::Full)]);
    let function = desk.ask(2);
    let group = desk.ask(1);
    let order: Vec<_> = std::iter::from_fn(|| (!desk.steps.is_empty()).then(|| desk.step())).collect();
    let queries = order.iter().filter(|step| matches!(step, Action::Query(..))).count();
    assert_eq!(queries, 2);
    assert_eq!(desk.attempts, [(Cookie(2), ResetMethod::Function), (Cookie(1), ResetMethod::Hot)]);
    assert_eq!(desk.report(function).rung, Rung::Function);
    assert_eq!(desk.report(group).reset.affected, [Cookie(1), Cookie(2)]);
}

#[test]
fn resets_of_different_sets_do_not_wait_for_each_other() {
    let mut desk = Desk::with_group(2);
    desk.scopes = [(Cookie(1), set_of(&[1])), (Cookie(2), set_of(&[2]))].into();
    let first = desk.ask(1);
    desk.run_to_attempt();
    let slow = desk.steps.pop_front().unwrap();
    let second = desk.ask(2);
    desk.run();
    assert_eq!(desk.report(second).reset.affected, [Cookie(2)]);
    assert!(!desk.answers.contains_key(&first));
    desk.steps.push_back(slow);
    desk.run();
    assert_eq!(desk.report(first).reset.affected, [Cookie(1)]);
}

#[test]
fn a_failed_reset_cleans_nothing() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.run();
    let request = desk.request(1);
    desk.ask_so(Request { demand: Demand::Reset, ..request });
    desk.run_to_attempt();
    desk.refuse(Errno::IO);
    desk.run();
    for device in 1..=2 {
        assert_eq!(desk.engine.condition(Cookie(device)), Some(&Condition::Dirty), "it may have been reset");
    }
    assert_eq!(desk.engine.epoch(), Epoch(1));
}

#[test]
fn whoever_asks_while_a_reset_fails_has_one_of_its_own() {
    let mut desk = Desk::with_group(2);
    let failed = desk.ask(1);
    desk.run_to_attempt();
    desk.refuse(Errno::IO);
    let request = desk.ask(2);
    desk.run();
    assert!(desk.answer(failed).is_err());
    assert_eq!((desk.report(request).reset.epoch, desk.attempts.len()), (Epoch(1), 2));
}
