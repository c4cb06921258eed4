// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server of what it inherited, and nothing else: `--fixed-devices`. Requests to the model kernel pass the filters as those to
//! a real one do.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use protocol::ControlClient;
use protocol::extension::{Cookie, IoasChoice, ResetMethod, ResetOutcome};
use rustix::io::Errno;
use sandbox::{Filters, Scope, Violation};
use vfio::{Iommufd, UnboundDevice};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, server_binary};
use vhost_device_vfio_tests::vmm::refusal;

const DEVICE: Cookie = Cookie(1);

/// A server with one device, and its client.
fn start(machine: &ModelledMachine) -> (ServerProcess, ControlClient) {
    let host = machine.host();
    let (near, far) = UnixStream::pair().unwrap();
    let device = host.open_cdev("0000:01:00.0".parse().unwrap()).unwrap();
    let inherited: [OwnedFd; 3] = [far.into(), host.open_iommufd().unwrap().into(), device.into()];
    let mut command = Command::new(server_binary());
    command.args(host.arguments());
    command.args(["--fixed-devices", "--fd", "20", "--iommufd-fd", "21", "--device-fd", "1=22"]);
    let mappings = (20..).zip(inherited).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    let server = ServerProcess::spawn(command);
    let mut client = ControlClient::new(near, PATIENCE);
    client.negotiate().unwrap_or_else(|error| panic!("{error}: {}", server.log()));
    (server, client)
}

#[test]
fn fixed_devices_are_all_that_is_served() {
    let machine = ModelledMachine::start("edu-pair");
    let (_server, mut client) = start(&machine);
    let iommufd = machine.host().open_iommufd().unwrap();
    let device = machine.host().open_cdev("0000:01:00.1".parse().unwrap()).unwrap();
    let refused = ("devices-fixed".to_owned(), Errno::PERM.raw_os_error());
    assert_eq!(refusal(client.set_iommufd(&iommufd, IoasChoice::Allocate)), refused);
    assert_eq!(refusal(client.add_device(Cookie(2), device)), refused);
    assert_eq!(client.list_devices().unwrap(), [DEVICE]);
}

/// What a thread gets that has the worker's filter and binds a device.
fn bind_with_filter(machine: &ModelledMachine, new_devices: bool) -> Result<(), Errno> {
    let host = machine.host();
    let iommufd = Iommufd::from_fd(host.open_iommufd().unwrap().into(), &host.sysfs()).unwrap();
    let cdev = host.open_cdev("0000:01:00.0".parse().unwrap()).unwrap();
    let device = UnboundDevice::from_fd(cdev.into(), &host.sysfs()).unwrap();
    let sysfs = host.sysfs();
    let filters = Filters::compile(Scope { sysfs: true, new_devices, violation: Violation::Refuse }).unwrap();
    let confined = std::thread::spawn(move || {
        filters.install(sandbox::Thread::Worker).unwrap();
        device.bind(&iommufd, &sysfs).map(drop).map_err(|error| error.call.errno)
    });
    confined.join().unwrap()
}

#[test]
fn where_devices_are_fixed_the_worker_cannot_bind_one() {
    let machine = ModelledMachine::start("edu-pair");
    assert_eq!(bind_with_filter(&machine, false), Err(Errno::PERM));
    assert_eq!(bind_with_filter(&machine, true), Ok(()));
}

#[test]
fn fixed_devices_are_mapped_for_and_reset() {
    let machine = ModelledMachine::start("edu-pair");
    let (mut server, mut client) = start(&machine);
    let memory = GuestMemory::new(0, 1 << 20);
    client.set_memory_table(&[memory.region()], &[memory.as_fd()]).unwrap();
    assert_eq!(machine.host().pinned_memory_of(server.id()), 1 << 20);
    let report = client.reset(DEVICE, Some(ResetMethod::Hot), None).unwrap();
    assert_eq!(report.outcome, ResetOutcome::Done);
    client.set_memory_table(&[], &[]).unwrap();
    server.terminate();
    assert!(server.wait_for_exit().success(), "{}", server.log());
}
