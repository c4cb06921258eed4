// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several servers of one VM, and the broker that brings their resets together.

use protocol::ClientError;
use protocol::extension::{Cookie, ResetMethod, ResetReport};
use rustix::process::Signal;
use vfio::config_space::command;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::launched_vm::LaunchedVm;
use vhost_device_vfio_tests::server_process::wait_until;
use vhost_device_vfio_tests::vmm::refusal;

use super::{FIRST, SECOND};

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
        assert_eq!(igb.command(), 0, "it is as after power-on");
        igb.enable();
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

pub(crate) fn a_server_that_hangs_hinders_no_other() {
    let vm = launch();
    vm.signal(SECOND, Signal::STOP);
    assert_eq!(refusal(hot_reset(&vm, FIRST, 1)).0, "not-coordinated");
    vm.wait_for_log(&format!("the server {SECOND} does not answer"), 1);
    vm.signal(SECOND, Signal::CONT);
    vm.wait_for_log("event=coordination-failed", 1);
    hot_reset(&vm, FIRST, 1).unwrap();
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
