// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vfio-devctl`: what it starts, prints and leaves behind.

use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vfio::{Iommufd, UnboundDevice};
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::legacy_group::LegacyUser;
use vhost_device_vfio_tests::server_process::{tool_binary, wait_until};

use super::{BELOW_SWITCH, FIRST, ON_ROOT_BUS, SECOND};

/// A launcher, with its sockets in a folder of its own.
struct Launched {
    child: Child,
    /// The process id of the server that it started.
    server: u32,
    folder: tempfile::TempDir,
}

impl Launched {
    fn start(devices: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(tool_binary());
        command.args(Host::current().arguments());
        command.arg("launch").arg("--socket").arg(folder.path().join("control"));
        command.arg("--vfio-user").arg(format!("1={}", folder.path().join("face").display()));
        for device in devices {
            command.args(["--device", device]);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The face comes last.
        if !wait_until(|| folder.path().join("face").exists()) {
            let _ = child.kill();
            panic!("the launcher does not get to its end");
        }
        let server = child_of(child.id()).expect("the launcher has started a server");
        Self { child, server, folder }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(tool_binary());
        command.args(Host::current().arguments()).args(arguments);
        command.arg("--socket").arg(self.folder.path().join("control")).output().unwrap()
    }

    /// The row of the second function as `reset-group` prints it.
    fn row_of_sibling(&self) -> String {
        let table = text(&self.ask(&["reset-group", FIRST]).stdout);
        let row = table.lines().find(|line| line.starts_with(SECOND));
        row.unwrap_or_else(|| panic!("no {SECOND} in {table}")).to_owned()
    }

    fn stop(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Launched {
    /// Waits for the server, too: the devices are the next test's.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        wait_until(|| !is_running(self.server));
    }
}

/// The process that another one started; others may run the same program.
fn child_of(parent: u32) -> Option<u32> {
    let parent = format!("PPid:\t{parent}\n");
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|process| {
        let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let id = process.file_name().into_string().ok()?.parse().ok()?;
        status.contains(&parent).then_some(id)
    })
}

/// Whether a process has not ended; one that nobody has waited for has no command line any more.
fn is_running(process: u32) -> bool {
    std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|command| !command.is_empty())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn the_tool_names_the_blocker_and_the_remedy() {
    let launched = Launched::start(&[FIRST]);
    let table = text(&launched.ask(&["reset-group", FIRST]).stdout);
    assert!(table.contains("cannot be hot reset"), "{table}");
    let row = table.lines().find(|line| line.starts_with(SECOND)).unwrap();
    assert!(row.contains("yes: unopened") && row.contains("/dev/vfio/devices/vfio"), "{row}");
    let refused = launched.ask(&["reset", FIRST, "--method", "hot"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("id:  reset-blocked"), "{refused:?}");
}

pub(crate) fn the_tool_names_who_has_the_sibling() {
    let (host, second) = (Host::current(), SECOND.parse().unwrap());
    let kill = format!("(kill {})", std::process::id());
    let launched = Launched::start(&[FIRST]);
    {
        let sysfs = host.sysfs();
        let context = Iommufd::from_fd(host.open_iommufd().unwrap().into(), &sysfs).unwrap();
        let device = UnboundDevice::from_fd(host.open_cdev(second).unwrap().into(), &sysfs).unwrap();
        assert!(launched.row_of_sibling().contains("yes: unopened"), "it is open, but not bound");
        let _device = device.bind(&context, &sysfs).unwrap();
        let row = launched.row_of_sibling();
        assert!(row.contains("yes: other-context") && row.contains(&kill), "{row}");
    }
    assert!(wait_until(|| launched.row_of_sibling().contains("yes: unopened")));
    let group = host.sysfs().function(second).unwrap().iommu_group.unwrap();
    let user = LegacyUser::open(host, group, SECOND);
    let row = launched.row_of_sibling();
    assert!(row.contains("yes: legacy-group") && row.contains(&kill), "{row}");
    drop(user);
}

/// Linux says of a device's file which one it is from 6.18 on; before, only the node's name tells, which is gone by then.
pub(crate) fn the_tool_names_whom_an_unbind_waits_for() {
    let (host, second) = (Host::current(), SECOND.parse().unwrap());
    let launched = Launched::start(&[FIRST]);
    let file = host.open_cdev(second).unwrap();
    let unbind = std::thread::spawn(move || host.unbind_driver(second).unwrap());
    let begins = wait_until(|| host.sysfs().departing_driver(second).unwrap().is_some());
    let row = launched.row_of_sibling();
    drop(file);
    unbind.join().unwrap();
    let over = launched.row_of_sibling();
    // For the tests after this one, whatever becomes of the assertions.
    host.bind_driver(second, "vfio-pci").unwrap();
    assert!(begins && row.contains("yes: host-unbind"), "{row}");
    let says_devices = std::env::var("TESTVM_KERNEL").is_ok_and(|kernel| kernel != "6.12");
    assert_eq!(row.contains(&format!("(kill {})", std::process::id())), says_devices, "{row}");
    assert!(over.contains("yes: no-driver"), "{over}");
}

pub(crate) fn the_tool_resets_what_is_complete() {
    let launched = Launched::start(&[FIRST, SECOND]);
    let reset = launched.ask(&["reset", "1", "--method", "hot", "--json"]);
    assert!(reset.status.success(), "{reset:?}");
    let report = text(&reset.stdout);
    assert!(report.contains(r#""outcome":"done""#) && report.contains(r#""affected":[1,2]"#), "{report}");
}

/// What `vfio-devctl plan` says of handing these functions to one VM, and its status.
fn plan(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(tool_binary());
    let planned = command.args(Host::current().arguments()).arg("plan").args(arguments).output().unwrap();
    (planned.status.code(), text(&planned.stdout) + &text(&planned.stderr))
}

/// That the scope of a function as the plan has it from sysfs is the kernel's, in the kernel's order.
fn expect_scope(function: &str, kind: &str) {
    let table = text(&Launched::start(&[function]).ask(&["reset-group", "1"]).stdout);
    let rows = table.lines().skip(1).filter(|line| line.starts_with("0000:"));
    let rows: Vec<_> = rows.filter_map(|row| row.split(' ').next()).map(|row| format!("\"{row}\"")).collect();
    let (_, planned) = plan(&[function, "--json"]);
    let (kind, functions) = (format!("\"kind\":\"{kind}\""), format!("\"functions\":[{}]", rows.join(",")));
    assert!(planned.contains(&kind) && planned.contains(&functions), "not {kind} {functions}: {planned}");
}

pub(crate) fn the_plan_names_what_the_kernel_then_wants() {
    let (status, planned) = plan(&[FIRST]);
    assert_eq!(status, Some(1), "{planned}");
    assert!(planned.contains(&format!("--device {FIRST} --device {SECOND}")), "{planned}");
    assert_eq!(plan(&[FIRST, SECOND]).0, Some(0));
    assert_eq!(plan(&[SECOND]).0, Some(0), "it has an FLR");
    assert_eq!(plan(&["--vm", &format!("a={FIRST}"), "--vm", &format!("b={SECOND}")]).0, Some(2));
    expect_scope(FIRST, "bus");
}

pub(crate) fn the_plan_finds_the_slot_that_the_kernel_resets() {
    let (status, planned) = plan(&[FIRST, SECOND]);
    assert!(status == Some(0) && planned.contains("hot reset of slot "), "{planned}");
    expect_scope(FIRST, "slot");
    let launched = Launched::start(&[FIRST, SECOND]);
    let reset = launched.ask(&["reset", FIRST, "--method", "hot"]);
    assert!(reset.status.success(), "{reset:?}");
}

pub(crate) fn the_plan_knows_that_a_switch_is_never_reset() {
    let (status, planned) = plan(&[SECOND]);
    assert!(status == Some(2) && planned.contains("is a bridge"), "{planned}");
    expect_scope(SECOND, "bus");
    let refused = Launched::start(&[SECOND]).ask(&["reset", SECOND, "--method", "hot"]);
    assert!(text(&refused.stderr).contains("id:  reset-blocked"), "{refused:?}");
    assert_eq!(plan(&[BELOW_SWITCH]).0, Some(0));
}

pub(crate) fn the_plan_knows_that_the_root_bus_is_never_reset() {
    let (status, planned) = plan(&[ON_ROOT_BUS]);
    assert!(status == Some(2) && planned.contains("neither slot nor bus"), "{planned}");
}

pub(crate) fn the_plan_knows_that_interrupts_are_not_remapped() {
    let (status, planned) = plan(&[FIRST]);
    assert!(status == Some(2) && planned.contains("does not remap interrupts"), "{planned}");
}

pub(crate) fn the_tool_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut launched = Launched::start(&[FIRST]);
        launched.stop(signal);
        assert!(
            wait_until(|| !is_running(launched.server)),
            "the server outlives its launcher after {signal:?}"
        );
    }
    let unreachable = Command::new(tool_binary()).args(["info", "--socket", "/nowhere"]).output().unwrap();
    assert_eq!(unreachable.status.code(), Some(3));
}
