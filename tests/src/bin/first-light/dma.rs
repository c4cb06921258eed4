// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory is where the device looks for it, and nothing else is.

use std::os::fd::AsFd;

use protocol::extension::KernelFeatures;
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::ServerProcess;
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

use super::FIRST;

const MEMORY: u64 = 3 << 20;
const SOURCE: u64 = 0x10_0000;
const TARGET: u64 = 0x20_3000;
const LENGTH: u64 = 2048;

/// Has the device copy a fresh pattern within guest memory, and tells whether it arrived.
pub(crate) fn copy_arrives(edu: &mut Edu<'_>, memory: &GuestMemory) -> bool {
    let pattern: Vec<u8> = (0..LENGTH).map(|number| u8::try_from(number % 251).unwrap()).collect();
    memory.write(SOURCE, &pattern);
    memory.write(TARGET, &vec![0xff; pattern.len()]);
    edu.copy(SOURCE, TARGET, LENGTH);
    memory.read(TARGET, pattern.len()) == pattern
}

/// A VMM with guest memory that is mapped, and a device that may reach it.
fn enabled_device() -> (Vmm, GuestMemory, PciFunction) {
    let memory = GuestMemory::new(0, MEMORY);
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.map(&memory).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    (vmm, memory, function)
}

pub(crate) fn dma_arrives_in_guest_memory() {
    let (_vmm, memory, mut function) = enabled_device();
    assert!(copy_arrives(&mut Edu::new(&mut function), &memory));
}

pub(crate) fn dma_of_unmapped_memory_does_not_arrive() {
    let (mut vmm, memory, mut function) = enabled_device();
    let mut edu = Edu::new(&mut function);
    assert!(copy_arrives(&mut edu, &memory), "it has to arrive once, or the rest shows nothing");
    vmm.unmap_all().unwrap();
    assert!(!copy_arrives(&mut edu, &memory));
    assert_eq!(memory.read(TARGET, 4), [0xff; 4], "memory is as it was");
}

pub(crate) fn a_table_before_the_first_device_is_mapped_with_it() {
    let memory = GuestMemory::new(0, MEMORY);
    let mut vmm = Vmm::start();
    vmm.map(&memory).unwrap();
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    assert!(copy_arrives(&mut Edu::new(&mut function), &memory));
}

pub(crate) fn regions_come_and_go_one_by_one() {
    let (low, high) = (GuestMemory::new(0, MEMORY), GuestMemory::new(1 << 32, MEMORY));
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.control.add_memory_region(low.region(), low.as_fd()).unwrap();
    vmm.control.add_memory_region(high.region(), high.as_fd()).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    let mut edu = Edu::new(&mut function);
    low.write(SOURCE, b"from low to high");
    edu.copy(SOURCE, (1 << 32) + TARGET, 16);
    assert_eq!(high.read((1 << 32) + TARGET, 16), b"from low to high");
    vmm.control.remove_memory_region(high.region()).unwrap();
    assert!(copy_arrives(&mut edu, &low), "the other region stays mapped");
    low.write(SOURCE, b"must not arrive!");
    edu.copy(SOURCE, (1 << 32) + TARGET, 16);
    assert_eq!(high.read((1 << 32) + TARGET, 16), b"from low to high");
}

pub(crate) fn a_failed_change_leaves_the_old_table() {
    let (mut vmm, memory, mut function) = enabled_device();
    let in_interrupt_window = GuestMemory::new(0xfee0_0000, 1 << 20);
    assert_eq!(refusal(vmm.map(&in_interrupt_window)).0, "region-reserved");
    assert!(copy_arrives(&mut Edu::new(&mut function), &memory));
}

pub(crate) fn guest_memory_stays_out_of_the_server_where_the_kernel_allows() {
    let memory = GuestMemory::new(0, MEMORY);
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.map(&memory).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vmm.server.id())).unwrap();
    let can_map_files = vmm.kernel_features.contains(KernelFeatures::MAP_FILE);
    assert_eq!(
        can_map_files,
        std::env::var("TESTVM_KERNEL").unwrap() != "6.12",
        "IOMMU_IOAS_MAP_FILE came with 6.13"
    );
    assert_eq!(maps.contains("memfd:guest"), !can_map_files, "{maps}");
}

pub(crate) fn a_table_over_the_memory_lock_limit_leaves_the_old_one() {
    // Below what anybody may lock by default, so that it can be set anywhere.
    const LIMIT: u64 = 4 << 20;
    let (small, large) = (GuestMemory::new(0, LIMIT - (1 << 20)), GuestMemory::new(0, 2 * LIMIT));
    let mut vmm = Vmm::with_server(ServerProcess::start_with_limit(LIMIT));
    vmm.add(1, FIRST).unwrap();
    vmm.map(&small).unwrap();
    let mut function = vmm.open(1);
    function.enable();
    assert_eq!(refusal(vmm.map(&large)).0, "memory-lock-limit");
    let failure = vmm.control.last_failure().unwrap().unwrap().failure;
    for part in [format!("was {LIMIT} bytes"), format!("LimitMEMLOCK={} ", 2 * LIMIT)] {
        assert!(failure.to_string().contains(&part), "{failure}");
    }
    assert!(copy_arrives(&mut Edu::new(&mut function), &small));
}
