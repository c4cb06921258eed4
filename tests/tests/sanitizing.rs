// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices are reset before somebody gets them and after somebody had them, as the server was told, and there is a record.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::Read;
use std::os::unix::net::UnixStream;

use protocol::ClientError;
use protocol::extension::{Cookie, Face};
use rustix::io::Errno;
use vfio::model::{Settings, Topology};
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::modelled_vm::{ModelledVm, connect_face};
use vhost_device_vfio_tests::server_process::PATIENCE;
use vhost_device_vfio_tests::vmm::refusal;

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const FAILING: &str = "call = 'VFIO_DEVICE_PCI_HOT_RESET'\nerrno = 'EIO'\ntimes = 0";
/// igb's VLAN `EtherType` register and what it holds after a reset.
const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;

/// A VM to which these functions were handed over as devices 1, 2, ….
fn vm(topology: &str, functions: &[&str], arguments: &[&str]) -> ModelledVm {
    let mut vm = ModelledVm::start(topology, arguments);
    for (cookie, function) in (1..).zip(functions) {
        vm.vmm.add(cookie, function).unwrap();
    }
    vm
}

fn serve(vm: &mut ModelledVm, cookie: u64) -> Result<UnixStream, ClientError> {
    let (near, far) = UnixStream::pair().unwrap();
    vm.vmm.control.serve(Cookie(cookie), Face::VfioUser, far).map(|()| near)
}

/// The records of one device on one occasion.
fn records(vm: &ModelledVm, occasion: &str, address: &str) -> Vec<String> {
    let text = format!("event=sanitized occasion={occasion} device={address} ");
    vm.vmm.server.log().lines().filter(|line| line.contains(&text)).map(str::to_owned).collect()
}

/// The value of a field of a record, without quotes.
fn field<'a>(record: &'a str, name: &str) -> &'a str {
    let (_, value) = record.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name}: {record}"));
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap(),
        None => value.split(' ').next().unwrap(),
    }
}

#[test]
fn a_device_whose_reset_fails_is_not_served_where_one_is_required() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &["--sanitize", "required"]);
    vm.fault(FAILING);
    assert_eq!(refusal(serve(&mut vm, 1)), ("not-sanitized".into(), Errno::IO.raw_os_error()));
}

#[test]
fn a_device_whose_reset_is_blocked_is_not_served_where_one_is_required() {
    let mut vm = vm("edu-igb", &[FIRST], &["--sanitize", "required"]);
    assert_eq!(refusal(serve(&mut vm, 1)), ("not-sanitized".into(), Errno::PERM.raw_os_error()));
    let failure = vm.vmm.control.last_failure().unwrap().unwrap().failure;
    assert!(failure.why().contains(SECOND), "{failure}");
    assert!(failure.fix().contains("/dev/vfio/devices/"), "{failure}");
}

#[test]
fn a_device_that_was_reset_is_served_where_that_is_required() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &["--sanitize", "required"]);
    serve(&mut vm, 1).unwrap();
    assert_eq!(field(&records(&vm, "HandOut", FIRST)[0], "result"), "reset");
}

#[test]
fn a_client_does_not_get_a_device_that_could_not_be_reset_where_that_is_required() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &["--sanitize", "required"]);
    let path = vm.listen(1);
    let mut function = connect_face(&path);
    function.enable();
    vm.fault(FAILING);
    drop(function);
    vm.wait_for_lines("occasion=HandBack", 1);
    let mut second = UnixStream::connect(&path).unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0, "the connection is closed");
    vm.vmm.server.wait_for_log("event=not-admitted");
}

#[test]
fn a_device_that_could_not_be_reset_is_served_where_that_is_enough() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &["--sanitize", "best-effort"]);
    vm.fault(FAILING);
    let mut function = vm.vmm.open(1);
    function.enable();
    assert_eq!(field(&records(&vm, "HandOut", FIRST)[0], "result"), "not-reset");
}

#[test]
fn nothing_is_reset_where_sanitizing_is_off() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &["--sanitize", "off"]);
    let path = vm.listen(1);
    let mut function = connect_face(&path);
    function.enable();
    drop(function);
    vm.wait_for_lines("occasion=HandBack", 1);
    assert_eq!(vm.logged("event=reset-begun"), 0);
    assert_eq!(vm.logged("result=skipped"), vm.logged("event=sanitized"));
}

#[test]
fn a_device_is_reset_when_its_client_has_gone() {
    let mut vm = vm("igb-pair", &[FIRST, SECOND], &[]);
    let path = vm.listen(1);
    let mut function = connect_face(&path);
    function.enable();
    drop(function);
    vm.wait_for_lines("occasion=HandBack", 1);
    let record = &records(&vm, "HandBack", FIRST)[0];
    assert_eq!((field(record, "result"), field(record, "method")), ("reset", "function reset"));
}

