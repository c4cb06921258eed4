// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

const SOON: Duration = Duration::from_secs(4);

fn ask_within(desk: &mut Desk, device: u64, deadline: Duration) -> RequestId {
    let request = desk.request(device);
    let deadline = Deadline::at(desk.now + deadline);
    desk.ask_so(Request { deadline, ..request })
}

fn stage(desk: &Desk, request: RequestId) -> Stage {
    match desk.answer(request) {
        Err(Refusal::DeadlinePassed { stage, .. }) => *stage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slow_reset_does_not_keep_its_asker_waiting() {
    let mut desk = Desk::with_group(2);
    let request = ask_within(&mut desk, 1, SOON);
    desk.run_to_attempt();
    desk.wait(SOON);
    assert_eq!(stage(&desk, request), Stage::Resetting);
    desk.run();
    let again = ask_within(&mut desk, 1, SOON);
    assert!(desk.report(again).is_from_epoch, "the reset came to its end all the same");
}

#[test]
fn each_asker_waits_for_its_own_deadline() {
    let mut desk = Desk::with_group(1);
    let hasty = ask_within(&mut desk, 1, SOON);
    let patient = ask_within(&mut desk, 1, 10 * SOON);
    desk.run_to_attempt();
    desk.wait(2 * SOON);
    assert_eq!(stage(&desk, hasty), Stage::Resetting);
    desk.run();
    assert_eq!(desk.report(patient).reset.epoch, Epoch(1));
}

#[test]
fn whoever_allows_for_the_attempt_under_way_is_answered_after_it() {
    let mut desk = Desk::with_group(1);
    let request = desk.request(1);
    let deadline = Deadline::outlasting(desk.now + SOON, 10 * SOON);
    let request = desk.ask_so(Request { deadline, ..request });
    desk.run_to_attempt();
    desk.wait(5 * SOON);
    desk.run();
    assert_eq!(desk.report(request).reset.epoch, Epoch(1));
}

#[test]
fn a_request_that_waits_for_another_reset_is_answered_by_its_deadline() {
    let mut desk = Desk::with(&[(1, FunctionReset::Full)]);
    ask_within(&mut desk, 1, 10 * SOON);
    desk.run_to_attempt();
    let hot = desk.request(1);
    let deadline = Deadline::at(desk.now + SOON);
    let hot = Request { demand: Demand::Reset, method: Some(ResetMethod::Hot), deadline, ..hot };
    let hot = desk.ask_so(hot);
    desk.wait(SOON);
    assert_eq!(stage(&desk, hot), Stage::Waiting);
}

#[test]
fn a_query_that_takes_too_long_is_given_up() {
    let mut desk = Desk::with_group(1);
    let request = ask_within(&mut desk, 1, SOON);
    desk.wait(SOON);
    assert_eq!(stage(&desk, request), Stage::Querying);
    desk.run();
    assert!(desk.attempts.is_empty(), "nobody waits for the reset any more");
    desk.assert_at_rest();
}

#[test]
fn a_reset_that_nobody_waits_for_any_more_is_not_begun_after_the_quiesce() {
    let mut desk = Desk::with_group(1);
    let request = ask_within(&mut desk, 1, SOON);
    desk.step();
    desk.wait(SOON);
    assert_eq!(stage(&desk, request), Stage::Quiescing);
    desk.run();
    assert!(desk.attempts.is_empty());
    assert_eq!(desk.access(1), Access::Open);
    desk.assert_at_rest();
}

#[test]
fn a_busy_kernel_is_not_asked_again_when_nobody_waits_any_more() {
    let mut desk = Desk::with_group(1);
    ask_within(&mut desk, 1, SOON);
    desk.run_to_attempt();
    desk.wait(SOON.checked_sub(Duration::from_millis(15)).unwrap());
    desk.refuse(Errno::BUSY);
    desk.wait(SOON);
    desk.refuse(Errno::BUSY);
    desk.run();
    assert_eq!(desk.attempts.len(), 2);
    desk.assert_at_rest();
}

#[test]
fn a_request_without_time_is_refused_unless_the_device_is_clean() {
    let mut desk = Desk::with_group(1);
    let late = ask_within(&mut desk, 1, Duration::ZERO);
    assert_eq!(stage(&desk, late), Stage::Waiting);
    desk.ask(1);
    desk.run();
    let late = ask_within(&mut desk, 1, Duration::ZERO);
    assert!(desk.report(late).is_from_epoch);
}

#[test]
fn a_kernel_that_never_answers_leaves_no_asker_and_no_timer() {
    let mut desk = Desk::with_group(2);
    let first = ask_within(&mut desk, 1, SOON);
    let second = ask_within(&mut desk, 2, 2 * SOON);
    while desk.steps.len() > 1 || !matches!(desk.steps.front(), Some(Action::Attempt(..))) {
        desk.step();
    }
    desk.wait(100 * SOON);
    assert_eq!((stage(&desk, first), stage(&desk, second)), (Stage::Resetting, Stage::Resetting));
    assert_eq!((desk.engine.wakes_at(), desk.access(1)), (None, Access::Busy));
}
