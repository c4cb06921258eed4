// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vfio-devctl run`: several servers of one VM, and what becomes of the others when one of them fails, in whatever phase of a
//! reset. The launcher, the servers and their sockets are the real ones, the machine is modelled.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use protocol::ClientError;
use protocol::extension::{Cookie, ResetMethod, ResetReport};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use vfio::model::order::{DriverOrder, FunctionOrder, Nothing};
use vfio::model::{Order, Settings};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::launched_vm::{Aftermath, LaunchedVm, command};
use vhost_device_vfio_tests::server_process::{tool_binary, wait_until};
use vhost_device_vfio_tests::vmm::refusal;

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const THIRD: &str = "0000:01:00.2";
/// The devices are not reset before somebody asks for it, so that what is counted is what a test does.
const UNSANITIZED: &str = "--server-argument=--sanitize=off";
/// igb's VLAN `EtherType` register and what it holds after a reset.
const IGB_VET: u64 = 0x38;
const IGB_VET_DEFAULT: u32 = 0x8100_8100;

/// A machine with two functions of one slot, each of which has a reset of its own, and a server for each.
fn pair() -> (ModelledMachine, LaunchedVm) {
    pair_on(ModelledMachine::start("igb-pair"))
}

fn pair_on(machine: ModelledMachine) -> (ModelledMachine, LaunchedVm) {
    let vm = LaunchedVm::start(&machine.host(), &[UNSANITIZED, FIRST, SECOND]);
    (machine, vm)
}

/// A machine on which a hot reset lasts until the time is advanced.
fn slow_machine() -> ModelledMachine {
    let fault = "call = 'VFIO_DEVICE_PCI_HOT_RESET'\ndelay = 60000";
    let faults = vec![toml::from_str(fault).unwrap()];
    ModelledMachine::start_with("igb-pair", Settings { faults, virtual_time: true, ..Settings::default() })
}

type Reset = JoinHandle<Result<ResetReport, ClientError>>;

/// Has the server of this device hot reset it.
fn begin_reset(vm: &LaunchedVm, device: &str, cookie: u64) -> Reset {
    let mut client = vm.connect(device);
    std::thread::spawn(move || client.reset(Cookie(cookie), Some(ResetMethod::Hot), None))
}

fn reset(vm: &LaunchedVm, device: &str, cookie: u64) -> Result<ResetReport, ClientError> {
    begin_reset(vm, device, cookie).join().unwrap()
}

/// Why a reset was refused, in the words of the broker.
fn reason(result: Result<ResetReport, ClientError>) -> String {
    match result {
        Err(ClientError::Refused { failure, .. }) if failure.id() == "not-coordinated" => {
            failure.why().into()
        }
        other => panic!("{other:?}"),
    }
}

/// Lets the reset that the kernel is in come to its end.
fn advance_until(machine: &ModelledMachine, mut is_over: impl FnMut() -> bool) {
    assert!(wait_until(|| {
        // The request may not have reached the model yet.
        machine.order(&Order::Advance(60_000));
        is_over()
    }));
}

fn is_running(process: u32) -> bool {
    test_kill_process(Pid::from_raw(process.cast_signed()).unwrap()).is_ok()
}

/// The launcher's own end, after a member's, was an orderly one that names that member.
fn assert_names_the_lost(aftermath: &Aftermath, server: &str, end: &str) {
    assert_eq!(aftermath.status.code(), Some(1), "{}", aftermath.log);
    assert!(aftermath.end_of(server).contains(end), "{}", aftermath.summary);
    let line = format!("event=server-ended server={server} devices={server} how=\"{end}");
    assert!(aftermath.log.contains(&line), "{}", aftermath.log);
}

#[test]
fn a_reset_asked_of_either_server_resets_both_once() {
    let (_machine, vm) = pair();
    for (asked, cookie, sibling) in [(FIRST, 1, SECOND), (SECOND, 2, FIRST)] {
        let mut igb = vm.open(sibling);
        igb.enable();
        igb.write(0, IGB_VET, 0x1234);
        // Nobody uses it any more, so that the policy lets it be reset.
        igb.set_command(vfio::config_space::command::MEMORY);
        let report = reset(&vm, asked, cookie).unwrap();
        assert_eq!((report.affected, report.attempts), (vec![Cookie(cookie)], 1));
        assert_eq!(igb.command(), vfio::config_space::command::MEMORY, "its client goes on");
        assert_eq!(igb.read(0, IGB_VET), IGB_VET_DEFAULT);
    }
    let aftermath = vm.stop();
    assert_eq!((aftermath.status.code(), aftermath.coordinated()), (Some(0), [2, 0, 0]));
    let done = aftermath.summary["servers"].as_array().unwrap().iter().map(|server| &server["resets_done"]);
    assert!(done.clone().all(|done| *done == 2), "{}", aftermath.summary);
}

