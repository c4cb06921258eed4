// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio function whose rings the hardware runs, driven as for a frontend: from what that says to a sector that arrives.

use std::os::fd::AsFd;
use std::sync::Arc;

use sandbox::{Filters, Scope, Thread, Violation};
use vfio::{Access, Device, Ioas, Iommufd, Iova, PciAddress, UnboundDevice};
use vhost_device_vfio::failure::Failure;
use vhost_device_vfio::memory::{GuestAddress, MemoryRegion, MemoryView};
use vhost_device_vfio::virtio::features::{PROTOCOL_FEATURES, VERSION_1};
use vhost_device_vfio::virtio::{Action, Base, Course, DeviceStatus, Drive, Eventfd, Relay, RingAreas};
use vhost_device_vfio_tests::driver_ring::{DriverRing, RING_SPACE, SECTOR};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::server_process::wait_until;

use super::{FIRST, SECOND};

const MEMORY: u64 = 1 << 20;
const RING: u64 = 0x1_0000;
const READY: DeviceStatus = DeviceStatus(0xf);
const PATTERN: [u8; SECTOR] = [0x5a; SECTOR];

/// A function with guest memory, bound by this process.
struct Function {
    memory: GuestMemory,
    device: Arc<Device>,
    _ioas: Ioas,
}

impl Function {
    fn open(address: &str) -> Self {
        let host = Host::current();
        let sysfs = host.sysfs();
        let address: PciAddress = address.parse().unwrap();
        let iommufd = Iommufd::from_fd(host.open_iommufd().unwrap().into(), &sysfs).unwrap();
        let iommufd = Arc::new(iommufd);
        let unbound = UnboundDevice::from_fd(host.open_cdev(address).unwrap().into(), &sysfs).unwrap();
        let device = unbound.bind(&iommufd, &sysfs).unwrap();
        let mut ioas = Ioas::allocate(iommufd).unwrap();
        device.attach_ioas(&ioas).unwrap();
        let memory = GuestMemory::new(0, MEMORY);
        let file = memory.as_fd().try_clone_to_owned().unwrap();
        ioas.map_file(&file, 0, MEMORY, Iova(0), Access::ReadWrite).unwrap();
        Self { memory, device: Arc::new(device), _ioas: ioas }
    }

    fn drive(&self) -> Result<Drive, Failure> {
        let filters = filters();
        let relay = Relay::start(move || filters.install(Thread::Kick).unwrap()).unwrap();
        let (device, relay) = (Arc::clone(&self.device), Arc::new(relay));
        on_worker(|| Drive::new(device, relay))
    }
}

fn filters() -> Filters {
    Filters::compile(Scope { sysfs: false, new_devices: false, violation: Violation::Kill }).unwrap()
}

/// Has something done on a thread that is confined as the server's worker is.
fn on_worker<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let filters = filters();
    std::thread::scope(|scope| {
        let confined = scope.spawn(move || {
            filters.install(Thread::Worker).unwrap();
            work()
        });
        confined.join().unwrap()
    })
}

/// A frontend, the device, and an eventfd of each kind.
struct Frontend {
    course: Course,
    drive: Drive,
    kick: Interrupt,
    call: Interrupt,
}

impl Frontend {
    fn of(function: &Function) -> Self {
        let mut drive = function.drive().unwrap();
        let file = function.memory.as_fd().try_clone_to_owned().unwrap();
        let region = MemoryRegion::sealed(GuestAddress(0), MEMORY, 0, file).unwrap();
        drive.set_memory(MemoryView::from_regions([region]).unwrap());
        let registers = drive.function();
        let mut course =
            Course::new(registers.features(), registers.largest_sizes().to_vec(), registers.queue_pairs());
        course.tell_status(true);
        Self { course, drive, kick: Interrupt::new().0, call: Interrupt::new().0 }
    }

    fn carry_out(&mut self, actions: Result<Vec<Action>, Failure>) -> Result<(), Failure> {
        let actions = actions?;
        if actions.is_empty() {
            return Ok(());
        }
        on_worker(|| self.drive.carry_out(actions))
    }

