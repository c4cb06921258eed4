// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whoever goes leaves devices that are free for the next.

use std::io::Write;

use protocol::extension::Cookie;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::server_process::ServerProcess;
use vhost_device_vfio_tests::vmm::Vmm;

use super::{FIRST, SECOND};

pub(crate) fn closing_the_connection_frees_the_devices() {
    let memory = GuestMemory::new(0, 1 << 20);
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.add(2, SECOND).unwrap();
    vmm.map(&memory).unwrap();
    let _function = vmm.open(1);
    let Vmm { mut server, control, iommufd: _iommufd, .. } = vmm;
    drop(control);
    assert!(server.wait_for_exit().success(), "{}", server.log());
    // Another context takes both, although the VMM still holds the first one.
    let mut next = Vmm::start();
    next.add(1, FIRST).unwrap();
    next.add(2, SECOND).unwrap();
}

pub(crate) fn a_removed_device_can_be_used_again() {
    let mut vmm = Vmm::start();
    for _ in 0..3 {
        vmm.add(1, FIRST).unwrap();
        let _function = vmm.open(1);
        vmm.control.remove_device(Cookie(1)).unwrap();
    }
    let mut next = Vmm::start();
    next.add(1, FIRST).unwrap();
}

pub(crate) fn a_killed_client_leaves_nothing_behind() {
    let (server, socket) = ServerProcess::start();
    let mut raw = socket.try_clone().unwrap();
    let mut vmm = Vmm::with_server((server, socket));
    vmm.add(1, FIRST).unwrap();
    // Half of a header, and then the end: as when the VMM is killed while it sends.
    raw.write_all(&[1, 0, 0, 0, 1]).unwrap();
    let Vmm { mut server, control, .. } = vmm;
    drop((raw, control));
    assert!(server.wait_for_exit().success(), "{}", server.log());
    Vmm::start().add(1, FIRST).unwrap();
}

pub(crate) fn descriptors_are_as_before_after_add_and_remove() {
    let mut vmm = Vmm::start();
    let before = vmm.server.open_files();
    for _ in 0..5 {
        vmm.add(1, FIRST).unwrap();
        drop(vmm.open(1));
        vmm.control.remove_device(Cookie(1)).unwrap();
    }
    vmm.server.wait_for_open_files(before);
}

pub(crate) fn sigterm_ends_the_server_at_once() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    vmm.server.terminate();
    assert!(vmm.server.wait_for_exit().success(), "{}", vmm.server.log());
    Vmm::start().add(1, FIRST).unwrap();
}
