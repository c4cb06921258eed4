// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server as a child of this tool, and what it is started with.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process};
use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};
use vhost_device_vfio::host::Host;
use vhost_device_vfio::own_socket::OwnSocket;

use crate::tool_error::ToolError;

/// The numbers under which the server inherits its sockets: one end of a pair, with which it ends, and the listening one.
const LIFELINE_FD: i32 = 3;
const CONTROL_FD: i32 = 4;

/// The server as our child; however we end, it does not outlive us.
#[derive(Debug)]
pub(crate) struct RunningServer {
    child: Child,
    _lifeline: UnixStream,
}

impl RunningServer {
    /// Starts the server of `command`, with its sockets as its last arguments.
    pub(crate) fn spawn(mut command: Command, control: UnixListener) -> io::Result<Self> {
        let (lifeline, far_end) = UnixStream::pair()?;
        let inherited = [(far_end.into(), LIFELINE_FD), (control.into(), CONTROL_FD)];
        for (_, number) in &inherited {
            command.args(["--fd", &number.to_string()]);
        }
        let mappings = inherited.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.into()).map_err(io::Error::other)?;
        // Whether everything is ready is for us to say.
        command.env_remove("NOTIFY_SOCKET");
        Ok(Self { child: command.spawn()?, _lifeline: lifeline })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends it a signal. It must not have been waited for.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Asks it to end, and waits until it does.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // Already waited for, unless something failed on the way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server to start: the one named, or the one beside this tool.
pub(crate) fn program(named: Option<&Path>) -> PathBuf {
    let name = "vhost-device-vfio";
    let beside = || std::env::current_exe().ok().map(|tool| tool.with_file_name(name));
    named.map(PathBuf::from).or_else(beside).unwrap_or_else(|| name.into())
}

/// Listens at a new path.
pub(crate) fn listen(path: &Path) -> Result<(OwnSocket, UnixListener), ToolError> {
    OwnSocket::bind(path, None).map_err(|error| ToolError::socket(path, &error))
}

/// The machine's sysfs.
pub(crate) fn open_sysfs(host: &Host) -> Result<Sysfs, ToolError> {
    host.sysfs().map_err(|error| ToolError::open(Path::new("/sys"), &error))
}

/// Opens `/dev/iommu`.
pub(crate) fn open_iommufd(host: &Host) -> Result<File, ToolError> {
    open(host, &host.iommufd())
}

/// Opens the cdev of a function that is bound to a VFIO driver.
pub(crate) fn open_cdev(host: &Host, sysfs: &Sysfs, address: PciAddress) -> Result<File, ToolError> {
    let function = sysfs.function(address);
    let function = function.map_err(|errno| ToolError::no_cdev(address, format!("Sysfs says: {errno}.")))?;
    match function.driver {
        Driver::Vfio { device, .. } => open(host, &host.cdev(&device)),
        Driver::Kernel(driver) => Err(ToolError::no_cdev(address, format!("It is bound to {driver}."))),
        Driver::None => Err(ToolError::no_cdev(address, "It is bound to no driver.".into())),
    }
}

fn open(host: &Host, path: &Path) -> Result<File, ToolError> {
    host.open(path).map_err(|error| ToolError::open(path, &error))
}
