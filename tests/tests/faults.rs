// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults of the kernel and the hardware on demand, and what the real server makes of them.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use protocol::extension::{Cookie, Face, GroupReason, ResetMethod, ResetOutcome, RowReason};
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{Frontend, FrontendError, Vring};
use rustix::io::Errno;
use vfio::model::order::{DriverOrder, FunctionOrder, Nothing};
use vfio::model::{Fault, Order, Settings};
use vhost_device_vfio_tests::driver_ring::DriverRing;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::interrupt::Interrupt;
use vhost_device_vfio_tests::network::{MEMORY, Network, ONE_PAIR, TWO_PAIRS};
use vhost_device_vfio_tests::server_process::{PATIENCE, wait_until};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

fn fault(text: &str) -> Fault {
    toml::from_str(text).unwrap()
}

fn machine(topology: &str, faults: &[&str]) -> ModelledMachine {
    let faults = faults.iter().map(|text| fault(text)).collect();
    ModelledMachine::start_with(topology, Settings { faults, ..Settings::default() })
}

/// A VMM that has handed the pair over.
fn with_pair(machine: &ModelledMachine) -> Vmm {
    handed_over(Vmm::on(&machine.host()))
}

fn handed_over(mut vmm: Vmm) -> Vmm {
    vmm.add(1, FIRST).unwrap();
    vmm.add(2, SECOND).unwrap();
    vmm
}

fn line(machine: &ModelledMachine, name: &str) -> u64 {
    let usage = machine.order(&Order::Inspect(Nothing {}));
    let value = usage.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    value.unwrap_or_else(|| panic!("no `{name}` in {usage}")).parse().unwrap()
}

#[test]
fn a_busy_reset_is_tried_again() {
    let machine = machine("edu-pair", &["call = 'VFIO_DEVICE_PCI_HOT_RESET'\ntimes = 3\nerrno = 'EBUSY'"]);
    let mut vmm = with_pair(&machine);
    let report = vmm.control.reset(Cookie(1), Some(ResetMethod::Hot), None).unwrap();
    assert_eq!((report.outcome, report.attempts), (ResetOutcome::Done, 4));
}

#[test]
fn a_bind_that_fails_leaves_nothing_behind() {
    let machine = machine("edu-pair", &["call = 'VFIO_DEVICE_BIND_IOMMUFD'\nerrno = 'ENOMEM'"]);
    let mut vmm = Vmm::on(&machine.host());
    let refused = refusal(vmm.add(1, FIRST));
    assert_eq!(refused, ("bind-failed".into(), Errno::NOMEM.raw_os_error()));
    assert_eq!(line(&machine, "open-devices"), 0);
    vmm.add(1, FIRST).unwrap();
}

#[test]
fn a_mapping_that_fails_leaves_the_table_before() {
    let machine = machine("edu-pair", &["call = 'IOMMU_IOAS_MAP_FILE'\nskip = 2\nerrno = 'EFAULT'"]);
    let mut vmm = with_pair(&machine);
    let (low, high) = (GuestMemory::new(0, 1 << 20), GuestMemory::new(1 << 20, 1 << 20));
    vmm.map(&low).unwrap();
    let before = line(&machine, "mapped-bytes");
    assert!(vmm.map(&high).is_err());
    assert_eq!(line(&machine, "mapped-bytes"), before);
}

#[test]
fn a_sibling_that_appears_with_a_driver_of_the_host_blocks() {
    let script = "call = 'VFIO_DEVICE_BIND_IOMMUFD'\nbind = { function = '0000:01:00.1', driver = 'igb' }";
    let machine = machine("edu-igb", &[script]);
    machine.order(&Order::Unbind(FunctionOrder { function: SECOND.parse().unwrap() }));
    let mut vmm = Vmm::on(&machine.host());
    vmm.add(1, FIRST).unwrap();
    let group = vmm.control.reset_group(Cookie(1)).unwrap();
    let row = group.rows.iter().find(|row| row.address.to_string() == SECOND).unwrap();
    assert_eq!((group.reason, row.reason), (GroupReason::Blocked, RowReason::KernelDriver));
}

