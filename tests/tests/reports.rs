// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reset group tells of each case that there is: the real server and the real tool on modelled machines.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use protocol::extension::{Cookie, GroupReason, ResetGroup, RowFlags, RowReason};
use serde_json::Value;
use vfio::model::order::{DriverOrder, FunctionOrder};
use vfio::model::{Fault, Order, Settings, Topology, order};
use vfio::{Device, Iommufd, PciAddress, UnboundDevice};
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::legacy_group::{LegacyGroup, LegacyUser};
use vhost_device_vfio_tests::server_process::{tool_binary, wait_until};
use vhost_device_vfio_tests::vmm::Vmm;

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const THIRD: &str = "0000:01:00.2";
const FOURTH: &str = "0000:01:00.3";
const FIFTH: &str = "0000:01:03.0";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A VM with some functions of a machine, named from 1 on, and whoever asks about them.
struct Vm {
    vmm: Vmm,
    host: Host,
    folder: tempfile::TempDir,
}

impl Vm {
    fn on(host: &Host, functions: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = Vmm::listening_on(host, &folder.path().join("control"));
        for (cookie, function) in (1..).zip(functions) {
            vmm.add(cookie, function).unwrap();
        }
        Self { vmm, host: host.clone(), folder }
    }

    fn group(&mut self, cookie: u64) -> ResetGroup {
        self.vmm.control.reset_group(Cookie(cookie)).unwrap()
    }

    /// Why the server says that a function blocks.
    fn told(&mut self, function: &str) -> RowReason {
        let group = self.group(1);
        group.rows.iter().find(|row| row.address.to_string() == function).unwrap().reason
    }

