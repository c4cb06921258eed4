// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who gets a device's descriptor: nobody, unless the server was told to let clients map BARs.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::net::UnixStream;

use protocol::extension::{Cookie, Face};
use protocol::vfio_user::{
    Capabilities, Command, DeviceFeature, RegionDescription, RegionInfo, SparseMmapArea, VfioUserHeader,
};
use protocol::{Connection, Descriptors, Endpoint, Frame};
use vhost_device_vfio_tests::mapped_bar::MappedBar;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::PATIENCE;
use zerocopy::{FromBytes, IntoBytes};

const FIRST: &str = "0000:01:00.0";
const MMAP: &[&str] = &["--bar-access", "mmap"];

/// The first function of a topology, as device 1.
fn vm(topology: &str, arguments: &[&str]) -> ModelledVm {
    let mut vm = ModelledVm::start(topology, arguments);
    vm.vmm.add(1, FIRST).unwrap();
    vm
}

fn open(vm: &mut ModelledVm) -> PciFunction {
    let mut function = vm.vmm.open(1);
    function.enable();
    function
}

/// A client that sees the messages.
struct Wire(Connection<VfioUserHeader>);

impl Wire {
    fn open(vm: &mut ModelledVm) -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        vm.vmm.control.serve(Cookie(1), Face::VfioUser, far).unwrap();
        let mut wire = Self(Connection::new(near, Endpoint::Client));
        wire.ask(
            Command::VERSION,
            &Capabilities { max_msg_fds: Some(16), ..Capabilities::default() }.encode(1),
        );
        wire
    }

    fn ask(&mut self, command: Command, body: &[u8]) -> Frame<VfioUserHeader> {
        self.0.send_within(VfioUserHeader::command(7, command), body, &[], PATIENCE).unwrap();
        self.0.receive_within(PATIENCE).unwrap()
    }

    /// The reply, and how many descriptors came with it.
    fn descriptors(&mut self, command: Command, body: &[u8]) -> usize {
        match self.ask(command, body).descriptors {
            Descriptors::Complete(descriptors) => descriptors.len(),
            Descriptors::Truncated => panic!("more than a message may have"),
        }
    }

    fn region_info(&mut self, index: u32, argsz: u32) -> Frame<VfioUserHeader> {
        self.ask(Command::DEVICE_GET_REGION_INFO, &region_info(index, argsz))
    }
}

fn region_info(index: u32, argsz: u32) -> Vec<u8> {
    RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 }.as_bytes().to_vec()
}

/// Whatever a client may send, in a form that is carried out where there is one.
fn every_command() -> Vec<(Command, Vec<u8>)> {
    let words = |words: &[u32]| words.as_bytes().to_vec();
    let access = |region| words(&[0, 0, region, 4]);
    let mut commands: Vec<_> =
        (0..=u16::from(u8::MAX)).map(|number| (Command(number), vec![0; 32])).collect();
    for region in 0..9 {
        for argsz in [32, 4096, u32::MAX] {
            commands.push((Command::DEVICE_GET_REGION_INFO, region_info(region, argsz)));
        }
        commands.push((Command::DEVICE_GET_REGION_IO_FDS, words(&[16, 0, region, 0])));
        commands.push((Command::REGION_READ, access(region)));
        commands.push((Command::REGION_WRITE, [access(region), vec![0; 4]].concat()));
        commands.push((Command::REGION_WRITE_MULTI, [words(&[1, 0]), access(region), vec![0; 8]].concat()));
    }
    for irq in 0..5 {
        commands.push((Command::DEVICE_GET_IRQ_INFO, words(&[16, 0, irq, 0])));
        commands.push((Command::DEVICE_SET_IRQS, words(&[20, 0x21, irq, 0, 0])));
    }
    for feature in (0..32).chain([DeviceFeature::RESET_GROUP]) {
        for operation in [DeviceFeature::GET, DeviceFeature::PROBE, DeviceFeature::GET | DeviceFeature::PROBE]
        {
            commands.push((Command::DEVICE_FEATURE, words(&[4096, operation | feature, 0, 0])));
        }
    }
    commands.push((Command::DEVICE_GET_INFO, words(&[16, 0, 0, 0])));
    commands.push((Command::DEVICE_RESET, vec![]));
    commands
}

#[test]
fn no_client_ever_gets_a_descriptor_unless_it_may_map_bars() {
    for topology in ["edu-pair", "igb-pair", "nvme"] {
        let mut vm = vm(topology, &[]);
        let mut wire = Wire::open(&mut vm);
        for (command, body) in every_command() {
            assert_eq!(wire.descriptors(command, &body), 0, "{command} {body:?}");
        }
        for region in 0..9 {
            let body = wire.region_info(region, 4096).body;
            let (info, rest) = RegionInfo::read_from_prefix(&body).unwrap();
            assert_eq!((info.flags & (RegionInfo::MMAP | RegionInfo::CAPS), info.offset), (0, 0));
            assert!(rest.is_empty());
        }
        assert_eq!(vm.logged("event=device-exposed"), 0);
    }
}

