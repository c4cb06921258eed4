// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real server binary as a child process, with its log and its open files in view.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};

use crate::host::Host;

/// How long anything that should happen at once may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Number under which the server inherits its control socket.
const CONTROL_FD: i32 = 3;

/// A running server. It is killed when this is dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    log: File,
}

/// The server.
pub fn server_binary() -> PathBuf {
    binary("vhost-device-vfio")
}

/// Its client.
pub fn tool_binary() -> PathBuf {
    binary("vfio-devctl")
}

/// A binary of the workspace, built into the same folder as the test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let folders = test.ancestors().skip(1).take(2);
    let candidates: Vec<_> = folders.map(|folder| folder.join(name)).collect();
    let found = candidates.iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("none of {candidates:?} is there: build the workspace first")).clone()
}

impl ServerProcess {
    /// Starts a server at one end of a socket pair, and gives the other.
    pub fn start() -> (Self, UnixStream) {
        Self::start_on(Host::current())
    }

    /// The same for devices of another machine than the current one.
    pub fn start_on(host: &Host) -> (Self, UnixStream) {
        let mut command = Command::new(server_binary());
        command.args(host.arguments());
        Self::start_command(command)
    }

    /// Starts a server that finds nothing in /dev.
    pub fn start_without_dev() -> (Self, UnixStream) {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", "mount -t tmpfs none /dev && exec \"$0\" \"$@\""])
            .arg(server_binary())
            .args(Host::current().arguments());
        Self::start_command(command)
    }

    /// Starts a server without privileges, which may pin so many bytes of memory.
    pub fn start_with_limit(bytes: u64) -> (Self, UnixStream) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--memlock={bytes}"));
        command
            .args(["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"])
            .arg(server_binary())
            .args(Host::current().arguments());
        Self::start_command(command)
    }

    /// Starts a server with arguments of the test's own, and its control socket besides.
    pub fn start_command(mut command: Command) -> (Self, UnixStream) {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        command.args(["--fd", &CONTROL_FD.to_string()]);
        command
            .fd_mappings(vec![FdMapping { parent_fd: far.into(), child_fd: CONTROL_FD }])
            .expect("one descriptor");
        (Self::spawn(command), near)
    }

    /// Starts a server that listens at `path`, for devices of `host`, with further arguments, and connects to it.
    pub fn listening(host: &Host, path: &Path, arguments: &[&str]) -> (Self, UnixStream) {
        let mut command = Command::new(server_binary());
        command.args(host.arguments()).arg("--socket-path").arg(path).args(arguments);
        let server = Self::spawn(command);
        assert!(wait_until(|| UnixStream::connect(path).is_ok()), "nobody listens: {}", server.log());
        (server, UnixStream::connect(path).expect("the server listens"))
    }

    /// Starts a server with a command line of the test's own.
    pub fn spawn(mut command: Command) -> Self {
        let log = tempfile::tempfile().expect("a file for the log");
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a second descriptor of the log"));
        let child = command.spawn().expect("the server starts");
        Self { child, log }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        let size = self.log.metadata().expect("the log's size").len();
        let mut text = vec![0; usize::try_from(size).expect("a short log")];
        // Not by way of the file's position, which is the server's as well.
        self.log.read_exact_at(&mut text, 0).expect("the log");
        String::from_utf8(text).expect("text")
    }

    /// How many descriptors the server has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the process's files").count()
    }

    /// How much memory of its own the server has in use, in bytes.
    pub fn resident_memory(&self) -> usize {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the status");
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB"));
        anonymous.expect("a line of the status").trim().parse::<usize>().expect("a number") << 10
    }

    /// Waits until the server has as many descriptors open as it is supposed to.
    pub fn wait_for_open_files(&self, expected: usize) {
        let is_as_expected = wait_until(|| self.open_files() == expected);
        assert!(is_as_expected, "{} descriptors instead of {expected}: {:?}", self.open_files(), self.log());
    }

    /// Waits until the log has a line with this text.
    pub fn wait_for_log(&self, text: &str) {
        assert!(wait_until(|| self.log().contains(text)), "no `{text}` in {}", self.log());
    }

    /// Waits for the process to end by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let ended = wait_until(|| self.child.try_wait().expect("the child's state").is_some());
        assert!(ended, "the server does not end: {}", self.log());
        self.child.wait().expect("the exit status")
    }

    /// Ends the process at once, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("the signal is sent");
        self.child.wait().expect("the exit status");
    }

    /// Asks the process to end.
    pub fn terminate(&self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("the signal is sent");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something that should happen at once; false when it does not.
pub fn wait_until(condition: impl FnMut() -> bool) -> bool {
    let mut condition = condition;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    condition()
}
