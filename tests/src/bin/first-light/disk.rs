// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio function of the machine, a vhost-user frontend of it, and the driver of its guest, who uses one ring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use protocol::extension::{Cookie, DeviceFlags, Face};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{Frontend, FrontendChannel, FrontendError, MemoryRegion, Vring};
use rustix::io::Errno;
use vhost_device_vfio_tests::driver_ring::{DriverRing, SECTOR};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::server_process::{PATIENCE, wait_until};
use vhost_device_vfio_tests::vmm::Vmm;

use super::FIRST;

pub(crate) const ALL: ProtocolFeatures = ProtocolFeatures::OF_DEVICES;
pub(crate) const MEMORY: u64 = 1 << 20;
pub(crate) const RING: u64 = 0x1_0000;
pub(crate) const VERSION_1: VirtioFeatures = VirtioFeatures(1 << 32 | 1 << 30);
/// Where a frontend has the memory that does not name rings as the guest does.
pub(crate) const USER: u64 = 0x7f00_0000_0000;
pub(crate) const PATTERN: [u8; SECTOR] = [0x5a; SECTOR];
pub(crate) const READY: u8 = 0xf;

/// A VMM with the function, which a frontend can connect to.
pub(crate) struct Machine {
    pub(crate) vmm: Vmm,
    pub(crate) memory: GuestMemory,
}

impl Machine {
    /// With a server that was started as usual.
    pub(crate) fn new() -> Self {
        Self::with_vmm(Vmm::start())
    }

    pub(crate) fn with_vmm(mut vmm: Vmm) -> Self {
        vmm.add(1, FIRST).unwrap();
        Self { vmm, memory: GuestMemory::new(0, MEMORY) }
    }

    pub(crate) fn socket(&mut self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        self.vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
        near
    }

    /// Waits until nobody has the device.
    pub(crate) fn wait_until_free(&mut self) {
        let control = &mut self.vmm.control;
        assert!(wait_until(|| control.device_info(Cookie(1)).unwrap().flags.0 & DeviceFlags::SERVED.0 == 0));
    }

    /// A frontend that has agreed on `features`, and described the memory.
    pub(crate) fn connect(&mut self, features: ProtocolFeatures) -> Disk<'_> {
        let socket = self.socket();
        Disk::connect(socket, &self.memory, features)
    }
}

/// Eventfds, and their copies to hand over.
fn eventfds() -> ([Interrupt; 3], [OwnedFd; 3]) {
    let [(first, a), (second, b), (third, c)] = [(); 3].map(|()| Interrupt::new());
    ([first, second, third], [a, b, c])
}

/// A frontend, and the driver of its guest.
pub(crate) struct Disk<'a> {
    pub(crate) frontend: Frontend,
    pub(crate) ring: DriverRing<'a>,
    /// What is added to the guest's addresses.
    addresses: u64,
    pub(crate) kick: Interrupt,
    pub(crate) call: Interrupt,
    pub(crate) error: Interrupt,
    pub(crate) far: [OwnedFd; 3],
    pub(crate) channel: FrontendChannel,
}

impl<'a> Disk<'a> {
    pub(crate) fn connect(socket: UnixStream, memory: &'a GuestMemory, features: ProtocolFeatures) -> Self {
        let mut frontend = Frontend::new(socket, PATIENCE);
        frontend.negotiate(features).unwrap();
        let region = MemoryRegion { user_address: USER, ..memory.region() };
        frontend.set_memory_table(&[region], &[memory.as_fd()]).unwrap();
        let channel = frontend.open_backend_channel().unwrap();
        let addresses = if features.contains(ProtocolFeatures::GPA_ADDRESSES) { 0 } else { USER };
        let ring = DriverRing::new(memory, RING, 16);
        let ([kick, call, error], far) = eventfds();
        Self { frontend, ring, addresses, kick, call, error, far, channel }
    }

    /// What QEMU says of one ring, up to `DRIVER_OK`.
    pub(crate) fn start(&mut self, base: u32) -> Result<(), FrontendError> {
        self.frontend.set_features(VERSION_1)?;
        let [kick, call, error] = self.far.each_ref().map(AsFd::as_fd);
        let vring = self.vring(base, kick, call);
        self.frontend.start_vring(0, &vring)?;
        self.frontend.set_vring_error(0, Some(error))?;
        self.frontend.set_vring_enable(0, true)?;
        self.frontend.set_status(READY)
    }

    pub(crate) fn vring<'fd>(&self, base: u32, kick: BorrowedFd<'fd>, call: BorrowedFd<'fd>) -> Vring<'fd> {
        let [descriptors, available, used] = self.ring.areas().map(|address| address + self.addresses);
        Vring { size: self.ring.size(), base, descriptors, available, used, kick, call }
    }

    pub(crate) fn stop(&mut self) -> u32 {
        self.frontend.set_vring_enable(0, false).unwrap();
        let base = self.frontend.stop_vring(0).unwrap();
        self.frontend.set_status(0).unwrap();
        base
    }

    /// Has the device do what was offered, and be told so.
    pub(crate) fn done(&self) -> (u8, Vec<u8>) {
        self.kick.signal();
        assert!(wait_until(|| self.ring.is_done()), "the device does nothing");
        assert!(self.call.fires(), "no interrupt arrives");
        self.ring.outcome()
    }

    pub(crate) fn expect_works(&mut self) {
        self.ring.offer_write(3, &PATTERN);
        assert_eq!(self.done().0, 0);
        self.ring.offer_read(3);
        assert_eq!(self.done(), (0, PATTERN.to_vec()));
    }
}

/// Why something was refused.
pub(crate) fn errno<T>(result: Result<T, FrontendError>) -> Errno {
    match result {
        Err(FrontendError::Refused { errno: Some(errno), .. }) => errno,
        Err(other) => panic!("{other} instead of a refusal"),
        Ok(_) => panic!("done instead of refused"),
    }
}