    fn tool(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(tool_binary());
        command.args(self.host.arguments()).arg("reset-group").args(arguments);
        let output = command.arg("--socket").arg(self.folder.path().join("control")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the tool tells of a device.
    fn report(&self, device: &str) -> Report {
        Report(serde_json::from_str(&self.tool(&[device, "--json"])).unwrap())
    }
}

/// What the tool told, as JSON.
struct Report(Value);

impl Report {
    fn row(&self, function: &str) -> &Value {
        let mut rows = self.0["functions"].as_array().unwrap().iter();
        rows.find(|row| row["address"] == function).unwrap_or_else(|| panic!("no {function} in {}", self.0))
    }

    /// Every function with its reason, or whose it is where it does not block.
    fn reasons(&self) -> Vec<(&str, &str)> {
        let rows = self.0["functions"].as_array().unwrap().iter();
        let reason = |row: &Value| if row["blocks"] == true { "reason" } else { "ownership" };
        rows.map(|row| (row["address"].as_str().unwrap(), row[reason(row)].as_str().unwrap())).collect()
    }

    fn remedy(&self, function: &str) -> &str {
        self.row(function)["remedy"].as_str().unwrap()
    }

    /// Whether it can be reset now, and whether that will hold.
    fn verdict(&self) -> (bool, &str) {
        (self.0["available"].as_bool().unwrap(), self.0["outlook"]["id"].as_str().unwrap())
    }

    fn depends_on(&self) -> Vec<&str> {
        self.0["outlook"]["depends_on"]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap())
            .collect()
    }

    fn holders(&self, function: &str) -> Vec<u64> {
        let holders = self.row(function)["holders"].as_array().unwrap().iter();
        holders.map(|holder| holder["process"].as_u64().unwrap()).collect()
    }

    /// Blocks for this reason, and the remedy says all these things.
    fn expect(&self, function: &str, reason: &str, sentences: &[&str]) {
        let row = self.row(function);
        assert_eq!((row["blocks"].as_bool(), row["reason"].as_str()), (Some(true), Some(reason)), "{row}");
        for sentence in sentences {
            assert!(self.remedy(function).contains(sentence), "no `{sentence}` in {row}");
        }
    }
}

fn this_process() -> u64 {
    std::process::id().into()
}

/// A function as somebody else has it: bound to an iommufd of his own.
fn bind_elsewhere(host: &Host, function: &str) -> (Arc<Iommufd>, Device) {
    let sysfs = host.sysfs();
    let context = Arc::new(Iommufd::from_fd(host.open_iommufd().unwrap().into(), &sysfs).unwrap());
    let file = host.open_cdev(address(function)).unwrap().into();
    let device = UnboundDevice::from_fd(file, &sysfs).unwrap().bind(&context, &sysfs).unwrap();
    (context, device)
}

fn set_driver(machine: &ModelledMachine, function: &str, driver: Option<&str>) {
    let function = address(function);
    machine.order(&Order::Unbind(FunctionOrder { function }));
    if let Some(driver) = driver {
        machine.order(&Order::Bind(DriverOrder { function, driver: driver.into() }));
    }
}

/// Has the host take a function from its driver, which waits for whoever has it open.
fn begin_unbind(host: &Host, function: &str) -> JoinHandle<()> {
    let (root, function) = (host.root().to_owned(), address(function));
    let unbind = std::thread::spawn(move || {
        order::give(&root, &Order::Unbind(FunctionOrder { function })).unwrap();
    });
    let is_waiting = || host.sysfs().departing_driver(function).unwrap().is_some();
    assert!(wait_until(is_waiting), "the unbind does not begin");
    unbind
}

#[test]
fn an_unopened_sibling_of_the_group_is_implied_and_has_to_stay_where_it_is() {
    let machine = ModelledMachine::start("edu-pair");
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    assert_eq!(report.reasons(), [(FIRST, "ours"), (SECOND, "implied")]);
    assert_eq!(report.verdict(), (true, "holds"));
    let expected = [
        "0000:01:00.0 stays bound to this iommufd",
        "0000:01:00.1 stays on its VFIO driver and in IOMMU group 5, of which a function is bound",
        "no other function appears in the slot or on the bus",
    ];
    assert_eq!(report.depends_on(), expected);
}

#[test]
fn an_unopened_sibling_of_another_group_is_to_be_handed_over() {
    let machine = ModelledMachine::start("edu-igb");
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let before = vm.report(FIRST);
    assert_eq!(before.verdict(), (false, "can-change"));
    let remedy = "Hand /dev/vfio/devices/vfio1 over too (vfio-devctl launch … --device 0000:01:00.1)";
    before.expect(SECOND, "unopened", &[remedy]);
    vm.vmm.add(2, SECOND).unwrap();
    let after = vm.report(FIRST);
    assert_eq!(after.verdict(), (true, "holds"));
    assert_eq!(after.depends_on()[0], "0000:01:00.0, 0000:01:00.1 stay bound to this iommufd");
    assert_ne!(after.0["generation"], before.0["generation"]);
}

#[test]
fn the_five_questions_are_answered_above_and_in_the_table() {
    let machine = ModelledMachine::start("edu-igb");
    let vm = Vm::on(&machine.host(), &[FIRST, SECOND]);
    let text = vm.tool(&[SECOND]);
    let socket = vm.folder.path().join("control");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "0000:01:00.1 can be hot reset now (generation 2).");
    assert!(lines[1].starts_with("Later: yes, as long as "), "{text}");
    assert_eq!(lines[2], "Devices of ours: 1 (0000:01:00.0), 2 (0000:01:00.1).");
    let command = format!("vfio-devctl reset --socket {} --method hot 0000:01:00.1", socket.display());
    assert!(lines[3].starts_with(&format!("Command: {command}; of the device alone: ")), "{text}");
    let titles = ["BDF", "in this VM as", "IOMMU group", "VFIO driver (cdev)", "kernel driver", "owned how"];
    let titles = titles.into_iter().chain(["blocks reset?", "what to do"]);
    let mut rest = lines[5];
    for title in titles {
        rest = rest.split_once(title).unwrap_or_else(|| panic!("no `{title}` in its place in {text}")).1;
    }
    let row: Vec<_> = lines[7].split_whitespace().collect();
    assert_eq!(row, ["0000:01:00.1", "2", "6", "vfio-pci", "(vfio1)", "-", "ours", "no", "-"]);
    let report = vm.report(SECOND);
    assert_eq!(report.0["reset_command"], command);
    assert_eq!(report.0["devices"][1], serde_json::json!({"cookie": 2, "address": SECOND}));
}

