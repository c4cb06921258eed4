// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several servers of one VM, and the broker that brings their resets together.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use protocol::ClientError;
use protocol::extension::{Cookie, ResetMethod, ResetReport};
use rustix::process::Signal;
use vfio::config_space::command;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::launched_vm::LaunchedVm;
use vhost_device_vfio_tests::server_process::wait_until;
use vhost_device_vfio_tests::vmm::refusal;

use super::{FIRST, SECOND};

/// Two functions behind the conventional bridge.
const NEAR: &str = "0000:02:01.0";
const FAR: &str = "0000:02:02.0";
/// igb's VLAN `EtherType` register and what it holds after a reset.
const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;

/// A server for each of the two functions. They are not reset before somebody asks for it.
fn launch() -> LaunchedVm {
    LaunchedVm::start(Host::current(), &["--server-argument=--sanitize=off", FIRST, SECOND])
}

fn hot_reset(vm: &LaunchedVm, device: &str, cookie: u64) -> Result<ResetReport, ClientError> {
    vm.connect(device).reset(Cookie(cookie), Some(ResetMethod::Hot), None)
}

pub(crate) fn a_reset_asked_of_either_server_resets_the_functions_of_both() {
    let vm = launch();
    let mut igb = vm.open(SECOND);
    for (asked, cookie) in [(FIRST, 1), (SECOND, 2)] {
        igb.enable();
        igb.write(0, IGB_VET, 0x1234);
        // Idle, as the policy wants a sibling to be.
        igb.set_command(command::MEMORY);
        assert_eq!(hot_reset(&vm, asked, cookie).unwrap().affected, [Cookie(cookie)]);
        assert_eq!(igb.command(), command::MEMORY, "its client goes on");
        assert_eq!(igb.read(0, IGB_VET), IGB_VET_DEFAULT);
    }
    let aftermath = vm.stop();
    assert_eq!((aftermath.status.code(), aftermath.coordinated()), (Some(0), [2, 0, 0]));
}

pub(crate) fn a_function_in_use_in_another_server_is_spared() {
    let vm = launch();
    let mut igb = vm.open(SECOND);
    igb.enable();
    igb.write(0, IGB_VET, 0x1234);
    assert_eq!(refusal(hot_reset(&vm, FIRST, 1)).0, "not-coordinated");
    assert_eq!(igb.read(0, IGB_VET), 0x1234);
}

pub(crate) fn a_sibling_that_is_read_all_the_time_in_another_server_makes_no_reset_busy() {
    let vm = launch();
    let mut igb = vm.open(SECOND);
    let (reads, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            igb.set_command(command::MEMORY);
            while !is_over.load(Ordering::Relaxed) {
                igb.read(0, IGB_VET);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..5 {
            let before = reads.load(Ordering::Relaxed);
            assert!(wait_until(|| reads.load(Ordering::Relaxed) > before), "it is being read");
            assert_eq!(hot_reset(&vm, FIRST, 1).unwrap().attempts, 1);
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

pub(crate) fn a_server_that_hangs_hinders_no_other() {
    let vm = launch();
    vm.signal(SECOND, Signal::STOP);
    assert_eq!(refusal(hot_reset(&vm, FIRST, 1)).0, "not-coordinated");
    vm.wait_for_log(&format!("the server {SECOND} does not answer"), 1);
    vm.signal(SECOND, Signal::CONT);
    vm.wait_for_log("event=coordination-failed", 1);
    hot_reset(&vm, FIRST, 1).unwrap();
}

/// Two functions behind a conventional bridge, whose reset takes a second, with one server under way with it.
fn reset_under_way() -> (LaunchedVm, JoinHandle<Result<ResetReport, ClientError>>) {
    let vm = LaunchedVm::start(
        Host::current(),
        &["--server-argument=--sanitize=off", "--shared-memory", NEAR, FAR],
    );
    let mut client = vm.connect(NEAR);
    let reset = thread::spawn(move || client.reset(Cookie(1), Some(ResetMethod::Hot), None));
    vm.wait_for_log("event=reset-quiesced", 2);
    assert!(wait_until(|| is_in_the_kernel(vm.pid_of(NEAR))), "{}", vm.log());
    (vm, reset)
}

/// Whether a thread of the process that resets sleeps so that no signal wakes it.
fn is_in_the_kernel(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let states =
        threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    states.into_iter().any(|status| status.contains("Name:\treset") && status.contains("State:\tD"))
}

pub(crate) fn a_server_killed_in_the_kernel_leaves_the_other_in_order() {
    let (vm, reset) = reset_under_way();
    vm.signal(NEAR, Signal::KILL);
    assert!(reset.join().unwrap().is_err());
    vm.wait_for_log(
        &format!("event=coordination-failed coordination=1 reason=\"the server {NEAR} is gone\""),
        1,
    );
    vm.open(FAR).enable();
    // The group is its alone now.
    assert_eq!(vm.connect(FAR).reset(Cookie(2), Some(ResetMethod::Hot), None).unwrap().affected, [Cookie(2)]);
    let aftermath = vm.stop();
    assert_eq!((aftermath.status.code(), aftermath.coordinated()), (Some(1), [0, 1, 0]));
}

pub(crate) fn a_server_killed_while_another_resets_is_missed_when_it_is_done() {
    let (vm, reset) = reset_under_way();
    vm.signal(FAR, Signal::KILL);
    assert_eq!(reset.join().unwrap().unwrap().affected, [Cookie(1)]);
    vm.wait_for_log(&format!("event=coordination-done coordination=1 attempts=1 missing={FAR}"), 1);
    vm.open(NEAR).enable();
    let aftermath = vm.stop();
    assert_eq!((aftermath.status.code(), aftermath.coordinated()), (Some(1), [1, 0, 0]));
}

pub(crate) fn a_killed_server_leaves_its_function_to_the_next() {
    let vm = launch();
    vm.signal(SECOND, Signal::KILL);
    vm.wait_for_log("event=server-ended", 1);
    assert_eq!(refusal(hot_reset(&vm, FIRST, 1)).0, "reset-blocked");
    let aftermath = vm.stop();
    assert_eq!(aftermath.status.code(), Some(1));
    assert!(aftermath.end_of(SECOND).contains("signal: 9"), "{}", aftermath.summary);
    let next = || LaunchedVm::start(Host::current(), &[SECOND]);
    assert!(wait_until(|| Host::current().open_cdev(SECOND.parse().unwrap()).is_ok()));
    assert_eq!(next().stop().status.code(), Some(0));
}
