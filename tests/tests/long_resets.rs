// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A reset of a minute, by the clock of the modelled kernel: who waits for it, and who does not.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use protocol::ControlClient;
use protocol::extension::{Cookie, Face, ResetOutcome};
use protocol::vfio_user::{ClientError, IrqAction, IrqData};
use rustix::io::Errno;
use vfio::IrqIndex;
use vfio::model::order::FunctionOrder;
use vfio::model::{Order, Settings};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face, reset_by, two_pairs};
use vhost_device_vfio_tests::server_process::wait_until;
use vhost_device_vfio_tests::vmm::refusal;

const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
/// I/O space, memory space and bus master enable.
const ENABLES: u16 = 0x7;
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

#[test]
fn a_long_reset_delays_no_access_to_a_device_of_another_slot() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut other = vm.vmm.open(3);
    let reset = vm.begin_long_reset(1);
    other.enable();
    assert_ne!(other.command(), 0);
    assert!(!reset.is_finished());
    vm.pass_until(|| reset.is_finished());
    reset.join().unwrap().unwrap();
}

#[test]
fn a_long_reset_delays_no_reset_of_another_slot() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut other = vm.vmm.open(3);
    let reset = vm.begin_long_reset(1);
    other.enable();
    other.client.device_reset().unwrap();
    assert_eq!(other.command(), 0);
    assert!(!reset.is_finished());
    vm.pass_until(|| reset.is_finished());
    reset.join().unwrap().unwrap();
}

#[test]
fn a_long_reset_delays_no_request_of_the_control_face_about_something_else() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    vm.vmm.control.remove_device(Cookie(4)).unwrap();
    let reset = vm.begin_long_reset(1);
    vm.vmm.map(&GuestMemory::new(0, 1 << 20)).unwrap();
    vm.vmm.add(4, "0000:02:00.1").unwrap();
    assert_eq!(vm.vmm.control.list_devices().unwrap(), [1, 2, 3, 4].map(Cookie));
    assert_eq!(vm.vmm.control.device_info(Cookie(1)).unwrap().address.to_string(), FIRST);
    assert_eq!(vm.vmm.control.reset_group(Cookie(3)).unwrap().rows.len(), 2);
    drop(vm.vmm.open(4));
    vm.vmm.control.remove_device(Cookie(3)).unwrap();
    assert!(!reset.is_finished());
    vm.pass_until(|| reset.is_finished());
    reset.join().unwrap().unwrap();
}

#[test]
fn an_access_to_a_device_that_is_being_reset_waits() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut sibling = vm.vmm.open(2);
    let reset = vm.begin_long_reset(1);
    let access = spawn(move || sibling.command());
    assert!(!access.is_finished());
    vm.pass_until(|| access.is_finished());
    assert_eq!(access.join().unwrap() & ENABLES, 0);
    reset.join().unwrap().unwrap();
}

#[test]
fn who_asks_for_the_reset_group_of_a_device_that_is_being_reset_waits() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut sibling = vm.vmm.open(2);
    let mut other = vm.vmm.open(3);
    let reset = vm.begin_long_reset(1);
    let group = spawn(move || sibling.client.reset_group(0, u32::MAX));
    assert!(other.client.reset_group(0, 0).unwrap().is_available(), "another slot's is told at once");
    assert!(!group.is_finished());
    vm.pass_until(|| group.is_finished());
    assert_eq!(group.join().unwrap().unwrap().rows.len(), 2);
    reset.join().unwrap().unwrap();
}

#[test]
fn an_access_that_would_wait_too_long_is_refused() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut sibling = vm.vmm.open(2);
    let reset = vm.begin_long_reset(1);
    let access = sibling.try_read(CONFIG, COMMAND);
    assert!(matches!(access, Err(ClientError::Refused { errno: Errno::BUSY, .. })), "{access:?}");
    let group = refusal(vm.vmm.control.reset_group(Cookie(2)));
    assert_eq!(group, ("being-reset".into(), Errno::BUSY.raw_os_error()));
    assert!(!reset.is_finished());
    vm.pass_until(|| reset.is_finished());
    assert!(sibling.try_read(CONFIG, COMMAND).is_ok());
    reset.join().unwrap().unwrap();
}

