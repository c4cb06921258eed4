// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client that is not ours drives the device: that of Cloud Hypervisor, the crate `vfio_user`.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;

use protocol::extension::{Cookie, Face};
use tempfile::TempDir;
use vfio::config_space::command;
use vfio::{IrqIndex, RegionIndex};
use vfio_user::Client;
use vhost_device_vfio_tests::edu::{Edu, Registers};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::vmm::Vmm;

use super::FIRST;
use super::dma::copy_arrives;

const IDENTIFICATION: u32 = 0x0100_00ed;
const MEMORY: u64 = 3 << 20;
const CONFIG: u32 = RegionIndex::CONFIG.0;
const COMMAND: u64 = 4;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
const SET_EVENTFDS: u32 = 0x24;
/// `VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER`.
const DISABLE: u32 = 0x21;

/// A VMM that has handed the device over, and the client of its data face.
struct Peer {
    client: Client,
    _vmm: Vmm,
    _folder: TempDir,
}

impl Peer {
    fn new() -> Self {
        let mut vmm = Vmm::start();
        vmm.add(1, FIRST).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("face");
        vmm.control.serve(Cookie(1), Face::VfioUser, UnixListener::bind(&path).unwrap()).unwrap();
        Self { client: Client::new(&path).unwrap(), _vmm: vmm, _folder: folder }
    }

    fn command(&mut self) -> u16 {
        let mut data = [0; 2];
        self.client.region_read(CONFIG, COMMAND, &mut data).unwrap();
        u16::from_le_bytes(data)
    }

    fn enable(&mut self) {
        let value = command::MEMORY | command::BUS_MASTER;
        self.client.region_write(CONFIG, COMMAND, &value.to_le_bytes()).unwrap();
    }

    fn map(&mut self, memory: &GuestMemory) {
        self.client.dma_map(0, 0, MEMORY, memory.as_fd().as_raw_fd()).unwrap();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Peer").finish_non_exhaustive()
    }
}

impl Registers for &mut Peer {
    fn read_register(&mut self, region: u32, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.client.region_read(region, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write_register(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.client.region_write(region, offset, data).unwrap();
    }
}

pub(crate) fn cloud_hypervisors_client_finds_the_device() {
    let mut peer = Peer::new();
    assert_eq!(peer.client.region(0).map(|region| region.size), Some(1 << 20));
    assert!(peer.client.region(CONFIG).is_some_and(|config| config.size >= 256));
    assert!(peer.client.region(RegionIndex::CONFIG.0 + 2).is_none());
    for (index, count) in [(IrqIndex::Intx, 1), (IrqIndex::Msi, 1), (IrqIndex::Msix, 0)] {
        assert_eq!(peer.client.get_irq_info(index.number()).unwrap().count, count, "{index:?}");
    }
    peer.enable();
    assert_eq!(Edu::new(&mut peer).identification(), IDENTIFICATION);
}

pub(crate) fn cloud_hypervisors_client_has_the_device_reach_its_memory() {
    let (mut peer, memory) = (Peer::new(), GuestMemory::new(0, MEMORY));
    peer.map(&memory);
    peer.enable();
    assert!(copy_arrives(&mut Edu::new(&mut peer), &memory));
    peer.client.dma_unmap(0, MEMORY).unwrap();
    assert!(!copy_arrives(&mut Edu::new(&mut peer), &memory));
    peer.map(&memory);
    assert!(copy_arrives(&mut Edu::new(&mut peer), &memory));
}

pub(crate) fn cloud_hypervisors_client_is_interrupted() {
    let mut peer = Peer::new();
    peer.enable();
    let (interrupt, eventfd) = Interrupt::new();
    let msi = IrqIndex::Msi.number();
    peer.client.set_irqs(msi, SET_EVENTFDS, 0, 1, &[eventfd.as_raw_fd()]).unwrap();
    Edu::new(&mut peer).raise_interrupt();
    assert!(interrupt.fires());
    Edu::new(&mut peer).acknowledge_interrupt();
    peer.client.set_irqs(msi, DISABLE, 0, 0, &[]).unwrap();
    Edu::new(&mut peer).raise_interrupt();
    assert!(interrupt.is_silent());
}

pub(crate) fn cloud_hypervisors_client_resets_the_device() {
    let (mut peer, memory) = (Peer::new(), GuestMemory::new(0, MEMORY));
    peer.map(&memory);
    peer.enable();
    peer.client.reset().unwrap();
    assert_eq!(peer.command() & command::BUS_MASTER, 0);
    peer.enable();
    assert!(copy_arrives(&mut Edu::new(&mut peer), &memory), "the memory stays mapped");
}
