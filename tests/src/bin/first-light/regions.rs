// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that map the BARs of their devices by themselves, as they may with `--bar-access mmap`.

use std::process::Command;

use protocol::vfio_user::{RegionInfo, SparseMmapArea};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::mapped_bar::MappedBar;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::{ServerProcess, server_binary};
use vhost_device_vfio_tests::vmm::Vmm;

use super::FIRST;

const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;

/// The first function, from a server that lets clients map, with memory decoding on.
fn mappable() -> (Vmm, PciFunction) {
    let mut command = Command::new(server_binary());
    command.args(Host::current().arguments()).args(["--bar-access", "mmap"]);
    let mut vmm = Vmm::with_server(ServerProcess::start_command(command));
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    (vmm, function)
}

/// Offsets and sizes of what can be mapped of a BAR where that is not all of it.
fn areas(function: &mut PciFunction, bar: u32) -> Vec<(u64, u64)> {
    let described = function.client.region(bar).unwrap();
    assert_ne!(described.info.flags & RegionInfo::MMAP, 0);
    described.areas.iter().map(|SparseMmapArea { offset, size }| (*offset, *size)).collect()
}

pub(crate) fn a_bar_is_mapped_through_the_devices_descriptor() {
    let (_vmm, mut function) = mappable();
    let bar = function.client.region(0).unwrap();
    assert_eq!((bar.info.offset, bar.areas.as_slice()), (0, [].as_slice()));
    let size = usize::try_from(bar.info.size).unwrap();
    let mapped = MappedBar::new(&bar, 0, size).unwrap();
    assert_eq!(mapped.read(0), Edu::new(&mut function).identification());
}

pub(crate) fn only_bars_in_memory_space_are_mapped() {
    let (_vmm, mut function) = mappable();
    for region in 1..9 {
        let described = function.client.region(region).unwrap();
        assert_eq!(described.info.flags & RegionInfo::MMAP, 0, "region {region}");
        assert!(described.file.is_none(), "region {region}");
    }
}

pub(crate) fn the_interrupt_tables_of_nvme_are_left_out() {
    let (_vmm, mut function) = mappable();
    assert_eq!(areas(&mut function, 0), [(0, 0x2000)]);
    let bar = function.client.region(0).unwrap();
    let mapped = MappedBar::new(&bar, 0, 0x2000).unwrap();
    assert_eq!(mapped.read(8), function.read(0, 8), "the controller's version");
}

pub(crate) fn the_interrupt_tables_of_igb_are_left_out() {
    let (_vmm, mut function) = mappable();
    assert_eq!(areas(&mut function, 3), [(0x1000, 0x1000), (0x3000, 0x1000)]);
    assert_eq!(areas(&mut function, 0), []);
    let bar = function.client.region(0).unwrap();
    let mapped = MappedBar::new(&bar, 0, 0x1000).unwrap();
    assert_eq!(mapped.read(usize::try_from(IGB_VET).unwrap()), IGB_VET_DEFAULT);
    function.write(0, IGB_VET, 0x1234);
    assert_eq!(
        mapped.read(usize::try_from(IGB_VET).unwrap()),
        0x1234,
        "mapped and trapped, it is one register"
    );
}
