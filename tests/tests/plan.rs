// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vfio-devctl plan` and `topology` on modelled machines: what a person or a management program is told before anything is
//! opened.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use vhost_device_vfio_tests::host::ModelledMachine;
use vhost_device_vfio_tests::server_process::{tool_binary, wait_until};

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const THIRD: &str = "0000:01:00.2";
const FOURTH: &str = "0000:01:00.3";
const FIFTH: &str = "0000:01:03.0";

const WORKS: i32 = 0;
const WITH_CHANGES: i32 = 1;
const CANNOT: i32 = 2;
const NOBODY_ASKED: i32 = 3;

/// The tool, told to use a machine in this folder.
fn tool(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(tool_binary());
    command.arg("--model").arg(folder).args(arguments);
    command
}

/// A plan, as it was printed.
struct Printed {
    status: i32,
    text: String,
    errors: String,
}

impl Printed {
    fn of(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap(),
            text: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Says all these things, and ends so.
    fn expect(&self, status: i32, sentences: &[&str]) {
        assert_eq!(self.status, status, "{}{}", self.text, self.errors);
        for sentence in sentences {
            assert!(self.text.contains(sentence), "no `{sentence}` in\n{}", self.text);
        }
    }

    /// The row of the table about a function, in words.
    fn row(&self, function: &str) -> String {
        let row = self.text.lines().find(|line| line.starts_with(function));
        let row = row.unwrap_or_else(|| panic!("no row of {function} in\n{}", self.text));
        row.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn plan(topology: &str, arguments: &[&str]) -> Printed {
    let machine = ModelledMachine::start(topology);
    plan_on(machine.host().root(), arguments)
}

fn plan_on(folder: &Path, arguments: &[&str]) -> Printed {
    Printed::of(tool(folder, &[&["plan"], arguments].concat()).output().unwrap())
}

fn json(topology: &str, arguments: &[&str]) -> Value {
    let printed = plan(topology, &[&["--json"], arguments].concat());
    serde_json::from_str(&printed.text).unwrap_or_else(|error| panic!("{error}: {}", printed.text))
}

#[test]
fn an_unopened_sibling_of_the_group_does_not_block() {
    let printed = plan("edu-pair", &[FIRST]);
    printed.expect(WORKS, &["VM `vm`: works.", "hot reset of bus 0000:01 behind 0000:00:04.0, which takes"]);
    assert_eq!(printed.row(SECOND), "0000:01:00.1 - 5 vfio-pci (vfio1) - implied no -");
}

#[test]
fn a_sibling_of_another_group_blocks_until_it_is_passed() {
    let printed = plan("edu-igb", &[FIRST]);
    let launch = "launch --socket /run/vm/control --device 0000:01:00.0 --device 0000:01:00.1";
    printed.expect(WITH_CHANGES, &["works with the changes below", launch]);
    assert_eq!(printed.row(SECOND), "0000:01:00.1 - 6 vfio-pci (vfio1) - no yes Hand 0000:01:00.1 over too");
    plan("edu-igb", &[FIRST, SECOND]).expect(WORKS, &["VM `vm`: works."]);
}

#[test]
fn a_sibling_on_a_driver_of_the_host_is_taken_from_it() {
    let unbind = "echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind\n";
    let bind = "echo vfio-pci > /sys/bus/pci/devices/0000:01:00.1/driver_override; \
                echo 0000:01:00.1 > /sys/bus/pci/drivers_probe\n";
    let printed = plan("kernel-driver-sibling", &[FIRST]);
    printed.expect(WITH_CHANGES, &["the host's igb has 0000:01:00.1", unbind, bind]);
}

#[test]
fn a_sibling_without_a_driver_has_to_be_bound_and_nothing_more() {
    let printed = plan("driverless-sibling", &[FIRST]);
    printed.expect(WITH_CHANGES, &["0000:01:00.1 has no driver, and the kernel resets only what VFIO holds"]);
    assert!(printed.row(SECOND).ends_with("Bind 0000:01:00.1 to vfio-pci"), "{}", printed.row(SECOND));
    assert!(!printed.text.contains("launch"), "{}", printed.text);
}

#[test]
fn a_stub_is_a_driver_like_any_other() {
    plan("stub-sibling", &[FIRST]).expect(WITH_CHANGES, &["the host's pci-stub has 0000:01:00.1"]);
}

#[test]
fn a_driver_of_the_host_in_the_group_keeps_the_device_from_being_bound() {
    let printed = plan("kernel-driver-in-group", &[FIRST]);
    let why = "the host's virtio-pci has 0000:01:00.1, and with it the whole IOMMU group";
    printed.expect(WITH_CHANGES, &[why, "/sys/bus/pci/devices/0000:01:00.1/driver/unbind\n"]);
    assert!(!printed.text.contains("driver_override"), "it need not be bound\n{}", printed.text);
}

#[test]
fn a_variant_driver_is_as_good_as_vfio_pci() {
    plan("variant-driver", &[FIRST, SECOND]).expect(WORKS, &["mlx5_vfio_pci"]);
}

#[test]
fn two_vms_that_each_have_a_part_of_a_scope_are_told_of_each_other() {
    let vms = ["--vm", "web=0000:01:00.0", "--vm", "db=0000:01:00.1", "--method", "hot"];
    let printed = plan("igb-pair", &vms);
    printed.expect(
        CANNOT,
        &[
            "VM `web`: cannot work",
            "VM `db` has 0000:01:00.1",
            "VM `db`: cannot work",
            "VM `web` has 0000:01:00.0",
        ],
    );
    let printed = plan("igb-pair", &vms[..4]);
    printed.expect(WORKS, &["function reset (flr); no hot reset, as VM `db` has 0000:01:00.1"]);
}

#[test]
fn two_vms_cannot_share_a_group() {
    let vms = ["--vm", "web=0000:03:00.0", "--vm", "db=0000:04:00.0"];
    let printed = plan("group-spans-scopes", &vms);
    let why = "VM `db` has 0000:04:00.0, and with it the IOMMU group of 0000:03:00.0";
    printed.expect(CANNOT, &[why, "VM `web` has 0000:03:00.0, and with it the IOMMU group of 0000:04:00.0"]);
}

#[test]
fn a_group_may_span_scopes() {
    plan("group-spans-scopes", &["0000:03:00.0"]).expect(WORKS, &["0000:03:00.0: function reset (bus)"]);
}

#[test]
fn a_scope_may_span_groups() {
    let plan = json("scope-spans-groups", &[FIRST]);
    let changes: Vec<_> = plan["vms"][0]["changes"].as_array().unwrap().iter().collect();
    let functions: Vec<_> = changes.iter().map(|change| &change["function"]).collect();
    assert_eq!(functions, [THIRD, FOURTH], "one of each group that the VM has nothing of");
    assert!(changes.iter().all(|change| change["kind"] == "hand-over"));
}

#[test]
fn the_five_devices_need_one_of_each_group_in_one_vm() {
    let printed = plan("five-devices", &[FIRST]);
    printed.expect(WITH_CHANGES, &["VM `vm`: works with the changes below."]);
    assert!(printed.row(SECOND).contains("implied no"), "{}", printed.text);
    for function in [THIRD, FOURTH, FIFTH] {
        assert!(printed.row(function).contains(" no yes Hand "), "{}", printed.text);
    }
    plan("five-devices", &[FIRST, THIRD, FOURTH, FIFTH]).expect(WORKS, &["VM `vm`: works."]);
}

#[test]
fn the_five_devices_in_two_vms_are_never_hot_reset() {
    let vms = ["--vm", "a=0000:01:00.0,0000:01:00.2", "--vm", "d=0000:01:00.3"];
    let printed = plan("five-devices", &vms);
    printed.expect(CANNOT, &["0000:01:00.0: cannot be reset: VM `d` has 0000:01:00.3", "VM `d`: works."]);
}

#[test]
fn a_mere_power_management_reset_comes_after_the_hot_reset() {
    plan("e1000e", &[FIRST]).expect(WORKS, &["0000:01:00.0: hot reset of bus 0000:01 behind 0000:00:04.0."]);
    let printed = plan("e1000e", &[FIRST, "--method", "function"]);
    printed.expect(WORKS, &["by power management (pm) only, which leaves more behind"]);
}

#[test]
fn a_bridge_in_the_scope_is_in_the_way_for_ever() {
    let printed = plan("switch", &[SECOND]);
    printed.expect(
        CANNOT,
        &["0000:01:00.0 is a bridge, which VFIO cannot hold", "Put the device behind a port"],
    );
    plan("switch", &["0000:03:00.0"]).expect(WORKS, &[]);
}

#[test]
fn behind_a_conventional_bridge_all_are_one() {
    let printed = plan("bridge", &["0000:02:01.0"]);
    printed.expect(WORKS, &["hot reset of bus 0000:02 behind 0000:01:00.0"]);
}

#[test]
fn on_the_root_bus_there_is_nothing_to_reset() {
    let printed = plan("rciep", &["0000:00:05.0"]);
    printed.expect(CANNOT, &["neither slot nor bus of 0000:00:05.0 can be reset"]);
}

#[test]
fn a_virtual_function_is_reset_alone_or_not_at_all() {
    plan("virtual-function", &["0000:01:10.0"]).expect(WORKS, &["function reset (flr)"]);
    let printed = plan("virtual-function", &["0000:01:10.0", "--method", "hot"]);
    printed.expect(CANNOT, &["0000:01:10.0 is a virtual function, which is in a reset set of its own"]);
    let printed = plan("virtual-function", &[FIRST]);
    printed.expect(
        CANNOT,
        &["0000:01:00.0 has virtual functions", "echo 0 > /sys/bus/pci/devices/0000:01:00.0/sriov"],
    );
}

#[test]
fn a_slot_that_can_be_reset_is_named() {
    let printed = plan("hotplug-slot", &[FIRST, SECOND]);
    printed.expect(WORKS, &["hot reset of slot 0 behind 0000:00:04.0"]);
}

#[test]
fn without_an_iommu_an_old_kernel_has_nothing_to_open() {
    let printed = plan("no-iommu-6.12", &[FIRST]);
    printed.expect(CANNOT, &["gives 0000:01:00.0 no node to open", "without an IOMMU Linux 7.3 or newer"]);
}

#[test]
fn without_an_iommu_each_function_has_to_be_handed_over() {
    let printed = plan("no-iommu", &[FIRST]);
    printed.expect(WITH_CHANGES, &["--device 0000:01:00.0 --device 0000:01:00.1"]);
    plan("no-iommu", &[FIRST, SECOND]).expect(WORKS, &[]);
}

#[test]
fn what_the_platform_or_the_firmware_forbids_is_said() {
    plan("firmware-mapping", &[FIRST])
        .expect(CANNOT, &["the firmware demands a mapping", "reserved_regions"]);
    if cfg!(target_arch = "x86_64") {
        let printed = plan("edu-noremap", &[FIRST]);
        printed.expect(CANNOT, &["does not remap interrupts", "allow_unsafe_interrupts"]);
    }
}

#[test]
fn what_sysfs_does_not_tell_is_said() {
    // Linux knows of a bridge here that does not survive, and shows that nowhere.
    let printed = plan("no-bus-reset", &[FIRST, SECOND]);
    printed.expect(WORKS, &["Known only after the handover", "a bridge that does not survive a hot reset"]);
}

#[test]
fn a_function_that_is_not_there_cannot_be_reset() {
    let printed = plan("edu-igb", &["0000:09:00.0"]);
    printed.expect(CANNOT, &["there is no function 0000:09:00.0", "lspci -D"]);
}

#[test]
fn equal_bus_numbers_of_two_segments_have_nothing_in_common() {
    let plan = json("two-segments", &["0001:01:00.0"]);
    let functions = &plan["vms"][0]["functions"];
    let addresses: Vec<_> =
        functions.as_array().unwrap().iter().map(|function| &function["address"]).collect();
    assert_eq!(addresses, ["0001:01:00.0", "0001:01:00.1"]);
}

#[test]
fn the_memory_lock_limit_is_told_in_each_settings_unit() {
    let printed = plan("edu-pair", &[FIRST, SECOND, "--memory", "16G"]);
    printed.expect(
        WORKS,
        &["LimitMEMLOCK=17179869184\n", "ulimit -l 16777216\n", "<hard_limit unit='KiB'>17825792<"],
    );
    let vms = ["--vm", "a=0000:01:00.0", "--vm", "b=0000:02:00.0", "--memory", "1G"];
    let both = json("two-slots", &vms);
    assert_eq!(both["memory_lock"]["bytes"], 2_u64 << 30);
    assert_eq!(both["memory_lock"]["bytes_per_vm"], 1_u64 << 30);
}

#[test]
fn the_json_has_the_same_facts() {
    let plan = json("kernel-driver-sibling", &[FIRST]);
    assert_eq!(plan["verdict"], "works-with-changes");
    let vm = &plan["vms"][0];
    assert_eq!((&vm["name"], &vm["verdict"]), (&"vm".into(), &"works-with-changes".into()));
    let device = &vm["devices"][0];
    assert_eq!((&device["address"], &device["reset"]), (&FIRST.into(), &"hot".into()));
    assert_eq!(device["scope"]["functions"], serde_json::json!([FIRST, SECOND]));
    assert_eq!(device["obstacles"][0]["reason"], "kernel-driver");
    let kinds: Vec<_> = vm["changes"].as_array().unwrap().iter().map(|change| &change["kind"]).collect();
    assert_eq!(kinds, ["unbind", "bind", "hand-over"]);
    let row = &vm["functions"][1];
    assert_eq!((&row["driver"], &row["blocks"]), (&"igb".into(), &true.into()));
    assert_eq!(row["reasons"], serde_json::json!(["kernel-driver", "not-handed-over"]));
}

#[test]
fn wrong_usage_says_nothing_on_standard_output() {
    for arguments in
        [&[][..], &["01:00.0"], &["--vm", FIRST], &[FIRST, "--memory", "much"], &[FIRST, "--method", "x"]]
    {
        let printed = plan("edu-pair", arguments);
        assert_eq!(printed.status, CANNOT, "{}", printed.errors);
        assert_eq!(printed.text, "");
        assert!(!printed.errors.is_empty());
    }
}

#[test]
fn a_failure_is_not_taken_for_a_verdict() {
    let nowhere = tempfile::tempdir().unwrap();
    let printed = plan_on(nowhere.path(), &[FIRST]);
    printed.expect(NOBODY_ASKED, &[]);
    assert!(printed.errors.contains("id:  cannot-read-sysfs"), "{}", printed.errors);
    let machine = ModelledMachine::start("edu-pair");
    let printed = plan_on(machine.host().root(), &[FIRST, "--svg", "/nowhere/picture.svg"]);
    printed.expect(NOBODY_ASKED, &[]);
    assert!(printed.errors.contains("id:  cannot-write"), "{}", printed.errors);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status =
        tool(machine.host().root(), &["plan", FIRST]).stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(NOBODY_ASKED));
}

#[test]
fn planning_opens_nothing_and_changes_nothing() {
    let machine = ModelledMachine::start("kernel-driver-sibling");
    let before = machine.order(&vfio::model::Order::Inspect(vfio::model::order::Nothing {}));
    plan_on(machine.host().root(), &[FIRST]).expect(WITH_CHANGES, &[]);
    assert_eq!(machine.order(&vfio::model::Order::Inspect(vfio::model::order::Nothing {})), before);
    plan_on(machine.host().root(), &[FIRST]).expect(WITH_CHANGES, &["the host's igb has"]);
}

#[test]
fn the_tree_shows_scopes_groups_and_who_blocks() {
    let printed = plan("switch", &[SECOND, "--tree"]);
    printed.expect(
        CANNOT,
        &[
            "├─ 0000:01:00.0        bridge to bus 02",
            "blocks: bridge",
            "vm (1)",
            "A: bus 0000:01 behind 0000:00:04.0 can never be reset as a whole",
        ],
    );
}

#[test]
fn the_picture_is_written_beside_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.svg");
    let printed = plan("edu-igb", &[FIRST, "--svg", path.to_str().unwrap()]);
    printed.expect(WITH_CHANGES, &["works with the changes below"]);
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(svg.contains("class=\"blocks\">blocks: not-handed-over<"), "{svg}");
}

#[test]
fn the_topology_is_drawn_as_a_whole_or_around_a_function() {
    let machine = ModelledMachine::start("two-slots");
    let topology = |arguments: &[&str]| {
        Printed::of(tool(machine.host().root(), &[&["topology"], arguments].concat()).output().unwrap())
    };
    topology(&[]).expect(0, &["└─ 0000:01:00.0", "└─ 0000:02:00.0", "B: bus 0000:02 behind 0000:00:05.0"]);
    assert!(!topology(&["0000:01:00.0"]).text.contains("0000:02:00.0"));
    let functions: Value = serde_json::from_str(&topology(&["--json"]).text).unwrap();
    assert_eq!(functions["functions"][1]["bridge"], "0000:00:04.0");
    assert_eq!(functions["functions"][1]["function_resets"], serde_json::json!(["flr", "bus"]));
    let missing = topology(&["0000:09:00.0"]);
    assert_eq!(missing.status, 1);
    assert!(missing.errors.contains("id:  no-such-function"), "{}", missing.errors);
}

/// A server with a function of a modelled machine, and its socket.
struct Launched {
    child: Child,
    folder: tempfile::TempDir,
    machine: ModelledMachine,
}

impl Launched {
    fn start(topology: &str, function: &str) -> Self {
        let (machine, folder) = (ModelledMachine::start(topology), tempfile::tempdir().unwrap());
        let socket = folder.path().join("control");
        let mut command = tool(machine.host().root(), &["launch", "--device", function, "--socket"]);
        let child = command.arg(&socket).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let launched = Self { child, folder, machine };
        assert!(
            wait_until(|| launched.ask(&["info"]).text.contains(function)),
            "the launcher does not get on"
        );
        launched
    }

    fn ask(&self, arguments: &[&str]) -> Printed {
        let mut command = tool(self.machine.host().root(), arguments);
        Printed::of(command.arg("--socket").arg(self.folder.path().join("control")).output().unwrap())
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_servers_group_is_shown_as_a_table_a_tree_or_a_picture() {
    let launched = Launched::start("edu-igb", FIRST);
    let table = launched.ask(&["reset-group", FIRST]);
    table.expect(0, &["cannot be hot reset", "what to do"]);
    assert_eq!(launched.ask(&["reset-group", FIRST, "--table"]).text, table.text);
    let tree = launched.ask(&["reset-group", FIRST, "--tree"]);
    tree.expect(
        0,
        &["cannot be hot reset", "ours (1)", "blocks: unopened", "A: bus 0000:01 behind 0000:00:04.0"],
    );
    let path = launched.folder.path().join("picture.svg");
    let drawn = launched.ask(&["reset-group", FIRST, "--svg", path.to_str().unwrap()]);
    assert_eq!(drawn.text, table.text);
    assert!(std::fs::read_to_string(path).unwrap().contains(">blocks: unopened<"));
    assert_eq!(launched.ask(&["reset-group", FIRST, "--table", "--tree"]).status, 2);
}