#[test]
fn devices_that_only_a_hot_reset_cleans_are_sanitized_across_servers() {
    let machine = ModelledMachine::start("edu-igb");
    let vm = LaunchedVm::start(&machine.host(), &["--server-argument=--sanitize=required", FIRST, SECOND]);
    assert_eq!(vm.stop().coordinated(), [1, 0, 0], "one reset has cleaned both");
}

#[test]
fn shared_memory_is_pinned_once_however_many_servers_there_are() {
    let size = 1 << 20;
    for (division, expected) in [("device", vec![size, 0]), ("vm", vec![size])] {
        let machine = ModelledMachine::start("edu-pair");
        let arguments = ["--shared-memory", "--servers", division, FIRST, SECOND];
        let vm = LaunchedVm::start(&machine.host(), &arguments);
        let servers = vm.set_up["servers"].as_array().unwrap();
        let names: Vec<_> = servers.iter().map(|server| server["name"].as_str().unwrap()).collect();
        let memory = GuestMemory::new(0, size);
        let mut client = vm.connect(names[0]);
        client.set_memory_table(&[memory.region()], &[std::os::fd::AsFd::as_fd(&memory)]).unwrap();
        let pinned: Vec<_> =
            names.iter().map(|name| machine.host().pinned_memory_of(vm.pid_of(name))).collect();
        assert_eq!(pinned, expected, "{division}");
    }
}

#[test]
fn each_server_maps_what_the_clients_of_its_devices_describe() {
    let size = 1 << 20;
    let machine = ModelledMachine::start("igb-pair");
    let vm = LaunchedVm::start(&machine.host(), &[UNSANITIZED, FIRST, SECOND]);
    let memory = GuestMemory::new(0, size);
    let mut functions = [FIRST, SECOND].map(|address| vm.open(address));
    for function in &mut functions {
        function.map(&memory, 0..size).unwrap();
    }
    for server in [FIRST, SECOND] {
        assert_eq!(machine.host().pinned_memory_of(vm.pid_of(server)), size);
    }
}