#[test]
fn a_reset_of_a_minute_delays_nobody_else() {
    let faults = vec![fault("call = 'VFIO_DEVICE_PCI_HOT_RESET'\ndelay = 60000")];
    let settings = Settings { faults, virtual_time: true, ..Settings::default() };
    let machine = ModelledMachine::start_with("edu-pair", settings);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let vmm = handed_over(Vmm::listening_on(&machine.host(), &path));
    let mut other = Vmm::connect_again(&path);
    let Vmm { server, mut control, iommufd, .. } = vmm;
    let reset = std::thread::spawn(move || {
        let report = control.reset(Cookie(1), Some(ResetMethod::Hot), Some(Duration::from_mins(5)));
        report.map(|report| report.outcome)
    });
    server.wait_for_log("reset-begun");
    assert_eq!(other.device_info(Cookie(1)).unwrap().address.to_string(), FIRST);
    assert!(!reset.is_finished());
    assert!(wait_until(|| {
        // The request may not have reached the model when the log said so.
        machine.order(&Order::Advance(60_000));
        reset.is_finished()
    }));
    assert_eq!(reset.join().unwrap().unwrap(), ResetOutcome::Done);
    drop(iommufd);
}

#[test]
fn a_device_that_is_taken_away_goes_when_the_server_lets_go() {
    let machine = machine("edu-pair", &[]);
    let mut vmm = with_pair(&machine);
    let function = SECOND.parse().unwrap();
    let host = machine.host();
    let removal = std::thread::spawn(move || {
        vfio::model::order::give(host.root(), &Order::Remove(FunctionOrder { function }))
    });
    assert!(wait_until(|| machine.host().open_cdev(function).is_err()), "nobody new can open it");
    assert!(!removal.is_finished());
    vmm.control.remove_device(Cookie(2)).unwrap();
    removal.join().unwrap().unwrap();
    let group = vmm.control.reset_group(Cookie(1)).unwrap();
    assert_eq!(group.rows.len(), 1, "the function is gone from the set");
}

/// A guest's reset that the kernel puts off, because somebody unbinds the sibling and waits until it is given back.
fn put_off(machine: &ModelledMachine) -> (Vmm, JoinHandle<()>, JoinHandle<()>) {
    let mut vmm = with_pair(machine);
    let mut function = vmm.open(1);
    let host = machine.host();
    let unbind = std::thread::spawn(move || host.unbind_driver(SECOND.parse().unwrap()).unwrap());
    let sibling = SECOND.parse().unwrap();
    assert!(wait_until(|| machine.host().open_cdev(sibling).is_err()), "the unbind does not begin");
    // The answer is the kernel's EAGAIN, or none where the server goes first.
    let reset = std::thread::spawn(move || drop(function.client.device_reset()));
    vmm.server.wait_for_log("reset-begun");
    (vmm, unbind, reset)
}

#[test]
fn a_device_that_is_wanted_back_ends_a_reset_that_was_put_off() {
    let machine = machine("edu-pair", &[]);
    let (mut vmm, unbind, reset) = put_off(&machine);
    vmm.control.remove_device(Cookie(2)).unwrap();
    unbind.join().unwrap();
    reset.join().unwrap();
}

#[test]
fn a_client_that_goes_ends_a_reset_that_was_put_off() {
    let machine = machine("edu-pair", &[]);
    let (vmm, unbind, reset) = put_off(&machine);
    drop(vmm.control);
    assert!(wait_until(|| unbind.is_finished()), "the device is not given back");
    unbind.join().unwrap();
    reset.join().unwrap();
}

#[test]
fn a_killed_server_leaves_nothing_behind() {
    let machine = machine("edu-pair", &["call = 'VFIO_DEVICE_PCI_HOT_RESET'\nkill = true"]);
    let mut vmm = with_pair(&machine);
    vmm.map(&GuestMemory::new(0, 1 << 20)).unwrap();
    assert!(vmm.control.reset(Cookie(1), Some(ResetMethod::Hot), None).is_err());
    let Vmm { mut server, iommufd, .. } = vmm;
    assert!(!server.wait_for_exit().success());
    drop(iommufd);
    assert!(wait_until(|| line(&machine, "files") == 0));
    assert_eq!((line(&machine, "open-devices"), line(&machine, "mapped-bytes")), (0, 0));
}

#[test]
fn a_driver_that_is_bound_by_order_shows_in_sysfs() {
    let machine = machine("edu-igb", &[]);
    let function = SECOND.parse().unwrap();
    machine.order(&Order::Unbind(FunctionOrder { function }));
    machine.order(&Order::Bind(DriverOrder { function, driver: "igb".into() }));
    let driver = machine.host().sysfs().function(function).unwrap().driver;
    assert_eq!(driver, vfio::topology::Driver::Kernel("igb".into()));
}

