// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server tells on the server channel, to whom, and when.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::fd::AsFd;
use std::thread::spawn;
use std::time::Duration;

use protocol::extension::{
    AffectedState, Cookie, EventKinds, GroupReason, MemberName, ResetEvent, ResetMethod, ResetOutcome,
    ResetPolicy, ResetProgress, ResetWish,
};
use protocol::{ChannelError, ReceiveError, RequestNumber, ServerChannel, ServerRequest};
use rustix::io::Errno;
use vfio::model::order::{FunctionOrder, Signal, SignalOrder};
use vfio::model::{Order, Settings};
use vhost_device_vfio_tests::foreign_file::ForeignFile;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, two_pairs};
use vhost_device_vfio_tests::server_process::PATIENCE;
use vhost_device_vfio_tests::vmm::refusal;

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
/// As often as a server looks at most.
const POLL: Duration = Duration::from_millis(100);

/// A VM whose VMM has handed over these functions as devices 1, 2, …, and has subscribed.
fn subscribed(topology: &str, functions: &[&str], events: EventKinds) -> (ModelledVm, ServerChannel) {
    let mut vm = ModelledVm::start(topology, &["--sanitize", "off"]);
    for (cookie, function) in (1..).zip(functions) {
        vm.vmm.add(cookie, function).unwrap();
    }
    let channel = vm.vmm.control.open_server_channel().unwrap();
    vm.vmm.control.subscribe(events, None).unwrap();
    (vm, channel)
}

fn next(channel: &mut ServerChannel) -> ServerRequest {
    channel.receive_within(PATIENCE).unwrap()
}

fn next_reset(channel: &mut ServerChannel) -> ResetEvent {
    match next(channel) {
        ServerRequest::Reset(event) => event,
        other => panic!("{other:?} instead of a reset's"),
    }
}

/// The devices and reasons of so many events of groups, in the order of the devices.
fn next_groups(channel: &mut ServerChannel, count: usize) -> Vec<(u64, GroupReason)> {
    let group = |_| match next(channel) {
        ServerRequest::GroupChanged(event) => {
            assert_eq!(event.available == 1, event.reason == GroupReason::Available);
            (event.cookie.0, event.reason)
        }
        other => panic!("{other:?} instead of a group's"),
    };
    let mut groups: Vec<_> = (0..count).map(group).collect();
    groups.sort_by_key(|(cookie, _)| *cookie);
    groups
}

fn has_ended(channel: &mut ServerChannel) -> bool {
    matches!(channel.receive_within(PATIENCE), Err(ChannelError::Receive(ReceiveError::Closed)))
}

/// Something that a channel is told of whatever else it hears: what it has heard before is all there was.
fn report_error(vm: &ModelledVm) {
    let signal = SignalOrder { function: FIRST.parse().unwrap(), interrupt: Signal::Error };
    vm.machine.order(&Order::Signal(signal));
}

fn remove(vm: &ModelledVm, function: &str) {
    vm.machine.order(&Order::Remove(FunctionOrder { function: function.parse().unwrap() }));
}

fn forced() -> ResetWish {
    ResetWish { method: Some(ResetMethod::Hot), policy: Some(ResetPolicy::Force), deadline: None }
}

fn states(event: &ResetEvent) -> Vec<(u64, AffectedState)> {
    event.affected.iter().map(|device| (device.cookie.0, device.state)).collect()
}

#[test]
fn a_subscriber_hears_how_a_reset_begins_and_ends() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::RESETS);
    let report = vm.vmm.control.reset_as(Cookie(2), forced()).unwrap();
    let [begun, quiesced, done] = [(); 3].map(|()| next_reset(&mut channel));
    let held_off = [(1, AffectedState::HeldOff), (2, AffectedState::HeldOff)];
    let in_order = [(1, AffectedState::InOrder), (2, AffectedState::InOrder)];
    assert_eq!((&begun.progress, states(&begun).as_slice()), (&ResetProgress::Begun, &held_off[..]));
    assert_eq!((&quiesced.progress, states(&quiesced).as_slice()), (&ResetProgress::Quiesced, &held_off[..]));
    let progress =
        ResetProgress::Done { outcome: ResetOutcome::Done, attempts: 1, duration: report.duration };
    assert_eq!((&done.progress, states(&done).as_slice()), (&progress, &in_order[..]));
    assert_eq!([begun.reset, quiesced.reset], [done.reset; 2], "it is one");
    assert_eq!([begun.method, quiesced.method, done.method], [ResetMethod::Hot; 3]);
    assert_eq!(done.epoch, report.epoch);
    assert_eq!([begun.epoch.0, quiesced.epoch.0], [report.epoch.0 - 1; 2], "the one that goes on");
}