#[test]
fn functions_of_one_iommu_group_go_to_one_server() {
    let machine = ModelledMachine::start("edu-pair");
    let vm = LaunchedVm::start(&machine.host(), &[UNSANITIZED, FIRST, SECOND]);
    let servers = vm.set_up["servers"].as_array().unwrap();
    let addresses = |server: &serde_json::Value| {
        let devices = server["devices"].as_array().unwrap().iter();
        devices.map(|device| device["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(servers.iter().map(addresses).collect::<Vec<_>>(), [[FIRST, SECOND]]);
}

#[test]
fn one_server_can_have_all_devices() {
    let machine = ModelledMachine::start("igb-pair");
    let vm = LaunchedVm::start(&machine.host(), &[UNSANITIZED, "--servers", "vm", FIRST, SECOND]);
    let report = vm.connect("test").reset(Cookie(1), Some(ResetMethod::Hot), None).unwrap();
    assert_eq!(report.affected, [Cookie(1), Cookie(2)]);
    vm.open(SECOND).enable();
    let aftermath = vm.stop();
    assert_eq!((aftermath.status.code(), aftermath.coordinated()), (Some(0), [0, 0, 0]));
}

#[test]
fn a_server_that_is_killed_before_it_is_ready_is_named_to_the_one_that_asked() {
    let (_machine, vm) = pair();
    vm.signal(SECOND, Signal::STOP);
    let reset = begin_reset(&vm, FIRST, 1);
    vm.wait_for_log("coordination-begun", 1);
    vm.signal(SECOND, Signal::KILL);
    assert!(reason(reset.join().unwrap()).contains(&format!("the server {SECOND} is gone")));
    let aftermath = vm.stop();
    assert_eq!(aftermath.coordinated(), [0, 1, 0]);
    assert_names_the_lost(&aftermath, SECOND, "signal: 9");
}

#[test]
fn a_server_that_is_killed_when_it_is_ready_is_named_to_the_one_that_asked() {
    let machine = ModelledMachine::start("virtio-trio");
    let vm = LaunchedVm::start(&machine.host(), &[UNSANITIZED, FIRST, SECOND, THIRD]);
    vm.signal(THIRD, Signal::STOP);
    let reset = begin_reset(&vm, FIRST, 1);
    vm.wait_for_log("event=reset-quiesced", 2);
    vm.signal(SECOND, Signal::KILL);
    assert!(reason(reset.join().unwrap()).contains(&format!("the server {SECOND} is gone")));
    vm.signal(THIRD, Signal::CONT);
    assert_names_the_lost(&vm.stop(), SECOND, "signal: 9");
}

#[test]
fn a_server_that_is_killed_while_it_resets_leaves_the_other_in_order() {
    let (machine, vm) = pair_on(slow_machine());
    let reset = begin_reset(&vm, FIRST, 1);
    assert!(wait_until(|| is_in_the_kernel(&machine)));
    vm.signal(FIRST, Signal::KILL);
    assert!(reset.join().unwrap().is_err());
    advance_until(&machine, || vm.log().contains("event=coordination-failed"));
    vm.wait_for_log(&format!("reason=\"the server {FIRST} is gone\""), 1);
    vm.open(SECOND).enable();
    assert_names_the_lost(&vm.stop(), FIRST, "signal: 9");
}

/// Whether a call lasts.
fn is_in_the_kernel(machine: &ModelledMachine) -> bool {
    machine.order(&Order::Inspect(Nothing {})).contains("lasting-calls = 1")
}

#[test]
fn a_server_that_is_killed_while_another_resets_does_not_spoil_that() {
    let (machine, vm) = pair_on(slow_machine());
    let reset = begin_reset(&vm, FIRST, 1);
    assert!(wait_until(|| is_in_the_kernel(&machine)));
    vm.signal(SECOND, Signal::KILL);
    vm.wait_for_log("event=server-ended", 1);
    advance_until(&machine, || reset.is_finished());
    assert_eq!(reset.join().unwrap().unwrap().affected, [Cookie(1)]);
    vm.wait_for_log(&format!("event=coordination-done coordination=1 attempts=1 missing={SECOND}"), 1);
    assert_names_the_lost(&vm.stop(), SECOND, "signal: 9");
}

#[test]
fn a_server_that_is_killed_before_it_has_restored_keeps_nobody_waiting() {
    let (machine, vm) = pair_on(slow_machine());
    let reset = begin_reset(&vm, FIRST, 1);
    assert!(wait_until(|| is_in_the_kernel(&machine)));
    vm.signal(SECOND, Signal::STOP);
    advance_until(&machine, || vm.log().contains("event=reset-done"));
    vm.signal(SECOND, Signal::KILL);
    reset.join().unwrap().unwrap();
    vm.wait_for_log(&format!("missing={SECOND} lost={SECOND}"), 1);
    assert_names_the_lost(&vm.stop(), SECOND, "signal: 9");
}

#[test]
fn a_server_that_hangs_is_named_and_can_come_back() {
    let (_machine, vm) = pair();
    vm.signal(SECOND, Signal::STOP);
    assert!(reason(reset(&vm, FIRST, 1)).contains(&format!("the server {SECOND} does not answer")));
    vm.connect(FIRST).device_info(Cookie(1)).unwrap();
    vm.signal(SECOND, Signal::CONT);
    vm.wait_for_log("event=coordination-failed", 1);
    reset(&vm, FIRST, 1).unwrap();
    let aftermath = vm.stop();
    assert_eq!((aftermath.status.code(), aftermath.coordinated()), (Some(0), [1, 1, 0]));
}

#[test]
fn a_server_whose_policy_protects_a_device_is_named_with_it() {
    let (_machine, vm) = pair();
    let mut in_use = vm.open(SECOND);
    in_use.enable();
    in_use.write(0, IGB_VET, 0x1234);
    let why = reason(reset(&vm, FIRST, 1));
    assert!(why.contains(&format!("the server {SECOND} has {SECOND} in use")), "{why}");
    assert_eq!(in_use.read(0, IGB_VET), 0x1234);
    assert_eq!(vm.stop().coordinated(), [0, 1, 0]);
}

#[test]
fn a_kernel_that_refuses_is_told_to_both() {
    let fault = "call = 'VFIO_DEVICE_PCI_HOT_RESET'\nerrno = 'EIO'";
    let settings = Settings { faults: vec![toml::from_str(fault).unwrap()], ..Settings::default() };
    let (_machine, vm) = pair_on(ModelledMachine::start_with("igb-pair", settings));
    let why = reason_of_failure(reset(&vm, FIRST, 1));
    assert!(why.contains("EIO") || why.contains("os error 5"), "{why}");
    reset(&vm, SECOND, 2).unwrap();
    assert_eq!(vm.stop().coordinated(), [1, 1, 0]);
}

fn reason_of_failure(result: Result<ResetReport, ClientError>) -> String {
    match result {
        Err(ClientError::Refused { failure, .. }) => failure.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_others_go_on_when_a_server_has_died() {
    let (machine, vm) = pair();
    vm.signal(SECOND, Signal::KILL);
    vm.wait_for_log("event=server-ended", 1);
    vm.open(FIRST).enable();
    // What the dead one had is anybody's, so it blocks.
    assert_eq!(refusal(reset(&vm, FIRST, 1)).0, "reset-blocked");
    assert!(wait_until(|| machine.host().open_cdev(SECOND.parse().unwrap()).is_ok()));
    let aftermath = vm.stop();
    assert_names_the_lost(&aftermath, SECOND, "signal: 9");
    assert_eq!(aftermath.end_of(FIRST), "exit status: 0");
}

#[test]
fn it_ends_when_no_server_is_left() {
    let (_machine, vm) = pair();
    vm.signal(FIRST, Signal::KILL);
    vm.signal(SECOND, Signal::TERM);
    let aftermath = vm.end();
    assert_eq!(aftermath.status.code(), Some(1));
    assert_eq!(aftermath.summary["ended"], "no server is left");
    assert_eq!(aftermath.end_of(SECOND), "exit status: 0, unasked");
}

#[test]
fn servers_end_with_a_launcher_that_is_killed() {
    let (machine, vm) = pair();
    let servers = [vm.pid_of(FIRST), vm.pid_of(SECOND)];
    vm.signal_launcher(Signal::KILL);
    vm.end();
    assert!(wait_until(|| !servers.iter().any(|server| is_running(*server))));
    let usage = || machine.order(&Order::Inspect(Nothing {}));
    assert!(wait_until(|| usage().contains("files = 0") && usage().contains("contexts = 0")), "{}", usage());
}

#[test]
fn servers_end_with_a_launcher_that_is_killed_in_the_middle_of_a_reset() {
    let (machine, vm) = pair_on(slow_machine());
    let servers = [vm.pid_of(FIRST), vm.pid_of(SECOND)];
    let reset = begin_reset(&vm, FIRST, 1);
    assert!(wait_until(|| is_in_the_kernel(&machine)));
    vm.signal_launcher(Signal::KILL);
    vm.end();
    advance_until(&machine, || !servers.iter().any(|server| is_running(*server)));
    // It may have been answered before its server ended.
    let _ = reset.join().unwrap();
}

#[test]
fn a_server_that_does_not_end_is_killed() {
    let (_machine, vm) = pair();
    vm.signal(SECOND, Signal::STOP);
    let aftermath = vm.stop();
    assert_names_the_lost(&aftermath, SECOND, "signal: 9");
    assert_eq!(aftermath.end_of(FIRST), "exit status: 0");
    assert!(aftermath.log.contains("event=servers-killed"), "{}", aftermath.log);
}

#[test]
fn it_can_be_ended_while_a_server_hangs_at_the_start() {
    let fault = "call = 'VFIO_DEVICE_BIND_IOMMUFD'\ndelay = 60000";
    let faults = vec![toml::from_str(fault).unwrap()];
    let settings = Settings { faults, virtual_time: true, ..Settings::default() };
    let machine = ModelledMachine::start_with("igb-pair", settings);
    let mut command = command(&machine.host());
    command.args([FIRST, SECOND]);
    let (_ready, vm) = LaunchedVm::begin(command);
    assert!(wait_until(|| is_in_the_kernel(&machine)));
    vm.signal_launcher(Signal::TERM);
    vm.wait_for_log("event=ending", 1);
    machine.order(&Order::Advance(60_000));
    let aftermath = vm.end();
    assert_eq!(aftermath.summary["ended"], "asked to end");
}

#[test]
fn systemd_is_told_when_it_is_ready_and_what_becomes_of_it() {
    let machine = ModelledMachine::start("igb-pair");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let receive = || {
        let mut room = [0; 256];
        let length = socket.recv(&mut room).unwrap();
        String::from_utf8(room[..length].to_vec()).unwrap()
    };
    let mut command = command(&machine.host());
    command.args([FIRST, SECOND]).env("NOTIFY_SOCKET", &path);
    let vm = LaunchedVm::start_command(command);
    assert_eq!(receive(), "READY=1\nSTATUS=The VM test is served: devices 2, servers 2.");
    vm.signal(SECOND, Signal::KILL);
    assert_eq!(receive(), format!("STATUS=The server {SECOND} has ended."));
    vm.stop();
    assert_eq!(receive(), format!("STATUS=The server {FIRST} has ended."));
    assert_eq!(receive(), "STOPPING=1");
}

#[test]
fn a_device_that_cannot_be_opened_ends_it_before_anything_is_started() {
    let machine = ModelledMachine::start("igb-pair");
    let function = SECOND.parse().unwrap();
    machine.order(&Order::Unbind(FunctionOrder { function }));
    machine.order(&Order::Bind(DriverOrder { function, driver: "igb".into() }));
    let mut command = command(&machine.host());
    command.args([FIRST, SECOND]);
    let (_ready, vm) = LaunchedVm::begin(command);
    let aftermath = vm.end();
    assert_eq!(aftermath.status.code(), Some(1));
    assert!(aftermath.log.contains("not-on-vfio") && aftermath.log.contains(SECOND), "{}", aftermath.log);
    assert!(!aftermath.log.contains("server-started"), "{}", aftermath.log);
}

#[test]
fn a_server_that_cannot_be_set_up_is_named_and_ends_all() {
    let faults = "call = 'VFIO_DEVICE_BIND_IOMMUFD'\nskip = 1\nerrno = 'ENOMEM'";
    let settings = Settings { faults: vec![toml::from_str(faults).unwrap()], ..Settings::default() };
    let machine = ModelledMachine::start_with("igb-pair", settings);
    let mut command = command(&machine.host());
    command.args([FIRST, SECOND]);
    let (_ready, vm) = LaunchedVm::begin(command);
    let aftermath = vm.end();
    assert_eq!(aftermath.status.code(), Some(1));
    assert!(aftermath.log.contains(&format!("The server {SECOND}: ")), "{}", aftermath.log);
    assert!(aftermath.log.contains("bind-failed"), "{}", aftermath.log);
}

#[test]
fn a_server_that_does_not_start_is_named() {
    let machine = ModelledMachine::start("igb-pair");
    let mut command = command(&machine.host());
    command.args(["--server", "/bin/false", FIRST, SECOND]);
    let (_ready, vm) = LaunchedVm::begin(command);
    let aftermath = vm.end();
    assert_ne!(aftermath.status.code(), Some(0));
    assert!(aftermath.log.contains(FIRST), "{}", aftermath.log);
}

#[test]
fn what_is_no_name_for_a_vm_is_wrong_usage() {
    for name in ["", "a/b", ".", "thirty-two-letters-are-one-too-many"] {
        let output = Command::new(tool_binary()).args(["run", "--vm", name, FIRST]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_refused() {
    let mut command = Command::new(tool_binary());
    let output = command.args(["run", "--vm", "a", "--ready-fd", "99", FIRST]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bad-ready-fd"), "{output:?}");
}

#[test]
fn systemds_runtime_directory_is_used_and_left() {
    let machine = ModelledMachine::start("igb-pair");
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(&machine.host());
    command.arg(FIRST).env("RUNTIME_DIRECTORY", format!("{}:/nowhere", folder.path().display()));
    let mut launcher = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_served = wait_until(|| folder.path().join(format!("{FIRST}.sock")).exists());
    kill_process(Pid::from_child(&launcher), Signal::TERM).unwrap();
    launcher.wait().unwrap();
    assert!(is_served && folder.path().exists());
}

#[test]
fn sockets_are_where_they_are_wanted() {
    let machine = ModelledMachine::start("igb-pair");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nic");
    let vm = LaunchedVm::start(&machine.host(), &[&format!("{FIRST}={}", path.display()), SECOND]);
    assert!(path.exists() && vm.directory().join(format!("{SECOND}.sock")).exists());
    assert_eq!(vm.stop().status.code(), Some(0));
    assert!(!path.exists());
}
