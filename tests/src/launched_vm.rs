// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM whose servers `vfio-devctl run` has started.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use protocol::ControlClient;
use protocol::vfio_user::{Capabilities, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::host::Host;
use crate::pci_function::PciFunction;
use crate::server_process::{PATIENCE, tool_binary, wait_until};

const READY_FD: i32 = 5;

/// The launcher, and what it said when everything was served.
#[derive(Debug)]
pub struct LaunchedVm {
    child: Child,
    log: File,
    output: File,
    /// What was set up, as it is printed with `--json`.
    pub set_up: Value,
    folder: TempDir,
}

/// What a launcher has said that is over.
#[derive(Debug)]
pub struct Aftermath {
    /// How it ended.
    pub status: ExitStatus,
    /// The summary; null if there is none.
    pub summary: Value,
    /// Everything logged by it and its servers.
    pub log: String,
}

fn text(file: &File) -> String {
    let size = file.metadata().expect("the file's size").len();
    let mut text = vec![0; usize::try_from(size).expect("a short file")];
    // Not by way of the file's position, which is the launcher's as well.
    file.read_exact_at(&mut text, 0).expect("the file");
    String::from_utf8(text).expect("text")
}

/// The command `vfio-devctl run` for a VM called `test`, up to its further arguments.
pub fn command(host: &Host) -> Command {
    let mut command = Command::new(tool_binary());
    command.args(host.arguments()).args(["--json", "run", "--vm", "test"]);
    command
}

impl LaunchedVm {
    /// Starts servers with these arguments of `vfio-devctl run`, and waits until everything is served.
    pub fn start(host: &Host, arguments: &[&str]) -> Self {
        let mut command = command(host);
        command.args(arguments);
        Self::start_command(command)
    }

    /// The same with a command of the test's own.
    pub fn start_command(command: Command) -> Self {
        let (mut ready, mut vm) = Self::begin(command);
        let mut told = String::new();
        ready.read_to_string(&mut told).expect("the pipe");
        assert_eq!(told, "ready\n", "{}", vm.log());
        let output = text(&vm.output);
        vm.set_up = output.lines().next().expect("a line").parse().expect("JSON");
        vm
    }

    /// Starts servers that need not come to be served. The pipe is told when they are, and ends in any case.
    pub fn begin(mut command: Command) -> (io::PipeReader, Self) {
        let folder = tempfile::tempdir().expect("a folder");
        let (ready, far_end) = io::pipe().expect("a pipe");
        let file = || tempfile::tempfile().expect("a file");
        let duplicate = |file: &File| Stdio::from(file.try_clone().expect("a second descriptor"));
        let (log, output) = (file(), file());
        command.arg("--directory").arg(folder.path().join("sockets"));
        command.args(["--ready-fd", &READY_FD.to_string()]);
        command
            .fd_mappings(vec![FdMapping { parent_fd: far_end.into(), child_fd: READY_FD }])
            .expect("one descriptor");
        command.stdin(Stdio::null()).stdout(duplicate(&output)).stderr(duplicate(&log));
        let child = command.spawn().expect("the launcher starts");
        (ready, Self { child, log, output, set_up: Value::Null, folder })
    }

    /// The folder with the sockets.
    pub fn directory(&self) -> PathBuf {
        self.folder.path().join("sockets")
    }

    /// The process id of a server.
    pub fn pid_of(&self, server: &str) -> u32 {
        let servers = self.set_up["servers"].as_array().expect("servers");
        let server = servers.iter().find(|found| found["name"] == server).expect("a server of this name");
        server["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("its process id")
    }

    /// The process ids of all servers.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        let servers = self.set_up["servers"].as_array().expect("servers");
        servers
            .iter()
            .map(|server| server["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid"))
    }

    /// Sends a signal to a server.
    pub fn signal(&self, server: &str, signal: Signal) {
        let pid = Pid::from_raw(self.pid_of(server).cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the signal is sent");
    }

    /// A session with a server.
    pub fn connect(&self, server: &str) -> ControlClient {
        let path = self.directory().join(format!("{server}.control"));
        let mut client = ControlClient::new(UnixStream::connect(path).expect("it listens"), PATIENCE);
        client.negotiate().expect("the extension is negotiated");
        client
    }

    /// A device as the VMM has it.
    pub fn open(&self, device: &str) -> PciFunction {
        let path = self.directory().join(format!("{device}.sock"));
        let mut client = Client::new(UnixStream::connect(path).expect("it listens"), PATIENCE);
        let capabilities = Capabilities { max_msg_fds: Some(8), ..Capabilities::default() };
        client.version(&capabilities).expect("vfio-user is negotiated");
        PciFunction::new(client)
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until the log has so many lines with this text.
    pub fn wait_for_log(&self, part: &str, times: usize) {
        let is_there = || self.log().lines().filter(|line| line.contains(part)).count() >= times;
        assert!(wait_until(is_there), "not {times} times `{part}` in {}", self.log());
    }

    /// Sends a signal to the launcher.
    pub fn signal_launcher(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the signal is sent");
    }

    /// Waits for the launcher to end.
    pub fn end(mut self) -> Aftermath {
        let ended = wait_until(|| self.child.try_wait().expect("the child's state").is_some());
        assert!(ended, "the launcher does not end: {}", self.log());
        let status = self.child.wait().expect("the exit status");
        let summary =
            text(&self.output).lines().last().map_or(Value::Null, |line| line.parse().expect("JSON"));
        let aftermath = Aftermath { status, summary, log: self.log() };
        assert!(status.code().is_none() || !self.directory().exists(), "the folder is left behind");
        aftermath
    }

    /// Asks the launcher to end, and waits until it has.
    pub fn stop(self) -> Aftermath {
        self.signal_launcher(Signal::TERM);
        self.end()
    }
}

impl Drop for LaunchedVm {
    fn drop(&mut self) {
        // The servers end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Aftermath {
    /// How a server ended.
    pub fn end_of(&self, server: &str) -> &str {
        let servers = self.summary["servers"].as_array().expect("servers");
        let server = servers.iter().find(|found| found["name"] == server).expect("a server of this name");
        server["end"].as_str().expect("its end")
    }

    /// How many resets across servers were done, failed and not begun.
    pub fn coordinated(&self) -> [u64; 3] {
        ["done", "failed", "declined"].map(|name| {
            self.summary["coordinated_resets"][name].as_u64().unwrap_or_else(|| panic!("{}", self.summary))
        })
    }
}
