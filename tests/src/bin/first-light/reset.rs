// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reset groups and resets, in the topologies that differ in them.

use std::time::Duration;

use protocol::extension::{
    Cookie, DeviceFlags, GroupReason, Ownership, ResetMethod, ResetOutcome, ResetPolicy, ResetReport,
    ResetWish, RowReason,
};
use protocol::vfio_user::{IrqAction, IrqData};
use rustix::io::Errno;
use vfio::IrqIndex;
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::server_process::{ServerProcess, wait_until};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

use super::{FIRST, ON_ROOT_BUS, SECOND};

const CONFIG: u32 = 7;
const BAR0: u64 = 0x10;
/// igb's VLAN `EtherType` register and what it holds after a reset.
const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;
const MSIX: u8 = 0x11;

fn with_both() -> Vmm {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.add(2, SECOND).unwrap();
    vmm
}

fn hot_reset(vmm: &mut Vmm, cookie: u64) -> ResetReport {
    let wish = ResetWish { method: Some(ResetMethod::Hot), policy: Some(ResetPolicy::Force), deadline: None };
    vmm.control.reset_as(Cookie(cookie), wish).unwrap()
}

pub(crate) fn an_unopened_sibling_of_the_group_is_implied() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let group = vmm.control.reset_group(Cookie(1)).unwrap();
    let ownership: Vec<_> = group.rows.iter().map(|row| (row.address.to_string(), row.ownership)).collect();
    assert_eq!(ownership, [(FIRST.to_owned(), Ownership::Ours), (SECOND.to_owned(), Ownership::Implied)]);
    assert_eq!(group.reason, GroupReason::Available);
    assert_eq!(hot_reset(&mut vmm, 1).outcome, ResetOutcome::Done);
}

pub(crate) fn both_functions_of_the_pair_are_ours() {
    let mut vmm = with_both();
    let group = vmm.control.reset_group(Cookie(2)).unwrap();
    let rows: Vec<_> = group.rows.iter().map(|row| (row.cookie(), row.ownership, row.reason)).collect();
    let ours = |cookie| (Some(Cookie(cookie)), Ownership::Ours, RowReason::None);
    assert_eq!(rows, [ours(1), ours(2)]);
    assert_eq!(group.rows[0].iommu_group, group.rows[1].iommu_group);
    assert_eq!(group.rows[1].driver.as_str(), "vfio-pci");
}

pub(crate) fn the_header_alone_tells_whether_a_reset_is_available() {
    let mut vmm = with_both();
    let header = vmm.control.reset_group_header(Cookie(1)).unwrap();
    assert!(header.is_available());
    assert_eq!((header.total_rows, header.rows.len()), (2, 0));
}

pub(crate) fn a_hot_reset_leaves_quiet_devices() {
    let mut vmm = with_both();
    let mut functions = [vmm.open(1), vmm.open(2)];
    let interrupts = functions.each_mut().map(|function| {
        function.enable();
        let (interrupt, eventfd) = Interrupt::new();
        function.set_irqs(IrqIndex::Msi, IrqAction::Trigger, 1, IrqData::Eventfds(vec![eventfd]));
        function.write(CONFIG, BAR0, 0xc000_0000);
        interrupt
    });
    for function in &mut functions {
        function.client.device_reset().unwrap();
    }
    for (function, interrupt) in functions.iter_mut().zip(&interrupts) {
        assert_eq!(function.command(), 0, "decoding and bus mastering are off");
        assert_eq!(function.read(CONFIG, BAR0), 0, "the base address is back at its default");
        function.enable();
        Edu::new(function).raise_interrupt();
        assert!(interrupt.is_silent(), "the interrupt is off");
    }
}

pub(crate) fn the_mapping_outlives_a_hot_reset() {
    let memory = GuestMemory::new(0, 4 << 20);
    let mut vmm = with_both();
    vmm.map(&memory).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    function.client.device_reset().unwrap();
    memory.write(0x1000, b"after the reset!");
    let read = function.try_read(0, 0);
    assert!(read.is_err(), "memory decoding is off, and the access fails: {read:?}");
    function.enable();
    Edu::new(&mut function).copy(0x1000, 0x2000, 16);
    assert_eq!(memory.read(0x2000, 16), b"after the reset!");
}

