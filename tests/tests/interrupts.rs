// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device's interrupts as its client arms them, in several commands, on platforms that can add vectors and on those that
//! cannot.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use protocol::extension::{Cookie, EventKinds};
use protocol::vfio_user::{ClientError, IrqAction, IrqData, SetIrqs};
use protocol::{ServerChannel, ServerRequest};
use rustix::io::Errno;
use vfio::IrqIndex::{self, Err as Error, Intx, Msi, Msix};
use vfio::model::Order;
use vfio::model::order::{Signal, SignalOrder};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::PATIENCE;

const FIRST: &str = "0000:01:00.0";
const CONFIG: u32 = 7;
const EXPRESS: u8 = 0x10;
const DEVICE_CONTROL: u64 = 8;
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
const MSIX: u8 = 0x11;

/// The first function of a topology, in use.
fn served(machine: ModelledMachine) -> (ModelledVm, PciFunction) {
    let mut vm = ModelledVm::on(machine, &["--sanitize", "off"]);
    vm.vmm.add(1, FIRST).unwrap();
    let mut function = vm.vmm.open(1);
    function.enable();
    (vm, function)
}

/// The same where vectors can be added, and where they cannot.
fn on_both(topology: &str) -> [(ModelledVm, PciFunction); 2] {
    [ModelledMachine::start(topology), ModelledMachine::with_fixed_vectors(topology)].map(served)
}

/// From now on the kernel has no vectors left, after so many more calls, for so many.
fn run_out_of_vectors(vm: &ModelledVm, skip: u32, times: u32) {
    vm.fault(&format!("call = 'VFIO_DEVICE_SET_IRQS'\nerrno = 'ENOSPC'\nskip = {skip}\ntimes = {times}"));
}

fn armed(function: &mut PciFunction, index: IrqIndex, start: u32, count: usize) -> Vec<Interrupt> {
    let (interrupts, eventfds) = Interrupt::several(count);
    function.arm(index, start, eventfds).unwrap();
    interrupts
}

fn refused(result: Result<(), ClientError>) -> Errno {
    match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("{other:?} instead of a refusal"),
    }
}

/// Which have fired of vectors that were fired from the first on.
fn fired(interrupts: &[Interrupt]) -> Vec<bool> {
    interrupts.iter().map(Interrupt::has_fired).collect()
}

#[test]
fn vectors_that_come_in_several_commands_all_fire() {
    for (_vm, mut function) in on_both("nvme") {
        let interrupts: Vec<_> = [(0, 16), (16, 16), (32, 8)]
            .into_iter()
            .flat_map(|(start, count)| armed(&mut function, Msix, start, count))
            .collect();
        function.fire(Msix, 40);
        assert_eq!(fired(&interrupts), [true; 40]);
    }
}

#[test]
fn vectors_with_gaps_between_them_fire_and_no_others() {
    for (_vm, mut function) in on_both("nvme") {
        let late = armed(&mut function, Msix, 60, 2);
        let early = armed(&mut function, Msix, 3, 1);
        let between = armed(&mut function, Msix, 20, 3);
        function.fire(Msix, 21);
        assert_eq!((fired(&early), fired(&between)), (vec![true], vec![true, false, false]));
        assert_eq!(fired(&late), [false; 2]);
        function.fire(Msix, 65);
        assert_eq!(fired(&late), [true; 2]);
    }
}

#[test]
fn vectors_lose_their_eventfds_and_the_others_keep_theirs() {
    for (_vm, mut function) in on_both("igb-pair") {
        let mut interrupts = armed(&mut function, Msix, 0, 4);
        function.take_eventfds(Msix, 1, 2);
        interrupts.extend(armed(&mut function, Msix, 4, 2));
        function.fire(Msix, 6);
        assert_eq!(fired(&interrupts), [true, false, false, true, true, true]);
    }
}

#[test]
fn what_the_host_has_no_vectors_for_is_refused_and_what_was_armed_stays() {
    // Where vectors cannot be added, messages are turned off first.
    for ((vm, mut function), skip) in on_both("igb-pair").into_iter().zip([0, 1]) {
        let interrupts = armed(&mut function, Msix, 0, 4);
        run_out_of_vectors(&vm, skip, 1);
        let (more, eventfds) = Interrupt::several(4);
        assert_eq!(refused(function.arm(Msix, 4, eventfds)), Errno::NOSPC);
        function.fire(Msix, 8);
        assert_eq!((fired(&interrupts), fired(&more)), (vec![true; 4], vec![false; 4]));
        armed(&mut function, Msix, 4, 4);
    }
}

#[test]
fn a_vector_that_cannot_be_armed_leaves_its_neighbours_as_they_were() {
    for (_vm, mut function) in on_both("igb-pair") {
        let before = armed(&mut function, Msix, 0, 3);
        let (other, eventfd) = Interrupt::new();
        let no_eventfd = tempfile::tempfile().unwrap().into();
        assert_eq!(refused(function.arm(Msix, 1, vec![eventfd, no_eventfd])), Errno::INVAL);
        function.fire(Msix, 3);
        assert_eq!(fired(&before), [true; 3]);
        assert!(!other.has_fired());
    }
}

#[test]
fn a_vector_that_the_device_does_not_have_is_refused_and_the_others_stay() {
    for (_vm, mut function) in on_both("igb-pair") {
        let interrupts = armed(&mut function, Msix, 0, 2);
        let (_, eventfds) = Interrupt::several(2);
        assert_eq!(refused(function.arm(Msix, 9, eventfds)), Errno::INVAL);
        function.fire(Msix, 2);
        assert_eq!(fired(&interrupts), [true; 2]);
    }
}

