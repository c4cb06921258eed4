// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Doorbells that the guest rings by itself, as it may with `--doorbell mmap`.

use std::os::unix::net::UnixStream;
use std::process::Command;

use protocol::extension::{Cookie, Face, ResetMethod};
use protocol::features::ProtocolFeatures;
use protocol::vhost_user::{BackendRequest, Frontend, NotifierArea};
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::mapped_bar::MappedBar;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, server_binary, wait_until};
use vhost_device_vfio_tests::vmm::Vmm;

use super::SECOND;
use super::disk::{ALL, Disk, Machine};

const PAGE: usize = 0x1000;
const LENDING: ProtocolFeatures =
    ProtocolFeatures(ProtocolFeatures::HOST_NOTIFIER.0 | ProtocolFeatures::BACKEND_SEND_FD.0);

/// A VMM whose server lends doorbells.
fn lending() -> Vmm {
    let mut command = Command::new(server_binary());
    command.args(Host::current().arguments()).args(["--doorbell", "mmap"]);
    Vmm::with_server(ServerProcess::start_command(command))
}

/// What the frontend is told of the only ring's doorbell.
fn told(disk: &mut Disk<'_>, can_map: bool) -> Option<MappedBar> {
    let (request, needs_reply) = disk.channel.receive_within(PATIENCE).unwrap();
    if needs_reply {
        disk.channel.acknowledge(&request, can_map).unwrap();
    }
    match request {
        BackendRequest::HostNotifier { queue: 0, area: None } => {
            assert!(!needs_reply);
            None
        }
        BackendRequest::HostNotifier { queue: 0, area: Some(NotifierArea { file, size, offset }) } => {
            assert_eq!(usize::try_from(size), Ok(PAGE));
            Some(MappedBar::of_device(&file, offset, PAGE).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn a_frontend_gets_the_doorbells_of_rings_that_run() {
    let mut machine = Machine::with_vmm(lending());
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    told(&mut disk, true).expect("it runs");
    disk.expect_works();
    let base = disk.stop();
    assert!(told(&mut disk, true).is_none(), "it does not run");
    disk.start(base).unwrap();
    told(&mut disk, true).expect("it runs again");
    disk.expect_works();
}

pub(crate) fn a_guest_rings_the_hardware_by_itself() {
    let mut machine = Machine::with_vmm(lending());
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    let doorbell = told(&mut disk, true).expect("it runs");
    for _ in 0..3 {
        disk.ring.offer_read(3);
        doorbell.write_half(0, 0);
        assert!(wait_until(|| disk.ring.is_done()) && disk.call.fires());
        assert_eq!(disk.ring.outcome().0, 0);
    }
}

pub(crate) fn a_frontend_that_cannot_map_a_doorbell_kicks() {
    let mut machine = Machine::with_vmm(lending());
    let mut disk = machine.connect(ALL);
    disk.start(0).unwrap();
    told(&mut disk, false).expect("it runs");
    disk.expect_works();
    drop(disk);
    assert!(wait_until(|| machine.vmm.server.log().contains("event=doorbell-not-mapped")));
}

pub(crate) fn a_reset_by_somebody_else_takes_the_doorbells_away() {
    let mut machine = Machine::with_vmm(lending());
    let socket = machine.socket();
    let Machine { vmm, memory } = &mut machine;
    let mut disk = Disk::connect(socket, memory, ALL);
    disk.start(0).unwrap();
    told(&mut disk, true).expect("it runs");
    vmm.control.reset(Cookie(1), Some(ResetMethod::Function), None).unwrap();
    assert!(told(&mut disk, true).is_none());
}

pub(crate) fn who_does_not_want_doorbells_gets_none() {
    let mut machine = Machine::with_vmm(lending());
    let mut disk = machine.connect(ProtocolFeatures(ALL.0 & !ProtocolFeatures::HOST_NOTIFIER.0));
    disk.start(0).unwrap();
    disk.expect_works();
    drop(disk);
    let log = machine.vmm.server.log();
    assert!(log.contains("level=warn event=doorbell-mmap") && !log.contains("event=device-exposed"), "{log}");
}

pub(crate) fn a_device_whose_doorbells_a_frontend_could_map_is_never_taken_for_clean() {
    for (vmm, expected) in [(Vmm::start(), "result=was-clean"), (lending(), "result=reset")] {
        let mut machine = Machine::with_vmm(vmm);
        machine.connect(ALL).start(0).unwrap();
        let is_back = |machine: &Machine| machine.vmm.server.log().contains("occasion=HandBack");
        assert!(wait_until(|| is_back(&machine)));
        // The server has reset it since it was touched, as far as it knows.
        drop(machine.connect(ALL));
        let log = machine.vmm.server.log();
        let handed_out = log.lines().rfind(|line| line.contains("occasion=HandOut")).expect("a record");
        assert!(handed_out.contains(expected), "{log}");
    }
}

/// As are those of QEMU's devices without `page-per-vq`.
pub(crate) fn doorbells_that_share_a_page_are_not_offered() {
    let mut vmm = lending();
    vmm.add(1, SECOND).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
    let (_, agreed) = Frontend::new(near, PATIENCE).negotiate(ALL).unwrap();
    assert_eq!(agreed.0 & LENDING.0, 0);
    assert!(wait_until(|| vmm.server.log().contains("event=doorbells-not-mappable")));
}