#[test]
fn a_subscriber_hears_why_a_reset_failed() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::RESETS);
    vm.fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\nerrno = 'EIO'");
    assert_eq!(refusal(vm.vmm.control.reset_as(Cookie(1), forced())).0, "reset-failed");
    let [_, _, failed] = [(); 3].map(|()| next_reset(&mut channel));
    let ResetProgress::Failed { errno: Errno::IO, why, attempts: 1, .. } = &failed.progress else {
        panic!("{failed:?}")
    };
    assert!(why.contains("the kernel refused it"), "{why}");
    assert_eq!(states(&failed), [(1, AffectedState::InOrder), (2, AffectedState::InOrder)]);
}

#[test]
fn a_subscriber_hears_of_a_device_that_a_reset_has_lost() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::RESETS);
    let _function = vm.vmm.open(2);
    vm.fault(&format!("call = 'pwrite'\nfunction = '{SECOND}'\nerrno = 'EIO'"));
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    let [_, quiesced, done] = [(); 3].map(|()| next_reset(&mut channel));
    assert_eq!(states(&quiesced), [(1, AffectedState::HeldOff), (2, AffectedState::Lost)]);
    assert_eq!(states(&done), [(1, AffectedState::InOrder), (2, AffectedState::Lost)]);
}

#[test]
fn a_subscriber_hears_of_a_devices_error() {
    let (vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::DEVICE_ERRORS);
    report_error(&vm);
    assert_eq!(next(&mut channel), ServerRequest::DeviceError(Cookie(1)));
}

#[test]
fn a_device_that_has_had_a_client_still_tells_of_its_errors() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::DEVICE_ERRORS);
    drop(vm.vmm.open(1));
    vm.wait_for_lines("occasion=HandBack", 1);
    report_error(&vm);
    assert_eq!(next(&mut channel), ServerRequest::DeviceError(Cookie(1)));
}

#[test]
fn a_subscriber_hears_that_the_host_wants_a_device_back() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::UNPLUG_REQUESTS);
    let host = vm.machine.host();
    let unbind = spawn(move || host.unbind_driver(SECOND.parse().unwrap()).unwrap());
    assert_eq!(next(&mut channel), ServerRequest::UnplugRequest(Cookie(2)));
    vm.vmm.control.remove_device(Cookie(2)).unwrap();
    unbind.join().unwrap();
}

#[test]
fn who_subscribes_to_groups_hears_of_each_at_once_and_once() {
    let (vm, mut channel) =
        subscribed("edu-igb", &[FIRST, SECOND], EventKinds::GROUPS | EventKinds::DEVICE_ERRORS);
    let all = [(1, GroupReason::Available), (2, GroupReason::Available)];
    assert_eq!(next_groups(&mut channel, 2), all);
    report_error(&vm);
    assert_eq!(next(&mut channel), ServerRequest::DeviceError(Cookie(1)), "nothing else came before");
}

#[test]
fn a_second_subscriber_hears_what_the_first_has_heard() {
    let (vm, mut channel) = subscribed("edu-igb", &[FIRST], EventKinds::GROUPS);
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Blocked)]);
    let mut other = vm.connect();
    let mut second = other.open_server_channel().unwrap();
    other.subscribe(EventKinds::GROUPS, None).unwrap();
    assert_eq!(next_groups(&mut second, 1), [(1, GroupReason::Blocked)]);
}

#[test]
fn a_group_changes_when_its_last_function_is_handed_over_and_when_it_is_taken_back() {
    let (mut vm, mut channel) = subscribed("edu-igb", &[FIRST], EventKinds::GROUPS);
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Blocked)]);
    vm.vmm.add(2, SECOND).unwrap();
    let both = [(1, GroupReason::Available), (2, GroupReason::Available)];
    assert_eq!(next_groups(&mut channel, 2), both);
    vm.vmm.control.remove_device(Cookie(2)).unwrap();
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Blocked)]);
}

#[test]
fn a_reset_that_failed_is_a_reason_to_look_at_groups() {
    let (mut vm, mut channel) = subscribed("edu-igb", &[SECOND], EventKinds::GROUPS);
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Blocked)]);
    vm.fault(&format!("call = 'VFIO_DEVICE_RESET'\nremove = '{FIRST}'\nerrno = 'EIO'"));
    assert!(vm.vmm.control.reset(Cookie(1), Some(ResetMethod::Function), None).is_err());
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Available)]);
}

#[test]
fn what_others_do_to_a_group_is_told_when_it_is_looked_at_next() {
    let (mut vm, mut channel) = subscribed("edu-igb", &[FIRST], EventKinds::default());
    vm.vmm.control.subscribe(EventKinds::GROUPS, Some(POLL)).unwrap();
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Blocked)]);
    remove(&vm, SECOND);
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Available)]);
}