    /// What QEMU says of one ring, up to `DRIVER_OK`.
    fn start(&mut self, ring: &DriverRing<'_>, base: Base) -> Result<(), Failure> {
        self.course.set_features(VERSION_1 | PROTOCOL_FEATURES)?;
        let (call, far) = Interrupt::new();
        self.call = call;
        let actions = self.course.set_call(0, Some(Eventfd::received(far)?));
        self.carry_out(actions)?;
        self.course.set_size(0, ring.size().into())?;
        self.course.set_base(0, base)?;
        let [descriptors, driver, device] = ring.areas().map(Iova);
        self.course.set_areas(0, RingAreas { descriptors, driver, device })?;
        let (kick, far) = Interrupt::new();
        self.kick = kick;
        let actions = self.course.set_kick(0, Some(Eventfd::received(far)?));
        self.carry_out(actions)?;
        for ring in 0..u64::from(self.course.ring_count()) {
            let actions = self.course.set_enabled(ring, true);
            self.carry_out(actions)?;
        }
        let actions = self.course.set_status(READY);
        self.carry_out(actions)
    }

    fn stop(&mut self) -> Base {
        for ring in 0..u64::from(self.course.ring_count()) {
            let actions = self.course.set_enabled(ring, false);
            self.carry_out(actions).unwrap();
        }
        let (base, actions) = self.course.stop(0).unwrap();
        self.carry_out(Ok(actions)).unwrap();
        let actions = self.course.set_status(DeviceStatus(0));
        self.carry_out(actions).unwrap();
        base
    }

    fn kick(&self) {
        self.kick.signal();
    }

    /// Has the device do what was offered, and be told so.
    fn done(&self, ring: &DriverRing<'_>) -> (u8, Vec<u8>) {
        self.kick();
        assert!(wait_until(|| ring.is_done()), "the device does nothing");
        assert!(self.call.fires(), "no interrupt arrives");
        ring.outcome()
    }
}

pub(crate) fn a_kick_makes_the_hardware_read_a_sector() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    ring.offer_write(5, &PATTERN);
    assert_eq!(frontend.done(&ring).0, 0);
    function.memory.write(RING, &[0; 0x100]);
    for sector in [4, 5] {
        ring.offer_read(sector);
        let (status, data) = frontend.done(&ring);
        assert_eq!((status, data == PATTERN), (0, sector == 5));
    }
}

pub(crate) fn what_was_offered_before_the_start_is_served_without_a_kick() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    ring.offer_read(0);
    frontend.start(&ring, Base(0)).unwrap();
    assert!(wait_until(|| ring.is_done()) && frontend.call.fires());
}

pub(crate) fn a_paused_device_goes_on_with_its_rings() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    for sector in 0..3 {
        ring.offer_write(sector, &PATTERN);
        assert_eq!(frontend.done(&ring).0, 0);
        let base = frontend.stop();
        assert!(!frontend.drive.is_active());
        // The last words of a guest that is being paused.
        frontend.kick();
        ring.offer_read(sector);
        frontend.kick();
        frontend.start(&ring, base).unwrap();
        assert!(wait_until(|| ring.is_done()) && frontend.call.fires());
        assert_eq!(ring.outcome(), (0, PATTERN.to_vec()));
    }
}

pub(crate) fn a_device_finishes_what_it_was_given_before_it_is_silent() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    for sector in 0..20 {
        ring.offer_write(sector, &PATTERN);
        frontend.kick();
        let base = frontend.stop();
        assert!(ring.is_done());
        assert_eq!(ring.outcome().0, 0);
        frontend.start(&ring, base).unwrap();
    }
}

pub(crate) fn a_silent_device_does_nothing_for_a_kick() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    ring.offer_read(0);
    frontend.done(&ring);
    let actions = frontend.course.set_enabled(0, false);
    // Nobody else is enabled.
    for other in 1..u64::from(frontend.course.ring_count()) {
        let actions = frontend.course.set_enabled(other, false);
        frontend.carry_out(actions).unwrap();
    }
    frontend.carry_out(actions).unwrap();
    ring.offer_read(0);
    frontend.kick();
    assert!(frontend.call.is_silent() && !ring.is_done());
    let actions = frontend.course.set_enabled(0, true);
    frontend.carry_out(actions).unwrap();
    assert!(wait_until(|| ring.is_done()) && frontend.call.fires());
}