#[test]
fn the_command_of_a_report_can_be_run() {
    let machine = ModelledMachine::start("edu-pair");
    let vm = Vm::on(&machine.host(), &[FIRST]);
    let report = vm.report(FIRST);
    let mut words = report.0["reset_command"].as_str().unwrap().split(' ');
    assert_eq!(words.next(), Some("vfio-devctl"));
    let output = Command::new(tool_binary()).args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_sibling_on_a_driver_of_the_host_is_to_be_taken_from_it() {
    let machine = ModelledMachine::start("edu-igb");
    set_driver(&machine, SECOND, Some("igb"));
    let unbind = "echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind";
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    report.expect(
        SECOND,
        "kernel-driver",
        &["Take 0000:01:00.1 from igb", unbind, "> /sys/bus/pci/drivers_probe"],
    );
}

#[test]
fn a_sibling_without_a_driver_is_to_be_bound() {
    let machine = ModelledMachine::start("edu-igb");
    set_driver(&machine, SECOND, None);
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    report.expect(SECOND, "no-driver", &["Bind 0000:01:00.1 to vfio-pci (echo vfio-pci > "]);
}

#[test]
fn a_sibling_bound_to_another_iommufd_names_the_process() {
    for kernel in ["6.12", "7.3"] {
        let machine = ModelledMachine::of_kernel("edu-igb", kernel);
        let (_context, _device) = bind_elsewhere(&machine.host(), SECOND);
        let mut vm = Vm::on(&machine.host(), &[FIRST]);
        let report = vm.report(FIRST);
        let kill = format!("(kill {}), which has 0000:01:00.1 on another iommufd", this_process());
        report.expect(SECOND, "other-context", &[&kill]);
        assert_eq!(report.holders(SECOND), [this_process()]);
        assert_eq!(vm.told(SECOND), RowReason::InUse, "so much the server sees");
    }
}

#[test]
fn a_sibling_whose_file_is_open_but_not_bound_is_unopened_and_names_who_has_it() {
    let machine = ModelledMachine::start("edu-igb");
    let _file = machine.host().open_cdev(address(SECOND)).unwrap();
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    report.expect(SECOND, "unopened", &["Hand /dev/vfio/devices/vfio1 over too"]);
    assert_eq!(report.holders(SECOND), [this_process()]);
}

#[test]
fn a_sibling_that_its_group_gave_names_the_process_and_the_group() {
    for kernel in ["6.12", "7.3"] {
        let machine = ModelledMachine::of_kernel("edu-igb", kernel);
        let _user = LegacyUser::open(&machine.host(), 6, SECOND);
        let mut vm = Vm::on(&machine.host(), &[FIRST]);
        let report = vm.report(FIRST);
        let kill = format!("(kill {})", this_process());
        report.expect(SECOND, "legacy-group", &[&kill, "has IOMMU group 6 open the legacy way"]);
        assert_eq!(vm.told(SECOND), RowReason::InUse, "so much the server sees");
    }
}

#[test]
fn a_group_that_is_only_open_keeps_its_functions_from_being_handed_over() {
    let machine = ModelledMachine::start("edu-igb");
    let _group = LegacyGroup::open(&machine.host(), 6).unwrap();
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    vm.report(FIRST).expect(SECOND, "legacy-group", &["IOMMU group 6"]);
    assert_eq!(vm.told(SECOND), RowReason::Unopened, "sysfs does not show an open file");
    assert!(vm.vmm.add(2, SECOND).is_err());
}

#[test]
fn two_vms_that_each_have_a_part_of_a_set_are_told_of_each_other() {
    let machine = ModelledMachine::start("igb-pair");
    let (first, second) = (Vm::on(&machine.host(), &[FIRST]), Vm::on(&machine.host(), &[SECOND]));
    let (seen_by_first, seen_by_second) = (first.report(FIRST), second.report(SECOND));
    seen_by_first.expect(SECOND, "other-context", &["(vhost-device-vf)"]);
    seen_by_second.expect(FIRST, "other-context", &["(vhost-device-vf)"]);
    assert_eq!(seen_by_first.holders(SECOND), [u64::from(second.vmm.server.id())]);
    assert_eq!(seen_by_second.holders(FIRST), [u64::from(first.vmm.server.id())]);
}

#[test]
fn a_device_of_another_server_on_the_same_iommufd_may_be_let_go() {
    let machine = ModelledMachine::start("igb-pair");
    let host = machine.host();
    let sysfs = host.sysfs();
    let vm = Vm::on(&host, &[FIRST]);
    let context = Iommufd::from_fd(vm.vmm.iommufd.try_clone().unwrap().into(), &sysfs).unwrap();
    let file = host.open_cdev(address(SECOND)).unwrap().into();
    let _device = UnboundDevice::from_fd(file, &sysfs).unwrap().bind(&context, &sysfs).unwrap();
    let report = vm.report(FIRST);
    assert_eq!(report.verdict(), (true, "holds"));
    let other = "0000:01:00.1 stays bound to it by another process, which may let go at any time";
    assert_eq!(report.depends_on()[1], other);
    assert_eq!(report.0["devices"].as_array().unwrap().len(), 1, "only one is this server's");
}

#[test]
fn a_group_that_spans_scopes_makes_no_difference_to_a_reset() {
    let machine = ModelledMachine::start("group-spans-scopes");
    let report = Vm::on(&machine.host(), &["0000:03:00.0"]).report("0000:03:00.0");
    assert_eq!(report.reasons(), [("0000:03:00.0", "ours")]);
    assert_eq!(report.verdict(), (true, "holds"));
}

#[test]
fn a_scope_that_spans_groups_needs_something_of_each() {
    let machine = ModelledMachine::start("scope-spans-groups");
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let expected = [(FIRST, "ours"), (SECOND, "implied"), (THIRD, "unopened"), (FOURTH, "unopened")];
    assert_eq!(vm.report(FIRST).reasons(), expected);
    vm.vmm.add(2, THIRD).unwrap();
    vm.vmm.add(3, FOURTH).unwrap();
    assert_eq!(vm.report(FIRST).verdict(), (true, "holds"));
}

#[test]
fn the_five_devices_look_different_to_each_of_their_owners() {
    let machine = ModelledMachine::start("five-devices");
    let host = machine.host();
    let legacy = LegacyUser::open(&host, 6, THIRD);
    let mut a = Vm::on(&host, &[FIRST]);
    let d = Vm::on(&host, &[FOURTH]);
    let seen_by_a = [
        (FIRST, "ours"),
        (SECOND, "implied"),
        (THIRD, "legacy-group"),
        (FOURTH, "other-context"),
        (FIFTH, "unopened"),
    ];
    assert_eq!(a.report(FIRST).reasons(), seen_by_a);
    let seen_by_d = [
        (FIRST, "other-context"),
        (SECOND, "group-in-use"),
        (THIRD, "legacy-group"),
        (FOURTH, "ours"),
        (FIFTH, "unopened"),
    ];
    assert_eq!(d.report(FOURTH).reasons(), seen_by_d);
    d.report(FOURTH).expect(SECOND, "group-in-use", &["IOMMU group 5", "vfio-devctl topology 0000:01:00.1"]);
    a.vmm.add(5, FIFTH).unwrap();
    assert_eq!(a.report(FIRST).reasons()[4], (FIFTH, "ours"));
    drop((legacy, d));
    let joins = |vm: &mut Vm, cookie, function| wait_until(|| vm.vmm.add(cookie, function).is_ok());
    assert!(joins(&mut a, 3, THIRD) && joins(&mut a, 4, FOURTH));
    assert_eq!(a.report(FIRST).verdict(), (true, "holds"));
}

#[test]
fn without_an_iommu_every_function_is_to_be_handed_over() {
    let machine = ModelledMachine::start("no-iommu");
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let report = vm.report(FIRST);
    report.expect(SECOND, "no-iommu", &["As there is no IOMMU", "hand /dev/vfio/devices/noiommu-vfio1 over"]);
    assert!(vm.group(1).rows.iter().all(|row| row.flags.contains(RowFlags::NO_IOMMU)));
    vm.vmm.add(2, SECOND).unwrap();
    assert_eq!(vm.report(FIRST).verdict(), (true, "holds"));
}

#[test]
fn before_7_3_a_function_without_an_iommu_can_never_be_handed_over() {
    let topology = "
        kernel = '6.12'
        [[bridge]]
        address = '0000:00:04.0'
        kind = 'root-port'
        bus = 1
        [[function]]
        address = '0000:01:00.0'
        part = 'edu'
        group = 5
        driver = 'vfio-pci'
        [[function]]
        address = '0000:01:00.1'
        part = 'igb'
        driver = 'vfio-pci'
    ";
    let machine = ModelledMachine::of(Topology::parse(topology).unwrap(), Settings::default());
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    report.expect(SECOND, "no-iommu", &["Enable the IOMMU", "this kernel has no cdev for 0000:01:00.1"]);
}

#[test]
fn before_7_3_a_device_without_an_iommu_is_refused_with_the_reason() {
    let machine = ModelledMachine::start("no-iommu-6.12");
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(tool_binary());
    command.args(machine.host().arguments()).args(["--json", "launch", "--device", FIRST, "--socket"]);
    let output = command.arg(folder.path().join("control")).output().unwrap();
    let refused: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &refused["id"]), (Some(1), &"cannot-open".into()));
    let fix = refused["fix"].as_str().unwrap();
    assert!(fix.contains("(before Linux 7.3 only with an IOMMU)"), "{fix}");
}