#[test]
fn where_bars_may_be_mapped_only_descriptions_of_them_have_a_descriptor() {
    let mut vm = vm("nvme", MMAP);
    let mut wire = Wire::open(&mut vm);
    for (command, body) in every_command() {
        let has_room = body.first_chunk().is_some_and(|argsz| u32::from_ne_bytes(*argsz) >= RegionInfo::SIZE);
        let is_of_bar_0 = command == Command::DEVICE_GET_REGION_INFO && has_room && body[8..12] == [0; 4];
        assert_eq!(wire.descriptors(command, &body), usize::from(is_of_bar_0), "{command} {body:?}");
    }
}

#[test]
fn the_log_says_that_bars_may_be_mapped_and_when_a_client_got_the_device() {
    let mut vm = vm("nvme", MMAP);
    vm.wait_for_lines("level=warn event=bar-access-mmap", 1);
    let mut function = open(&mut vm);
    assert_eq!(vm.logged("event=device-exposed"), 0);
    for _ in 0..3 {
        function.client.region(0).unwrap();
    }
    vm.wait_for_lines(&format!("level=warn event=device-exposed device={FIRST}"), 1);
}

#[test]
fn a_mapped_bar_is_the_devices() {
    let mut vm = vm("edu-pair", MMAP);
    let mut function = open(&mut vm);
    let bar = function.client.region(0).unwrap();
    assert_eq!((bar.info.flags, bar.info.offset, bar.areas.len()), (7, 0, 0));
    assert_eq!(MappedBar::new(&bar, 0, 0x1000).unwrap().read(0), 0x0100_00ed);
}

#[test]
fn where_not_all_of_a_bar_can_be_mapped_its_areas_are_told() {
    let areas = |topology: &str, bar| {
        let mut vm = vm(topology, MMAP);
        let RegionDescription { info, areas, file } = open(&mut vm).client.region(bar).unwrap();
        assert_eq!((info.flags & RegionInfo::MMAP != 0, info.offset), (true, u64::from(bar) << 40));
        assert!(file.is_some());
        areas.iter().map(|SparseMmapArea { offset, size }| (*offset, *size)).collect::<Vec<_>>()
    };
    assert_eq!(areas("nvme", 0), [(0, 0x2000)]);
    assert_eq!(areas("igb-pair", 3), [(0x1000, 0x1000), (0x3000, 0x1000)]);
    assert_eq!(areas("igb-pair", 0), []);
}

#[test]
fn a_bar_that_has_nothing_but_the_interrupt_tables_is_not_mapped() {
    let mut vm = vm("virtio-pair", MMAP);
    let mut function = open(&mut vm);
    let tables = function.client.region(1).unwrap();
    assert_eq!((tables.info.flags, tables.info.offset, tables.file.is_some()), (3, 0, false));
    assert_eq!(function.client.region(4).unwrap().info.flags, 7);
}

#[test]
fn a_client_without_room_for_areas_gets_the_descriptor_and_the_size_that_it_takes() {
    let mut vm = vm("nvme", MMAP);
    let mut wire = Wire::open(&mut vm);
    for (argsz, length, flags, cap_offset) in
        [(32, 32, 7, 0), (63, 32, 7, 0), (64, 64, 0xf, 32), (4096, 64, 0xf, 32)]
    {
        let Frame { body, descriptors, .. } = wire.region_info(0, argsz);
        let (info, _) = RegionInfo::read_from_prefix(&body).unwrap();
        assert_eq!((body.len(), info.argsz), (length, 64), "with room for {argsz}");
        assert_eq!((info.flags, info.cap_offset), (flags, cap_offset), "with room for {argsz}");
        assert!(matches!(descriptors, Descriptors::Complete(fds) if fds.len() == 1), "with room for {argsz}");
    }
}

#[test]
fn the_servers_own_descriptors_are_as_before() {
    let mut vm = vm("nvme", MMAP);
    let mut function = open(&mut vm);
    let before = vm.vmm.server.open_files();
    for _ in 0..100 {
        function.client.region(0).unwrap();
    }
    vm.vmm.server.wait_for_open_files(before);
}

/// The results of what was done when clients had gone.
fn taken_back(vm: &ModelledVm) -> Vec<String> {
    let log = vm.vmm.server.log();
    let records = log.lines().filter(|line| line.contains("event=sanitized occasion=HandBack"));
    records.map(|line| line.split_once(" result=").unwrap().1.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn a_device_that_a_client_could_map_is_never_taken_for_clean() {
    for (arguments, expected) in [(&[][..], "was-clean"), (MMAP, "reset")] {
        let mut vm = vm("nvme", arguments);
        let path = vm.listen(1);
        for count in 1..=2 {
            // It asks for nothing but what would let it map, and so touches nothing that the server can see.
            connect_face(&path).client.region(0).unwrap();
            vm.wait_for_lines("occasion=HandBack", count);
        }
        assert_eq!(taken_back(&vm), [expected; 2]);
    }
}