#[test]
fn who_watches_groups_delays_nobody_while_a_device_is_being_bound() {
    let settings = Settings { virtual_time: true, ..Settings::default() };
    let mut vm = ModelledVm::on(ModelledMachine::of(two_pairs(), settings), &[]);
    vm.vmm.add(1, FIRST).unwrap();
    let mut function = vm.vmm.open(1);
    let mut channel = vm.vmm.control.open_server_channel().unwrap();
    vm.vmm.control.subscribe(EventKinds::GROUPS, Some(POLL)).unwrap();
    assert_eq!(next_groups(&mut channel, 1), [(1, GroupReason::Available)]);
    vm.fault("call = 'VFIO_DEVICE_BIND_IOMMUFD'\ndelay = 60000");
    let device = vm.machine.host().open_cdev(SECOND.parse().unwrap()).unwrap();
    let mut control = vm.connect();
    let addition = spawn(move || control.add_device(Cookie(2), device).map(|_| control));
    vm.wait_for_usage("lasting-calls", 1);
    // Longer than the interval at which the groups are looked at.
    std::thread::sleep(POLL * 3);
    function.command();
    vm.vmm.control.subscribe(EventKinds::GROUPS, Some(POLL)).unwrap();
    assert!(!addition.is_finished());
    vm.pass_until(|| addition.is_finished());
    let both = [(1, GroupReason::Available), (2, GroupReason::Available)];
    let _control = addition.join().unwrap().unwrap();
    assert_eq!(next_groups(&mut channel, 2), both);
}

#[test]
fn nothing_is_told_that_was_not_subscribed_to() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::default());
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    report_error(&vm);
    vm.vmm.server.wait_for_log("event=device-error");
    vm.vmm.control.subscribe(EventKinds::DEVICE_ERRORS, None).unwrap();
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    report_error(&vm);
    assert_eq!(next(&mut channel), ServerRequest::DeviceError(Cookie(1)));
    vm.vmm.control.subscribe(EventKinds::RESETS, None).unwrap();
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    assert_eq!(next_reset(&mut channel).progress, ResetProgress::Begun, "the only one of its kind");
}

#[test]
fn a_client_that_does_not_read_loses_its_channel_and_delays_nobody() {
    let (mut vm, mut channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::RESETS);
    let mut other = vm.connect();
    let mut heard = other.open_server_channel().unwrap();
    other.subscribe(EventKinds::RESETS, None).unwrap();
    while vm.logged("event=channel-lost") == 0 {
        vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
        for _ in 0..3 {
            next_reset(&mut heard);
        }
    }
    assert_eq!(vm.logged("event=channel-lost"), 1, "who reads keeps it");
    let end = loop {
        match channel.receive_within(PATIENCE) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(end, ChannelError::Receive(_)), "{end:?}");
    let lost = refusal(vm.vmm.control.subscribe(EventKinds::RESETS, None));
    assert_eq!(lost.0, "no-server-channel");
}

#[test]
fn a_channel_ends_with_its_connection() {
    let (vm, _channel) = subscribed("edu-pair", &[FIRST], EventKinds::RESETS);
    let mut control = vm.connect();
    let mut channel = control.open_server_channel().unwrap();
    drop(control);
    assert!(has_ended(&mut channel));
}

#[test]
fn a_new_channel_takes_the_place_of_the_one_before() {
    let (mut vm, mut old) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::RESETS);
    let mut new = vm.vmm.control.open_server_channel().unwrap();
    assert!(has_ended(&mut old));
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    vm.vmm.control.subscribe(EventKinds::DEVICE_ERRORS, None).unwrap();
    report_error(&vm);
    assert_eq!(
        next(&mut new),
        ServerRequest::DeviceError(Cookie(1)),
        "the subscription ended with the old one"
    );
}

#[test]
fn a_client_that_ends_its_channel_ends_its_subscription() {
    let (mut vm, channel) = subscribed("edu-pair", &[FIRST, SECOND], EventKinds::RESETS);
    drop(channel);
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    assert_eq!(refusal(vm.vmm.control.subscribe(EventKinds::RESETS, None)).0, "no-server-channel");
}

#[test]
fn events_and_coordination_need_a_channel() {
    let mut vm = ModelledVm::start("edu-pair", &[]);
    let missing = ("no-server-channel".into(), Errno::NOTCONN.raw_os_error());
    assert_eq!(refusal(vm.vmm.control.subscribe(EventKinds::ALL, None)), missing);
    assert_eq!(refusal(vm.vmm.control.coordinate(MemberName::new("a"))), missing);
}

#[test]
fn only_a_connected_unix_stream_becomes_a_channel() {
    let vm = ModelledVm::start("edu-pair", &[]);
    let mut client = vm.raw_client();
    client.negotiate();
    for ForeignFile { kind, file } in ForeignFile::all() {
        // It would do.
        if kind == "a connected socket" {
            continue;
        }
        let refused = client.refused(RequestNumber::SET_BACKEND_REQ_FD, &[], &[file.as_fd()]);
        assert_eq!(refused.kind(), ("not-a-unix-stream", Errno::NOTSOCK), "{kind}");
    }
}
