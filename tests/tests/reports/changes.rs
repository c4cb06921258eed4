// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What changes while somebody asks.

use std::thread::JoinHandle;

use protocol::extension::{Cookie, GroupReason, RowFlags, RowReason};
use vfio::model::order::FunctionOrder;
use vfio::model::{Fault, Order, Settings, order};
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::server_process::wait_until;

use crate::fixture::{FIRST, SECOND, THIRD, Vm, address, bind_elsewhere, this_process};

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

fn fault(text: &str) -> Settings {
    Settings { faults: vec![toml::from_str::<Fault>(text).unwrap()], ..Settings::default() }
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

#[test]
fn a_set_that_changes_while_it_is_counted_is_asked_about_again() {
    let rule = "call = 'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO'\ntimes = 3\nerrno = 'EAGAIN'";
    let machine = ModelledMachine::start_with("edu-pair", fault(rule));
    let report = Vm::on(&machine.host(), &[FIRST]).report(FIRST);
    assert_eq!(report.reasons(), [(FIRST, "ours"), (SECOND, "implied")]);
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
