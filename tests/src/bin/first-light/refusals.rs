// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel refuses is told apart; what was there before is unharmed.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use protocol::ControlClient;
use protocol::extension::{Cookie, Face, IoasChoice};
use protocol::vhost_user::MemoryRegion;
use rustix::io::Errno;
use vfio::{Iommufd, UnboundDevice};
use vhost_device_vfio_tests::foreign_file::ForeignFile;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::node;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

use super::{FIRST, SECOND};

/// A function bound to an iommufd of the test's own.
fn bind_here(address: &str) -> (Arc<Iommufd>, vfio::Device) {
    let sysfs = Host::current().sysfs();
    let iommufd = Arc::new(Iommufd::from_fd(node::iommufd().into(), &sysfs).unwrap());
    let device = UnboundDevice::from_fd(node::cdev(address).into(), &sysfs).unwrap();
    let device = device.bind(&iommufd, &sysfs).unwrap();
    (iommufd, device)
}

fn expect(refused: (String, i32), id: &str, errno: Errno) {
    let (actual, number) = refused;
    assert_eq!((actual.as_str(), number), (id, errno.raw_os_error()));
}

pub(crate) fn a_bound_device_is_refused() {
    let (_iommufd, _device) = bind_here(FIRST);
    let mut vmm = Vmm::start();
    let before = vmm.server.open_files();
    expect(refusal(vmm.add(1, FIRST)), "device-already-bound", Errno::INVAL);
    vmm.server.wait_for_log("device-already-bound");
    vmm.server.wait_for_open_files(before);
}

pub(crate) fn an_open_group_is_told() {
    let _group = node::group(FIRST);
    let mut vmm = Vmm::start();
    let before = vmm.server.open_files();
    expect(refusal(vmm.add(1, FIRST)), "group-open", Errno::BUSY);
    vmm.server.wait_for_open_files(before);
}

pub(crate) fn a_foreign_owner_is_told() {
    let (_iommufd, _device) = bind_here(SECOND);
    let mut vmm = Vmm::start();
    expect(refusal(vmm.add(1, FIRST)), "foreign-owner", Errno::PERM);
}

pub(crate) fn missing_interrupt_remapping_is_told() {
    let mut vmm = Vmm::start();
    expect(refusal(vmm.add(1, FIRST)), "no-interrupt-remapping", Errno::PERM);
}

pub(crate) fn a_cookie_is_used_once() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    expect(refusal(vmm.add(1, SECOND)), "cookie-in-use", Errno::EXIST);
    vmm.add(2, SECOND).unwrap();
}

pub(crate) fn regions_in_the_interrupt_window_are_refused() {
    let window = GuestMemory::new(0xfed0_0000, 4 << 20);
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let before = vmm.server.open_files();
    expect(refusal(vmm.map(&window)), "region-reserved", Errno::INVAL);
    let failure = vmm.control.last_failure().unwrap().unwrap().failure;
    assert!(failure.why().contains("0xfee00000-0xfeefffff"), "{failure}");
    vmm.server.wait_for_open_files(before);
}

pub(crate) fn overlapping_regions_are_refused() {
    let memory = GuestMemory::new(16 << 20, 4 << 20);
    let mut vmm = Vmm::start();
    vmm.control.add_memory_region(memory.region(), memory.as_fd()).unwrap();
    let before = vmm.server.open_files();
    for (address, size) in [(16 << 20, 4 << 20), (15 << 20, 2 << 20), (19 << 20, 2 << 20), (0, 64 << 20)] {
        let other = GuestMemory::new(address, size);
        let refused = vmm.control.add_memory_region(other.region(), other.as_fd());
        expect(refusal(refused), "region-overlaps", Errno::EXIST);
        let table = [memory.region(), other.region()];
        let refused = vmm.control.set_memory_table(&table, &[memory.as_fd(), other.as_fd()]);
        expect(refusal(refused), "region-overlaps", Errno::EXIST);
    }
    vmm.server.wait_for_open_files(before);
    vmm.control.remove_memory_region(memory.region()).unwrap();
}

pub(crate) fn a_region_goes_only_as_it_came() {
    let memory = GuestMemory::new(0, 4 << 20);
    let mut vmm = Vmm::start();
    vmm.map(&memory).unwrap();
    for region in [
        MemoryRegion { size: 2 << 20, ..memory.region() },
        MemoryRegion { guest_address: 2 << 20, size: 2 << 20, ..memory.region() },
        MemoryRegion { guest_address: 1 << 32, ..memory.region() },
    ] {
        expect(refusal(vmm.control.remove_memory_region(region)), "region-unknown", Errno::NOENT);
    }
    vmm.control.remove_memory_region(memory.region()).unwrap();
    expect(refusal(vmm.control.remove_memory_region(memory.region())), "region-unknown", Errno::NOENT);
}

