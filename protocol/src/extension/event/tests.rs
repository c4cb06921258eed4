// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::frame::Header;
use crate::header::VhostUserHeader;

fn device(cookie: u64, state: AffectedState) -> AffectedDevice {
    AffectedDevice { cookie: Cookie(cookie), state, reserved: 0 }
}

fn event(progress: ResetProgress) -> ResetEvent {
    ResetEvent {
        reset: 7,
        epoch: Epoch(3),
        method: ResetMethod::Hot,
        progress,
        affected: vec![device(1, AffectedState::InOrder), device(9, AffectedState::Lost)],
    }
}

fn failed(why: &str) -> ResetEvent {
    let duration = Duration::from_micros(1_234_567);
    event(ResetProgress::Failed { errno: Errno::BUSY, why: why.to_owned(), attempts: 12, duration })
}

#[test]
fn a_reset_survives_the_wire_however_far_it_has_come() {
    let duration = Duration::from_millis(120);
    let outcome = ResetOutcome::LinkUnconfirmed;
    for event in [
        event(ResetProgress::Begun),
        event(ResetProgress::Quiesced),
        event(ResetProgress::Done { outcome, attempts: 2, duration }),
        failed("The server vm-gpu does not answer."),
    ] {
        assert_eq!(ResetEvent::decode(&event.encode()), Some(event));
    }
}

#[test]
fn a_cut_event_is_malformed() {
    let payload = failed("For a reason.").encode();
    for size in 0..payload.len() {
        assert_eq!(ResetEvent::decode(&payload[..size]), None, "{size} bytes");
    }
    assert_eq!(ResetEvent::decode(&[payload.as_slice(), b"more\0"].concat()), None);
}

#[test]
fn an_event_with_numbers_without_meaning_is_malformed() {
    let payload = failed("").encode();
    for (offset, value) in
        [(24, 0_u32), (24, 5), (28, 3), (32, 2), (36, 0), (36, 4096), (44, 3), (44, 65), (56, 4)]
    {
        let mut payload = payload.clone();
        payload[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        assert_eq!(ResetEvent::decode(&payload), None, "{value} at {offset}");
    }
}

#[test]
fn the_longest_event_fits_a_message() {
    let affected = (0..100).map(|cookie| device(cookie, AffectedState::HeldOff)).collect();
    let event = ResetEvent { affected, ..failed(&"\u{20ac}".repeat(4096)) };
    let payload = event.encode();
    assert!(payload.len() <= VhostUserHeader::MAX_BODY);
    let decoded = ResetEvent::decode(&payload).unwrap();
    assert_eq!(decoded.affected.len(), usize::from(MAX_DEVICES));
    let ResetProgress::Failed { why, .. } = decoded.progress else { panic!("not failed") };
    assert_eq!(why.len(), 1023);
}

#[test]
fn kinds_of_events_are_bits() {
    let both = EventKinds::RESETS | EventKinds::GROUPS;
    assert!(EventKinds::ALL.contains(both) && both.contains(EventKinds::GROUPS));
    assert!(!both.contains(EventKinds::DEVICE_ERRORS | EventKinds::GROUPS));
}
