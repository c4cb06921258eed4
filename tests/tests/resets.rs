// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets as the server's clients see them: who waits, who does not, how far they reach, and what they leave.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::fd::AsFd;
use std::thread::spawn;
use std::time::Duration;

use protocol::extension::{Cookie, Epoch, ResetMethod, ResetOutcome, ResetPolicy, ResetWish};
use protocol::vfio_user::{ClientError, IrqAction, IrqData};
use rustix::io::Errno;
use vfio::IrqIndex;
use vfio::model::order::FunctionOrder;
use vfio::model::{Order, Settings};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, Tenant, reset_by, two_pairs};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::wait_until;
use vhost_device_vfio_tests::vmm::refusal;

const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
/// I/O space, memory space and bus master enable.
const ENABLES: u16 = 0x7;
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
fn an_access_that_would_wait_too_long_is_refused() {
    let mut vm = ModelledVm::with_two_pairs(&[]);
    let mut sibling = vm.vmm.open(2);
    let reset = vm.begin_long_reset(1);
    assert_eq!(refused(sibling.try_read(CONFIG, COMMAND)), Errno::BUSY);
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
fn our_own_clients_that_read_all_the_time_do_not_keep_the_kernel_from_resetting() {
    let mut vm = pair(&[]);
    let mut function = vm.vmm.open(2);
    function.enable();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let reader = spawn(move || {
        let mut reads = 0_u32;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // Decoding is off after a reset.
            if function.try_read(0, 0).is_err() {
                function.enable();
            }
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
        function.set_irqs(IrqIndex::Intx, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
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
    enable_each(&mut functions);
    functions[0].client.device_reset().unwrap();
    assert_eq!(functions[1].command(), 0, "its sibling is reset with it");
}

#[test]
fn a_pin_interrupt_that_was_armed_before_the_groups_reset_works_after_it() {
    let mut vm = pair(&[]);
    let mut sibling = vm.vmm.open(2);
    sibling.enable();
    let (interrupt, eventfd) = Interrupt::new();
    sibling.set_irqs(IrqIndex::Intx, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    sibling.enable();
    Edu::new(&mut sibling).raise_interrupt();
    assert!(interrupt.fires());
}

#[test]
fn an_eventfd_that_unmasks_a_pin_works_after_the_groups_reset() {
    let mut vm = pair(&[]);
    let mut sibling = vm.vmm.open(2);
    sibling.enable();
    let (interrupt, eventfd) = Interrupt::new();
    let (_, unmask) = Interrupt::new();
    let unmasking = unmask.try_clone().unwrap();
    sibling.set_irqs(IrqIndex::Intx, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
    sibling.set_irqs(IrqIndex::Intx, IrqAction::Unmask, 1, IrqData::Eventfds(vec![unmask]));
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    sibling.enable();
    Edu::new(&mut sibling).raise_interrupt();
    assert!(interrupt.fires());
    assert!(interrupt.is_silent(), "it is masked until it is served");
    rustix::io::write(&unmasking, &1_u64.to_ne_bytes()).unwrap();
    assert!(interrupt.fires(), "the line is still raised");
}

#[test]
fn message_interrupts_are_off_after_the_groups_reset() {
    let mut vm = pair(&[]);
    let mut functions = [vm.vmm.open(1), vm.vmm.open(2)];
    let interrupts = functions.each_mut().map(|function| {
        function.enable();
        let (interrupt, eventfd) = Interrupt::new();
        function.set_irqs(IrqIndex::Msi, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
        interrupt
    });
    vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    for (function, interrupt) in functions.iter_mut().zip(&interrupts) {
        function.enable();
        Edu::new(function).raise_interrupt();
        assert!(interrupt.is_silent());
    }
}

#[test]
fn the_whole_group_is_off_and_awake_after_its_reset() {
    let mut vm = ModelledVm::start("igb-pair", &[]);
    vm.vmm.add(1, FIRST).unwrap();
    vm.vmm.add(2, SECOND).unwrap();
    let mut functions = [vm.vmm.open(1), vm.vmm.open(2)];
    let power = functions[0].capability(1) + 4;
    // Enable is the highest bit of the register in the upper half.
    let message_control = functions[0].capability(0x11);
    for function in &mut functions {
        function.enable();
        let (_, eventfd) = Interrupt::new();
        function.set_irqs(IrqIndex::Msix, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
        assert_eq!(function.read(CONFIG, message_control) >> 31, 1, "MSI-X is on");
        function.write(CONFIG, BAR0, 0xc000_0000);
        // To sleep.
        function.write(CONFIG, power, 3);
    }
    let report = vm.vmm.control.reset_as(Cookie(1), forced()).unwrap();
    assert_eq!(report.affected, [1, 2].map(Cookie));
    for function in &mut functions {
        assert_eq!(function.command(), 0);
        assert_eq!(function.read(CONFIG, BAR0) & !0xf, 0);
        assert_eq!(function.read(CONFIG, power) & 3, 0, "the power state");
        assert_eq!(function.read(CONFIG, message_control) >> 31, 0, "MSI-X is off");
    }
}

#[test]
fn a_device_is_served_once_however_many_ask_while_it_is_reset() {
    let vm = ModelledVm::with_two_pairs(&[]);
    let reset = vm.begin_long_reset(1);
    let serve = |mut control: protocol::ControlClient| {
        spawn(move || {
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            control.serve(Cookie(2), protocol::extension::Face::VfioUser, far).map(|()| (near, control))
        })
    };
    let serving = [vm.connect(), vm.connect()].map(serve);
    // Both wait, or are about to.
    std::thread::sleep(Duration::from_millis(200));
    vm.pass_until(|| serving.iter().all(std::thread::JoinHandle::is_finished));
    let results = serving.map(|serving| serving.join().unwrap());
    let refusals: Vec<_> =
        results.into_iter().filter(Result::is_err).map(|result| refusal(result).0).collect();
    assert_eq!(refusals, ["already-served"]);
    reset.join().unwrap().unwrap();
}
