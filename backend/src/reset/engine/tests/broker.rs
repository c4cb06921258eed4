// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The broker by itself: what it tells whom.

use protocol::extension::{AbortCause, CoordinationId, CoordinationRequest, MemberName, ResetRequestId};

use super::super::broker::{Action, Broker, Event, MemberId, Patience};
use super::*;

const FIRST: CoordinationId = CoordinationId(1);
const SECOND: CoordinationId = CoordinationId(2);

struct Office {
    broker: Broker,
    now: Instant,
}

impl Office {
    /// Members 1 to `count`, each with the device of its number.
    fn with(count: u64) -> Self {
        let mut office = Self { broker: Broker::new(Patience::default()), now: Instant::now() };
        for member in 1..=count {
            let devices = [address(member)].into();
            assert_eq!(
                office.tell(Event::Joined { member: MemberId(member), name: name(member), devices }),
                []
            );
        }
        office
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.broker.handle(event, self.now)
    }

    fn say(&mut self, member: u64, message: MemberMessage) -> Vec<Action> {
        self.tell(Event::Said(MemberId(member), message))
    }

    fn request(&mut self, member: u64, functions: &[u64], tries: Duration) -> Vec<Action> {
        self.say(
            member,
            MemberMessage::Request(CoordinationRequest {
                request: ResetRequestId(member),
                target: address(member),
                policy: ResetPolicy::Group,
                tries,
                functions: functions.iter().map(|number| address(*number)).collect(),
            }),
        )
    }

    fn ready(&mut self, member: u64, coordination: CoordinationId) -> Vec<Action> {
        self.say(member, MemberMessage::Ready { coordination, lost: vec![] })
    }

    fn fired(&mut self, member: u64, result: Result<ResetOutcome, Errno>) -> Vec<Action> {
        self.say(member, MemberMessage::Fired { coordination: FIRST, result, attempts: 3 })
    }

    fn restored(&mut self, member: u64) -> Vec<Action> {
        self.say(member, MemberMessage::Restored { coordination: FIRST, lost: vec![] })
    }

    /// What the broker does when its patience has ended.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.broker.wakes_at().expect("it waits for nothing");
        self.tell(Event::TimePassed)
    }
}

const LONG: Duration = Duration::from_mins(1);

fn name(member: u64) -> MemberName {
    MemberName::new(&format!("server{member}"))
}

/// Who is told to prepare for which reset.
fn prepared(actions: &[Action]) -> Vec<(u64, CoordinationId)> {
    let prepared = actions.iter().filter_map(|action| match action {
        Action::Tell(MemberId(member), BrokerMessage::Prepare(preparation)) => {
            Some((*member, preparation.coordination))
        }
        _ => None,
    });
    prepared.collect()
}

/// Who is told that a reset was given up, for which of its requests, and why.
fn aborted(actions: &[Action]) -> Vec<(u64, Option<u64>, AbortCause)> {
    let aborted = actions.iter().filter_map(|action| match action {
        Action::Tell(MemberId(member), BrokerMessage::Abort { request, cause, .. }) => {
            Some((*member, request.map(|request| request.0), *cause))
        }
        _ => None,
    });
    aborted.collect()
}

#[test]
fn every_member_of_the_set_is_prepared_and_nobody_else() {
    let mut office = Office::with(3);
    assert_eq!(prepared(&office.request(1, &[1, 2], LONG)), [(1, FIRST), (2, FIRST)]);
}

#[test]
fn the_grant_comes_when_all_are_ready_and_goes_to_whoever_asked() {
    let mut office = Office::with(2);
    office.request(2, &[1, 2], LONG);
    assert_eq!(office.ready(2, FIRST), []);
    let grant = BrokerMessage::Grant { coordination: FIRST };
    assert_eq!(office.ready(1, FIRST), [Action::Tell(MemberId(2), grant)]);
}

