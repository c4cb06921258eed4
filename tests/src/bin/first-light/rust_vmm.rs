// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The frontend that Rust VMMs share: that of the `vhost` crate.

use std::os::fd::{AsFd, AsRawFd};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_device_vfio_tests::driver_ring::{DriverRing, SECTOR};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::server_process::wait_until;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::{MEMORY, Machine, PATTERN, RING, USER, VERSION_1};

/// Capacity in the configuration of a disk, 8 bytes.
const CAPACITY: &[u8] = &[0; 8];

fn region(memory: &GuestMemory) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: memory.region().guest_address,
        memory_size: MEMORY,
        userspace_addr: USER + memory.region().guest_address,
        mmap_offset: 0,
        mmap_handle: memory.as_fd().as_raw_fd(),
    }
}

/// Up to the memory, with all that both sides know but addresses of the guest: the crate names rings by its own.
fn connect(machine: &mut Machine) -> Frontend {
    let mut frontend = Frontend::from_stream(machine.socket(), 2);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    assert_eq!(features & VERSION_1.0, VERSION_1.0);
    frontend.set_features(VERSION_1.0).unwrap();
    let known = frontend.get_protocol_features().unwrap();
    let agreed = known & !VhostUserProtocolFeatures::GPA_ADDRESSES;
    frontend.set_protocol_features(agreed).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert!(frontend.get_queue_num().unwrap() >= 1);
    let (_, capacity) = frontend.get_config(0, 8, VhostUserConfigFlags::empty(), CAPACITY).unwrap();
    assert_eq!(capacity, 0x2_0000_u64.to_le_bytes(), "64 MiB in sectors");
    frontend.set_mem_table(&[region(&machine.memory)]).unwrap();
    frontend
}

fn start(frontend: &mut Frontend, ring: &DriverRing<'_>, base: u16, [kick, call]: &[EventFd; 2]) {
    let [descriptors, available, used] = ring.areas().map(|address| USER + address);
    let areas = VringConfigData {
        queue_max_size: ring.size(),
        queue_size: ring.size(),
        flags: 0,
        desc_table_addr: descriptors,
        used_ring_addr: used,
        avail_ring_addr: available,
        log_addr: None,
    };
    frontend.set_vring_num(0, ring.size()).unwrap();
    frontend.set_vring_addr(0, &areas).unwrap();
    frontend.set_vring_base(0, base).unwrap();
    frontend.set_vring_call(0, call).unwrap();
    frontend.set_vring_kick(0, kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
}

fn expect_works(ring: &mut DriverRing<'_>, [kick, call]: &[EventFd; 2]) {
    for is_read in [false, true] {
        if is_read {
            ring.offer_read(3);
        } else {
            ring.offer_write(3, &PATTERN);
        }
        kick.write(1).unwrap();
        assert!(wait_until(|| ring.is_done()), "the device does nothing");
        assert!(wait_until(|| call.read().is_ok()), "no interrupt arrives");
        let (status, data) = ring.outcome();
        assert_eq!((status, data.get(..SECTOR)), (0, Some(PATTERN.as_slice())));
    }
}

pub(crate) fn the_frontend_of_the_vhost_crate_reads_back_what_it_wrote() {
    let mut machine = Machine::new();
    let mut frontend = connect(&mut machine);
    let mut ring = DriverRing::new(&machine.memory, RING, 16);
    let eventfds = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    start(&mut frontend, &ring, 0, &eventfds);
    expect_works(&mut ring, &eventfds);
    // It goes on where it was.
    frontend.set_vring_enable(0, false).unwrap();
    let base = frontend.get_vring_base(0).unwrap();
    start(&mut frontend, &ring, u16::try_from(base).unwrap(), &eventfds);
    expect_works(&mut ring, &eventfds);
    let more = GuestMemory::new(MEMORY, MEMORY);
    frontend.add_mem_region(&region(&more)).unwrap();
    expect_works(&mut ring, &eventfds);
    frontend.remove_mem_region(&region(&more)).unwrap();
    frontend.reset_device().unwrap();
    let mut ring = DriverRing::new(&machine.memory, RING, 16);
    start(&mut frontend, &ring, 0, &eventfds);
    expect_works(&mut ring, &eventfds);
}
