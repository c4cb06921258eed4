// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::SystemTime;

use super::*;

fn sanitization(desk: &Desk, device: u64, policy: Sanitizing, occasion: Occasion) -> Sanitization {
    Sanitization {
        id: RequestId(desk.last_request + 1),
        device: Cookie(device),
        policy,
        reach: ResetPolicy::Group,
        occasion,
        who: "vm-17".to_owned(),
        when: SystemTime::UNIX_EPOCH,
        deadline: Deadline::at(desk.now + Duration::from_mins(1)),
    }
}

fn sanitize_within(desk: &mut Desk, sanitization: Sanitization) -> (Verdict, AuditRecord) {
    desk.last_request += 1;
    desk.tell(Event::Sanitize(sanitization));
    desk.run();
    desk.sanitized.pop().expect("there is no record")
}

fn sanitize(desk: &mut Desk, device: u64, policy: Sanitizing) -> (Verdict, AuditRecord) {
    let sanitization = sanitization(desk, device, policy, Occasion::HandOut);
    sanitize_within(desk, sanitization)
}

#[test]
fn a_device_is_reset_before_it_is_handed_out_and_there_is_a_record_of_it() {
    let mut desk = Desk::with_group(2);
    let (verdict, record) = sanitize(&mut desk, 1, Sanitizing::Required);
    let outcome = AuditOutcome::Reset {
        rung: Rung::Group,
        outcome: ResetOutcome::Done,
        epoch: Epoch(1),
        affected: vec![Cookie(1), Cookie(2)],
        lost: vec![],
    };
    let expected = AuditRecord {
        occasion: Occasion::HandOut,
        who: "vm-17".to_owned(),
        when: SystemTime::UNIX_EPOCH,
        took: Duration::ZERO,
        device: (Cookie(1), Some(address(1))),
        policy: Sanitizing::Required,
        outcome,
    };
    assert_eq!((verdict, record), (Verdict::Serve, expected));
    assert!(desk.answers.is_empty(), "nobody asked for a reset");
}

#[test]
fn a_clean_device_is_not_reset_again() {
    let mut desk = Desk::with_group(1);
    sanitize(&mut desk, 1, Sanitizing::Required);
    let (verdict, record) = sanitize(&mut desk, 1, Sanitizing::Required);
    assert_eq!(verdict, Verdict::Serve);
    assert_eq!(record.outcome, AuditOutcome::WasClean { rung: Rung::Group, epoch: Epoch(1) });
    assert_eq!(desk.attempts.len(), 1);
}

#[test]
fn required_refuses_to_serve_what_could_not_be_reset() {
    let mut desk = Desk::with_group(1);
    desk.set_scope(&Scope::None);
    let (verdict, record) = sanitize(&mut desk, 1, Sanitizing::Required);
    assert_eq!(verdict, Verdict::Refuse);
    assert!(matches!(record.outcome, AuditOutcome::NotReset(Refusal::NoMeansLeft { .. })), "{record:?}");
}

#[test]
fn best_effort_serves_what_could_not_be_reset_and_says_so() {
    let mut desk = Desk::with_group(1);
    desk.set_scope(&Scope::None);
    let (verdict, record) = sanitize(&mut desk, 1, Sanitizing::BestEffort);
    assert_eq!(verdict, Verdict::Serve);
    assert!(matches!(record.outcome, AuditOutcome::NotReset(_)), "{record:?}");
}

#[test]
fn off_tries_nothing_and_says_so() {
    let mut desk = Desk::with_group(1);
    let (verdict, record) = sanitize(&mut desk, 1, Sanitizing::Off);
    assert_eq!((verdict, record.outcome), (Verdict::Serve, AuditOutcome::Skipped));
    assert!(desk.attempts.is_empty());
}

#[test]
fn sanitizing_spares_a_sibling_in_use() {
    let mut desk = Desk::with_group(2);
    desk.activate(2);
    let (verdict, _) = sanitize(&mut desk, 1, Sanitizing::Required);
    assert_eq!((verdict, desk.attempts.len()), (Verdict::Refuse, 0));
}

#[test]
fn a_device_that_is_lost_is_not_sanitized() {
    let mut desk = Desk::with_group(1);
    let sanitization = sanitization(&desk, 1, Sanitizing::Required, Occasion::HandBack);
    desk.tell(Event::Sanitize(sanitization));
    desk.run_to_attempt();
    desk.step();
    desk.refuse(Errno::IO);
    let (verdict, record) = desk.sanitized.pop().unwrap();
    assert_eq!(verdict, Verdict::Refuse);
    assert!(matches!(record.outcome, AuditOutcome::NotReset(Refusal::Lost(_))), "{record:?}");
}

#[test]
fn a_device_whose_siblings_must_not_be_reset_is_not_sanitized_with_them() {
    let mut desk = Desk::with_group(2);
    let alone = Sanitization {
        reach: ResetPolicy::Function,
        ..sanitization(&desk, 1, Sanitizing::Required, Occasion::HandOut)
    };
    let (verdict, _) = sanitize_within(&mut desk, alone);
    assert_eq!((verdict, desk.attempts.len()), (Verdict::Refuse, 0));
}

#[test]
fn an_unknown_device_is_not_served() {
    let mut desk = Desk::with_group(1);
    let (verdict, record) = sanitize(&mut desk, 5, Sanitizing::Required);
    assert_eq!((verdict, record.device), (Verdict::Refuse, (Cookie(5), None)));
}
