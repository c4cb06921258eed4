// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The judge of vfio-user servers finds nothing in ours, on modelled machines.

#![allow(clippy::expect_used)]

use std::process::Command;

use vhost_device_vfio_tests::modelled_vm::ModelledVm;
use vhost_device_vfio_tests::server_process::{binary, wait_until};

/// Fewer would mean that some are not run.
const CASES: usize = 300;
/// Most cases that may be about something that a device or our server does not have.
const NOT_APPLICABLE: usize = 12;

/// The numbers of the table's last line.
fn total(output: &str) -> Vec<usize> {
    let line = output.lines().last().and_then(|line| line.strip_prefix("total")).expect("a table");
    line.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

fn conforms(topology: &str, arguments: &[&str]) {
    let mut vm = ModelledVm::start(topology, arguments);
    vm.vmm.add(1, "0000:01:00.0").expect("the device is taken");
    let path = vm.listen(1);
    let files = vm.vmm.server.open_files();
    let output = Command::new(binary("vfio-user-conformance")).arg(&path).output().expect("the judge runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let faults: Vec<_> = said.lines().filter(|line| line.contains("... FAILED")).collect();
    assert!(output.status.success(), "{faults:#?} {}", String::from_utf8_lossy(&output.stderr));
    let [passed, 0, not_applicable] = total(&said)[..] else { panic!("{said}") };
    assert!(passed + not_applicable >= CASES && not_applicable <= NOT_APPLICABLE, "{said}");
    let pinned = vm.machine.host().pinned_memory_of(vm.vmm.server.id());
    assert!(wait_until(|| vm.vmm.server.open_files() <= files), "{} files", vm.vmm.server.open_files());
    assert_eq!(pinned, 0, "memory of clients that are gone");
}

#[test]
fn nvme() {
    conforms("nvme", &[]);
}

#[test]
fn one_edu_of_a_pair() {
    conforms("edu-pair", &[]);
}

#[test]
fn one_igb_of_a_pair() {
    conforms("igb-pair", &[]);
}

#[test]
fn nvme_whose_bar_is_mapped() {
    conforms("nvme", &["--bar-access", "mmap"]);
}
