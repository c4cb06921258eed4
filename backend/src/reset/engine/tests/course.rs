// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

/// What the steps are and which device each is about, without the reset's name.
fn course(desk: &mut Desk) -> Vec<String> {
    let mut course = Vec::new();
    while !desk.steps.is_empty() {
        course.push(match desk.step() {
            Action::Query(_, device) => format!("query {}", device.0),
            Action::Quiesce(_, device) => format!("quiesce {}", device.0),
            Action::Attempt(_, device, method) => format!("{method:?} {}", device.0),
            Action::Restore(_, device, _) => format!("restore {}", device.0),
            other => panic!("{other:?}"),
        });
    }
    course
}

#[test]
fn every_member_is_quiesced_before_and_restored_after() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    let expected = ["query 1", "quiesce 1", "quiesce 2", "Hot 1", "restore 1", "restore 2"];
    assert_eq!(course(&mut desk), expected);
}

#[test]
fn every_member_is_restored_although_the_kernel_refused() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.run_to_attempt();
    desk.refuse(Errno::INVAL);
    assert_eq!(course(&mut desk), ["restore 1", "restore 2"]);
    desk.assert_at_rest();
}

#[test]
fn the_kernel_is_not_asked_before_the_last_member_is_quiesced() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.step();
    desk.step();
    assert!(desk.attempts.is_empty());
    desk.step();
    assert_eq!(desk.attempts.len(), 1);
}

#[test]
fn a_busy_kernel_is_asked_again_and_that_is_counted() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(1);
    desk.run_to_attempt();
    for errno in [Errno::BUSY, Errno::AGAIN, Errno::BUSY] {
        desk.refuse(errno);
        assert!(desk.steps.is_empty(), "not at once");
        desk.wait(Settings::default().pause);
    }
    desk.run();
    assert_eq!(desk.report(request).reset.attempts, 4);
}

#[test]
fn a_busy_kernel_is_asked_until_the_deadline() {
    let mut desk = Desk::with_group(1);
    let request = desk.request(1);
    let deadline = Deadline::outlasting(desk.now + Duration::from_millis(35), Duration::from_mins(1));
    let request = desk.ask_so(Request { deadline, ..request });
    desk.run_to_attempt();
    while let Some(Action::Attempt(..)) = desk.steps.front() {
        desk.refuse(Errno::BUSY);
        desk.wait(Settings::default().pause);
    }
    desk.run();
    assert_eq!(desk.attempts.len(), 4);
    let reason = Reason::Refused { errno: Errno::BUSY, attempts: 4 };
    assert_eq!(desk.reasons(request)[1], (Rung::Group, reason));
    desk.assert_at_rest();
}

#[test]
fn no_other_errno_is_worth_another_try() {
    for errno in [Errno::INVAL, Errno::NODEV, Errno::IO, Errno::NOTTY] {
        let mut desk = Desk::with_group(1);
        let request = desk.ask(1);
        desk.run_to_attempt();
        desk.refuse(errno);
        desk.run();
        assert_eq!(desk.reasons(request)[1].1, Reason::Refused { errno, attempts: 1 });
    }
}

#[test]
fn a_link_that_was_not_seen_to_come_back_is_told() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(1);
    desk.run_to_attempt();
    let Some(Action::Attempt(reset, ..)) = desk.steps.pop_front() else { panic!("no attempt") };
    desk.tell(Event::Attempted(reset, Ok(ResetOutcome::LinkUnconfirmed)));
    desk.run();
    assert_eq!(desk.report(request).reset.outcome, ResetOutcome::LinkUnconfirmed);
}

