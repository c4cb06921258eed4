// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that clients of data faces describe: what is pinned for it, who is refused what, and what is left when they go.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use protocol::extension::{Cookie, IoasChoice};
use protocol::vfio_user::{ClientError, DmaMap, DmaMapPayload, DmaUnmapPayload};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use vfio::{Ioas, Iommufd};
use vhost_device_vfio_tests::guest_memory::{GuestMemory, memfd};
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::{ServerProcess, wait_until};
use vhost_device_vfio_tests::vmm::Vmm;
use zerocopy::IntoBytes;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 8 * MIB;
const ALL: Range<u64> = 0..MEMORY;

/// Both functions of a pair, which share an IOMMU group.
fn pair(arguments: &[&str]) -> ModelledVm {
    let mut vm = ModelledVm::start("edu-pair", arguments);
    vm.vmm.add(1, "0000:01:00.0").unwrap();
    vm.vmm.add(2, "0000:01:00.1").unwrap();
    vm
}

fn pinned(vm: &ModelledVm) -> u64 {
    vm.machine.host().pinned_memory_of(vm.vmm.server.id())
}

fn wait_until_pinned(vm: &ModelledVm, size: u64) {
    assert!(wait_until(|| pinned(vm) == size), "{} bytes: {}", pinned(vm), vm.vmm.server.log());
}

fn errno<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Errno {
    match outcome {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("{other:?} instead of a refusal"),
    }
}

/// Something that is not memory, at an address.
fn without_file(address: u64, size: u64, is_writable: bool) -> DmaMap {
    DmaMap { address, size, offset: 0, is_writable, file: None }
}

#[test]
fn memory_of_two_clients_is_pinned_once_and_as_long_as_either_has_it() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let (mut first, mut second) = (vm.vmm.open(1), vm.vmm.open(2));
    first.map(&memory, ALL).unwrap();
    second.map(&memory, ALL).unwrap();
    assert_eq!(pinned(&vm), MEMORY);
    first.unmap(ALL).unwrap();
    assert_eq!(pinned(&vm), MEMORY);
    second.unmap(ALL).unwrap();
    assert_eq!(pinned(&vm), 0);
}

#[test]
fn the_memory_table_and_a_clients_memory_are_pinned_once() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    vm.vmm.map(&memory).unwrap();
    let mut first = vm.vmm.open(1);
    first.map(&memory, ALL).unwrap();
    vm.vmm.unmap_all().unwrap();
    assert_eq!(pinned(&vm), MEMORY);
    first.unmap(ALL).unwrap();
    assert_eq!(pinned(&vm), 0);
}

#[test]
fn a_part_of_what_two_clients_have_goes_when_both_are_done_with_it() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let (mut first, mut second) = (vm.vmm.open(1), vm.vmm.open(2));
    for function in [&mut first, &mut second] {
        function.map(&memory, ALL).unwrap();
    }
    for (function, left) in [(&mut first, MEMORY), (&mut second, MEMORY - 2 * MIB)] {
        function.unmap(ALL).unwrap();
        function.map(&memory, 0..3 * MIB).unwrap();
        function.map(&memory, 5 * MIB..MEMORY).unwrap();
        assert_eq!(pinned(&vm), left);
    }
}

#[test]
fn what_a_client_mapped_goes_with_it_and_the_next_may_map_other_memory_there() {
    let mut vm = pair(&[]);
    let path = vm.listen(1);
    for _ in 0..3 {
        let memory = GuestMemory::new(0, MEMORY);
        let mut client = connect_face(&path);
        client.map(&memory, ALL).unwrap();
        assert_eq!(pinned(&vm), MEMORY);
        drop(client);
        wait_until_pinned(&vm, 0);
    }
    let files = vm.vmm.server.open_files();
    let mut client = connect_face(&path);
    client.map(&GuestMemory::new(0, MEMORY), ALL).unwrap();
    drop(client);
    wait_until_pinned(&vm, 0);
    assert!(wait_until(|| vm.vmm.server.open_files() == files), "{}", vm.vmm.server.open_files());
}