#[test]
fn where_the_kernel_rings_no_doorbell_the_server_does() {
    let machine = machine("virtio-pair", &["call = 'VFIO_DEVICE_IOEVENTFD'\nerrno = 'EINVAL'"]);
    let mut vmm = Vmm::on(&machine.host());
    vmm.add(1, FIRST).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
    let memory = GuestMemory::new(0, 1 << 20);
    let mut frontend = Frontend::new(near, PATIENCE);
    frontend.negotiate(ProtocolFeatures::REPLY_ACK | ProtocolFeatures::GPA_ADDRESSES).unwrap();
    frontend.set_features(VirtioFeatures(1 << 32 | 1 << 30)).unwrap();
    frontend.set_memory_table(&[memory.region()], &[memory.as_fd()]).unwrap();
    let mut ring = DriverRing::new(&memory, 0x1_0000, 16);
    let ((kick, far_kick), (call, far_call)) = (Interrupt::new(), Interrupt::new());
    let [descriptors, available, used] = ring.areas();
    let (kick_fd, call_fd) = (far_kick.as_fd(), far_call.as_fd());
    let vring = Vring { size: 16, base: 0, descriptors, available, used, kick: kick_fd, call: call_fd };
    frontend.start_vring(0, &vring).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    for sector in 0..3 {
        ring.offer_read(sector);
        kick.signal();
        assert!(wait_until(|| ring.is_done()) && call.fires());
        assert_eq!(ring.outcome().0, 0);
    }
}

/// What comes of using two queue pairs of a network device, and of one pair afterwards.
fn expect_one_pair_only(machine: &ModelledMachine, address: &str, expected: (&str, Errno)) {
    let mut vmm = Vmm::on(&machine.host());
    vmm.add(1, address).unwrap();
    let memory = GuestMemory::new(0, MEMORY);
    let (near, far) = UnixStream::pair().unwrap();
    vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
    let mut network = Network::connect(near, &memory);
    let (id, errno) = expected;
    match network.start(TWO_PAIRS, 2, [0; 4]) {
        Err(FrontendError::Refused { errno: Some(told), .. }) => assert_eq!(told, errno),
        other => panic!("{other:?} instead of a refusal"),
    }
    vmm.server.wait_for_log(id);
    network.frontend.reset_device().unwrap();
    network.begin_anew();
    network.start(TWO_PAIRS, 1, [0; 4]).unwrap();
    network.find_other();
    network.expect_works(0, b"one-pair");
    network.stop();
    network.frontend.reset_device().unwrap();
    network.begin_anew();
    network.start(ONE_PAIR, 1, [0; 4]).unwrap();
    network.find_other();
}

#[test]
fn a_device_that_refuses_to_use_two_queue_pairs_uses_one() {
    let machine = machine("broken-control-queues", &[]);
    expect_one_pair_only(&machine, FIRST, ("control-command-refused", Errno::IO));
}

#[test]
fn a_device_that_does_not_answer_commands_uses_one_queue_pair() {
    let machine = machine("broken-control-queues", &[]);
    expect_one_pair_only(&machine, SECOND, ("control-command-unanswered", Errno::TIMEDOUT));
}

#[test]
fn the_page_of_a_control_ring_is_mapped_for_as_long_as_it_is_needed() {
    for kernel in ["7.3", "6.12"] {
        let machine = ModelledMachine::of_kernel("virtio-queues", kernel);
        let mut vmm = Vmm::on(&machine.host());
        vmm.add(1, FIRST).unwrap();
        let memory = GuestMemory::new(0, MEMORY);
        let (near, far) = UnixStream::pair().unwrap();
        vmm.control.serve(Cookie(1), Face::VhostUser, far).unwrap();
        let mut network = Network::connect(near, &memory);
        let mapped = || line(&machine, "mapped-bytes");
        let page = rustix::param::page_size() as u64;
        network.start(ONE_PAIR, 1, [0; 4]).unwrap();
        assert_eq!(mapped(), MEMORY, "one pair needs no commands");
        network.frontend.stop_vring(0).unwrap();
        network.frontend.reset_device().unwrap();
        network.start(TWO_PAIRS, 2, [0; 4]).unwrap();
        assert_eq!(mapped(), MEMORY + page);
        let bases = network.stop();
        assert_eq!(mapped(), MEMORY + page, "the device shall go on");
        network.start(TWO_PAIRS, 2, bases).unwrap();
        drop(network);
        assert!(wait_until(|| mapped() == 0), "the client is gone");
    }
}
