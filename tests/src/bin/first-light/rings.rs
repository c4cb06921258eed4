// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user face: frontends have the rings of a virtio function run by the hardware.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use protocol::extension::{Cookie, Face, ResetMethod, ResetOutcome};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{BackendRequest, Frontend, FrontendError, Vring};
use rustix::io::Errno;
use vhost_device_vfio_tests::driver_ring::{DriverRing, RING_SPACE};
use vhost_device_vfio_tests::frontends::{Guest, Memory, Player, Ring, Script, StockVmm};
use vhost_device_vfio_tests::grown_disk::GrownDisk;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::server_process::{PATIENCE, wait_until};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

use super::disk::{ALL, Disk, MEMORY, Machine, PATTERN, READY, RING, USER, VERSION_1, errno};
use super::{FIRST, SECOND};

const NEEDS_RESET: u64 = 0x40;

fn without(features: ProtocolFeatures) -> ProtocolFeatures {
    ProtocolFeatures(ALL.0 & !features.0)
}

pub(crate) fn a_frontend_reads_back_what_it_wrote() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    disk.expect_works();
}

pub(crate) fn a_frontend_may_name_rings_by_its_own_addresses() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(without(ProtocolFeatures::GPA_ADDRESSES));
    disk.start(0).unwrap();
    disk.expect_works();
}

pub(crate) fn a_frontend_without_status_and_acknowledgements_works() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(without(ProtocolFeatures::STATUS | ProtocolFeatures::REPLY_ACK));
    disk.frontend.set_features(VERSION_1).unwrap();
    let [kick, call, _] = disk.far.each_ref().map(AsFd::as_fd);
    let vring = disk.vring(0, kick, call);
    disk.frontend.start_vring(0, &vring).unwrap();
    disk.frontend.set_vring_enable(0, true).unwrap();
    disk.expect_works();
}

pub(crate) fn what_the_hardware_offers_is_offered_but_for_what_is_the_servers() {
    let mut machine = Machine::new();
    let socket = machine.socket();
    let mut frontend = Frontend::new(socket, PATIENCE);
    let (features, agreed) = frontend.negotiate(ALL).unwrap();
    assert!(features.contains(VERSION_1) && !features.contains(VirtioFeatures::ACCESS_PLATFORM));
    assert!(agreed.contains(ProtocolFeatures::STATUS | ProtocolFeatures::CONFIG | ProtocolFeatures::MQ));
    let lends = ProtocolFeatures::HOST_NOTIFIER.0 | ProtocolFeatures::BACKEND_SEND_FD.0;
    assert_eq!(agreed.0 & lends, 0, "nobody gets the device who was not meant to");
    assert!((1..=256).contains(&frontend.queue_number().unwrap()));
    assert_eq!(errno(frontend.set_features(VirtioFeatures(VERSION_1.0 | 1 << 33))), Errno::INVAL);
}

pub(crate) fn a_configuration_is_the_hardwares() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    let mut config = [0xff; 256];
    disk.frontend.config(0, &mut config).unwrap();
    assert_eq!(config[..8], 0x2_0000_u64.to_le_bytes(), "64 MiB in sectors");
    let (mut part, mut last) = ([0; 3], [0; 4]);
    disk.frontend.config(1, &mut part).unwrap();
    assert_eq!(part, config[1..4]);
    // As much as can be asked for is answered.
    disk.frontend.config(4092, &mut last).unwrap();
}

pub(crate) fn a_frontend_that_pauses_goes_on_where_it_was() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    for _ in 0..3 {
        disk.expect_works();
        let base = disk.stop();
        disk.ring.offer_read(3);
        disk.start(base).unwrap();
        assert!(wait_until(|| disk.ring.is_done()) && disk.call.fires());
        assert_eq!(disk.ring.outcome(), (0, PATTERN.to_vec()));
    }
}

pub(crate) fn a_ring_that_shall_go_on_elsewhere_is_refused() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    assert_eq!(errno(disk.start(7)), Errno::STALE);
    disk.frontend.reset_device().unwrap();
    disk.start(0).unwrap();
    disk.expect_works();
}

pub(crate) fn a_reset_device_begins_anew() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    disk.expect_works();
    disk.stop();
    disk.frontend.reset_device().unwrap();
    let memory = disk.ring.memory();
    disk.ring = DriverRing::new(memory, RING + RING_SPACE, 16);
    disk.start(0).unwrap();
    disk.expect_works();
}

pub(crate) fn a_frontend_that_goes_leaves_a_quiet_device_to_the_next() {
    let mut machine = Machine::new();
    for _ in 0..3 {
        let mut disk = machine.connect(ALL);
        disk.start(0).unwrap();
        disk.expect_works();
        disk.ring.offer_read(3);
        let Disk { frontend, kick, .. } = disk;
        drop(frontend);
        machine.wait_until_free();
        // Nobody listens any more.
        kick.signal();
    }
    machine.vmm.open(1).enable();
}