#[test]
fn memory_goes_with_the_device_that_it_was_mapped_for() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let mut first = vm.vmm.open(1);
    first.map(&memory, ALL).unwrap();
    vm.vmm.control.remove_device(Cookie(1)).unwrap();
    assert_eq!(pinned(&vm), 0);
}

#[test]
fn other_memory_at_an_address_is_refused_to_the_later_client() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let (mut first, mut second) = (vm.vmm.open(1), vm.vmm.open(2));
    first.map(&memory, ALL).unwrap();
    assert_eq!(errno(second.map(&GuestMemory::new(0, MEMORY), MIB..2 * MIB)), Errno::EXIST);
    vm.wait_for_lines("region-conflicts", 1);
    second.map(&memory, MIB..2 * MIB).unwrap();
    assert_eq!(pinned(&vm), MEMORY);
}

#[test]
fn a_mapping_over_another_is_refused_and_one_is_unmapped_only_as_it_came() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let mut first = vm.vmm.open(1);
    first.map(&memory, 2 * MIB..4 * MIB).unwrap();
    for part in [2 * MIB..4 * MIB, 3 * MIB..5 * MIB, MIB..6 * MIB, 2 * MIB..3 * MIB] {
        assert_eq!(errno(first.map(&memory, part)), Errno::EXIST);
    }
    assert_eq!(errno(first.client.dma_map(&without_file(3 * MIB, MIB, true))), Errno::EXIST);
    for part in [2 * MIB..3 * MIB, 3 * MIB..4 * MIB, MIB..4 * MIB, 6 * MIB..7 * MIB] {
        assert_eq!(errno(first.unmap(part)), Errno::NOENT);
    }
    first.unmap(2 * MIB..4 * MIB).unwrap();
    assert_eq!(pinned(&vm), 0);
}

#[test]
fn what_has_no_file_is_remembered_and_not_mapped() {
    let mut vm = pair(&[]);
    let mut first = vm.vmm.open(1);
    first.client.dma_map(&without_file(0xffc0_0000, 4 * MIB, false)).unwrap();
    assert_eq!(pinned(&vm), 0);
    assert_eq!(errno(first.map(&GuestMemory::new(0, 0x1_0000_0000), 0xffc0_0000..0xffd0_0000)), Errno::EXIST);
    first.unmap(0xffc0_0000..0x1_0000_0000).unwrap();
    assert_eq!(errno(first.unmap(0xffc0_0000..0x1_0000_0000)), Errno::NOENT);
}

#[test]
fn a_device_is_refused_to_a_client_whose_guest_memory_has_no_file() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let path = vm.listen(1);
    let mut client = connect_face(&path);
    client.client.dma_map(&without_file(0, MEMORY, true)).unwrap();
    assert_eq!(errno(client.client.device_info()), Errno::INVAL);
    vm.wait_for_lines("share=on", 1);
    drop(client);
    let with_rom_and_bar = |client: &mut PciFunction| {
        client.client.dma_map(&without_file(0xffc0_0000, 4 * MIB, false)).unwrap();
        client.client.dma_map(&without_file(0xe000_0000, 4 * MIB, true)).unwrap();
        client.map(&memory, ALL).unwrap();
        client.client.device_info().unwrap();
    };
    with_rom_and_bar(&mut connect_face(&path));
    // A frontend that knows the extension has told the memory on the control face.
    vm.vmm.map(&memory).unwrap();
    let mut client = connect_face(&path);
    client.client.dma_map(&without_file(0xe000_0000, 4 * MIB, true)).unwrap();
    client.client.device_info().unwrap();
}

#[test]
fn memory_that_may_shrink_is_a_stock_vmms_and_is_taken() {
    let mut vm = pair(&[]);
    let file = Some(memfd(MEMORY, SealFlags::empty()));
    let map = DmaMap { address: 0, size: MEMORY, offset: 0, is_writable: true, file };
    vm.vmm.open(1).client.dma_map(&map).unwrap();
}