#[test]
fn all_are_told_that_it_is_done_and_whoever_asked_for_which_request() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    let done = |member: u64, request: Option<u64>| {
        Action::Tell(
            MemberId(member),
            BrokerMessage::Done {
                coordination: FIRST,
                request: request.map(ResetRequestId),
                outcome: ResetOutcome::Done,
                attempts: 3,
                missing: None,
            },
        )
    };
    assert_eq!(office.fired(1, Ok(ResetOutcome::Done)), [done(1, Some(1)), done(2, None)]);
    assert_eq!(office.restored(1), []);
    assert!(matches!(
        office.restored(2)[..],
        [Action::Concluded { verdict: Ok((ResetOutcome::Done, 3)), .. }]
    ));
    assert!(office.broker.is_at_rest());
}

#[test]
fn a_kernel_that_refuses_is_told_to_all() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    let cause = AbortCause::KernelRefused { member: name(1), errno: Errno::IO, attempts: 3 };
    assert_eq!(aborted(&office.fired(1, Err(Errno::IO))), [(1, Some(1), cause), (2, None, cause)]);
}

#[test]
fn a_request_for_a_set_that_is_being_reset_is_answered_with_it() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    assert_eq!(office.request(2, &[1, 2], LONG), []);
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    let answered = office.fired(1, Ok(ResetOutcome::Done)).into_iter().any(|action| {
        matches!(
            action,
            Action::Tell(MemberId(2), BrokerMessage::Done { request: Some(ResetRequestId(2)), .. })
        )
    });
    assert!(answered);
    office.restored(1);
    assert_eq!(prepared(&office.restored(2)), [], "there is nothing left to do");
    assert!(office.broker.is_at_rest());
}

#[test]
fn a_request_takes_its_turn_when_the_reset_before_it_was_not_done() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.request(2, &[1, 2], LONG);
    let refused = MemberMessage::Refused { coordination: FIRST, device: address(2) };
    let cause = AbortCause::MemberRefused { member: name(2), device: address(2) };
    assert_eq!(aborted(&office.say(2, refused)), [(1, Some(1), cause), (2, None, cause)]);
    office.restored(1);
    assert_eq!(prepared(&office.restored(2)), [(1, SECOND), (2, SECOND)]);
}

#[test]
fn a_request_for_a_set_that_is_being_restored_is_one_for_the_next_reset() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    office.fired(1, Ok(ResetOutcome::Done));
    assert_eq!(office.request(2, &[1, 2], LONG), []);
    office.restored(1);
    assert_eq!(prepared(&office.restored(2)), [(1, SECOND), (2, SECOND)]);
}

#[test]
fn sets_that_share_nothing_do_not_wait_for_each_other() {
    let mut office = Office::with(4);
    office.request(1, &[1, 2], LONG);
    assert_eq!(prepared(&office.request(3, &[3, 4], LONG)), [(3, SECOND), (4, SECOND)]);
}

#[test]
fn a_request_that_waits_is_answered_by_its_deadline() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.request(2, &[1, 2], Duration::from_millis(100));
    assert_eq!(aborted(&office.wait()), [(2, Some(2), AbortCause::DeadlinePassed)]);
}

#[test]
fn a_member_that_does_not_get_ready_ends_the_reset() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.ready(1, FIRST);
    let cause = AbortCause::MemberSilent(name(2));
    assert_eq!(aborted(&office.wait()), [(1, Some(1), cause), (2, None, cause)]);
    office.restored(1);
    let Some(Action::Concluded { lost, missing, .. }) = office.wait().pop() else { panic!("not over") };
    assert_eq!((lost, missing), ([address(2)].into(), vec![name(2)]));
    assert!(office.broker.is_at_rest());
}

#[test]
fn a_member_that_does_not_restore_keeps_nobody_waiting() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    office.fired(1, Ok(ResetOutcome::Done));
    office.restored(1);
    let Some(Action::Concluded { verdict: Ok(_), lost, missing, .. }) = office.wait().pop() else {
        panic!("not over")
    };
    assert_eq!((lost, missing), ([address(2)].into(), vec![name(2)]));
}