#[test]
fn a_member_that_is_not_quiesced_is_reset_and_restored_all_the_same_and_named() {
    let mut desk = Desk::with_group(2);
    let first = desk.ask(1);
    let second = desk.ask(2);
    desk.step();
    desk.step();
    assert!(matches!(desk.step(), Action::Quiesce(_, Cookie(1))));
    desk.refuse(Errno::IO);
    assert_eq!(course(&mut desk), ["Hot 1", "restore 1", "restore 2"]);
    let loss = Loss { device: Cookie(2), address: address(2), how: HowLost::NotQuiesced(Errno::IO) };
    assert_eq!(desk.report(first).lost, [loss]);
    assert_eq!(desk.answer(second), &Err(Refusal::Lost(loss)));
    assert!(loss.to_string().starts_with("0000:01:00.2 could not be quiesced"), "{loss}");
}

#[test]
fn a_member_that_is_not_restored_is_named() {
    let mut desk = Desk::with_group(2);
    let request = desk.ask(1);
    desk.run_to_attempt();
    desk.step();
    desk.step();
    desk.refuse(Errno::IO);
    let loss = Loss { device: Cookie(2), address: address(2), how: HowLost::NotRestored(Errno::IO) };
    assert_eq!(desk.report(request).lost, [loss]);
    assert_eq!(desk.engine.condition(Cookie(2)), Some(&Condition::Lost(loss)));
    assert_eq!((desk.access(1), desk.access(2)), (Access::Open, Access::Lost));
}

#[test]
fn a_lost_device_is_found_again_by_a_reset() {
    let mut desk = Desk::with_group(1);
    desk.ask(1);
    desk.run_to_attempt();
    desk.step();
    desk.refuse(Errno::IO);
    assert_eq!(desk.access(1), Access::Lost);
    let request = desk.ask(1);
    desk.run();
    assert_eq!(desk.report(request).reset.epoch, Epoch(2));
    assert_eq!(desk.access(1), Access::Open);
}

#[test]
fn everybody_is_told_how_a_reset_goes() {
    let mut desk = Desk::with_group(2);
    desk.ask(1);
    desk.run();
    let both = vec![Cookie(1), Cookie(2)];
    let begun = Announcement::Begun { rung: Rung::Group, affected: both.clone() };
    let quiesced = Announcement::Quiesced { rung: Rung::Group, affected: both.clone(), lost: vec![] };
    assert_eq!(desk.announced[..2], [begun, quiesced]);
    let Announcement::Done { report, .. } = &desk.announced[2] else { panic!("{:?}", desk.announced) };
    assert_eq!((report.epoch, &report.affected), (Epoch(1), &both));
    assert_eq!(desk.announced.len(), 3);
}

#[test]
fn everybody_is_told_why_a_reset_failed() {
    let mut desk = Desk::with_group(1);
    desk.ask(1);
    desk.run_to_attempt();
    desk.refuse(Errno::IO);
    desk.run();
    let Some(Announcement::Failed { reason, epoch, affected, .. }) = desk.announced.last() else {
        panic!("{:?}", desk.announced);
    };
    assert_eq!(reason, &Reason::Refused { errno: Errno::IO, attempts: 1 });
    assert_eq!((*epoch, affected), (Epoch(0), &vec![Cookie(1)]));
}

#[test]
fn a_report_tells_how_long_it_took_from_the_first_quiesce_to_the_last_restore() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(1);
    desk.step();
    desk.wait(Duration::from_millis(1));
    desk.step();
    desk.wait(Duration::from_millis(120));
    desk.step();
    desk.wait(Duration::from_millis(2));
    desk.step();
    assert_eq!(desk.report(request).reset.duration, Duration::from_millis(123));
}

#[test]
fn what_the_kernel_says_about_nothing_is_ignored() {
    let mut desk = Desk::with_group(1);
    let stray = ResetId(9);
    desk.tell(Event::Queried(stray, Ok(Scope::None)));
    desk.tell(Event::Quiesced(stray, Cookie(1), Ok(())));
    desk.tell(Event::Attempted(stray, Ok(ResetOutcome::Done)));
    desk.tell(Event::Restored(stray, Cookie(1), Err(Errno::IO)));
    desk.ask(1);
    desk.tell(Event::Attempted(ResetId(1), Ok(ResetOutcome::Done)));
    desk.run();
    assert_eq!((desk.attempts.len(), desk.access(1)), (1, Access::Open));
}
