// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A QEMU process, with all its ends in a folder of its own.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::console;
use crate::server_process::wait_until;

/// How long it may take for anything it is asked, the guest's boot included: its machine is emulated, and not alone.
const PATIENCE: Duration = Duration::from_mins(2);
const MEMORY: u64 = 192 << 20;
/// What QEMU always says of its vhost-user network devices, which have a configuration of their own.
const OWN_CONFIG: &str = "backend supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not.";

/// QEMU, killed when this is dropped.
#[derive(Debug)]
pub(super) struct Emulator {
    child: Child,
    folder: TempDir,
}

impl Emulator {
    /// Starts QEMU with further arguments, and gives the connections that it makes: for QMP, and of the console.
    pub(super) fn start(folder: TempDir, arguments: &[String]) -> (Self, UnixStream, UnixStream) {
        let path = |name| folder.path().join(name);
        let [qmp, console] = ["qmp", "console"].map(|name| UnixListener::bind(path(name)).expect("a socket"));
        let errors = File::create(path("errors")).expect("a file");
        let mut command = command(folder.path());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = command.spawn().expect("QEMU starts");
        let mut emulator = Self { child, folder };
        let qmp = emulator.accept(&qmp);
        let console = emulator.accept(&console);
        (emulator, qmp, console)
    }

    /// What it has complained about.
    pub(super) fn errors(&self) -> String {
        self.text("errors").lines().filter(|line| !line.ends_with(OWN_CONFIG)).collect()
    }

    /// What has been said on the serial line.
    pub(super) fn serial(&self) -> String {
        self.text("serial")
    }

    /// The process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        self.child.kill().expect("the signal is sent");
        self.wait_for_exit();
    }

    /// Waits until it has ended by itself.
    pub(super) fn wait_for_exit(&mut self) -> ExitStatus {
        let has_ended = wait_until(|| self.child.try_wait().expect("the child's state").is_some());
        assert!(has_ended, "QEMU does not end");
        self.child.wait().expect("the exit status")
    }

    fn accept(&mut self, listener: &UnixListener) -> UnixStream {
        listener.set_nonblocking(true).expect("the listener's mode");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && self.child.try_wait().expect("the child's state").is_none() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).expect("the stream's mode");
                    stream.set_read_timeout(Some(PATIENCE)).expect("the stream's timeout");
                    return stream;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("QEMU does not come up")
    }

    fn text(&self, name: &str) -> String {
        let content = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&content).replace('\r', "")
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- QEMU\n{}--- serial line\n{}\n---", self.errors(), self.serial());
        }
    }
}

/// QEMU up to the functions. All of its ends are in the folder.
fn command(folder: &Path) -> Command {
    let path = |name| folder.join(name).display().to_string();
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-run-with", "exit-with-parent=on", "-nodefaults", "-no-user-config", "-display", "none"])
        // The host's own would show the guest a state of the processor that a nested one does not have.
        .args(["-accel", "kvm", "-cpu", "qemu64", "-machine", "q35,memory-backend=memory,hpet=off"])
        // The kernel knows hotplug only as PCI Express has it.
        .args(["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"])
        // A client of vfio-user waits 5 s for its memory to be pinned; on a busy machine it had better be there already.
        .args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on,prealloc=on")])
        .args(["-serial", &format!("file:{}", path("serial"))])
        .args(["-chardev", &format!("socket,id=qmp,path={}", path("qmp"))])
        .args(["-object", "monitor-qmp,id=monitor,chardev=qmp"])
        .args(["-chardev", &format!("socket,id=console,path={}", path("console"))])
        .args(["-device", "virtio-serial-pci,addr=10.0"])
        .args(["-device", &format!("virtserialport,chardev=console,name={}", console::PORT)]);
    command
}