pub(crate) fn memory_comes_and_goes_while_rings_run() {
    let mut machine = Machine::new();
    let more = GuestMemory::new(MEMORY, MEMORY);
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    for _ in 0..3 {
        disk.frontend.add_memory_region(more.region(), more.as_fd()).unwrap();
        disk.expect_works();
        disk.frontend.remove_memory_region(more.region()).unwrap();
        disk.expect_works();
    }
}

pub(crate) fn memory_that_a_running_ring_lies_in_stays() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    assert_eq!(errno(disk.frontend.set_memory_table(&[], &[])), Errno::BUSY);
    disk.expect_works();
    disk.stop();
    disk.frontend.set_memory_table(&[], &[]).unwrap();
    assert_eq!(errno(disk.start(0)), Errno::FAULT);
}

pub(crate) fn a_ring_that_is_wrong_is_refused_and_the_device_stays_silent() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.frontend.set_features(VERSION_1).unwrap();
    let [kick, call, _] = disk.far.each_ref().map(AsFd::as_fd);
    let good = disk.vring(0, kick, call);
    let wrong = [
        (Vring { size: 3, ..good }, Errno::INVAL),
        (Vring { size: 0x8000, ..good }, Errno::INVAL),
        (Vring { used: good.used + 1, ..good }, Errno::INVAL),
        (Vring { descriptors: MEMORY - 16, ..good }, Errno::FAULT),
        (Vring { used: u64::MAX - 3, ..good }, Errno::FAULT),
    ];
    disk.frontend.set_status(READY).unwrap();
    for (vring, expected) in wrong {
        let started = disk.frontend.start_vring(0, &vring);
        let refused = started.and_then(|()| disk.frontend.set_vring_enable(0, true));
        assert_eq!(errno(refused), expected, "{vring:?}");
        disk.frontend.stop_vring(0).unwrap();
        disk.frontend.reset_device().unwrap();
    }
    assert_eq!(errno(disk.frontend.start_vring(200, &good)), Errno::INVAL);
    disk.start(0).unwrap();
    disk.expect_works();
}

pub(crate) fn a_call_is_replaced_while_rings_run() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    for _ in 0..3 {
        disk.expect_works();
        let (call, far) = Interrupt::new();
        disk.frontend.set_vring_call(0, Some(far.as_fd())).unwrap();
        let before = std::mem::replace(&mut disk.call, call);
        disk.expect_works();
        assert!(before.is_silent());
    }
}

pub(crate) fn a_reset_by_somebody_else_is_told_and_the_frontend_begins_anew() {
    let mut machine = Machine::new();
    let socket = machine.socket();
    let Machine { vmm, memory } = &mut machine;
    let mut disk = Disk::connect(socket, memory, ALL);
    disk.start(0).unwrap();
    disk.expect_works();
    let report = vmm.control.reset(Cookie(1), Some(ResetMethod::Function), None).unwrap();
    assert_eq!(report.outcome, ResetOutcome::Done);
    assert!(disk.error.fires());
    assert_eq!(disk.frontend.status().unwrap() & NEEDS_RESET, NEEDS_RESET);
    let base = disk.stop();
    assert_eq!(errno(disk.start(base)), Errno::STALE);
    disk.frontend.reset_device().unwrap();
    disk.ring = DriverRing::new(memory, RING, 16);
    disk.start(0).unwrap();
    disk.expect_works();
}

/// What stock VMMs say, byte for byte.
pub(crate) fn stock_frontends_read_a_sector() {
    let vmms = [StockVmm::QemuBlock, StockVmm::QemuGeneric, StockVmm::Crosvm, StockVmm::CloudHypervisor];
    let own_addresses = without(ProtocolFeatures::GPA_ADDRESSES);
    for vmm in vmms {
        for offered in [ALL, own_addresses, without(ProtocolFeatures::CONFIGURE_MEM_SLOTS)] {
            expect_stock_frontend_works(vmm, offered);
        }
    }
}

fn expect_stock_frontend_works(vmm: StockVmm, offered: ProtocolFeatures) {
    // The scripts leave out what the server does not offer.
    let offered = ProtocolFeatures(
        offered.0 & !(ProtocolFeatures::HOST_NOTIFIER | ProtocolFeatures::BACKEND_SEND_FD).0,
    );
    let mut machine = Machine::new();
    let socket = machine.socket();
    let memory = &machine.memory;
    let mut ring = DriverRing::new(memory, RING, 16);
    let [descriptors, available, used] = ring.areas();
    let guest = Guest {
        features: 1 << 32,
        rings: vec![Some(Ring { size: 16, descriptors, available, used })],
        memory: vec![Memory { guest_address: 0, size: MEMORY, user_address: USER, offset: 0 }],
        config_size: 57,
    };
    let mut player = Player::new(socket, vec![memory.as_fd().try_clone_to_owned().unwrap()], 1);
    let mut script = Script::new(vmm, guest, offered);
    player.play(&script.connect());
    let mut base = 0;
    for _ in 0..2 {
        player.play(&script.start(&[base]));
        ring.offer_write(3, &PATTERN);
        rustix::io::write(&player.kicks[0], &1_u64.to_ne_bytes()).unwrap();
        assert!(wait_until(|| ring.is_done()), "{vmm:?}: the device does nothing");
        assert_eq!(ring.outcome().0, 0);
        let replies = player.play(&script.stop());
        let told = replies.iter().find(|reply| reply.request == protocol::RequestNumber::GET_VRING_BASE);
        // Cloud Hypervisor does not ask where a ring has stopped.
        let Some(told) = told else { return };
        base = u32::from_ne_bytes(told.body[4..8].try_into().unwrap());
    }
}

