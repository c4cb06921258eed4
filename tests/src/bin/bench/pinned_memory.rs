// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that is pinned for two servers of a VM, which share an address space, and for two that do not.

use vfio::PciAddress;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;

use crate::comparison::{Comparison, Figure, Goal};
use crate::served_vm::{self, ServedVm};
use crate::{FIRST, SECOND};

const SIZE: u64 = 64 << 20;

/// What these processes have pinned.
fn pinned(processes: impl IntoIterator<Item = u32>) -> u64 {
    processes.into_iter().map(|process| Host::current().pinned_memory_of(process)).sum()
}

/// The same memory for two functions, one in each server.
pub(crate) fn pinned_memory() -> Vec<Comparison> {
    let memory = GuestMemory::new(0, SIZE);
    let functions: [PciAddress; 2] = [FIRST, SECOND].map(|address| address.parse().expect("a PCI address"));
    let mut vm = ServedVm::start(Host::current(), served_vm::SERVER, &functions, functions.len());
    vm.map(&memory);
    let shared = pinned(vm.processes());
    drop(vm);
    let alone = functions.map(|function| {
        let mut vm = ServedVm::start(Host::current(), served_vm::SERVER, &[function], 1);
        vm.map(&memory);
        vm
    });
    let each = pinned(alone.iter().flat_map(ServedVm::processes));
    vec![Comparison {
        figure: Figure::Memory(shared),
        other_name: "address space for each".into(),
        other: Figure::Memory(each),
        goal: Goal::Ratio(0.5),
    }]
}
