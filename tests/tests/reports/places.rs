// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the functions are: groups, scopes, bridges, IOMMUs.

use std::fmt::Write;
use std::process::Command;

use protocol::extension::{RowFlags, RowReason};
use serde_json::Value;
use vfio::PciAddress;
use vfio::model::{Settings, Topology};
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::legacy_group::LegacyUser;
use vhost_device_vfio_tests::server_process::{tool_binary, wait_until};

use crate::fixture::{FIFTH, FIRST, FOURTH, SECOND, THIRD, Vm};

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
