// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's interrupts reach the VMM's eventfds.

use protocol::vfio_user::{IrqAction, IrqData};
use vfio::IrqIndex;
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::vmm::Vmm;

use super::FIRST;

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
