// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who has the sibling: each is told apart.

use std::process::Command;

use protocol::extension::{Cookie, ResetMethod, RowReason};
use vfio::{Iommufd, UnboundDevice};
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::legacy_group::{LegacyGroup, LegacyUser};
use vhost_device_vfio_tests::server_process::tool_binary;

use crate::fixture::{
    FIFTH, FIRST, FOURTH, SECOND, THIRD, Vm, address, bind_elsewhere, set_driver, this_process,
};

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
fn a_reset_that_is_refused_tells_the_remedy_of_what_is_hardest_to_move() {
    let machine = ModelledMachine::start("five-devices");
    set_driver(&machine, FIFTH, None);
    let (_context, _device) = bind_elsewhere(&machine.host(), THIRD);
    let mut vm = Vm::on(&machine.host(), &[FIRST]);
    let refused = vm.vmm.control.reset(Cookie(1), Some(ResetMethod::Hot), None);
    assert!(refused.is_err());
    let failure = vm.vmm.control.last_failure().unwrap().unwrap().failure;
    assert!(failure.fix().starts_with("Find who uses 0000:01:00.2 (fuser -v "), "{failure}");
    for blocker in [THIRD, FOURTH, FIFTH] {
        assert!(failure.why().contains(blocker), "{failure}");
    }
}