pub(crate) fn a_reset_spares_a_sibling_in_use_unless_it_is_forced() {
    let mut vmm = with_both();
    let mut second = vmm.open(2);
    second.enable();
    let refused = vmm.control.reset(Cookie(1), Some(ResetMethod::Hot), None);
    assert_eq!(refusal(refused), ("sibling-in-use".into(), Errno::BUSY.raw_os_error()));
    assert_ne!(second.command(), 0, "the sibling goes on");
    assert_eq!(hot_reset(&mut vmm, 1).affected, [Cookie(1), Cookie(2)]);
    assert_ne!(second.command(), 0, "it still does");
}

pub(crate) fn a_guest_that_resets_all_its_devices_causes_one_reset() {
    let mut vmm = with_both();
    let mut functions = [vmm.open(1), vmm.open(2)];
    for function in &mut functions {
        function.enable();
    }
    for function in &mut functions {
        function.client.device_reset().unwrap();
    }
    let before = vmm.control.reset(Cookie(1), None, None).unwrap().epoch;
    functions[0].enable();
    for function in &mut functions {
        function.client.device_reset().unwrap();
    }
    let after = vmm.control.reset(Cookie(1), None, None).unwrap().epoch;
    assert_eq!(after.0, before.0 + 2, "one for both, and the one that tells");
}

pub(crate) fn a_function_reset_that_does_not_exist_is_refused() {
    let mut vmm = with_both();
    let refused = refusal(vmm.control.reset(Cookie(1), Some(ResetMethod::Function), None));
    assert_eq!(refused, ("no-function-reset".into(), Errno::OPNOTSUPP.raw_os_error()));
}

pub(crate) fn auto_falls_back_to_the_hot_reset() {
    let mut vmm = with_both();
    let report = vmm.control.reset(Cookie(1), None, None).unwrap();
    assert_eq!(report.method, ResetMethod::Hot);
    let again = vmm.control.reset(Cookie(1), None, None).unwrap();
    assert!(again.epoch > report.epoch, "each reset begins an epoch");
}

pub(crate) fn function_reset_is_preferred() {
    let mut vmm = with_both();
    let report = vmm.control.reset(Cookie(2), None, None).unwrap();
    assert_eq!((report.method, report.affected), (ResetMethod::Function, vec![Cookie(2)]));
}

pub(crate) fn a_hot_reset_brings_registers_to_their_defaults() {
    let mut vmm = with_both();
    let mut igb = vmm.open(2);
    igb.enable();
    igb.write(0, IGB_VET, 0x1234);
    assert_eq!(igb.read(0, IGB_VET), 0x1234);
    assert_eq!(hot_reset(&mut vmm, 1).affected, [Cookie(1), Cookie(2)]);
    assert_eq!(igb.read(0, IGB_VET), IGB_VET_DEFAULT);
}

pub(crate) fn a_sibling_of_another_group_blocks_until_it_is_passed() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let group = vmm.control.reset_group(Cookie(1)).unwrap();
    assert_eq!(group.reason, GroupReason::Blocked);
    let blocking = &group.rows[1];
    assert_eq!(
        (blocking.address.to_string().as_str(), blocking.ownership, blocking.reason),
        (SECOND, Ownership::Blocking, RowReason::Unopened)
    );
    let refused = vmm.control.reset(Cookie(1), Some(ResetMethod::Hot), None);
    assert_eq!(refusal(refused), ("reset-blocked".into(), Errno::PERM.raw_os_error()));
    let failure = vmm.control.last_failure().unwrap().unwrap().failure;
    assert!(failure.why().contains(SECOND), "{failure}");
    assert!(failure.fix().contains("/dev/vfio/devices/"), "{failure}");
    let before = group.generation;
    vmm.add(2, SECOND).unwrap();
    let group = vmm.control.reset_group(Cookie(1)).unwrap();
    assert_eq!(group.reason, GroupReason::Available);
    assert_ne!(group.generation, before);
    assert_ne!(group.rows[0].iommu_group, group.rows[1].iommu_group);
    hot_reset(&mut vmm, 1);
}

pub(crate) fn a_function_without_driver_blocks() {
    let second = SECOND.parse().unwrap();
    Host::current().unbind_driver(second).unwrap();
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let group = vmm.control.reset_group(Cookie(1));
    // For the tests after this one, whatever becomes of the assertions.
    Host::current().bind_driver(second, "vfio-pci").unwrap();
    let group = group.unwrap();
    assert_eq!((group.reason, group.rows[1].reason), (GroupReason::Blocked, RowReason::NoDriver));
}

