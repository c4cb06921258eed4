// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What clients find after a reset: whoever has asked, a device as after power-on; whoever has not, the device that it has set
//! up, and word that its state is lost.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use protocol::extension::{Cookie, ResetMethod, ResetPolicy, ResetWish};
use protocol::vfio_user::{ClientError, IrqAction, IrqData};
use rustix::io::Errno;
use vfio::IrqIndex::{self, Err as Error, Intx, Msi, Msix};
use vfio::config_space::command;
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, Tenant, connect_face};
use vhost_device_vfio_tests::pci_function::PciFunction;

const CONFIG: u32 = 7;
const BAR0: u64 = 0x10;
const ADDRESS: u32 = 0xc000_0000;
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
/// As a driver sets it.
const ACTIVE: u16 = command::MEMORY | command::BUS_MASTER;
const POWER_MANAGEMENT: u8 = 0x01;
const MSIX: u8 = 0x11;

/// A VM with both functions of a machine.
fn vm(machine: ModelledMachine, arguments: &[&str]) -> ModelledVm {
    let mut vm = ModelledVm::on(machine, arguments);
    vm.vmm.add(1, FIRST).unwrap();
    vm.vmm.add(2, SECOND).unwrap();
    vm
}

fn pair() -> ModelledVm {
    vm(ModelledMachine::start("edu-pair"), &[])
}

/// The host has the whole slot reset.
fn reset_by_host(vm: &mut ModelledVm) -> Result<(), protocol::ClientError> {
    let wish = ResetWish { method: Some(ResetMethod::Hot), policy: Some(ResetPolicy::Force), deadline: None };
    vm.vmm.control.reset_as(Cookie(1), wish).map(drop)
}

/// A device in use, which signals this when it interrupts.
fn in_use(vm: &mut ModelledVm, cookie: u64, index: IrqIndex) -> (PciFunction, Interrupt) {
    let mut function = vm.vmm.open(cookie);
    let (interrupt, eventfd) = Interrupt::new();
    function.arm(index, 0, vec![eventfd]).unwrap();
    function.write(CONFIG, BAR0, ADDRESS);
    function.enable();
    (function, interrupt)
}

/// Where the client hears of errors.
fn errors(function: &mut PciFunction) -> Interrupt {
    let (error, eventfd) = Interrupt::new();
    function.arm(Error, 0, vec![eventfd]).unwrap();
    error
}

fn is_as_set_up(function: &mut PciFunction) -> bool {
    (function.command(), function.read(CONFIG, BAR0) & !0xf) == (ACTIVE, ADDRESS)
}

fn is_as_after_power_on(function: &mut PciFunction) -> bool {
    (function.command(), function.read(CONFIG, BAR0) & !0xf) == (0, 0)
}