#[test]
fn a_client_that_asks_for_a_reset_under_way_has_that_one() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut sibling = vm.vmm.open(2);
    let before = vm.logged("event=reset-begun");
    let reset = vm.begin_long_reset(1);
    let joined = spawn(move || sibling.client.device_reset());
    vm.pass_until(|| joined.is_finished());
    joined.join().unwrap().unwrap();
    reset.join().unwrap().unwrap();
    assert_eq!(vm.logged("event=reset-begun"), before + 1);
}

#[test]
fn whoever_asks_for_the_group_of_a_device_that_is_being_reset_waits() {
    let vm = ModelledVm::with_two_pairs(&[]);
    let reset = vm.begin_long_reset(1);
    let mut control = vm.connect();
    let group = spawn(move || control.reset_group(Cookie(2)));
    assert!(!group.is_finished());
    vm.pass_until(|| group.is_finished());
    assert_eq!(group.join().unwrap().unwrap().rows.len(), 2);
    reset.join().unwrap().unwrap();
}

#[test]
fn a_removal_waits_for_the_reset_under_way() {
    let vm = ModelledVm::with_two_pairs(&[]);
    let reset = vm.begin_long_reset(1);
    let ModelledVm { mut vmm, machine, .. } = vm;
    let removal = spawn(move || vmm.control.remove_device(Cookie(2)).map(|()| vmm));
    assert!(wait_until(|| {
        machine.order(&Order::Advance(60_000));
        removal.is_finished()
    }));
    let mut vmm = removal.join().unwrap().unwrap();
    reset.join().unwrap().unwrap();
    assert_eq!(vmm.control.list_devices().unwrap(), [1, 3, 4].map(Cookie));
}

#[test]
fn a_device_that_joins_a_set_under_reset_delays_only_who_hands_it_over() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    vm.vmm.control.remove_device(Cookie(2)).unwrap();
    let reset = vm.begin_long_reset(1);
    let mut control = vm.connect();
    let device = vm.machine.host().open_cdev(SECOND.parse().unwrap()).unwrap();
    let addition = spawn(move || control.add_device(Cookie(2), device).map(|info| (info, control)));
    vm.vmm.map(&GuestMemory::new(0, 1 << 20)).unwrap();
    vm.vmm.control.remove_device(Cookie(4)).unwrap();
    assert!(!addition.is_finished());
    vm.pass_until(|| addition.is_finished());
    let (info, _control) = addition.join().unwrap().unwrap();
    assert_eq!(info.address.to_string(), SECOND);
    reset.join().unwrap().unwrap();
}

#[test]
fn a_client_that_goes_during_a_reset_of_its_device_delays_nobody_else() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut other = vm.vmm.open(3);
    vm.vmm.control.remove_device(Cookie(2)).unwrap();
    let device = vm.machine.host().open_cdev(SECOND.parse().unwrap()).unwrap();
    let mut leaving = vm.connect();
    leaving.add_device(Cookie(2), device).unwrap();
    let reset = vm.begin_long_reset(1);
    let closed = vm.logged("event=control-closed");
    drop(leaving);
    vm.wait_for_lines("event=control-closed", closed + 1);
    vm.vmm.map(&GuestMemory::new(0, 1 << 20)).unwrap();
    other.enable();
    other.client.device_reset().unwrap();
    assert_eq!(vm.vmm.control.reset_group(Cookie(3)).unwrap().rows.len(), 2);
    assert!(!reset.is_finished());
    vm.pass_until(|| reset.is_finished());
    reset.join().unwrap().unwrap();
    assert!(wait_until(|| vm.vmm.control.list_devices().unwrap() == [1, 3, 4].map(Cookie)));
}

