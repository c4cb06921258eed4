// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block backend as a process, with a frontend and a driver's rings.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{Frontend, MemoryRegion, Vring};
use tempfile::TempDir;
use vhost_device_vfio_tests::driver_ring::{DriverRing, RING_SPACE, SECTOR};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, wait_until};

/// Where guest memory begins for the guest, and for the frontend.
const MEMORY: u64 = 0x10_0000;
const USER_ADDRESS: u64 = 0x7f00_0000_0000;
/// Behind the rings: buffers that a test places by itself.
const BUFFERS: u64 = MEMORY + 4 * RING_SPACE;
/// The disk, in sectors.
const SECTORS: u64 = 64;

/// What a driver needs that knows of nothing else.
const PLAIN: VirtioFeatures =
    VirtioFeatures(VirtioFeatures::VERSION_1.0 | VirtioFeatures::PROTOCOL_FEATURES.0);

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A running backend and its disk.
struct Backend {
    process: ServerProcess,
    socket: PathBuf,
    image: File,
    _directory: TempDir,
}

impl Backend {
    fn start(queues: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [socket, path] = ["socket", "image"].map(|name| directory.path().join(name));
        let image = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        image.set_len(SECTORS * SECTOR as u64).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_block-backend"));
        command.arg("--socket").arg(&socket).arg("--image").arg(&path);
        command.args(["--queues", &queues.to_string()]).stdout(Stdio::null());
        let process = ServerProcess::spawn(command);
        Self { process, socket, image, _directory: directory }
    }

    fn connect(&self) -> Session {
        let mut stream = None;
        let is_let_in = wait_until(|| {
            stream = UnixStream::connect(&self.socket).ok();
            stream.is_some()
        });
        assert!(is_let_in, "nobody listens: {}", self.process.log());
        let mut frontend = Frontend::new(stream.unwrap(), PATIENCE);
        let (offered, agreed) = frontend.negotiate(ProtocolFeatures::OF_DEVICES).unwrap();
        let memory = GuestMemory::new(MEMORY, 0x10_0000);
        let region = MemoryRegion { user_address: USER_ADDRESS, ..memory.region() };
        frontend.add_memory_region(region, memory.as_fd()).unwrap();
        Session { frontend, memory, offered, agreed }
    }

    fn sector(&self, sector: u64) -> [u8; SECTOR] {
        let mut data = [0; SECTOR];
        self.image.read_exact_at(&mut data, sector * SECTOR as u64).unwrap();
        data
    }
}

/// A frontend's session, and its guest's memory.
struct Session {
    frontend: Frontend,
    memory: GuestMemory,
    offered: VirtioFeatures,
    agreed: ProtocolFeatures,
}

/// The guest's ends of a ring's eventfds.
struct Doorbell {
    kick: Interrupt,
    call: Interrupt,
}

/// An empty ring in its place.
fn ring(memory: &GuestMemory, queue: u8) -> DriverRing<'_> {
    DriverRing::new(memory, MEMORY + u64::from(queue) * RING_SPACE, 16)
}

/// Sets a ring up, from the beginning on.
fn start(frontend: &mut Frontend, queue: u8, ring: &DriverRing<'_>) -> Doorbell {
    start_at(frontend, queue, ring, 0)
}

fn start_at(frontend: &mut Frontend, queue: u8, ring: &DriverRing<'_>, base: u32) -> Doorbell {
    let (kick, far_kick) = Interrupt::new();
    let (call, far_call) = Interrupt::new();
    let [descriptors, available, used] = ring.areas().map(|address| address - MEMORY + USER_ADDRESS);
    let vring = Vring {
        size: ring.size(),
        base,
        descriptors,
        available,
        used,
        kick: far_kick.as_fd(),
        call: far_call.as_fd(),
    };
    frontend.start_vring(queue, &vring).unwrap();
    frontend.set_vring_enable(queue, true).unwrap();
    Doorbell { kick, call }
}

impl Doorbell {
    /// Has the device look, and waits until it has given everything back.
    fn ring(&self, ring: &DriverRing<'_>) {
        self.kick.signal();
        while !ring.is_done() {
            assert!(self.call.fires(), "the device is silent");
        }
    }
}

