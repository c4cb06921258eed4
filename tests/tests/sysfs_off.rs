// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server that reads sysfs for the last time before it serves: `--sysfs off`.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)]

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use protocol::ControlClient;
use protocol::extension::{Cookie, IoasChoice, ResetMethod, ResetOutcome, RowReason};
use rustix::io::Errno;
use vfio::PciAddress;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::server_process::{
    PATIENCE, ServerProcess, server_binary, tool_binary, wait_until,
};
use vhost_device_vfio_tests::vmm::refusal;

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A client of a server of this machine, to which the iommufd is handed over.
struct Session {
    client: ControlClient,
    host: Host,
    server: ServerProcess,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Session {
    fn start(machine: &ModelledMachine) -> Self {
        let host = machine.host();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let mut command = Command::new(server_binary());
        command.args(host.arguments()).args(["--sysfs", "off", "--socket-path"]).arg(&path);
        let server = ServerProcess::spawn(command);
        assert!(wait_until(|| UnixStream::connect(&path).is_ok()), "nobody listens: {}", server.log());
        let mut client = ControlClient::new(UnixStream::connect(&path).unwrap(), PATIENCE);
        client.negotiate().unwrap();
        client.set_iommufd(host.open_iommufd().unwrap(), IoasChoice::Allocate).unwrap();
        Self { client, host, server, path, _folder: folder }
    }

    fn add(&mut self, cookie: u64, function: &str) {
        let device = self.host.open_cdev(address(function)).unwrap();
        self.client.add_device(Cookie(cookie), device).unwrap();
    }
}

#[test]
fn without_sysfs_the_root_is_empty() {
    let machine = ModelledMachine::start("edu-pair");
    let session = Session::start(&machine);
    let root = std::fs::read_dir(format!("/proc/{}/root", session.server.id())).unwrap();
    assert_eq!(root.count(), 0);
}

#[test]
fn without_sysfs_devices_are_served_and_reset_all_the_same() {
    let machine = ModelledMachine::start("edu-pair");
    let mut session = Session::start(&machine);
    session.add(1, FIRST);
    session.add(2, SECOND);
    let info = session.client.device_info(Cookie(1)).unwrap();
    assert_eq!((info.address.to_string().as_str(), info.driver.as_str()), (FIRST, "vfio-pci"));
    let memory = GuestMemory::new(0, 1 << 20);
    session.client.set_memory_table(&[memory.region()], &[std::os::fd::AsFd::as_fd(&memory)]).unwrap();
    let report = session.client.reset(Cookie(1), Some(ResetMethod::Hot), None).unwrap();
    assert_eq!(report.outcome, ResetOutcome::Done);
}

#[test]
fn without_sysfs_a_report_has_the_kernels_word_and_the_tool_says_the_rest() {
    let machine = ModelledMachine::start("edu-igb");
    let mut session = Session::start(&machine);
    session.add(1, FIRST);
    let group = session.client.reset_group(Cookie(1)).unwrap();
    let blocking = group.rows.iter().find(|row| row.address.to_string() == SECOND).unwrap();
    assert_eq!(blocking.reason, RowReason::Unknown);
    let mut tool = Command::new(tool_binary());
    tool.args(session.host.arguments())
        .args(["--json", "reset-group", "--socket"])
        .arg(&session.path)
        .arg(FIRST);
    let output = tool.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown = report["functions"].as_array().unwrap();
    let shown = shown.iter().find(|function| function["address"] == SECOND).unwrap();
    assert_eq!(shown["reason"], "unopened");
    assert_eq!(shown["driver"], "vfio-pci");
    assert!(shown["iommu_group"].is_u64(), "{shown}");
    assert_eq!(shown["ownership"], "blocking");
}

#[test]
fn without_sysfs_what_came_to_vfio_after_the_start_is_refused() {
    let machine = ModelledMachine::start("edu-igb");
    machine.host().unbind_driver(address(SECOND)).unwrap();
    let mut session = Session::start(&machine);
    session.add(1, FIRST);
    session.host.bind_driver(address(SECOND), "vfio-pci").unwrap();
    let device = session.host.open_cdev(address(SECOND)).unwrap();
    let refused = refusal(session.client.add_device(Cookie(2), device));
    assert_eq!(refused, ("sysfs-off".into(), Errno::NODEV.raw_os_error()));
}