pub(crate) fn a_call_is_replaced_while_the_device_runs() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    for _ in 0..3 {
        ring.offer_read(0);
        assert_eq!(frontend.done(&ring).0, 0);
        let (call, far) = Interrupt::new();
        let before = std::mem::replace(&mut frontend.call, call);
        let actions = frontend.course.set_call(0, Some(Eventfd::received(far).unwrap()));
        frontend.carry_out(actions).unwrap();
        ring.offer_read(0);
        assert_eq!(frontend.done(&ring).0, 0);
        assert!(before.is_silent());
    }
}

pub(crate) fn a_device_that_was_reset_does_not_go_on_and_begins_anew() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    ring.offer_read(0);
    frontend.done(&ring);
    let base = frontend.stop();
    function.device.reset().unwrap();
    let failure = frontend.start(&ring, base).unwrap_err();
    assert_eq!(failure.id(), "virtio-was-reset");
    frontend.course.lose(failure);
    assert!(!frontend.drive.is_active());
    frontend.stop();
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    ring.offer_read(0);
    assert_eq!(frontend.done(&ring).0, 0);
}

pub(crate) fn a_ring_in_no_memory_needs_a_reset_and_gets_it() {
    let function = Function::open(FIRST);
    let mut frontend = Frontend::of(&function);
    let mut ring = DriverRing::new(&function.memory, RING, 16);
    frontend.start(&ring, Base(0)).unwrap();
    // A circle: no driver means that.
    ring.offer(&[(RING, 16, false), (RING, 16, false)]);
    function.memory.write(RING + 16 + 12, &[1, 0, 0, 0]);
    frontend.kick();
    let needs_reset = || frontend.drive.function().status().unwrap().has(DeviceStatus::NEEDS_RESET);
    assert!(wait_until(needs_reset), "the device goes on");
    frontend.stop();
    let actions = frontend.course.reset();
    frontend.carry_out(Ok(actions)).unwrap();
    let mut ring = DriverRing::new(&function.memory, RING + RING_SPACE, 16);
    frontend.start(&ring, Base(0)).unwrap();
    ring.offer_read(0);
    assert_eq!(frontend.done(&ring).0, 0);
}

pub(crate) fn a_configuration_is_read_and_written() {
    let function = Function::open(FIRST);
    let drive = function.drive().unwrap();
    let disk = drive.function();
    let mut config = [0; 60];
    disk.read_config(0, &mut config).unwrap();
    assert_eq!(config[..8], 0x2_0000_u64.to_le_bytes(), "64 MiB in sectors");
    let (mut part, cache) = ([0; 3], 32);
    disk.read_config(1, &mut part).unwrap();
    assert_eq!(part, config[1..4]);
    let mut drive = function.drive().unwrap();
    for value in [0, 1] {
        // It can be written when the driver has agreed on it.
        let features = drive.function().features();
        drive.carry_out(vec![Action::Reset, Action::Negotiate(features)]).unwrap();
        drive.function().write_config(cache, &[value]).unwrap();
        let mut written = [9];
        drive.function().read_config(cache, &mut written).unwrap();
        assert_eq!(written, [value]);
    }
    let disk = drive.function();
    let beyond = u64::from(disk.config_length()) - 2;
    for (offset, size) in [(beyond, 3), (u64::MAX, 1), (0, 0x2000)] {
        let refusal = disk.read_config(offset, &mut vec![0; size]).unwrap_err();
        assert_eq!(refusal.id(), "config-beyond-end");
    }
}

pub(crate) fn a_network_device_has_an_address() {
    let network = Function::open(SECOND);
    let mut address = [0; 6];
    network.drive().unwrap().function().read_config(0, &mut address).unwrap();
    assert_eq!(address, [0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
}

pub(crate) fn a_function_that_is_no_virtio_device_is_told() {
    let function = Function::open(FIRST);
    assert_eq!(function.drive().unwrap_err().id(), "not-virtio");
}
