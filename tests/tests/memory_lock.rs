// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The limit of locked memory: what is told where it does not suffice. And what tables that change again and again leave behind.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::process::Command;

use protocol::extension::IoasChoice;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::server_process::{ServerProcess, server_binary};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

const MIB: u64 = 1 << 20;
/// Below what anybody may lock by default, so that it can be set anywhere.
const LIMIT: u64 = 4 * MIB;

/// A VMM with a device whose server may lock no more than [`LIMIT`], as a user that has nothing else.
fn limited(host: &Host, device: &str) -> Vmm {
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={LIMIT}"));
    command.args(["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"]);
    command.arg(server_binary()).args(host.arguments());
    let server = ServerProcess::start_command(command);
    let mut vmm = Vmm::with_address_space(server, host.open_iommufd().unwrap(), IoasChoice::Allocate);
    let cdev = host.open_cdev(device.parse().unwrap()).unwrap();
    vmm.control.add_device(protocol::extension::Cookie(1), cdev).unwrap();
    vmm
}

fn expect_refusal(vmm: &mut Vmm, size: u64, parts: &[String]) {
    assert_eq!(refusal(vmm.map(&GuestMemory::new(0, size))).0, "memory-lock-limit");
    let failure = vmm.control.last_failure().unwrap().unwrap().failure.to_string();
    for part in parts {
        assert!(failure.contains(part), "no `{part}` in {failure}");
    }
}

#[test]
fn a_table_that_the_limit_cannot_hold_is_refused_before_anything_is_mapped() {
    let machine = ModelledMachine::start("edu-igb");
    let mut vmm = limited(&machine.host(), "0000:01:00.0");
    let kept = GuestMemory::new(0, MIB);
    vmm.map(&kept).unwrap();
    let needed = 2 * LIMIT;
    let parts = [
        format!("memory of {needed} bytes"),
        format!("was {LIMIT} bytes"),
        format!("LimitMEMLOCK={needed} (systemd)"),
        format!("ulimit -l {} (shell)", needed / 1024),
    ];
    expect_refusal(&mut vmm, needed, &parts);
    let map_calls = vmm.server.log().matches("event=region-lost").count();
    assert_eq!((map_calls, machine.host().pinned_memory_of(vmm.server.id())), (0, MIB));
}

#[test]
fn memory_that_other_servers_of_the_user_have_locked_is_told() {
    let machine = ModelledMachine::start("edu-igb");
    let mut first = limited(&machine.host(), "0000:01:00.0");
    let mut second = limited(&machine.host(), "0000:01:00.1");
    first.map(&GuestMemory::new(0, 3 * MIB)).unwrap();
    let parts = [
        format!(
            "is {LIMIT} bytes, of which 0 are charged to this server and more than {MIB} to other processes"
        ),
        format!("at least {} bytes and what the other processes need", 3 * MIB),
    ];
    expect_refusal(&mut second, 3 * MIB, &parts);
}

#[test]
fn repeated_tables_leave_nothing_behind() {
    let machine = ModelledMachine::start("edu-pair");
    let mut vmm = Vmm::on(&machine.host());
    vmm.add(1, "0000:01:00.0").unwrap();
    let memories = [GuestMemory::new(0, MIB), GuestMemory::new(0, 2 * MIB), GuestMemory::new(MIB, MIB)];
    let mut change_tables = |rounds: usize| {
        for memory in memories.iter().cycle().take(3 * rounds) {
            vmm.map(memory).unwrap();
        }
        let usage = (vmm.server.open_files(), machine.host().pinned_memory_of(vmm.server.id()));
        (usage, vmm.server.resident_memory())
    };
    let (before, memory_before) = change_tables(50);
    let (after, memory_after) = change_tables(1000);
    assert_eq!(after, before, "descriptors and pinned memory");
    assert!(memory_after < memory_before + (1 << 20), "{memory_after} bytes after {memory_before}");
}