pub(crate) fn a_second_frontend_is_turned_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut machine = Machine::new();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    machine.vmm.control.serve(Cookie(1), Face::VhostUser, listener).unwrap();
    let mut first = Frontend::new(UnixStream::connect(&path).unwrap(), PATIENCE);
    first.negotiate(ALL).unwrap();
    let mut second = Frontend::new(UnixStream::connect(&path).unwrap(), PATIENCE);
    let parted = second.features();
    assert!(matches!(parted, Err(FrontendError::Send { .. } | FrontendError::Receive { .. })), "{parted:?}");
    first.queue_number().unwrap();
}

pub(crate) fn a_network_function_is_served_too() {
    let mut vmm = Vmm::start();
    vmm.add(1, SECOND).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
    let mut frontend = Frontend::new(near, PATIENCE);
    frontend.negotiate(ALL).unwrap();
    let mut address = [0; 6];
    frontend.config(0, &mut address).unwrap();
    assert_eq!(address, [0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
}

pub(crate) fn only_a_virtio_function_is_served_over_vhost_user() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let (_near, far) = UnixStream::pair().unwrap();
    let refused = refusal(vmm.control.serve(Cookie(1), Face::VhostUser, far));
    assert_eq!(refused, ("not-virtio".to_owned(), Errno::NODEV.raw_os_error()));
}

pub(crate) fn a_device_that_is_taken_away_leaves_nothing_of_its_frontend() {
    let mut vmm = Vmm::start();
    let memory = GuestMemory::new(0, MEMORY);
    let before = vmm.server.open_files();
    vmm.add(1, FIRST).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
    let mut disk = Disk::connect(near, &memory, ALL);
    disk.start(0).unwrap();
    disk.expect_works();
    vmm.control.remove_device(Cookie(1)).unwrap();
    vmm.server.wait_for_open_files(before);
    // The frontend is told by the end of its connection.
    assert!(disk.frontend.status().is_err());
}

/// The device that the test machine's QEMU emulates says so by itself.
pub(crate) fn a_disk_that_grows_is_told_and_has_more_sectors() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    let expect_told = |disk: &mut Disk<'_>, sectors: u64| {
        let (request, _) = disk.channel.receive_within(PATIENCE).unwrap();
        assert!(matches!(request, BackendRequest::ConfigChange));
        let mut size = [0; 8];
        disk.frontend.config(0, &mut size).unwrap();
        assert_eq!(size, sectors.to_le_bytes());
    };
    let grown = GrownDisk::new("disk", 64 << 20, 96 << 20);
    expect_told(&mut disk, 0x3_0000);
    disk.ring.offer_write(0x2_ffff, &PATTERN);
    assert_eq!(disk.done().0, 0);
    disk.ring.offer_read(0x2_ffff);
    assert_eq!(disk.done(), (0, PATTERN.to_vec()));
    drop(grown);
    expect_told(&mut disk, 0x2_0000);
    disk.expect_works();
}

/// The same on any machine: a device that has to be reset says so in its configuration.
pub(crate) fn a_change_of_the_configuration_is_told() {
    let mut machine = Machine::new();
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    // A circle: no driver means that, and the device stops with a change of its configuration.
    disk.ring.offer(&[(RING, 16, false), (RING, 16, false)]);
    disk.ring.memory().write(RING + 16 + 12, &[1, 0, 0, 0]);
    disk.kick.signal();
    let (request, _) = disk.channel.receive_within(PATIENCE).unwrap();
    assert!(matches!(request, BackendRequest::ConfigChange));
    assert!(disk.error.fires());
    assert_eq!(disk.frontend.status().unwrap() & NEEDS_RESET, NEEDS_RESET);
}

pub(crate) fn random_bytes_come_by_a_ring_of_the_hardware() {
    let mut machine = Machine::new();
    let mut entropy = machine.connect(ALL);
    let memory = entropy.ring.memory();
    let mut seen = vec![vec![0; 64]];
    for _ in 0..3 {
        // The device has no more room in its ring.
        entropy.ring = DriverRing::new(memory, RING, 8);
        entropy.start(0).unwrap();
        for _ in 0..10 {
            let place = RING + RING_SPACE;
            entropy.ring.offer(&[(place, 64, true)]);
            entropy.done();
            let bytes = memory.read(place, 64);
            assert!(!seen.contains(&bytes), "{bytes:?}");
            seen.push(bytes);
        }
        entropy.stop();
        entropy.frontend.reset_device().unwrap();
    }
}
