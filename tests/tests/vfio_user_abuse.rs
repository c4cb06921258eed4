// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a client of a data face does that no good one would, against our own promises, which are stricter than what vfio-user
//! asks of any server. A device of the same server that somebody else has does not notice.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use protocol::vfio_user::{
    Capabilities, Command, DmaMapPayload, DmaUnmapPayload, RegionAccess, VfioUserHeader,
};
use protocol::{Connection, Endpoint, Frame};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use vhost_device_vfio_tests::guest_memory::{GuestMemory, memfd};
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::{PATIENCE, wait_until};
use zerocopy::IntoBytes;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// edu's only BAR has a mebibyte.
const BAR: u32 = 0;
const CONFIG: u32 = 7;
/// Most mappings of a client.
const MAX_MAPPINGS: u64 = 65_535;
/// Every so many of them has a file.
const WITH_FILE: u64 = 64;
/// How many commands are sent before a reply is read.
const AHEAD: u64 = 256;
/// Every command that takes no descriptor, with a payload that is good.
const WITHOUT_DESCRIPTORS: [(Command, &[u32]); 7] = [
    (Command::DMA_UNMAP, &[24, 2, 0, 0, 0, 0]),
    (Command::DEVICE_GET_INFO, &[16, 0, 0, 0]),
    (Command::DEVICE_GET_REGION_INFO, &[32, 0, 0, 0, 0, 0, 0, 0]),
    (Command::DEVICE_GET_IRQ_INFO, &[16, 0, 0, 0]),
    (Command::REGION_READ, &[0, 0, CONFIG, 4]),
    (Command::REGION_WRITE, &[0x3c, 0, CONFIG, 4, 0]),
    (Command::DEVICE_RESET, &[]),
];

/// Two devices of two slots: the one is abused, somebody has the other.
struct Scene {
    vm: ModelledVm,
    path: PathBuf,
    witness: PciFunction,
    memory: GuestMemory,
}

impl Scene {
    fn new() -> Self {
        let mut vm = ModelledVm::with_two_pairs(&[]);
        let (path, memory) = (vm.listen(1), GuestMemory::new(1 << 40, MIB));
        let mut witness = vm.vmm.open(3);
        witness.map(&memory, 1 << 40..(1 << 40) + MIB).unwrap();
        witness.enable();
        Self { vm, path, witness, memory }
    }

    /// Bytes that are pinned for others than the witness.
    fn pinned(&self) -> u64 {
        self.vm.machine.host().pinned_memory_of(self.vm.vmm.server.id()) - MIB
    }

    /// The witness has its device, its registers and its memory.
    fn assert_unharmed(&mut self) {
        assert_eq!(self.witness.read(BAR, 0), 0x0100_00ed, "{}", self.vm.vmm.server.log());
        assert_ne!(self.witness.command() & 4, 0, "bus mastering is off");
        let memory = 1 << 40..(1 << 40) + MIB;
        assert!(self.witness.map(&self.memory, memory).is_err(), "its memory is not there any more");
    }

    /// The next client is served, and finds nothing.
    fn assert_as_new(&mut self) {
        drop(Hasty::connect(&self.path));
        let mut next = connect_face(&self.path);
        assert_eq!(next.command() & 7, 0);
        assert!(wait_until(|| self.pinned() == 0), "{} bytes stay pinned", self.pinned());
        drop(next);
        self.assert_unharmed();
    }
}

/// A client that does not wait for replies.
struct Hasty(Connection<VfioUserHeader>);

impl Hasty {
    /// The server may not have noticed yet that the client before has gone.
    fn connect(path: &Path) -> Self {
        let mut client = None;
        assert!(wait_until(|| {
            let mut new = Self(Connection::new(UnixStream::connect(path).unwrap(), Endpoint::Client));
            let header = VfioUserHeader::command(7, Command::VERSION);
            let sent = new.0.send_within(header, &Capabilities::default().encode(1), &[], PATIENCE);
            let reply = sent.ok().and_then(|()| new.0.receive_within(PATIENCE).ok());
            client = reply.filter(|reply| reply.header.error().is_none()).map(|_| new);
            client.is_some()
        }));
        client.unwrap()
    }