#[test]
fn a_virtual_function_is_never_hot_reset() {
    let machine = ModelledMachine::start("virtual-function");
    let report = Vm::on(&machine.host(), &["0000:01:10.0"]).report("0000:01:10.0");
    let expected = [(FIRST, "other-scope"), ("0000:01:10.0", "ours"), ("0000:01:10.2", "virtual-function")];
    assert_eq!(report.reasons(), expected);
    assert_eq!(report.verdict(), (false, "never"));
    report.expect("0000:01:10.2", "virtual-function", &["/0000:01:10.2/physfn/sriov_numvfs"]);
    let alone = report.0["function_reset_command"].as_str().unwrap();
    assert!(alone.ends_with("--method function 0000:01:10.0"), "{alone}");
}

#[test]
fn a_bridge_in_the_scope_is_in_the_way_for_ever() {
    let machine = ModelledMachine::start("switch");
    let report = Vm::on(&machine.host(), &[SECOND]).report(SECOND);
    report.expect(FIRST, "bridge", &["Use a function reset (vfio-devctl reset --method function)"]);
    report.expect("0000:03:00.0", "other-scope", &["0000:03:00.0 is reset with another scope"]);
    assert_eq!(report.verdict(), (false, "never"));
    assert_eq!(report.depends_on()[0], "0000:01:00.0 is in the scope (bridge)");
}