#[test]
fn nothing_is_mapped_in_an_address_space_that_is_adopted() {
    let machine = ModelledMachine::start("edu-pair");
    let host = machine.host();
    let iommufd = host.open_iommufd().unwrap();
    let ours = Iommufd::from_fd(iommufd.try_clone().unwrap().into(), &host.sysfs()).unwrap();
    let ioas = Ioas::allocate(Arc::new(ours)).unwrap();
    let server = ServerProcess::start_on(&host);
    let mut vmm = Vmm::with_address_space_on(&host, server, iommufd, IoasChoice::Adopt(ioas.id()));
    vmm.add(1, "0000:01:00.0").unwrap();
    let memory = GuestMemory::new(0, MEMORY);
    assert_eq!(errno(vmm.open(1).map(&memory, ALL)), Errno::PERM);
    assert!(vmm.server.log().contains("memory-is-adopted"));
}

#[test]
fn memory_that_cannot_be_mapped_leaves_what_was_there() {
    let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
    let mut first = vm.vmm.open(1);
    first.map(&memory, 0..2 * MIB).unwrap();
    vm.fault("call = 'IOMMU_IOAS_MAP_FILE'\nerrno = 'ENOMEM'\ntimes = 1");
    assert_eq!(errno(first.map(&memory, 2 * MIB..4 * MIB)), Errno::NOMEM);
    assert_eq!(pinned(&vm), 2 * MIB);
    first.map(&memory, 2 * MIB..4 * MIB).unwrap();
    assert_eq!(pinned(&vm), 4 * MIB);
}

/// Each step of moving devices to another IOAS fails once.
#[test]
fn a_move_to_another_address_space_that_fails_leaves_the_devices_where_they_were() {
    for call in ["IOMMU_IOAS_ALLOC", "IOMMU_IOAS_COPY", "IOMMU_HWPT_ALLOC", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"] {
        let (mut vm, memory) = (pair(&[]), GuestMemory::new(0, MEMORY));
        vm.vmm.map(&memory).unwrap();
        let mut first = vm.vmm.open(1);
        first.map(&memory, 0..2 * MIB).unwrap();
        vm.fault(&format!("call = '{call}'\nerrno = 'ENOMEM'\ntimes = 1"));
        assert!(vm.vmm.unmap_all().is_err(), "{call}");
        assert_eq!(pinned(&vm), MEMORY, "{call}");
        vm.vmm.unmap_all().unwrap();
        assert_eq!(pinned(&vm), 2 * MIB, "{call}");
    }
}

/// All at once, with refusals in between: of an unknown flag, and of what is not there.
#[test]
fn commands_about_memory_are_answered_in_their_order() {
    let mut vm = pair(&[]);
    let path = vm.listen(1);
    let mut stream = UnixStream::connect(path).unwrap();
    let mut id = 0_u16;
    let mut message = |command: u16, body: &[u8]| {
        id += 1;
        let size = u32::try_from(16 + body.len()).unwrap();
        let header = [&id.to_ne_bytes()[..], &command.to_ne_bytes(), &size.to_ne_bytes(), &[0; 8]].concat();
        [&header, body].concat()
    };
    let map = |flags: u32, page: u64| {
        let payload = DmaMapPayload { argsz: 32, flags, offset: 0, address: page << 12, size: 1 << 12 };
        payload.as_bytes().to_vec()
    };
    let unmap = |page: u64| {
        let payload = DmaUnmapPayload { argsz: 24, flags: 0, address: page << 12, size: 1 << 12 };
        payload.as_bytes().to_vec()
    };
    let commands = [
        message(1, &[0; 4]),
        message(2, &map(3, 0)),
        message(2, &map(4, 1)),
        message(3, &unmap(0)),
        message(3, &unmap(0)),
        message(2, &map(1, 0)),
        message(7, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    stream.write_all(&commands.concat()).unwrap();
    let mut answers = Vec::new();
    for _ in 0..commands.len() {
        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(word(4)).unwrap() - 16];
        stream.read_exact(&mut body).unwrap();
        answers.push((u16::from_ne_bytes([header[0], header[1]]), word(12)));
    }
    let (einval, enoent) = (22, 2);
    assert_eq!(answers, [(1, 0), (2, 0), (3, einval), (4, 0), (5, enoent), (6, 0), (7, 0)]);
}