    /// Memory decoding and bus mastering on.
    fn enable(&mut self) {
        let access = RegionAccess { offset: 4, region: CONFIG, count: 2 };
        self.send(Command::REGION_WRITE, &[access.as_bytes(), &[6, 0]].concat(), &[]);
        self.expect(Command::REGION_WRITE, None);
    }

    fn send(&mut self, command: Command, body: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.0.send_within(VfioUserHeader::command(7, command), body, descriptors, PATIENCE).unwrap();
    }

    fn receive(&mut self) -> Frame<VfioUserHeader> {
        self.0.receive_within(PATIENCE).unwrap()
    }

    /// The next reply is to this command, and is this error or none.
    fn expect(&mut self, command: Command, errno: Option<Errno>) {
        let frame = self.receive();
        assert_eq!((frame.header.command, frame.header.error()), (command, errno));
    }

    fn map(&mut self, number: u64, file: Option<BorrowedFd<'_>>) {
        let flags = DmaMapPayload::READ | DmaMapPayload::WRITE;
        // A hole behind each: nothing can be joined with the next.
        let address = 2 * PAGE * number;
        let map = DmaMapPayload { argsz: DmaMapPayload::SIZE, flags, offset: 0, address, size: PAGE };
        self.send(Command::DMA_MAP, map.as_bytes(), file.as_slice());
    }