#[test]
fn the_next_client_finds_nothing_of_the_one_before() {
    let mut vm = vm("igb-pair", &[FIRST, SECOND], &[]);
    let path = vm.listen(1);
    let mut function = connect_face(&path);
    function.enable();
    function.write(0, IGB_VET, 0x1234);
    drop(function);
    vm.wait_for_lines("event=vfio-user-closed", 1);
    let mut next = connect_face(&path);
    next.enable();
    assert_eq!(next.read(0, IGB_VET), IGB_VET_DEFAULT);
}

#[test]
fn a_device_that_is_clean_since_it_came_back_is_not_reset_again() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &[]);
    let path = vm.listen(1);
    let mut function = connect_face(&path);
    function.enable();
    drop(function);
    vm.wait_for_lines("occasion=HandBack", 1);
    let resets = vm.logged("event=reset-done");
    connect_face(&path).command();
    assert_eq!(vm.logged("event=reset-done"), resets);
    let given = records(&vm, "HandOut", FIRST);
    assert_eq!(field(given.last().unwrap(), "result"), "was-clean");
    let taken = records(&vm, "HandBack", FIRST);
    assert_eq!(field(given.last().unwrap(), "epoch"), field(&taken[0], "epoch"));
}

#[test]
fn the_record_says_who_had_which_device_when_and_what_was_done() {
    let mut vm = vm("edu-pair", &[FIRST, SECOND], &[]);
    let path = vm.listen(1);
    connect_face(&path).enable();
    vm.wait_for_lines("occasion=HandBack", 1);
    let records: Vec<_> =
        ["HandOut", "HandBack"].into_iter().flat_map(|occasion| records(&vm, occasion, FIRST)).collect();
    let [served, given, taken] = records.try_into().expect("three");
    assert!(field(&served, "who").starts_with("connection="), "{served}");
    let pid = format!("pid={}", std::process::id());
    assert!(field(&given, "who").ends_with(&pid), "{given}");
    assert!(field(&given, "who").starts_with(field(&taken, "who")), "{taken}");
    assert_ne!(field(&taken, "when").parse::<u64>().unwrap(), 0);
    let names = ["cookie", "policy", "result", "method", "outcome", "affected", "lost"];
    let values = names.map(|name| field(&taken, name));
    assert_eq!(values, ["0x1", "BestEffort", "reset", "hot reset", "Done", "0x1,0x2", "0"]);
}

#[test]
fn the_record_says_why_a_device_was_not_reset() {
    let mut vm = vm("edu-igb", &[FIRST], &[]);
    serve(&mut vm, 1).unwrap();
    let record = &records(&vm, "HandOut", FIRST)[0];
    assert_eq!(field(record, "result"), "not-reset");
    assert!(field(record, "reason").contains(SECOND), "{record}");
}

#[test]
fn a_device_without_a_reset_is_not_served_where_one_is_required() {
    let mut vm = vm("edu-igb", &[FIRST], &["--require", "reset"]);
    assert_eq!(refusal(serve(&mut vm, 1)), ("reset-required".into(), Errno::PERM.raw_os_error()));
    let failure = vm.vmm.control.last_failure().unwrap().unwrap().failure;
    assert!(failure.why().contains(SECOND), "{failure}");
    assert!(failure.fix().contains("/dev/vfio/devices/"), "{failure}");
}

#[test]
fn a_device_with_a_reset_of_its_own_is_served_where_one_is_required() {
    let mut vm = vm("edu-igb", &[SECOND], &["--require", "reset"]);
    serve(&mut vm, 1).unwrap();
}

#[test]
fn a_device_can_be_served_once_its_sibling_is_handed_over() {
    let mut vm = vm("edu-igb", &[FIRST], &["--require", "reset"]);
    assert!(serve(&mut vm, 1).is_err());
    vm.vmm.add(2, SECOND).unwrap();
    serve(&mut vm, 1).unwrap();
}

/// A function whose own reset is one by power management, beside one that blocks the reset of the slot.
const SLEEPER: &str = "
[[bridge]]
address = '0000:00:04.0'
kind = 'root-port'
bus = 1
group = 1
[[function]]
address = '0000:01:00.0'
part = 'e1000e'
group = 5
driver = 'vfio-pci'
[[function]]
address = '0000:01:00.1'
part = 'igb'
group = 6
driver = 'vfio-pci'
";

#[test]
fn a_reset_by_power_management_alone_is_not_what_is_required() {
    let machine = ModelledMachine::of(Topology::parse(SLEEPER).unwrap(), Settings::default());
    let mut vm = ModelledVm::on(machine, &["--require", "reset"]);
    vm.vmm.add(1, FIRST).unwrap();
    assert_eq!(refusal(serve(&mut vm, 1)).0, "reset-required");
    vm.vmm.add(2, SECOND).unwrap();
    serve(&mut vm, 1).unwrap();
}
