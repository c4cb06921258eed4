// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A data face's clients: several writes in one message, the reset group, and who comes second.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use protocol::extension::Cookie;
use protocol::vfio_user::{Capabilities, Client, ClientError, RegionWrite};
use rustix::io::Errno;
use vfio::config_space::command;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::raw_client::RawClient;
use vhost_device_vfio_tests::server_process::PATIENCE;

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const CONFIG: u32 = 7;
/// igb's VLAN `EtherType` register and what it holds after a reset.
const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;
/// Its power management control, which the kernel takes its time over.
const IGB_POWER: u64 = 0x44;

/// Two igb as devices 1 and 2, and the first as its client has it.
fn igb_pair() -> (ModelledVm, PciFunction) {
    let mut vm = ModelledVm::start("igb-pair", &[]);
    vm.vmm.add(1, FIRST).unwrap();
    vm.vmm.add(2, SECOND).unwrap();
    let mut function = vm.vmm.open(1);
    function.enable();
    (vm, function)
}

fn write(region: u32, offset: u64, value: u32) -> RegionWrite {
    let mut data = [0xff; 8];
    data[..4].copy_from_slice(&value.to_le_bytes());
    RegionWrite { offset, region, count: 4, data }
}

fn errno<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Errno {
    match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[test]
fn several_writes_are_done_in_order() {
    let (_vm, mut igb) = igb_pair();
    let writes = [write(0, IGB_VET, 1), write(0, IGB_VET + 4, 2), write(0, IGB_VET, 3)];
    assert_eq!(igb.client.region_write_multi(&writes).unwrap(), 3);
    assert_eq!((igb.read(0, IGB_VET), igb.read(0, IGB_VET + 4)), (3, 2));
}

#[test]
fn of_several_writes_those_before_the_refused_one_are_done_and_counted() {
    let (vm, mut igb) = igb_pair();
    let writes = [write(0, IGB_VET, 1), write(0, IGB_VET, 2), write(0, IGB_VET, 3)];
    vm.fault("call = 'pwrite'\nerrno = 'EIO'\nskip = 1");
    assert_eq!(igb.client.region_write_multi(&writes).unwrap(), 1);
    assert_eq!(igb.read(0, IGB_VET), 1);
    vm.fault("call = 'pwrite'\nerrno = 'EIO'");
    assert_eq!(errno(igb.client.region_write_multi(&writes)), Errno::IO);
}

#[test]
fn where_one_of_several_writes_is_bad_none_is_done() {
    let (vm, mut igb) = igb_pair();
    for (bad, expected) in [
        (write(9, 0, 0), Errno::INVAL),
        (write(0, u64::MAX - 4, 0), Errno::INVAL),
        (write(6, 0, 0), Errno::INVAL),
        (write(CONFIG, IGB_POWER, 3), Errno::OPNOTSUPP),
    ] {
        let outcome = igb.client.region_write_multi(&[write(0, IGB_VET, 1), bad]);
        assert_eq!(errno(outcome), expected, "{bad:?}");
        assert_eq!(igb.read(0, IGB_VET), IGB_VET_DEFAULT);
    }
    vm.vmm.server.wait_for_log("(slow-write)");
}

#[test]
fn a_guest_that_touches_its_device_by_one_of_several_writes_has_it_in_use() {
    let (mut vm, mut igb) = igb_pair();
    let enable = u32::from(command::MEMORY | command::BUS_MASTER);
    let write = RegionWrite { count: 2, ..write(CONFIG, 4, enable) };
    igb.set_command(0);
    assert_eq!(igb.client.region_write_multi(&[write]).unwrap(), 1);
    let refused = vm.vmm.control.reset(Cookie(2), Some(protocol::extension::ResetMethod::Hot), None);
    assert_eq!(vhost_device_vfio_tests::vmm::refusal(refused).0, "sibling-in-use");
}

#[test]
fn no_descriptor_stands_for_a_part_of_a_region() {
    let (_vm, mut igb) = igb_pair();
    for region in 0..9 {
        assert_eq!(igb.client.region_io_fds(region).unwrap(), 0);
    }
    assert_eq!(errno(igb.client.region_io_fds(9)), Errno::INVAL);
}

#[test]
fn the_reset_group_on_a_data_face_is_that_of_the_control_face() {
    let (mut vm, mut igb) = igb_pair();
    assert!(igb.client.has_reset_group().unwrap());
    let told = igb.client.reset_group(0, u32::MAX).unwrap();
    assert!(told.is_available());
    let group = vm.vmm.control.reset_group(Cookie(1)).unwrap();
    assert_eq!((told.rows, told.reason), (group.rows, group.reason));
}

#[test]
fn rows_of_the_reset_group_are_told_as_far_as_wanted() {
    let (_vm, mut igb) = igb_pair();
    let whole = igb.client.reset_group(0, u32::MAX).unwrap();
    for (first, most, rows) in [(0, 0, 0..0), (0, 1, 0..1), (1, 5, 1..2), (2, 5, 2..2), (u32::MAX, 1, 2..2)] {
        let page = igb.client.reset_group(first, most).unwrap();
        assert_eq!((page.total_rows, page.reason), (2, whole.reason));
        assert_eq!(page.rows, whole.rows[rows], "{most} from {first} on");
    }
}

#[test]
fn a_group_that_cannot_be_reset_says_why_on_a_data_face() {
    let mut vm = ModelledVm::start("edu-igb", &[]);
    vm.vmm.add(1, FIRST).unwrap();
    let page = vm.vmm.open(1).client.reset_group(0, 0).unwrap();
    assert_eq!((page.is_available(), page.total_rows), (false, 2));
}

fn negotiate(path: &Path) -> Result<Client, ClientError> {
    let mut client = Client::new(UnixStream::connect(path).unwrap(), PATIENCE);
    client.version(&Capabilities::default()).map(|_| client)
}

#[test]
fn a_second_client_is_told_that_the_device_is_busy_and_the_first_goes_on() {
    // The other device's client stays: descriptors are counted.
    let (mut vm, _other) = igb_pair();
    let path = vm.listen(2);
    let mut first = connect_face(&path);
    first.enable();
    let files = vm.vmm.server.open_files();
    for _ in 0..3 {
        assert_eq!(errno(negotiate(&path)), Errno::BUSY);
        assert_eq!(first.read(0, IGB_VET), IGB_VET_DEFAULT);
    }
    vm.vmm.server.wait_for_open_files(files);
    vm.wait_for_lines("(second-client)", 3);
}

#[test]
fn a_client_that_comes_when_the_one_before_has_gone_is_served() {
    let (mut vm, _) = igb_pair();
    let path = vm.listen(2);
    for _ in 0..20 {
        let stream = UnixStream::connect(&path).unwrap();
        let end = stream.try_clone().unwrap();
        Client::new(stream, PATIENCE).version(&Capabilities::default()).unwrap();
        // Another test may be starting a process, which has a copy of the socket until it is another program.
        end.shutdown(Shutdown::Both).unwrap();
    }
    assert_eq!(vm.logged("(second-client)"), 0);
}

#[test]
fn second_clients_that_say_nothing_are_parted_from() {
    // The other device's client stays: descriptors are counted.
    let (mut vm, _other) = igb_pair();
    let path = vm.listen(2);
    let mut first = connect_face(&path);
    first.enable();
    let files = vm.vmm.server.open_files();
    let mut silent: Vec<_> = (0..20).map(|_| RawClient::connect(&path)).collect();
    vm.wait_for_lines("(second-client)", silent.len());
    assert!(vm.vmm.server.open_files() < files + silent.len(), "not all of them are waited for");
    silent.iter_mut().for_each(RawClient::assert_ended);
    vm.vmm.server.wait_for_open_files(files);
    assert_eq!(first.read(0, IGB_VET), IGB_VET_DEFAULT);
}
