// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as clients of data faces describe it, each for its device.

use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::vmm::Vmm;

use super::dma::copy_arrives;
use super::{FIRST, SECOND};

const MEMORY: u64 = 3 << 20;
/// A hole that the VMM makes in it when firmware runs, outside of what [`copy_arrives`] uses.
const HOLE: u64 = 0x28_0000;
const HOLE_END: u64 = 0x2c_0000;

/// Whether the device reaches the hole.
fn reaches_hole(edu: &mut Edu<'_>, memory: &GuestMemory) -> bool {
    memory.write(HOLE, b"before");
    memory.write(HOLE - 0x1000, b"behind");
    edu.copy(HOLE - 0x1000, HOLE, 6);
    memory.read(HOLE, 6) == b"behind"
}

/// What QEMU does: all of it goes, and comes back in pieces.
fn make_hole(function: &mut PciFunction, memory: &GuestMemory) {
    function.unmap(0..MEMORY).unwrap();
    function.map(memory, 0..HOLE).unwrap();
    function.map(memory, HOLE_END..MEMORY).unwrap();
}

fn fill_hole(function: &mut PciFunction, memory: &GuestMemory) {
    function.unmap(0..HOLE).unwrap();
    function.unmap(HOLE_END..MEMORY).unwrap();
    function.map(memory, 0..MEMORY).unwrap();
}

pub(crate) fn memory_that_a_client_maps_is_reached_until_it_is_unmapped() {
    let memory = GuestMemory::new(0, MEMORY);
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    function.map(&memory, 0..MEMORY).unwrap();
    function.enable();
    assert!(copy_arrives(&mut Edu::new(&mut function), &memory));
    make_hole(&mut function, &memory);
    assert!(copy_arrives(&mut Edu::new(&mut function), &memory));
    assert!(!reaches_hole(&mut Edu::new(&mut function), &memory));
    fill_hole(&mut function, &memory);
    assert!(reaches_hole(&mut Edu::new(&mut function), &memory));
    function.unmap(0..MEMORY).unwrap();
    assert!(!copy_arrives(&mut Edu::new(&mut function), &memory));
}

/// Two functions of one IOMMU group in one guest of a stock QEMU, which tells the memory once for each device and changes it
/// for one after the other.
pub(crate) fn memory_that_two_clients_have_changes_with_each_of_them() {
    let memory = GuestMemory::new(0, MEMORY);
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.add(2, SECOND).unwrap();
    let mut functions = [vmm.open(1), vmm.open(2)];
    for function in &mut functions {
        function.map(&memory, 0..MEMORY).unwrap();
        function.enable();
    }
    let [first, second] = &mut functions;
    make_hole(first, &memory);
    assert!(reaches_hole(&mut Edu::new(&mut *first), &memory), "the other client has it still");
    make_hole(second, &memory);
    for function in [&mut *first, &mut *second] {
        assert!(!reaches_hole(&mut Edu::new(&mut *function), &memory));
        assert!(copy_arrives(&mut Edu::new(&mut *function), &memory), "the rest is where it was");
    }
    fill_hole(first, &memory);
    assert!(reaches_hole(&mut Edu::new(&mut *second), &memory), "functions of a group see the same");
    drop(functions);
    let mut next = vmm.open(1);
    next.enable();
    assert!(!copy_arrives(&mut Edu::new(&mut next), &memory), "what a client maps goes with it");
}

pub(crate) fn memory_that_a_client_maps_for_reading_is_not_written() {
    let (low, high) = (GuestMemory::new(0, MEMORY), GuestMemory::new(1 << 24, MEMORY));
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    function.map(&low, 0..MEMORY).unwrap();
    function.map_read_only(&high, 1 << 24..(1 << 24) + MEMORY).unwrap();
    function.enable();
    let mut edu = Edu::new(&mut function);
    high.write(1 << 24, b"can be read");
    edu.copy(1 << 24, 0x1000, 11);
    assert_eq!(low.read(0x1000, 11), b"can be read");
    edu.copy(0x1000, (1 << 24) + 0x1000, 11);
    assert_eq!(high.read((1 << 24) + 0x1000, 11), [0; 11]);
}