#[test]
fn messages_that_cannot_be_turned_on_again_are_off() {
    let (vm, mut function) = served(ModelledMachine::with_fixed_vectors("igb-pair"));
    armed(&mut function, Msix, 0, 2);
    run_out_of_vectors(&vm, 1, 2);
    let (_, eventfds) = Interrupt::several(2);
    assert_eq!(refused(function.arm(Msix, 2, eventfds)), Errno::NOSPC);
    vm.wait_for_lines("event=interrupts-lost", 1);
    armed(&mut function, Intx, 0, 1);
}

#[test]
fn eventfds_are_kept_as_long_as_they_are_armed() {
    let (vm, mut function) = served(ModelledMachine::start("nvme"));
    let before = vm.vmm.server.open_files();
    armed(&mut function, Msix, 0, 16);
    vm.vmm.server.wait_for_open_files(before + 16);
    armed(&mut function, Msix, 8, 16);
    vm.vmm.server.wait_for_open_files(before + 24);
    function.take_eventfds(Msix, 0, 10);
    vm.vmm.server.wait_for_open_files(before + 14);
    function.disable(Msix);
    vm.vmm.server.wait_for_open_files(before);
}

#[test]
fn a_client_leaves_no_interrupt_armed() {
    let mut vm = ModelledVm::start("igb-pair", &["--sanitize", "off"]);
    vm.vmm.add(1, FIRST).unwrap();
    let path = vm.listen(1);
    for (clients, index) in [Intx, Msix, Msi].into_iter().enumerate() {
        vm.wait_for_lines("event=vfio-user-closed", clients);
        let mut function = connect_face(&path);
        // That would be refused if the one before had left another kind on.
        armed(&mut function, index, 0, 1);
        // Without eventfds it is on still.
        function.take_eventfds(index, 0, 1);
    }
}

#[test]
fn a_guests_function_level_reset_leaves_its_messages_armed() {
    for (_vm, mut function) in on_both("igb-pair") {
        let mut interrupts = armed(&mut function, Msix, 0, 2);
        let control = function.capability(EXPRESS) + DEVICE_CONTROL;
        function.client.region_write(CONFIG, control, &FUNCTION_LEVEL_RESET.to_le_bytes()).unwrap();
        let message_control = function.capability(MSIX);
        assert_eq!(function.read(CONFIG, message_control) >> 31, 1, "MSI-X is on");
        interrupts.extend(armed(&mut function, Msix, 2, 2));
        function.fire(Msix, 4);
        assert_eq!(fired(&interrupts), [true; 4]);
        function.disable(Msix);
        armed(&mut function, Intx, 0, 1);
    }
}

/// A device of a VM that has subscribed to errors.
fn with_channel() -> (ModelledVm, PciFunction, ServerChannel) {
    let (mut vm, function) = served(ModelledMachine::start("edu-pair"));
    let channel = vm.vmm.control.open_server_channel().unwrap();
    vm.vmm.control.subscribe(EventKinds::DEVICE_ERRORS, None).unwrap();
    (vm, function, channel)
}

/// The device has an error that it does not recover from.
fn break_down(vm: &ModelledVm) {
    let signal = SignalOrder { function: FIRST.parse().unwrap(), interrupt: Signal::Error };
    vm.machine.order(&Order::Signal(signal));
}

fn is_told(channel: &mut ServerChannel) {
    let event = channel.receive_within(PATIENCE).unwrap();
    assert_eq!(event, ServerRequest::DeviceError(Cookie(1)));
}

#[test]
fn a_client_that_arms_the_error_interrupt_hears_of_errors_instead_of_subscribers() {
    for takes_back in [
        |function: &mut PciFunction| function.disable(Error),
        |function: &mut PciFunction| {
            function.take_eventfds(Error, 0, 1);
        },
    ] {
        let (vm, mut function, mut channel) = with_channel();
        let errors = armed(&mut function, Error, 0, 1);
        break_down(&vm);
        assert!(errors[0].fires());
        assert_eq!(vm.logged("event=device-error"), 0);
        takes_back(&mut function);
        break_down(&vm);
        is_told(&mut channel);
        assert!(!errors[0].has_fired());
        assert_eq!(vm.logged("event=device-error"), 1);
    }
}

#[test]
fn a_client_cannot_raise_an_error_that_it_does_not_hear() {
    let (vm, mut function, mut channel) = with_channel();
    for (count, data) in [(1, IrqData::None), (0, IrqData::None), (1, IrqData::Bools(vec![true]))] {
        let change = SetIrqs { index: Error.number(), start: 0, count, action: IrqAction::Trigger, data };
        assert_eq!(refused(function.client.set_irqs(&change)), Errno::INVAL);
    }
    break_down(&vm);
    is_told(&mut channel);
    assert_eq!(vm.logged("event=device-error"), 1);
    let errors = armed(&mut function, Error, 0, 1);
    function.fire(Error, 1);
    assert!(errors[0].has_fired(), "its own it can");
}

#[test]
fn a_client_that_arms_what_is_no_eventfd_leaves_the_subscribers_theirs() {
    let (vm, mut function, mut channel) = with_channel();
    let no_eventfd = tempfile::tempfile().unwrap().into();
    assert_eq!(refused(function.arm(Error, 0, vec![no_eventfd])), Errno::INVAL);
    break_down(&vm);
    is_told(&mut channel);
}

#[test]
fn a_pin_without_an_eventfd_can_have_another() {
    let (_vm, mut function) = served(ModelledMachine::start("edu-pair"));
    armed(&mut function, Intx, 0, 1);
    function.take_eventfds(Intx, 0, 1);
    let interrupts = armed(&mut function, Intx, 0, 1);
    Edu::new(&mut function).raise_interrupt();
    assert!(interrupts[0].fires());
}