pub(crate) fn a_device_on_the_root_bus_has_no_hot_reset() {
    let mut vmm = Vmm::start();
    vmm.add(1, ON_ROOT_BUS).unwrap();
    let group = vmm.control.reset_group(Cookie(1)).unwrap();
    assert_eq!((group.reason, group.rows.len()), (GroupReason::NoReset, 0));
    let refused = vmm.control.reset(Cookie(1), Some(ResetMethod::Hot), None);
    assert_eq!(refusal(refused), ("no-hot-reset".into(), Errno::NODEV.raw_os_error()));
}

pub(crate) fn a_link_that_does_not_come_back_is_reported() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let mut igb = vmm.open(1);
    igb.enable();
    igb.write(0, IGB_VET, 0x1234);
    let report = hot_reset(&mut vmm, 1);
    assert_eq!((report.method, report.outcome), (ResetMethod::Hot, ResetOutcome::LinkUnconfirmed));
    igb.enable();
    assert_eq!(igb.read(0, IGB_VET), IGB_VET_DEFAULT, "it was reset all the same");
}

/// Whether a reset that has begun does not come to its end, where one that does takes some milliseconds.
fn is_resetting_for_long(server: &ServerProcess) -> bool {
    let is_resetting =
        || server.log().matches("reset-begun").count() > server.log().matches("reset-done").count();
    (0..50).all(|_| {
        std::thread::sleep(Duration::from_millis(2));
        is_resetting()
    })
}

pub(crate) fn a_reset_that_waits_hinders_nobody_and_ends_with_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let mut vmm = Vmm::listening(&path);
    vmm.add(1, FIRST).unwrap();
    vmm.add(2, SECOND).unwrap();
    let mut other = Vmm::connect_again(&path);
    let Vmm { mut server, mut control, .. } = vmm;
    // An unbind keeps the device locked until the server lets go of it, and the kernel resets nothing that is locked.
    let second = SECOND.parse().unwrap();
    let unbind = std::thread::spawn(move || Host::current().unbind_driver(second));
    let minutes = Duration::from_mins(5);
    let reset = std::thread::spawn(move || {
        while control.reset(Cookie(1), Some(ResetMethod::Hot), Some(minutes)).is_ok() {
            // The unbind has not begun yet.
        }
    });
    assert!(wait_until(|| is_resetting_for_long(&server)), "no reset waits: {}", server.log());
    assert_eq!(other.device_info(Cookie(1)).unwrap().address.to_string(), FIRST);
    assert!(!reset.is_finished());
    server.terminate();
    assert!(server.wait_for_exit().success(), "{}", server.log());
    reset.join().unwrap();
    unbind.join().unwrap().unwrap();
    Host::current().bind_driver(second, "vfio-pci").unwrap();
}

pub(crate) fn a_guests_function_level_reset_is_carried_out() {
    const EXPRESS: u8 = 0x10;
    const DEVICE_CONTROL: u64 = 8;
    let mut vmm = with_both();
    let mut igb = vmm.open(2);
    igb.enable();
    igb.write(0, IGB_VET, 0x1234);
    let (interrupts, eventfds) = Interrupt::several(3);
    igb.arm(IrqIndex::Msix, 0, eventfds).unwrap();
    let control = igb.capability(EXPRESS) + DEVICE_CONTROL;
    igb.client.region_write(CONFIG, control, &0x8000_u16.to_le_bytes()).unwrap();
    assert_eq!(igb.read(0, IGB_VET), IGB_VET_DEFAULT);
    let message_control = igb.capability(MSIX);
    assert_eq!(igb.read(CONFIG, message_control) >> 31, 1, "MSI-X is on still");
    igb.fire(IrqIndex::Msix, 3);
    assert!(interrupts.iter().all(Interrupt::has_fired), "its eventfds are armed still");
    let (more, eventfd) = Interrupt::new();
    igb.arm(IrqIndex::Msix, 7, vec![eventfd]).unwrap();
    igb.fire(IrqIndex::Msix, 8);
    assert!(more.has_fired());
    igb.disable(IrqIndex::Msix);
    let (_, eventfd) = Interrupt::new();
    igb.arm(IrqIndex::Intx, 0, vec![eventfd]).unwrap();
}

pub(crate) fn a_power_management_reset_comes_last() {
    let mut vmm = Vmm::start();
    let info = vmm.add(1, FIRST).unwrap();
    assert!(info.flags.contains(DeviceFlags::FUNCTION_RESET), "it has one, of a kind");
    assert_eq!(vmm.control.reset(Cookie(1), None, None).unwrap().method, ResetMethod::Hot);
    let asked = vmm.control.reset(Cookie(1), Some(ResetMethod::Function), None).unwrap();
    assert_eq!(asked.method, ResetMethod::Function);
}