/// Runs `test` with the only ring of a backend, without more features than are needed.
fn with_ring(test: impl FnOnce(&Backend, &mut DriverRing<'_>, &GuestMemory, &Doorbell)) {
    let backend = Backend::start(1);
    let Session { mut frontend, memory, .. } = backend.connect();
    let mut ring = ring(&memory, 0);
    frontend.set_features(PLAIN).unwrap();
    let doorbell = start(&mut frontend, 0, &ring);
    test(&backend, &mut ring, &memory, &doorbell);
}

/// The header of a request.
fn header(kind: u32, sector: u64) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

/// Has a request with `length` bytes to write to carried out, and gives its status and those bytes.
fn ask(
    ring: &mut DriverRing<'_>,
    memory: &GuestMemory,
    doorbell: &Doorbell,
    kind: u32,
    length: u32,
) -> (u8, Vec<u8>) {
    memory.write(BUFFERS, &header(kind, 0));
    memory.write(BUFFERS + 0x100, &[0xff; 0x200]);
    ring.offer(&[(BUFFERS, 16, false), (BUFFERS + 0x100, length + 1, true)]);
    doorbell.ring(ring);
    let mut written = memory.read(BUFFERS + 0x100, length as usize + 1);
    (written.pop().unwrap(), written)
}

#[test]
fn it_offers_what_it_can_do_and_no_more() {
    let backend = Backend::start(3);
    let mut session = backend.connect();
    let bits = [2, 6, 9, 12, 28, 29, 30, 32].map(|bit| 1_u64 << bit);
    assert_eq!(session.offered.0, bits.iter().sum::<u64>());
    let agreed = ProtocolFeatures::MQ
        | ProtocolFeatures::CONFIG
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert_eq!(session.agreed, agreed);
    assert_eq!(session.frontend.queue_number().unwrap(), 3);
}

#[test]
fn the_configuration_tells_size_and_rings() {
    let backend = Backend::start(3);
    let mut configuration = [0xff; 60];
    backend.connect().frontend.config(0, &mut configuration).unwrap();
    let mut expected = [0; 60];
    expected[..8].copy_from_slice(&SECTORS.to_le_bytes());
    expected[12..16].copy_from_slice(&126_u32.to_le_bytes());
    expected[20..24].copy_from_slice(&512_u32.to_le_bytes());
    expected[34] = 3;
    assert_eq!(configuration, expected);
}

#[test]
fn a_sector_is_read() {
    with_ring(|backend, ring, _, doorbell| {
        backend.image.write_all_at(&[0xa5; SECTOR], 5 * SECTOR as u64).unwrap();
        ring.offer_read(5);
        doorbell.ring(ring);
        assert_eq!(ring.outcome(), (OK, vec![0xa5; SECTOR]));
    });
}

#[test]
fn a_sector_is_written_and_read_back() {
    with_ring(|backend, ring, _, doorbell| {
        ring.offer_write(SECTORS - 1, &[0x5a; SECTOR]);
        doorbell.ring(ring);
        assert_eq!(ring.outcome().0, OK);
        assert_eq!(backend.sector(SECTORS - 1), [0x5a; SECTOR]);
        assert_eq!(backend.sector(SECTORS - 2), [0; SECTOR]);
        ring.offer_read(SECTORS - 2);
        doorbell.ring(ring);
        ring.offer_read(SECTORS - 1);
        doorbell.ring(ring);
        assert_eq!(ring.outcome(), (OK, vec![0x5a; SECTOR]));
    });
}

#[test]
fn an_access_behind_the_end_fails_and_changes_nothing() {
    with_ring(|backend, ring, _, doorbell| {
        for sector in [SECTORS, u64::MAX, u64::MAX / SECTOR as u64] {
            ring.offer_read(sector);
            doorbell.ring(ring);
            assert_eq!(ring.outcome().0, IO_ERROR, "{sector}");
            ring.offer_write(sector, &[1; SECTOR]);
            doorbell.ring(ring);
            assert_eq!(ring.outcome().0, IO_ERROR, "{sector}");
        }
        assert_eq!(backend.image.metadata().unwrap().len(), SECTORS * SECTOR as u64);
    });
}

#[test]
fn half_a_sector_is_refused() {
    with_ring(|_, ring, memory, doorbell| {
        assert_eq!(ask(ring, memory, doorbell, 0, 256).0, IO_ERROR);
        assert_eq!(ask(ring, memory, doorbell, 0, 512), (OK, vec![0; 512]));
    });
}

#[test]
fn the_disk_has_a_name_and_is_flushed() {
    with_ring(|_, ring, memory, doorbell| {
        assert_eq!(ask(ring, memory, doorbell, 8, 20), (OK, b"block-backend\0\0\0\0\0\0\0".to_vec()));
        assert_eq!(ask(ring, memory, doorbell, 8, 19).0, IO_ERROR);
        assert_eq!(ask(ring, memory, doorbell, 4, 0), (OK, vec![]));
    });
}

#[test]
fn other_requests_are_unsupported() {
    with_ring(|_, ring, memory, doorbell| {
        for kind in [2, 11, 13, 16, u32::MAX] {
            assert_eq!(ask(ring, memory, doorbell, kind, 0).0, UNSUPPORTED, "{kind}");
        }
    });
}

#[test]
fn buffers_may_be_cut_anywhere() {
    with_ring(|backend, ring, memory, doorbell| {
        memory.write(BUFFERS, &header(1, 7));
        memory.write(BUFFERS + 0x200, &[0x77; SECTOR]);
        ring.offer(&[
            (BUFFERS, 3, false),
            (BUFFERS + 3, 13, false),
            (BUFFERS + 0x200, 500, false),
            (BUFFERS + 0x200 + 500, 12, false),
            (BUFFERS + 0x100, 1, true),
        ]);
        doorbell.ring(ring);
        assert_eq!(memory.read(BUFFERS + 0x100, 1), [OK]);
        assert_eq!(backend.sector(7), [0x77; SECTOR]);
    });
}

#[test]
fn data_outside_guest_memory_is_an_error() {
    with_ring(|_, ring, memory, doorbell| {
        memory.write(BUFFERS, &header(0, 0));
        memory.write(BUFFERS + 0x100, &[0xff]);
        for address in [0, MEMORY - 256, u64::MAX - 511] {
            ring.offer(&[(BUFFERS, 16, false), (address, 512, true), (BUFFERS + 0x100, 1, true)]);
            doorbell.ring(ring);
            assert_eq!(memory.read(BUFFERS + 0x100, 1), [IO_ERROR], "{address:#x}");
        }
    });
}

#[test]
fn a_chain_without_status_is_given_back() {
    with_ring(|_, ring, memory, doorbell| {
        memory.write(BUFFERS, &header(0, 0));
        ring.offer(&[(BUFFERS, 16, false)]);
        doorbell.ring(ring);
        ring.offer_read(0);
        doorbell.ring(ring);
        assert_eq!(ring.outcome().0, OK);
    });
}

#[test]
fn each_ring_is_served_with_every_feature() {
    let backend = Backend::start(3);
    let Session { mut frontend, memory, offered, .. } = backend.connect();
    frontend.set_features(offered).unwrap();
    for queue in 0..3_u8 {
        let mut ring = ring(&memory, queue);
        let doorbell = start(&mut frontend, queue, &ring);
        ring.offer_write(queue.into(), &[queue + 1; SECTOR]);
        doorbell.ring(&ring);
        assert_eq!(ring.outcome().0, OK);
        assert_eq!(backend.sector(queue.into()), [queue + 1; SECTOR]);
    }
}

#[test]
fn a_ring_is_stopped_and_goes_on_where_it_was() {
    let backend = Backend::start(1);
    let Session { mut frontend, memory, .. } = backend.connect();
    frontend.set_features(PLAIN).unwrap();
    let mut ring = ring(&memory, 0);
    for base in 0..3 {
        ring.offer_read(0);
        // What is there already needs no kick.
        let doorbell = start_at(&mut frontend, 0, &ring, base);
        assert!(doorbell.call.fires() && ring.is_done());
        assert_eq!(frontend.stop_vring(0).unwrap(), base + 1);
    }
}

#[test]
fn a_driver_that_waits_for_another_entry_is_not_interrupted() {
    let backend = Backend::start(1);
    let Session { mut frontend, memory, offered, .. } = backend.connect();
    frontend.set_features(offered).unwrap();
    let mut ring = ring(&memory, 0);
    let doorbell = start(&mut frontend, 0, &ring);
    // With EVENT_IDX the driver names the entry behind its ring: the first one, all the time.
    ring.offer_read(0);
    doorbell.kick.signal();
    assert!(doorbell.call.fires());
    ring.offer_read(0);
    doorbell.kick.signal();
    assert!(wait_until(|| ring.is_done()));
    frontend.stop_vring(0).unwrap();
    assert!(!doorbell.call.has_fired());
}

#[test]
fn a_ring_that_makes_no_sense_can_be_stopped() {
    let backend = Backend::start(1);
    let Session { mut frontend, memory, offered, .. } = backend.connect();
    frontend.set_features(offered).unwrap();
    let ring = ring(&memory, 0);
    let doorbell = start(&mut frontend, 0, &ring);
    let [_, available, _] = ring.areas();
    memory.write(available + 2, &1000_u16.to_le_bytes());
    doorbell.kick.signal();
    backend.process.wait_for_log("ring 0 is broken");
    assert_eq!(frontend.stop_vring(0).unwrap(), 0);
}

#[test]
fn one_frontend_is_served_after_the_other() {
    let backend = Backend::start(2);
    for round in 1..4 {
        let Session { mut frontend, memory, offered, .. } = backend.connect();
        frontend.set_features(offered).unwrap();
        let mut ring = ring(&memory, 1);
        let doorbell = start(&mut frontend, 1, &ring);
        ring.offer_write(1, &[round; SECTOR]);
        doorbell.ring(&ring);
        assert_eq!(backend.sector(1), [round; SECTOR]);
    }
    assert_eq!(backend.process.log(), "");
}

#[test]
fn sigterm_ends_it_and_takes_its_socket_away() {
    let mut backend = Backend::start(1);
    let session = backend.connect();
    backend.process.terminate();
    assert!(backend.process.wait_for_exit().success(), "{}", backend.process.log());
    assert!(!backend.socket.exists());
    assert_eq!(backend.sector(0), [0; SECTOR]);
    drop(session);
}