#[test]
fn a_device_on_the_root_bus_has_nothing_to_reset_along_with() {
    let machine = ModelledMachine::start("rciep");
    let report = Vm::on(&machine.host(), &["0000:00:05.0"]).report("0000:00:05.0");
    assert_eq!(report.0["reason"], "no-slot-or-bus-reset");
    assert_eq!(report.verdict(), (false, "never"));
    assert_eq!(report.reasons(), []);
    assert_eq!(report.depends_on(), ["neither the slot nor the bus of the device has a reset"]);
}

#[test]
fn a_sibling_that_the_host_is_taking_away_names_whom_it_waits_for() {
    let machine = ModelledMachine::start("igb-pair");
    let (_context, device) = bind_elsewhere(&machine.host(), SECOND);
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let unbind = begin_unbind(&machine.host(), SECOND);
    let report = vm.report(FIRST);
    let kill = format!("(kill {}), for which the host's unbind of 0000:01:00.1 waits", this_process());
    report.expect(SECOND, "host-unbind", &[&kill, "bind it to vfio-pci again"]);
    assert_eq!(report.holders(SECOND), [this_process()]);
    drop(device);
    unbind.join().unwrap();
    assert_eq!(vm.told(SECOND), RowReason::NoDriver, "when it is over");
}

#[test]
fn a_device_of_ours_that_the_host_is_taking_away_locks_the_group() {
    let machine = ModelledMachine::start("igb-pair");
    let mut vm = Vm::on(&machine.host(), &[FIRST, SECOND]);
    let unbind = begin_unbind(&machine.host(), SECOND);
    let group = vm.group(1);
    assert_eq!(group.reason, GroupReason::Available, "the kernel says that everything is ours");
    assert!(group.rows[1].flags.contains(RowFlags::UNBINDING));
    let report = vm.report(FIRST);
    assert_eq!((report.verdict(), &report.0["reason"]), ((false, "can-change"), &"host-unbind".into()));
    let back = "0000:01:00.1, which the host is taking from vfio-pci, is back on it and handed over";
    assert_eq!(report.depends_on(), [back]);
    vm.vmm.control.remove_device(Cookie(2)).unwrap();
    unbind.join().unwrap();
    assert_eq!(vm.told(SECOND), RowReason::NoDriver, "when it is over");
}

