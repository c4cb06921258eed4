// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vfio-devctl`: what it starts, prints and leaves behind.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::server_process::{tool_binary, wait_until};

use super::{FIRST, SECOND};

/// A launcher, with its sockets in a folder of its own.
struct Launched {
    child: Child,
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
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let launched = Self { child, folder };
        // The face comes last.
        assert!(
            wait_until(|| launched.folder.path().join("face").exists()),
            "the launcher does not get to its end"
        );
        launched
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(tool_binary());
        command.args(arguments).arg("--socket").arg(self.folder.path().join("control"));
        command.output().unwrap()
    }

    fn stop(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn server_runs() -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|process| {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).next().is_some_and(|program| {
            Path::new(&text(program)).file_name().is_some_and(|name| name == "vhost-device-vfio")
        })
    })
}

pub(crate) fn the_tool_names_the_blocker_and_the_remedy() {
    let launched = Launched::start(&[FIRST]);
    let table = text(&launched.ask(&["reset-group", FIRST]).stdout);
    assert!(table.contains("cannot be hot reset"), "{table}");
    let row = table.lines().find(|line| line.starts_with(SECOND)).unwrap();
    assert!(row.contains("blocking") && row.contains("/dev/vfio/devices/vfio"), "{row}");
    let refused = launched.ask(&["reset", FIRST, "--method", "hot"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("id:  reset-blocked"), "{refused:?}");
}

pub(crate) fn the_tool_resets_what_is_complete() {
    let launched = Launched::start(&[FIRST, SECOND]);
    let reset = launched.ask(&["reset", "1", "--method", "hot", "--json"]);
    assert!(reset.status.success(), "{reset:?}");
    let report = text(&reset.stdout);
    assert!(report.contains(r#""outcome":"done""#) && report.contains(r#""affected":[1,2]"#), "{report}");
}

pub(crate) fn the_tool_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut launched = Launched::start(&[FIRST]);
        launched.stop(signal);
        assert!(wait_until(|| !server_runs()), "the server outlives its launcher after {signal:?}");
    }
    let unreachable = Command::new(tool_binary()).args(["info", "--socket", "/nowhere"]).output().unwrap();
    assert_eq!(unreachable.status.code(), Some(3));
}
