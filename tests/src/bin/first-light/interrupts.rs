// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's interrupts reach the VMM's eventfds.

use protocol::extension::{Cookie, ResetMethod, ResetPolicy, ResetWish};
use protocol::vfio_user::{IrqAction, IrqData};
use vfio::IrqIndex;
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::vmm::Vmm;

use super::{FIRST, SECOND};

/// A device whose interrupt of this kind signals an eventfd.
fn armed(index: IrqIndex) -> (Vmm, PciFunction, Interrupt) {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    let (interrupt, eventfd) = Interrupt::new();
    function.set_irqs(index, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
    (vmm, function, interrupt)
}

pub(crate) fn a_client_is_told_how_many_interrupts_there_are() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    assert_eq!(function.irq_count(IrqIndex::Intx), 1);
    assert_eq!(function.irq_count(IrqIndex::Msi), 1);
    assert_eq!(function.irq_count(IrqIndex::Msix), 0, "edu has none");
}

pub(crate) fn an_msi_signals_its_eventfd() {
    let (_vmm, mut function, interrupt) = armed(IrqIndex::Msi);
    let mut edu = Edu::new(&mut function);
    assert!(interrupt.is_silent());
    edu.raise_interrupt();
    assert!(interrupt.fires());
    edu.acknowledge_interrupt();
}

pub(crate) fn a_disabled_msi_is_silent() {
    let (_vmm, mut function, interrupt) = armed(IrqIndex::Msi);
    function.set_irqs(IrqIndex::Msi, IrqAction::Trigger, 0, IrqData::None);
    Edu::new(&mut function).raise_interrupt();
    assert!(interrupt.is_silent());
}

/// The host has the device's slot reset.
fn reset_by_host(vmm: &mut Vmm) {
    let wish = ResetWish { method: Some(ResetMethod::Hot), policy: Some(ResetPolicy::Force), deadline: None };
    vmm.control.reset_as(Cookie(1), wish).unwrap();
}

pub(crate) fn an_interrupt_goes_on_after_a_reset_that_the_host_has_asked_for() {
    for index in [IrqIndex::Intx, IrqIndex::Msi] {
        let (mut vmm, mut function, interrupt) = armed(index);
        let (unmasking, unmask) = Interrupt::new();
        let (error, eventfd) = Interrupt::new();
        // Before 7.3 only functions of PCI Express have it.
        let hears_errors = function.irq_count(IrqIndex::Err) == 1;
        assert_eq!(function.arm(IrqIndex::Err, 0, vec![eventfd]).is_ok(), hears_errors);
        if index == IrqIndex::Intx {
            function.set_irqs(index, IrqAction::Unmask, 1, IrqData::Eventfds(vec![unmask]));
        }
        for _ in 0..2 {
            reset_by_host(&mut vmm);
            assert_eq!(error.has_fired(), hears_errors);
            let mut edu = Edu::new(&mut function);
            edu.raise_interrupt();
            assert!(interrupt.fires(), "{index:?}");
            edu.acknowledge_interrupt();
            unmasking.signal();
            assert!(interrupt.is_silent(), "{index:?}");
        }
    }
}

/// Arms vectors by commands of 16 at most, as QEMU does, and one beyond, and has the kernel fire them, before and after a reset
/// that the host has asked for.
fn vectors_all_fire(mut vmm: Vmm, count: u32) {
    const AT_ONCE: u32 = 16;
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    let last = function.irq_count(IrqIndex::Msix) - 1;
    let commands = (0..count).step_by(16).map(|start| (start, AT_ONCE.min(count - start)));
    let mut interrupts = Vec::new();
    for (start, count) in commands.chain([(last, 1)]) {
        let (more, eventfds) = Interrupt::several(usize::try_from(count).unwrap());
        function.arm(IrqIndex::Msix, start, eventfds).unwrap();
        interrupts.extend(more);
    }
    for _ in 0..2 {
        function.fire(IrqIndex::Msix, last + 1);
        let fired = interrupts.iter().map(Interrupt::count).collect::<Vec<_>>();
        assert_eq!(fired, vec![1; interrupts.len()]);
        reset_by_host(&mut vmm);
    }
    function.take_eventfds(IrqIndex::Msix, 1, count - 1);
    function.fire(IrqIndex::Msix, last + 1);
    let fired = interrupts.iter().filter(|interrupt| interrupt.has_fired());
    assert_eq!(fired.count(), 2, "the first and the last");
}

pub(crate) fn forty_vectors_are_armed_in_three_commands_and_again_after_a_reset() {
    vectors_all_fire(Vmm::start(), 40);
}

pub(crate) fn eight_vectors_are_armed_and_again_after_a_reset() {
    let mut vmm = Vmm::start();
    vmm.add(2, SECOND).unwrap();
    vectors_all_fire(vmm, 8);
}

pub(crate) fn intx_is_silent_while_masked() {
    let (_vmm, mut function, interrupt) = armed(IrqIndex::Intx);
    Edu::new(&mut function).raise_interrupt();
    assert!(interrupt.fires());
    // The kernel masked the line when it fired; it stays raised, so that unmasking fires again.
    assert!(interrupt.is_silent());
    function.set_irqs(IrqIndex::Intx, IrqAction::Unmask, 1, IrqData::None);
    assert!(interrupt.fires());
    Edu::new(&mut function).acknowledge_interrupt();
    function.set_irqs(IrqIndex::Intx, IrqAction::Unmask, 1, IrqData::None);
    function.set_irqs(IrqIndex::Intx, IrqAction::Mask, 1, IrqData::None);
    Edu::new(&mut function).raise_interrupt();
    assert!(interrupt.is_silent());
    function.set_irqs(IrqIndex::Intx, IrqAction::Unmask, 1, IrqData::None);
    assert!(interrupt.fires());
}