fn fault(text: &str) -> Settings {
    Settings { faults: vec![toml::from_str::<Fault>(text).unwrap()], ..Settings::default() }
}

#[test]
fn a_set_that_changes_while_it_is_counted_is_asked_about_again() {
    let rule = "call = 'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO'\ntimes = 3\nerrno = 'EAGAIN'";
    let machine = ModelledMachine::start_with("edu-pair", fault(rule));
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    assert_eq!(report.reasons(), [(FIRST, "ours"), (SECOND, "implied")]);
}

#[test]
fn a_set_larger_than_expected_is_told_whole() {
    let mut topology =
        "[[bridge]]\naddress = '0000:00:04.0'\nkind = 'root-port'\nbus = 1\nari = true\n".to_owned();
    for number in 0..40_u8 {
        let function = PciAddress::from_devfn(0, 1, number);
        let group = 5 + number;
        write!(
            topology,
            "[[function]]\naddress = '{function}'\npart = 'edu'\ngroup = {group}\ndriver = 'vfio-pci'\n"
        )
        .unwrap();
    }
    let machine = ModelledMachine::of(Topology::parse(&topology).unwrap(), Settings::default());
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let group = vm.group(1);
    assert_eq!(group.rows.len(), 40);
    assert!(group.rows[1..].iter().all(|row| row.reason == RowReason::Unopened));
}

#[test]
fn a_function_that_vanishes_while_it_is_asked_about_is_not_told_of() {
    let rule = "call = 'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO'\nremove = '0000:01:00.1'";
    let machine = ModelledMachine::start_with("edu-igb", fault(rule));
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    assert_eq!(report.reasons(), [(FIRST, "ours")]);
    assert_eq!(report.verdict(), (true, "holds"));
}

#[test]
fn a_function_that_appears_is_told_of_at_once() {
    let machine = ModelledMachine::start("edu-igb");
    let mut vm = Vm::on(&machine.host(), &[FIRST, SECOND]);
    assert_eq!(vm.group(1).reason, GroupReason::Available);
    let newcomer = "address = '0000:01:00.2'\npart = 'igb'\ngroup = 9\ndriver = 'igb'";
    machine.order(&Order::Add(newcomer.into()));
    vm.report(FIRST).expect(THIRD, "kernel-driver", &["Take 0000:01:00.2 from igb"]);
}

#[test]
fn a_reset_that_is_refused_tells_the_remedy_of_what_is_hardest_to_move() {
    let machine = ModelledMachine::start("five-devices");
    set_driver(&machine, FIFTH, None);
    let (_context, _device) = bind_elsewhere(&machine.host(), THIRD);
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let refused = vm.vmm.control.reset(Cookie(1), Some(protocol::extension::ResetMethod::Hot), None);
    assert!(refused.is_err());
    let failure = vm.vmm.control.last_failure().unwrap().unwrap().failure;
    assert!(failure.fix().starts_with("Find who uses 0000:01:00.2 (fuser -v "), "{failure}");
    for blocker in [THIRD, FOURTH, FIFTH] {
        assert!(failure.why().contains(blocker), "{failure}");
    }
}
