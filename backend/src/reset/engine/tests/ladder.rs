// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn named(desk: &mut Desk, device: u64, method: ResetMethod) -> RequestId {
    let request = Request { method: Some(method), ..desk.request(device) };
    desk.ask_so(request)
}

#[test]
fn a_functions_own_reset_is_preferred() {
    let mut desk = Desk::with(&[(1, FunctionReset::Full), (2, FunctionReset::None)]);
    let request = desk.ask(1);
    desk.run();
    let report = desk.report(request);
    assert_eq!((report.rung, report.passed.as_slice()), (Rung::Function, [].as_slice()));
    assert_eq!((report.reset.method, &report.reset.affected), (ResetMethod::Function, &vec![Cookie(1)]));
    desk.assert_at_rest();
}

#[test]
fn a_function_without_a_reset_of_its_own_has_its_groups_for_that_reason() {
    let mut desk = Desk::with_group(2);
    let request = desk.ask(1);
    desk.run();
    let report = desk.report(request);
    let step = Step { rung: Rung::Function, reason: Reason::NoFunctionReset };
    assert_eq!((report.rung, &report.passed), (Rung::Group, &vec![step]));
    assert_eq!(report.reset.affected, [Cookie(1), Cookie(2)]);
}

#[test]
fn a_power_management_reset_comes_after_the_groups() {
    let mut desk = Desk::with(&[(1, FunctionReset::PowerManagement)]);
    let request = desk.ask(1);
    desk.run();
    assert_eq!(desk.report(request).rung, Rung::Group);
    let step = Step { rung: Rung::Function, reason: Reason::OnlyPowerManagement };
    assert_eq!(desk.report(request).passed, [step]);
}

#[test]
fn a_power_management_reset_is_the_last_resort() {
    let mut desk = Desk::with(&[(1, FunctionReset::PowerManagement)]);
    desk.set_scope(&Scope::None);
    let request = desk.ask(1);
    desk.run();
    let report = desk.report(request);
    assert_eq!((report.rung, report.reset.method), (Rung::PowerManagement, ResetMethod::Function));
    let reasons: Vec<_> = report.passed.iter().map(|step| step.reason.clone()).collect();
    assert_eq!(reasons, [Reason::OnlyPowerManagement, Reason::NoGroupReset]);
}

#[test]
fn what_blocks_is_named() {
    let mut desk = Desk::with_group(1);
    let functions = vec![function(1, Ownership::Ours), function(2, Ownership::Blocking)];
    desk.set_scope(&Scope::Functions { is_available: false, functions });
    let request = desk.ask(1);
    desk.run();
    assert_eq!(
        desk.reasons(request),
        [(Rung::Function, Reason::NoFunctionReset), (Rung::Group, Reason::Blocked(vec![address(2)]))]
    );
    let refusal = desk.answer(request).as_ref().unwrap_err().to_string();
    assert_eq!(
        refusal,
        "no means is left: no function reset: the function has no reset of its own; \
         no hot reset: functions of the set are not ours: 0000:01:00.2"
    );
    assert!(desk.attempts.is_empty());
    desk.assert_at_rest();
}

#[test]
fn a_kernel_that_does_not_tell_the_set_resets_no_group() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(1);
    desk.refuse(Errno::AGAIN);
    assert_eq!(desk.reasons(request)[1], (Rung::Group, Reason::SetUnknown(Errno::AGAIN)));
}

#[test]
fn an_unopened_sibling_of_an_owned_group_is_no_obstacle() {
    let mut desk = Desk::with_group(1);
    let functions = vec![function(1, Ownership::Ours), function(2, Ownership::Implied)];
    desk.set_scope(&Scope::Functions { is_available: true, functions });
    let request = desk.ask(1);
    desk.run();
    assert_eq!(desk.report(request).reset.affected, [Cookie(1)]);
}

#[test]
fn a_reset_that_the_kernel_refuses_leads_to_the_next_rung() {
    let mut desk = Desk::with(&[(1, FunctionReset::Full)]);
    let request = desk.ask(1);
    desk.run_to_attempt();
    desk.refuse(Errno::IO);
    desk.run();
    let report = desk.report(request);
    let reason = Reason::Refused { errno: Errno::IO, attempts: 1 };
    assert_eq!((report.rung, &report.passed), (Rung::Group, &vec![Step { rung: Rung::Function, reason }]));
}

#[test]
fn when_every_rung_fails_the_one_that_was_tried_last_is_decisive() {
    let mut desk = Desk::with(&[(1, FunctionReset::Full)]);
    desk.set_scope(&Scope::None);
    let request = desk.ask(1);
    desk.run_to_attempt();
    desk.refuse(Errno::IO);
    desk.run();
    let Err(Refusal::NoMeansLeft { passed }) = desk.answer(request) else { panic!("not refused") };
    assert_eq!(passed.last().unwrap().reason, Reason::NoGroupReset);
    assert_eq!(decisive(passed).unwrap().reason, Reason::Refused { errno: Errno::IO, attempts: 1 });
}

#[test]
fn a_method_that_is_named_is_the_only_one() {
    let mut desk = Desk::with(&[
        (1, FunctionReset::Full),
        (2, FunctionReset::PowerManagement),
        (3, FunctionReset::None),
    ]);
    let hot = named(&mut desk, 1, ResetMethod::Hot);
    desk.run();
    assert_eq!(desk.report(hot).rung, Rung::Group);
    desk.touch(2);
    let function = named(&mut desk, 2, ResetMethod::Function);
    desk.run();
    assert_eq!(desk.report(function).rung, Rung::PowerManagement);
    desk.touch(3);
    let none = named(&mut desk, 3, ResetMethod::Function);
    assert_eq!(desk.reasons(none), [(Rung::Function, Reason::NoFunctionReset)]);
    desk.touch(1);
    let refused = named(&mut desk, 1, ResetMethod::Hot);
    desk.run_to_attempt();
    desk.refuse(Errno::IO);
    desk.run();
    assert_eq!(desk.reasons(refused), [(Rung::Group, Reason::Refused { errno: Errno::IO, attempts: 1 })]);
}

#[test]
fn a_set_that_another_process_shares_needs_a_broker() {
    let mut desk = Desk::with_group(1);
    desk.set_scope(&set_of(&[1, 2]));
    let request = desk.ask(1);
    desk.run();
    assert_eq!(desk.reasons(request)[1], (Rung::Group, Reason::SiblingElsewhere(address(2))));
}

#[test]
fn an_unknown_device_is_refused() {
    let mut desk = Desk::with_group(1);
    let request = desk.ask(7);
    assert_eq!(desk.answer(request), &Err(Refusal::UnknownDevice));
}