    fn unmap_all(&mut self) {
        let flags = DmaUnmapPayload::ALL;
        let unmap = DmaUnmapPayload { argsz: DmaUnmapPayload::SIZE, flags, address: 0, size: 0 };
        self.send(Command::DMA_UNMAP, unmap.as_bytes(), &[]);
    }
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// Has many commands under way, and reads the reply of each.
fn pipelined(
    client: &mut Hasty,
    count: u64,
    mut send: impl FnMut(&mut Hasty, u64),
    mut expect: impl FnMut(&mut Hasty),
) {
    for number in 0..count {
        send(client, number);
        if number >= AHEAD {
            expect(client);
        }
    }
    (0..count.min(AHEAD)).for_each(|_| expect(client));
}

/// Most of the mappings have no file: not every machine lets a test pin so much.
#[test]
fn a_client_has_65535_mappings_and_no_more() {
    let mut scene = Scene::new();
    let file = memfd(PAGE, SealFlags::SHRINK);
    let mut client = Hasty::connect(&scene.path);
    client.map(0, Some(file.as_fd()));
    client.expect(Command::DMA_MAP, None);
    let files = scene.vm.vmm.server.open_files();
    let map = |client: &mut Hasty, number: u64| {
        let number = number + 1;
        client.map(number, number.is_multiple_of(WITH_FILE).then(|| file.as_fd()));
    };
    pipelined(&mut client, MAX_MAPPINGS - 1, map, |client| client.expect(Command::DMA_MAP, None));
    assert_eq!(scene.vm.vmm.server.open_files(), files, "the file is kept once");
    assert_eq!(scene.pinned(), MAX_MAPPINGS.div_ceil(WITH_FILE) * PAGE);
    client.map(MAX_MAPPINGS, Some(file.as_fd()));
    client.expect(Command::DMA_MAP, Some(Errno::NOSPC));
    scene.assert_unharmed();
    client.unmap_all();
    client.expect(Command::DMA_UNMAP, None);
    assert_eq!(scene.pinned(), 0);
    client.map(MAX_MAPPINGS, Some(file.as_fd()));
    client.expect(Command::DMA_MAP, None);
    drop(client);
    scene.assert_as_new();
    assert!(wait_until(|| scene.vm.vmm.server.open_files() < files));
}

#[test]
fn mappings_over_mappings_change_nothing() {
    let mut scene = Scene::new();
    let (first, other) = (memfd(PAGE, SealFlags::SHRINK), memfd(PAGE, SealFlags::SHRINK));
    let mut client = Hasty::connect(&scene.path);
    client.map(5, Some(first.as_fd()));
    client.expect(Command::DMA_MAP, None);
    let files = scene.vm.vmm.server.open_files();
    let again = |client: &mut Hasty, number: u64| {
        let file = if number.is_multiple_of(2) { &first } else { &other };
        client.map(5, Some(file.as_fd()));
    };
    pipelined(&mut client, 5000, again, |client| client.expect(Command::DMA_MAP, Some(Errno::EXIST)));
    assert_eq!(scene.vm.vmm.server.open_files(), files);
    assert_eq!(scene.pinned(), PAGE);
    drop(client);
    scene.assert_as_new();
}

#[test]
fn a_client_that_reads_a_mebibyte_again_and_again_takes_no_memory() {
    let mut scene = Scene::new();
    let mut client = connect_face(&scene.path);
    client.enable();
    let mut read = |times| {
        let mut data = vec![0; 1 << 20];
        (0..times).for_each(|_| client.client.region_read(BAR, 0, &mut data).unwrap());
    };
    read(3);
    let before = scene.vm.vmm.server.resident_memory();
    read(10);
    let grown = scene.vm.vmm.server.resident_memory().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more than before");
    drop(client);
    scene.assert_as_new();
}

/// A server that read on would hold what nobody takes.
#[test]
fn a_client_that_reads_mebibytes_and_no_replies_takes_no_memory() {
    let mut scene = Scene::new();
    let mut client = Hasty::connect(&scene.path);
    client.enable();
    let before = scene.vm.vmm.server.resident_memory();
    for _ in 0..16 {
        client.send(Command::REGION_READ, [0, 0, BAR, 1 << 20].as_bytes(), &[]);
    }
    scene.assert_unharmed();
    let grown = scene.vm.vmm.server.resident_memory().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more than before");
    for _ in 0..16 {
        assert_eq!(client.receive().body.len(), (1 << 20) + 16);
    }
    drop(client);
    scene.assert_as_new();
}

#[test]
fn sixteen_descriptors_with_a_command_that_takes_none_are_refused_and_closed() {
    let mut scene = Scene::new();
    let mut client = Hasty::connect(&scene.path);
    let (null, files) = (null(), scene.vm.vmm.server.open_files());
    for (command, payload) in WITHOUT_DESCRIPTORS.repeat(20) {
        client.send(command, payload.as_bytes(), &[null.as_fd(); 16]);
        client.expect(command, Some(Errno::INVAL));
    }
    for (command, payload) in WITHOUT_DESCRIPTORS {
        client.send(command, payload.as_bytes(), &[]);
        client.expect(command, None);
    }
    scene.vm.vmm.server.wait_for_open_files(files);
    drop(client);
    scene.assert_as_new();
}

#[test]
fn every_refusal_has_an_errno() {
    let mut scene = Scene::new();
    let mut client = Hasty::connect(&scene.path);
    for number in (0..40).chain([u16::MAX]) {
        for payload in [[].as_slice(), &[0; 7], &[0; 16], &[0xff; 64], &[0xff; 5000]] {
            client.send(Command(number), payload, &[]);
            let frame = client.receive();
            let is_reset = (number, payload.len()) == (Command::DEVICE_RESET.0, 0);
            assert_eq!(frame.header.error().is_none(), is_reset, "command {number}");
            assert_eq!(frame.header.errno == 0, is_reset, "command {number}");
        }
    }
    drop(client);
    scene.assert_as_new();
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_reset_leaves_the_device_to_the_next() {
    let mut scene = Scene::new();
    let file = memfd(MIB, SealFlags::SHRINK);
    let mut client = Hasty::connect(&scene.path);
    client.map(0, Some(file.as_fd()));
    client.expect(Command::DMA_MAP, None);
    client.enable();
    scene.vm.fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\ndelay = 60000\ntimes = 1");
    client.send(Command::DEVICE_RESET, &[], &[]);
    scene.vm.wait_for_usage("lasting-calls", 1);
    drop(client);
    scene.assert_unharmed();
    let path = scene.path.clone();
    let next = std::thread::spawn(move || drop(Hasty::connect(&path)));
    scene.vm.pass_until(|| next.is_finished());
    next.join().unwrap();
    scene.assert_as_new();
}

#[test]
fn clients_that_go_right_after_they_asked_for_a_reset_leave_nothing() {
    let mut scene = Scene::new();
    let files = scene.vm.vmm.server.open_files();
    for number in 0..30 {
        let mut client = Hasty::connect(&scene.path);
        client.enable();
        client.map(number, Some(memfd(PAGE, SealFlags::SHRINK).as_fd()));
        client.send(Command::DEVICE_RESET, &[], &[]);
        client.send(Command::REGION_READ, [0, 0, CONFIG, 4].as_bytes(), &[]);
    }
    scene.assert_as_new();
    scene.vm.vmm.server.wait_for_open_files(files);
}
