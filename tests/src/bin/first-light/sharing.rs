// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two servers of one VM: one iommufd, one address space, a function of the IOMMU group in each.

use std::sync::Arc;

use protocol::extension::IoasChoice;
use vfio::{Ioas, Iommufd};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::node;
use vhost_device_vfio_tests::server_process::{ServerProcess, wait_until};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

use super::{FIRST, SECOND};

const SIZE: u64 = 1 << 20;

/// A VM whose first server has the first function and fills the address space, which the second one adopts.
struct TwoServers {
    // The address space goes last.
    first: Vmm,
    second: Vmm,
    ioas: Ioas,
}

impl TwoServers {
    fn start() -> Self {
        let iommufd = node::iommufd();
        let ours = Iommufd::from_fd(iommufd.try_clone().unwrap().into(), &Host::current().sysfs()).unwrap();
        let ioas = Ioas::allocate(Arc::new(ours)).unwrap();
        let server =
            |choice| Vmm::with_address_space(ServerProcess::start(), iommufd.try_clone().unwrap(), choice);
        let mut first = server(IoasChoice::Fill(ioas.id()));
        let mut second = server(IoasChoice::Adopt(ioas.id()));
        first.add(1, FIRST).unwrap();
        second.add(2, SECOND).unwrap();
        Self { first, second, ioas }
    }
}

/// Whether the device of this cookie can copy within the memory.
fn copy_arrives(vmm: &mut Vmm, cookie: u64, memory: &GuestMemory) -> bool {
    let mut function = vmm.open(cookie);
    function.enable();
    memory.write(0x1000, &[0; 6]);
    memory.write(0, b"shared");
    Edu::new(&mut function).copy(0, 0x1000, 6);
    memory.read(0x1000, 6) == b"shared"
}

pub(crate) fn functions_of_one_group_in_two_servers_reach_the_same_memory() {
    let mut vm = TwoServers::start();
    let memory = GuestMemory::new(0, SIZE);
    vm.first.map(&memory).unwrap();
    assert!(copy_arrives(&mut vm.first, 1, &memory));
    assert!(copy_arrives(&mut vm.second, 2, &memory));
    assert_eq!(refusal(vm.second.map(&memory)).0, "memory-is-adopted");
    vm.first.unmap_all().unwrap();
    assert!(!copy_arrives(&mut vm.second, 2, &memory));
}

pub(crate) fn guest_memory_is_pinned_once_for_two_servers() {
    let mut vm = TwoServers::start();
    vm.first.map(&GuestMemory::new(0, SIZE)).unwrap();
    let pinned = |vmm: &Vmm| Host::current().pinned_memory_of(vmm.server.id());
    println!("pinned: {} bytes by the first server, {} by the second", pinned(&vm.first), pinned(&vm.second));
    assert_eq!((pinned(&vm.first), pinned(&vm.second)), (SIZE, 0));
}

pub(crate) fn memory_goes_with_the_server_that_filled_it() {
    let TwoServers { first, mut second, ioas } = TwoServers::start();
    let (mut first, memory) = (first, GuestMemory::new(0, SIZE));
    first.map(&memory).unwrap();
    let Vmm { control, mut server, .. } = first;
    drop(control);
    assert!(server.wait_for_exit().success(), "its only client is gone");
    assert!(!copy_arrives(&mut second, 2, &memory));
    ioas.iova_ranges().expect("the address space outlives the server");
}

pub(crate) fn the_second_server_outlives_the_first() {
    let TwoServers { mut first, mut second, ioas: _ioas } = TwoServers::start();
    let memory = GuestMemory::new(0, SIZE);
    first.map(&memory).unwrap();
    first.server.kill();
    assert!(wait_until(|| Host::current().open_cdev(FIRST.parse().unwrap()).is_ok()));
    assert!(copy_arrives(&mut second, 2, &memory), "nobody has unmapped it");
}
