// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client that is not ours, that of Cloud Hypervisor (the crate `vfio_user`), with devices of modelled machines. With an edu
//! device it is part of first light. It takes no notice of errors, so each effect is looked at.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::SealFlags;
use vfio::IrqIndex;
use vfio::config_space::command;
use vfio_user::Client;
use vhost_device_vfio_tests::guest_memory::{GuestMemory, memfd};
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::server_process::wait_until;

const MIB: u64 = 1 << 20;
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
/// igb's VLAN `EtherType` register and what it holds after a reset.
const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;
/// Most descriptors that the client sends with one message, whatever the server says.
const BATCH: usize = 16;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
const SET_EVENTFDS: u32 = 0x24;
/// `VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER`.
const FIRE: u32 = 0x21;

/// The first function of a topology as device 1, and where its data face listens.
fn listening(topology: &str) -> (ModelledVm, PathBuf) {
    let mut vm = ModelledVm::start(topology, &[]);
    vm.vmm.add(1, "0000:01:00.0").unwrap();
    let path = vm.listen(1);
    (vm, path)
}

fn enable(client: &mut Client) {
    let value = command::MEMORY | command::BUS_MASTER;
    client.region_write(CONFIG, COMMAND, &value.to_le_bytes()).unwrap();
}

fn read(client: &mut Client, region: u32, offset: u64) -> u32 {
    let mut data = [0; 4];
    client.region_read(region, offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

fn pinned(vm: &ModelledVm) -> u64 {
    vm.machine.host().pinned_memory_of(vm.vmm.server.id())
}

#[test]
fn it_finds_what_our_own_client_finds() {
    for topology in ["nvme", "igb-pair", "edu-pair"] {
        let (_vm, path) = listening(topology);
        let mut ours = connect_face(&path);
        let device = ours.client.device_info().unwrap();
        let regions: Vec<_> =
            (0..device.num_regions).map(|index| ours.client.region_info(index).unwrap()).collect();
        let irqs: Vec<_> = (0..device.num_irqs).map(|index| ours.client.irq_info(index).unwrap()).collect();
        drop(ours);
        let mut peer = client(&path);
        for expected in regions {
            let found = peer.region(expected.index).unwrap();
            assert_eq!((found.size, found.flags), (expected.size, expected.flags), "{topology}");
        }
        for expected in irqs {
            let found = peer.get_irq_info(expected.index).unwrap();
            assert_eq!((found.count, found.flags), (expected.count, expected.flags), "{topology}");
        }
    }
}

/// The server may not have noticed yet that the client before has gone.
fn client(path: &Path) -> Client {
    let mut client = None;
    wait_until(|| {
        client = Client::new(path).ok();
        client.is_some()
    });
    client.expect("the client is served")
}

#[test]
fn registers_are_read_and_written() {
    let (_vm, path) = listening("igb-pair");
    let mut peer = client(&path);
    assert_eq!(read(&mut peer, CONFIG, 0) & 0xffff, 0x8086);
    enable(&mut peer);
    assert_eq!(read(&mut peer, 0, IGB_VET), IGB_VET_DEFAULT);
    peer.region_write(0, IGB_VET, &7_u32.to_le_bytes()).unwrap();
    assert_eq!(read(&mut peer, 0, IGB_VET), 7);
    let mut whole = [0; 256];
    peer.region_read(CONFIG, 0, &mut whole).unwrap();
    assert_eq!(whole[..2], [0x86, 0x80]);
}

#[test]
fn memory_is_pinned_from_its_mapping_to_its_unmapping() {
    let (vm, path) = listening("nvme");
    let mut peer = client(&path);
    // Two regions, as for memory below and above 4 GiB; stock VMMs seal nothing.
    let low = memfd(4 * MIB, SealFlags::empty());
    let high = GuestMemory::new(1 << 32, 2 * MIB);
    peer.dma_map(0, 0, 4 * MIB, low.as_raw_fd()).unwrap();
    peer.dma_map(0, 1 << 32, 2 * MIB, high.as_fd().as_raw_fd()).unwrap();
    assert_eq!(pinned(&vm), 6 * MIB);
    peer.dma_unmap(0, 4 * MIB).unwrap();
    assert_eq!(pinned(&vm), 2 * MIB);
    peer.dma_map(0, 0, 4 * MIB, low.as_raw_fd()).unwrap();
    drop(peer);
    assert!(wait_until(|| pinned(&vm) == 0), "{} bytes", pinned(&vm));
}

/// It sends 16 descriptors at a time, which is more than it lets the server send.
#[test]
fn vectors_come_sixteen_at_a_time() {
    let (_vm, path) = listening("nvme");
    let mut peer = client(&path);
    enable(&mut peer);
    let msix = IrqIndex::Msix.number();
    let count = usize::try_from(peer.get_irq_info(msix).unwrap().count).unwrap();
    assert!(count > BATCH, "{count} vectors");
    let (near, far): (Vec<_>, Vec<_>) = (0..count).map(|_| Interrupt::new()).unzip();
    let far: Vec<RawFd> = far.iter().map(AsRawFd::as_raw_fd).collect();
    for (batch, first) in far.chunks(BATCH).zip((0..).step_by(BATCH)) {
        let count = u32::try_from(batch.len()).unwrap();
        peer.set_irqs(msix, SET_EVENTFDS, first, count, batch).unwrap();
    }
    for vector in [0, BATCH - 1, BATCH, count - 1] {
        peer.set_irqs(msix, FIRE, u32::try_from(vector).unwrap(), 1, &[]).unwrap();
        assert!(near[vector].fires(), "vector {vector}");
    }
    peer.set_irqs(msix, FIRE, 0, 0, &[]).unwrap();
    peer.set_irqs(msix, FIRE, 0, 1, &[]).unwrap();
    assert!(near[0].is_silent());
}

#[test]
fn a_reset_brings_registers_to_their_defaults() {
    let (_vm, path) = listening("igb-pair");
    let mut peer = client(&path);
    enable(&mut peer);
    peer.region_write(0, IGB_VET, &7_u32.to_le_bytes()).unwrap();
    // The client has it the wrong way round, and is served nevertheless.
    assert!(!peer.resettable());
    peer.reset().unwrap();
    enable(&mut peer);
    assert_eq!(read(&mut peer, 0, IGB_VET), IGB_VET_DEFAULT);
}

#[test]
fn the_next_one_finds_a_device_without_a_trace_of_the_last() {
    let (vm, path) = listening("igb-pair");
    let memory = GuestMemory::new(0, MIB);
    for _ in 0..3 {
        let mut peer = client(&path);
        assert_eq!(read(&mut peer, CONFIG, COMMAND) & u32::from(command::BUS_MASTER), 0);
        enable(&mut peer);
        assert_eq!(read(&mut peer, 0, IGB_VET), IGB_VET_DEFAULT);
        peer.region_write(0, IGB_VET, &7_u32.to_le_bytes()).unwrap();
        peer.dma_map(0, 0, MIB, memory.as_fd().as_raw_fd()).unwrap();
        assert_eq!(pinned(&vm), MIB);
        peer.shutdown().unwrap();
    }
}