#[test]
fn a_member_that_is_gone_takes_its_requests_with_it() {
    let mut office = Office::with(3);
    office.request(1, &[1, 2, 3], LONG);
    office.request(2, &[1, 2, 3], LONG);
    let gone = office.tell(Event::Lost(MemberId(2)));
    let cause = AbortCause::MemberLost(name(2));
    assert_eq!(aborted(&gone), [(1, Some(1), cause), (3, None, cause)]);
    office.restored(1);
    assert!(matches!(office.restored(3)[..], [Action::Concluded { .. }]));
    assert!(office.broker.is_at_rest());
}

#[test]
fn what_a_member_says_out_of_turn_changes_nothing() {
    let mut office = Office::with(3);
    office.request(1, &[1, 2], LONG);
    assert_eq!(office.fired(1, Ok(ResetOutcome::Done)), [], "nothing was granted");
    assert_eq!(office.ready(3, FIRST), [], "it does not take part");
    assert_eq!(office.ready(9, FIRST), [], "nobody knows it");
    assert_eq!(office.ready(1, SECOND), [], "there is no such reset");
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    assert_eq!(office.fired(2, Ok(ResetOutcome::Done)), [], "the grant was another's");
}

#[test]
fn a_set_is_taken_as_the_one_who_asks_has_seen_it() {
    let mut office = Office::with(3);
    office.tell(Event::DevicesChanged(MemberId(3), [address(3), address(4)].into()));
    assert_eq!(prepared(&office.request(1, &[1, 4], LONG)), [(1, FIRST), (3, FIRST)]);
}

#[test]
fn requests_for_one_set_take_their_turns() {
    let mut office = Office::with(3);
    for member in 1..=3 {
        office.request(member, &[1, 2, 3], LONG);
    }
    for member in 1..=3 {
        office.ready(member, FIRST);
    }
    office.fired(1, Err(Errno::IO));
    office.restored(1);
    office.restored(2);
    assert_eq!(prepared(&office.restored(3)), [(1, SECOND), (2, SECOND), (3, SECOND)], "one at a time");
}

#[test]
fn a_member_that_gives_up_while_another_resets_ends_nothing() {
    let mut office = Office::with(2);
    office.request(1, &[1, 2], LONG);
    office.ready(1, FIRST);
    office.ready(2, FIRST);
    assert_eq!(office.restored(2), [], "whoever was granted it may be in the kernel");
    let done = office.fired(1, Ok(ResetOutcome::Done));
    let missing = Some(name(2));
    assert!(
        matches!(&done[..], [Action::Tell(MemberId(1), BrokerMessage::Done { missing: named, .. })] if *named == missing)
    );
}

#[test]
fn a_function_of_a_server_that_is_gone_is_told_of_by_that_name() {
    let mut office = Office::with(2);
    office.tell(Event::Lost(MemberId(2)));
    let cause = AbortCause::MemberLost(name(2));
    assert_eq!(aborted(&office.request(1, &[1, 2], LONG)), [(1, Some(1), cause)]);
    office.tell(Event::Joined { member: MemberId(3), name: name(3), devices: [address(2)].into() });
    office.tell(Event::DevicesChanged(MemberId(3), [].into()));
    let cause = AbortCause::UnknownHolder(address(2));
    assert_eq!(aborted(&office.request(1, &[1, 2], LONG)), [(1, Some(1), cause)]);
}

#[test]
fn a_device_that_the_asking_server_does_not_have_is_not_reset() {
    let mut office = Office::with(2);
    office.tell(Event::DevicesChanged(MemberId(1), [].into()));
    let cause = AbortCause::UnknownHolder(address(1));
    assert_eq!(aborted(&office.request(1, &[1, 2], LONG)), [(1, Some(1), cause)]);
}