pub(crate) fn more_regions_than_the_table_has_are_refused() {
    const PAGE: u64 = 4096;
    let mut vmm = Vmm::start();
    let slots = vmm.control.max_memory_slots().unwrap();
    let memory = GuestMemory::new(0, PAGE);
    let region = |number| MemoryRegion { guest_address: number * 2 * PAGE, ..memory.region() };
    for number in 0..slots {
        vmm.control.add_memory_region(region(number), memory.as_fd()).unwrap();
    }
    let refused = vmm.control.add_memory_region(region(slots), memory.as_fd());
    expect(refusal(refused), "too-many-regions", Errno::NOSPC);
}

pub(crate) fn nodes_are_no_substitutes_for_one_another() {
    let mut vmm = Vmm::start();
    let before = vmm.server.open_files();
    let region = GuestMemory::new(0, 4096).region();
    for file in [node::iommufd(), node::group(FIRST)] {
        let refused = vmm.control.add_memory_region(region, file.as_fd());
        expect(refusal(refused), "region-not-memory", Errno::INVAL);
        expect(refusal(vmm.control.add_device(Cookie(1), file)), "not-a-vfio-device", Errno::NODEV);
    }
    let refused = vmm.control.add_memory_region(region, node::cdev(FIRST).as_fd());
    expect(refusal(refused), "region-not-memory", Errno::INVAL);
    vmm.server.wait_for_open_files(before);
    vmm.add(1, FIRST).unwrap();
}

pub(crate) fn a_device_node_is_no_iommufd() {
    let (server, socket) = ServerProcess::start();
    let mut control = ControlClient::new(socket, PATIENCE);
    control.negotiate().unwrap();
    let before = server.open_files();
    for file in [node::cdev(FIRST), node::group(SECOND)] {
        let refused = control.set_iommufd(&file, IoasChoice::Allocate);
        expect(refusal(refused), "not-an-iommufd", Errno::INVAL);
    }
    server.wait_for_open_files(before);
}

pub(crate) fn a_face_needs_a_unix_stream() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let before = vmm.server.open_files();
    for ForeignFile { kind, file } in ForeignFile::all() {
        if !["a connected socket", "a listening socket"].contains(&kind) {
            let refused = vmm.control.serve(Cookie(1), Face::VfioUser, file);
            expect(refusal(refused), "not-a-unix-stream", Errno::NOTSOCK);
        }
    }
    let (_near, far) = UnixStream::pair().unwrap();
    let refused = vmm.control.serve(Cookie(1), Face::VhostUser, far);
    expect(refusal(refused), "not-virtio", Errno::NODEV);
    vmm.server.wait_for_open_files(before);
    vmm.open(1).enable();
}

pub(crate) fn a_second_iommufd_is_refused() {
    let mut vmm = Vmm::start();
    let refused = vmm.control.set_iommufd(node::iommufd().as_fd(), IoasChoice::Allocate);
    expect(refusal(refused), "iommufd-already-set", Errno::EXIST);
    vmm.add(1, FIRST).unwrap();
}

pub(crate) fn only_the_owner_takes_a_device_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let mut owner = Vmm::listening(&path);
    owner.add(1, FIRST).unwrap();
    let mut other = Vmm::connect_again(&path);
    expect(refusal(other.remove_device(Cookie(1))), "not-yours", Errno::PERM);
    drop(other);
    assert_eq!(owner.control.device_info(Cookie(1)).unwrap().cookie, Cookie(1));
}

pub(crate) fn a_second_face_is_refused() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let mut function = vmm.open(1);
    let (_near, far) = UnixStream::pair().unwrap();
    expect(refusal(vmm.control.serve(Cookie(1), Face::VfioUser, far)), "already-served", Errno::BUSY);
    function.enable();
    assert_ne!(function.command(), 0, "the first face still answers");
}

pub(crate) fn a_device_that_is_not_pci_is_told() {
    let parent = "/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1";
    let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    std::fs::write(format!("{parent}/create"), uuid).unwrap();
    let cdev = format!("/sys/bus/mdev/devices/{uuid}/vfio-dev");
    let cdev = std::fs::read_dir(cdev).unwrap().next().unwrap().unwrap().file_name();
    let node = std::path::Path::new("/dev/vfio/devices").join(cdev);
    let mut vmm = Vmm::start();
    let refused = vmm.control.add_device(Cookie(1), std::fs::File::open(node).unwrap());
    expect(refusal(refused), "not-a-vfio-device", Errno::NODEV);
}