#[test]
fn a_client_that_comes_in_place_of_one_whose_device_is_being_reset_waits_for_its_turn() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let (mut leaving, mut coming) = (vm.connect(), vm.connect());
    let host = vm.machine.host();
    let open = |address: &str| host.open_cdev(address.parse().unwrap()).unwrap();
    for cookie in [2, 4] {
        vm.vmm.control.remove_device(Cookie(cookie)).unwrap();
    }
    leaving.add_device(Cookie(2), open(SECOND)).unwrap();
    let reset = vm.begin_long_reset(1);
    let closed = vm.logged("event=control-closed");
    drop(leaving);
    vm.wait_for_lines("event=control-closed", closed + 1);
    let device = open("0000:02:00.1");
    let addition = spawn(move || coming.add_device(Cookie(2), device).map(|info| (info, coming)));
    vm.pass_until(|| addition.is_finished());
    let (info, _coming) = addition.join().unwrap().unwrap();
    assert_eq!(info.address.to_string(), "0000:02:00.1");
    reset.join().unwrap().unwrap();
}

#[test]
fn what_a_client_armed_that_goes_during_a_reset_is_not_left_to_the_next() {
    let mut vm = ModelledVm::with_two_pairs(&["--sanitize", "off"]);
    let path = vm.listen(2);
    let mut leaving = connect_face(&path);
    let (interrupt, eventfd) = Interrupt::new();
    leaving.set_irqs(IrqIndex::Intx, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
    let reset = vm.begin_long_reset(1);
    let closed = vm.logged("event=vfio-user-closed");
    drop(leaving);
    vm.wait_for_lines("event=vfio-user-closed", closed + 1);
    let mut coming = connect_face(&path);
    vm.pass_until(|| reset.is_finished());
    reset.join().unwrap().unwrap();
    coming.enable();
    Edu::new(&mut coming).raise_interrupt();
    assert!(interrupt.is_silent());
}

#[test]
fn a_reset_waits_for_whoever_reads_a_base_address_region_and_tells_how_often_it_asked() {
    let settings = Settings { virtual_time: true, ..Settings::default() };
    let mut vm = ModelledVm::on(ModelledMachine::of(two_pairs(), settings), &["--sanitize", "off"]);
    let device = vm.machine.host().open_cdev(FIRST.parse().unwrap()).unwrap();
    vm.vmm.control.add_device(Cookie(1), &device).unwrap();
    // Somebody kept a copy of the descriptor, and is in an access.
    let mut function = vm.vmm.open(1);
    function.enable();
    vm.fault(&format!("call = 'pread'\nfunction = '{FIRST}'\ndelay = 1000"));
    let reader = spawn(move || vfio::model::read(device.as_fd(), &mut [0; 4], 0));
    vm.wait_for_usage("lasting-calls", 1);
    // The third attempt leaves a trace: this function gets a driver.
    let bystander = "0000:02:00.0".parse().unwrap();
    vm.machine.order(&Order::Unbind(FunctionOrder { function: bystander }));
    vm.fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\nskip = 2\nbind = { function = '0000:02:00.0', driver = 'vfio-pci' }");
    let reset = reset_by(vm.connect(), 1);
    assert!(wait_until(|| vm.machine.host().open_cdev(bystander).is_ok()), "{}", vm.vmm.server.log());
    vm.pass_until(|| reset.is_finished());
    let report = reset.join().unwrap().unwrap();
    assert!(reader.is_finished());
    assert_eq!(report.outcome, ResetOutcome::Done);
    assert!(report.attempts >= 3, "{report:?}");
}

#[test]
fn a_device_is_served_once_however_many_ask_while_it_is_reset() {
    let vm = ModelledVm::with_two_pairs(&[]);
    let reset = vm.begin_long_reset(1);
    let serve = |mut control: ControlClient| {
        spawn(move || {
            let (near, far) = UnixStream::pair().unwrap();
            control.serve(Cookie(2), Face::VfioUser, far).map(|()| (near, control))
        })
    };
    let serving = [vm.connect(), vm.connect()].map(serve);
    // Both wait, or are about to.
    std::thread::sleep(Duration::from_millis(200));
    vm.pass_until(|| serving.iter().all(JoinHandle::is_finished));
    let results = serving.map(|serving| serving.join().unwrap());
    let refusals: Vec<_> =
        results.into_iter().filter(Result::is_err).map(|result| refusal(result).0).collect();
    assert_eq!(refusals, ["already-served"]);
    reset.join().unwrap().unwrap();
}
