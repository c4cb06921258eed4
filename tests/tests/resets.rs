// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets as the server's clients see them: how many there are, how far they reach, and what they leave.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::thread::spawn;

use protocol::extension::{Cookie, Epoch, ResetMethod, ResetPolicy, ResetWish};
use protocol::vfio_user::ClientError;
use rustix::io::Errno;
use vfio::IrqIndex;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, Tenant};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::vmm::refusal;

const CONFIG: u32 = 7;
const BAR0: u64 = 0x10;
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

/// Devices 1 and 2 of a pair in one slot, whose server was started with `arguments`.
fn pair(arguments: &[&str]) -> ModelledVm {
    let mut vm = ModelledVm::start("edu-pair", arguments);
    vm.vmm.add(1, FIRST).unwrap();
    vm.vmm.add(2, SECOND).unwrap();
    vm
}

/// A control client's reset of the whole slot, wherever it reaches.
fn forced() -> ResetWish {
    ResetWish { method: Some(ResetMethod::Hot), policy: Some(ResetPolicy::Force), deadline: None }
}

fn epoch(vm: &mut ModelledVm) -> Epoch {
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap().epoch
}

fn refused(result: Result<impl std::fmt::Debug, ClientError>) -> Errno {
    match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[test]
fn our_own_clients_that_read_all_the_time_do_not_keep_the_kernel_from_resetting() {
    let mut vm = pair(&[]);
    let mut function = vm.vmm.open(2);
    function.enable();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let reader = spawn(move || {
        let mut reads = 0_u32;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            function.read(0, 0);
            reads += 1;
        }
        reads
    });
    for _ in 0..20 {
        assert_eq!(vm.vmm.control.reset_as(Cookie(1), forced()).unwrap().attempts, 1);
    }
    drop(stop);
    assert_ne!(reader.join().unwrap(), 0);
}

fn enable_each(functions: &mut [PciFunction]) {
    functions.iter_mut().for_each(PciFunction::enable);
}

/// The device resets of all functions, one after the other.
fn reset_each(functions: &mut [PciFunction]) {
    for function in functions {
        function.client.device_reset().unwrap();
    }
}

#[test]
fn what_one_process_asks_for_each_of_its_devices_is_one_hot_reset() {
    let mut vm = pair(&[]);
    let mut functions = [vm.vmm.open(1), vm.vmm.open(2)];
    enable_each(&mut functions);
    let before = epoch(&mut vm);
    enable_each(&mut functions);
    reset_each(&mut functions);
    assert_eq!(epoch(&mut vm).0, before.0 + 2, "one for both, and the one that tells");
}

#[test]
fn a_device_that_was_touched_since_is_reset_again() {
    let mut vm = pair(&[]);
    let mut functions = [vm.vmm.open(1), vm.vmm.open(2)];
    let before = epoch(&mut vm);
    enable_each(&mut functions);
    functions[0].client.device_reset().unwrap();
    functions[1].enable();
    functions[1].client.device_reset().unwrap();
    assert_eq!(epoch(&mut vm).0, before.0 + 3, "one each, and the one that tells");
}

#[test]
fn what_qemu_writes_around_a_reset_does_not_touch_a_device() {
    let mut vm = pair(&[]);
    let mut functions = [vm.vmm.open(1), vm.vmm.open(2)];
    let before = epoch(&mut vm);
    enable_each(&mut functions);
    for function in &mut functions {
        // The order of vfio_pci_pre_reset and vfio_pci_post_reset.
        function.set_command(0);
        function.client.device_reset().unwrap();
        for bar in 0..6 {
            function.write(CONFIG, BAR0 + 4 * bar, 0);
        }
        let (_, eventfd) = Interrupt::new();
        function.arm(IrqIndex::Intx, 0, vec![eventfd]).unwrap();
    }
    assert_eq!(epoch(&mut vm).0, before.0 + 2, "one for both, and the one that tells");
}

#[test]
fn with_the_policy_function_no_sibling_is_reset() {
    let mut vm = pair(&["--reset-policy", "function"]);
    let mut function = vm.vmm.open(1);
    function.enable();
    assert_eq!(refused(function.client.device_reset()), Errno::BUSY);
    let asked = refusal(vm.vmm.control.reset(Cookie(1), None, None));
    assert_eq!(asked, ("sibling-in-use".into(), Errno::BUSY.raw_os_error()));
}

#[test]
fn a_control_client_may_reach_further_than_the_servers_policy() {
    let mut vm = pair(&["--reset-policy", "function"]);
    let report = vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    assert_eq!(report.affected, [1, 2].map(Cookie));
}

#[test]
fn a_control_client_may_reach_less_far_than_the_servers_policy() {
    let mut vm = pair(&["--reset-policy", "force"]);
    let wish = ResetWish { policy: Some(ResetPolicy::Function), ..forced() };
    assert_eq!(refusal(vm.vmm.control.reset_as(Cookie(1), wish)).0, "sibling-in-use");
}

#[test]
fn with_the_policy_group_a_sibling_that_another_process_uses_is_spared() {
    let mut vm = pair(&[]);
    let mut function = vm.vmm.open(1);
    let path = vm.listen(2);
    let tenant = Tenant::at(&path);
    function.enable();
    assert_eq!(refused(function.client.device_reset()), Errno::BUSY);
    drop(tenant);
    vm.wait_for_lines("occasion=HandBack device=0000:01:00.1", 1);
    function.client.device_reset().unwrap();
}

#[test]
fn with_the_policy_force_a_sibling_that_another_process_uses_is_reset() {
    let mut vm = pair(&["--reset-policy", "force"]);
    let mut function = vm.vmm.open(1);
    let path = vm.listen(2);
    let _tenant = Tenant::at(&path);
    function.enable();
    let before = vm.logged("event=reset-done");
    function.client.device_reset().unwrap();
    assert_eq!(vm.logged("event=reset-done"), before + 1);
}

#[test]
fn the_clients_of_one_process_are_one_vm() {
    let mut vm = pair(&[]);
    let mut functions = [vm.vmm.open(1), vm.vmm.open(2)];
    let before = epoch(&mut vm);
    enable_each(&mut functions);
    functions[0].client.device_reset().unwrap();
    assert_eq!(
        epoch(&mut vm).0,
        before.0 + 2,
        "its sibling, which is in use, is reset with it, and the one that tells"
    );
}