fn refused(result: Result<(), ClientError>) -> Errno {
    match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[test]
fn a_client_goes_on_after_a_reset_that_the_host_has_asked_for() {
    for index in [Intx, Msi] {
        let mut vm = pair();
        let mut clients = [1, 2].map(|cookie| in_use(&mut vm, cookie, index));
        reset_by_host(&mut vm).unwrap();
        for (function, interrupt) in &mut clients {
            assert!(is_as_set_up(function));
            Edu::new(function).raise_interrupt();
            assert!(interrupt.fires());
        }
    }
}

#[test]
fn a_client_that_has_asked_finds_its_device_as_after_power_on() {
    let mut vm = pair();
    let (mut function, interrupt) = in_use(&mut vm, 1, Msi);
    let error = errors(&mut function);
    function.client.device_reset().unwrap();
    assert!(is_as_after_power_on(&mut function));
    function.enable();
    Edu::new(&mut function).raise_interrupt();
    assert!(interrupt.is_silent(), "messages are off");
    assert!(!error.has_fired(), "it has asked");
    let (_, eventfd) = Interrupt::new();
    function.arm(Intx, 0, vec![eventfd]).unwrap();
}

#[test]
fn an_eventfd_that_unmasks_a_pin_works_after_a_reset() {
    let mut vm = pair();
    let (mut sibling, interrupt) = in_use(&mut vm, 2, Intx);
    let (unmasking, unmask) = Interrupt::new();
    sibling.set_irqs(Intx, IrqAction::Unmask, 1, IrqData::Eventfds(vec![unmask]));
    for _ in 0..2 {
        reset_by_host(&mut vm).unwrap();
        Edu::new(&mut sibling).raise_interrupt();
        assert!(interrupt.fires());
        assert!(interrupt.is_silent(), "it is masked until it is served");
        unmasking.signal();
        assert!(interrupt.fires(), "the line is still raised");
        Edu::new(&mut sibling).acknowledge_interrupt();
    }
}

#[test]
fn a_pin_is_armed_after_a_reset_that_its_client_has_asked_for() {
    let mut vm = pair();
    let (mut function, interrupt) = in_use(&mut vm, 1, Intx);
    function.client.device_reset().unwrap();
    function.enable();
    Edu::new(&mut function).raise_interrupt();
    assert!(interrupt.fires());
}

#[test]
fn all_vectors_are_armed_again_where_they_were() {
    for machine in [ModelledMachine::start("igb-pair"), ModelledMachine::with_fixed_vectors("igb-pair")] {
        let mut vm = vm(machine, &[]);
        let mut function = vm.vmm.open(1);
        let (interrupts, mut eventfds) = Interrupt::several(3);
        // The first, the third and the ninth.
        function.arm(Msix, 2, eventfds.drain(1..2).collect()).unwrap();
        function.arm(Msix, 8, eventfds.drain(1..2).collect()).unwrap();
        function.arm(Msix, 0, eventfds).unwrap();
        function.enable();
        reset_by_host(&mut vm).unwrap();
        for vectors in [1, 3, 10] {
            function.fire(Msix, vectors);
        }
        let fired = interrupts.iter().map(Interrupt::count).collect::<Vec<_>>();
        assert_eq!(fired, [3, 2, 1]);
        let (more, eventfd) = Interrupt::new();
        function.arm(Msix, 9, vec![eventfd]).unwrap();
        function.fire(Msix, 10);
        assert!(more.has_fired(), "it takes more");
    }
}

#[test]
fn the_whole_group_is_awake_and_as_its_clients_have_set_it_up() {
    let mut vm = vm(ModelledMachine::start("igb-pair"), &[]);
    let mut functions = [1, 2].map(|cookie| in_use(&mut vm, cookie, Msix).0);
    let power = functions[0].capability(POWER_MANAGEMENT) + 4;
    // Enable is the highest bit of the register in the upper half.
    let message_control = functions[0].capability(MSIX);
    // To sleep.
    for function in &mut functions {
        function.write(CONFIG, power, 3);
    }
    reset_by_host(&mut vm).unwrap();
    for function in &mut functions {
        assert_eq!(function.read(CONFIG, power) & 3, 0, "the power state");
        assert!(is_as_set_up(function));
        assert_eq!(function.read(CONFIG, message_control) >> 31, 1, "MSI-X is on");
    }
}

#[test]
fn a_client_whose_device_is_reset_by_the_host_is_told_that_its_state_is_lost() {
    let mut vm = pair();
    let (mut active, _) = in_use(&mut vm, 1, Msi);
    let mut still = vm.vmm.open(2);
    let told = [&mut active, &mut still].map(errors);
    reset_by_host(&mut vm).unwrap();
    assert!(told[0].fires());
    assert!(!told[1].has_fired(), "it has no state to lose");
    vm.wait_for_lines("event=state-lost", 1);
    assert_eq!(vm.logged("event=device-error"), 0, "that is not the device's doing");
}

#[test]
fn a_client_that_does_not_hear_of_errors_is_not_told_and_that_is_logged() {
    let mut vm = pair();
    let (_function, _) = in_use(&mut vm, 1, Msi);
    reset_by_host(&mut vm).unwrap();
    vm.wait_for_lines("event=state-lost device=0000:01:00.0 told=false", 1);
    assert_eq!(vm.logged("event=device-error"), 0);
}

#[test]
fn another_vm_whose_device_is_reset_goes_on_and_is_told() {
    let mut vm = vm(ModelledMachine::start("edu-pair"), &["--reset-policy", "force"]);
    let (mut function, _) = in_use(&mut vm, 1, Msi);
    let path = vm.listen(2);
    let tenant = Tenant::at(&path);
    function.client.device_reset().unwrap();
    assert!(is_as_after_power_on(&mut function));
    assert_eq!(tenant.leave(), "told, command 0x6\n");
}

#[test]
fn a_vm_that_resets_one_of_its_devices_goes_on_with_the_others_and_is_not_told() {
    let mut vm = pair();
    let (mut asked, _) = in_use(&mut vm, 1, Msi);
    let (mut sibling, interrupt) = in_use(&mut vm, 2, Msi);
    let error = errors(&mut sibling);
    asked.client.device_reset().unwrap();
    assert!(is_as_set_up(&mut sibling));
    Edu::new(&mut sibling).raise_interrupt();
    assert!(interrupt.fires());
    assert!(!error.has_fired());
}

#[test]
fn a_vm_that_resets_its_devices_one_by_one_finds_each_as_after_power_on() {
    let mut vm = pair();
    let mut clients = [1, 2].map(|cookie| in_use(&mut vm, cookie, Msi));
    let before = vm.logged("event=reset-begun");
    for (function, _) in &mut clients {
        function.client.device_reset().unwrap();
    }
    assert_eq!(vm.logged("event=reset-begun"), before + 1, "one for both");
    for (function, interrupt) in &mut clients {
        assert!(is_as_after_power_on(function));
        function.enable();
        Edu::new(function).raise_interrupt();
        assert!(interrupt.is_silent(), "messages are off");
    }
}

#[test]
fn what_qemu_does_around_a_reset_finds_what_it_takes_down() {
    let mut vm = pair();
    let mut clients = [1, 2].map(|cookie| in_use(&mut vm, cookie, Msi));
    let before = vm.logged("event=reset-begun");
    for (function, _) in &mut clients {
        // The order of vfio_pci_pre_reset and vfio_pci_post_reset.
        function.disable(Msi);
        function.set_command(0);
        function.client.device_reset().unwrap();
        let (_, eventfd) = Interrupt::new();
        function.arm(Intx, 0, vec![eventfd]).unwrap();
        for bar in 0..6 {
            function.write(CONFIG, BAR0 + 4 * bar, 0);
        }
    }
    assert_eq!(vm.logged("event=reset-begun"), before + 1, "one for both");
}

#[test]
fn a_sibling_that_goes_on_after_its_vms_reset_is_reset_when_it_asks() {
    let mut vm = pair();
    let [(mut asked, _), (mut sibling, _)] = [1, 2].map(|cookie| in_use(&mut vm, cookie, Msi));
    let before = vm.logged("event=reset-begun");
    asked.client.device_reset().unwrap();
    Edu::new(&mut sibling).raise_interrupt();
    sibling.client.device_reset().unwrap();
    assert_eq!(vm.logged("event=reset-begun"), before + 2);
    assert!(is_as_after_power_on(&mut sibling));
}

#[test]
fn a_sibling_that_could_be_touched_by_a_mapped_bar_is_reset_when_it_asks() {
    let mut vm = vm(ModelledMachine::start("edu-pair"), &["--bar-access", "mmap"]);
    let [(mut asked, _), (mut sibling, _)] = [1, 2].map(|cookie| in_use(&mut vm, cookie, Msi));
    sibling.client.region_info(0).unwrap();
    let before = vm.logged("event=reset-begun");
    asked.client.device_reset().unwrap();
    assert!(is_as_set_up(&mut sibling));
    sibling.client.device_reset().unwrap();
    assert_eq!(vm.logged("event=reset-begun"), before + 2, "what it has done, nobody has seen");
    assert!(is_as_after_power_on(&mut sibling));
}

#[test]
fn a_reset_that_was_not_done_leaves_the_sibling_as_it_was_and_tells_it_nothing() {
    let mut vm = pair();
    let (mut asked, _) = in_use(&mut vm, 1, Msi);
    let (mut sibling, interrupt) = in_use(&mut vm, 2, Msi);
    let error = errors(&mut sibling);
    vm.fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\nerrno = 'EINVAL'\ntimes = 2");
    reset_by_host(&mut vm).unwrap_err();
    assert!(is_as_set_up(&mut asked));
    assert_eq!(refused(asked.client.device_reset()), Errno::INVAL);
    assert!(is_as_set_up(&mut sibling));
    Edu::new(&mut sibling).raise_interrupt();
    assert!(interrupt.fires());
    assert!(!error.has_fired());
}

#[test]
fn a_client_is_told_of_a_reset_that_failed_and_may_have_been_done() {
    let mut vm = pair();
    let (mut function, _) = in_use(&mut vm, 1, Msi);
    let error = errors(&mut function);
    vm.fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\nerrno = 'EIO'");
    reset_by_host(&mut vm).unwrap_err();
    assert!(error.fires());
    assert!(is_as_set_up(&mut function));
}

#[test]
fn a_device_whose_interrupts_cannot_be_armed_again_is_lost_and_its_client_is_told() {
    let mut vm = pair();
    let (mut sibling, _) = in_use(&mut vm, 2, Msi);
    let error = errors(&mut sibling);
    // The first call takes them down.
    vm.fault(&format!("call = 'VFIO_DEVICE_SET_IRQS'\nfunction = '{SECOND}'\nerrno = 'ENOSPC'\nskip = 1"));
    reset_by_host(&mut vm).unwrap();
    assert!(error.fires());
    assert!(matches!(sibling.try_read(CONFIG, BAR0), Err(ClientError::Refused { errno: Errno::IO, .. })));
    sibling.client.device_reset().unwrap();
    assert!(is_as_after_power_on(&mut sibling));
}

#[test]
fn a_client_that_comes_after_another_does_not_find_what_that_has_set_up() {
    let mut vm = vm(ModelledMachine::start("edu-pair"), &["--sanitize", "off"]);
    let path = vm.listen(1);
    let mut function = connect_face(&path);
    function.write(CONFIG, BAR0, ADDRESS);
    function.enable();
    drop(function);
    vm.wait_for_lines("event=vfio-user-closed", 1);
    let mut next = connect_face(&path);
    assert!(is_as_after_power_on(&mut next));
    reset_by_host(&mut vm).unwrap();
    assert!(is_as_after_power_on(&mut next));
}
