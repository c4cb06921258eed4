// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The launcher: opens what the server may not open, and hands it over. What it handed over stays as long as it does.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use command_fds::{CommandFdExt, FdMapping};
use protocol::ControlClient;
use protocol::extension::{Cookie, Face, IoasChoice};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};
use vhost_device_vfio::host::Host;
use vhost_device_vfio::own_socket::OwnSocket;

use crate::tool_error::ToolError;
use crate::view::{DeviceView, View};

/// The numbers under which the server inherits its sockets: one end of a pair, with which it ends, and the listening one.
const LIFELINE_FD: i32 = 3;
const CONTROL_FD: i32 = 4;

/// Open devices, start a server and hand them over.
#[derive(Debug, clap::Args)]
pub(crate) struct Launch {
    /// Where the server's control socket shall be.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// A device by its PCI address, and its cookie if that shall not be its place on the command line from 1 on.
    #[arg(long = "device", value_name = "ADDRESS[=COOKIE]", required = true, value_parser = device)]
    devices: Vec<(PciAddress, Option<u64>)>,
    /// Serve the device with this cookie over vfio-user on a new socket at this path.
    #[arg(long = "vfio-user", value_name = "COOKIE=PATH", value_parser = face)]
    faces: Vec<(Cookie, PathBuf)>,
    /// The server to start; by default the one beside this tool.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
}

fn device(text: &str) -> Result<(PciAddress, Option<u64>), String> {
    let (address, cookie) =
        text.split_once('=').map_or((text, None), |(address, cookie)| (address, Some(cookie)));
    let address = address.parse().map_err(|error| format!("{error}"))?;
    let cookie = cookie.map(str::parse).transpose().map_err(|_| "the cookie is not a number".to_owned())?;
    Ok((address, cookie))
}

fn face(text: &str) -> Result<(Cookie, PathBuf), String> {
    let (cookie, path) = text.split_once('=').ok_or("expected COOKIE=PATH")?;
    let cookie = cookie.parse().map_err(|_| format!("`{cookie}` is not a number"))?;
    Ok((Cookie(cookie), path.into()))
}

fn listen(path: &Path) -> Result<(OwnSocket, UnixListener), ToolError> {
    OwnSocket::bind(path).map_err(|error| ToolError::socket(path, &error))
}

impl Launch {
    pub(crate) fn run(self, host: &Host, json: bool) -> Result<(), ToolError> {
        let devices = self.open_devices(host)?;
        let iommufd = open(host, &host.iommufd())?;
        let (_control_path, listener) = listen(&self.socket)?;
        let server = self.server_path();
        let failed = |error: &io::Error| ToolError::server(&server, error);
        let (mut signalled, signal) = UnixStream::pair().map_err(|error| failed(&error))?;
        for number in [SIGINT, SIGTERM, SIGCHLD] {
            let registered =
                signal.try_clone().and_then(|signal| signal_hook::low_level::pipe::register(number, signal));
            registered.map_err(|error| failed(&error))?;
        }
        let mut command = Command::new(&server);
        command.args(host.arguments());
        let mut child = RunningServer::spawn(command, listener).map_err(|error| failed(&error))?;
        let mut client = crate::connect(&self.socket)?;
        let _face_paths = self.hand_over(&mut client, iommufd, devices)?;
        DeviceView::list(&crate::all_devices(&mut client)?).print(json)?;
        // Until a signal comes: one for us, or the child's end.
        signalled.read_exact(&mut [0]).map_err(|error| failed(&error))?;
        drop(client);
        child.stop().map_err(|error| failed(&error))
    }

    fn open_devices(&self, host: &Host) -> Result<Vec<(Cookie, File)>, ToolError> {
        let sysfs = host.sysfs().map_err(|error| ToolError::open(Path::new("/sys"), &error))?;
        (1..)
            .zip(&self.devices)
            .map(|(place, (address, cookie))| {
                let path = host.cdev(&cdev_name(&sysfs, *address)?);
                Ok((Cookie(cookie.unwrap_or(place)), open(host, &path)?))
            })
            .collect()
    }

    /// The server's own descriptors are copies: ours are closed here.
    fn hand_over(
        &self,
        client: &mut ControlClient,
        iommufd: File,
        devices: Vec<(Cookie, File)>,
    ) -> Result<Vec<OwnSocket>, ToolError> {
        client.set_iommufd(&iommufd, IoasChoice::Allocate)?;
        drop(iommufd);
        for (cookie, device) in devices {
            client.add_device(cookie, device)?;
        }
        let serve = |(cookie, path): &(Cookie, PathBuf)| {
            let (bound, listener) = listen(path)?;
            client.serve(*cookie, Face::VfioUser, listener)?;
            Ok(bound)
        };
        self.faces.iter().map(serve).collect()
    }

    fn server_path(&self) -> PathBuf {
        let name = "vhost-device-vfio";
        let beside = || std::env::current_exe().ok().map(|tool| tool.with_file_name(name));
        self.server.clone().or_else(beside).unwrap_or_else(|| name.into())
    }
}

/// The cdev of a function that is bound to a VFIO driver.
fn cdev_name(sysfs: &Sysfs, address: PciAddress) -> Result<String, ToolError> {
    let function = sysfs.function(address);
    let function = function.map_err(|errno| ToolError::no_cdev(address, format!("Sysfs says: {errno}.")))?;
    match function.driver {
        Driver::Vfio { device, .. } => Ok(device),
        Driver::Kernel(driver) => Err(ToolError::no_cdev(address, format!("It is bound to {driver}."))),
        Driver::None => Err(ToolError::no_cdev(address, "It is bound to no driver.".into())),
    }
}

fn open(host: &Host, path: &Path) -> Result<File, ToolError> {
    host.open(path).map_err(|error| ToolError::open(path, &error))
}

/// The server as our child; however we end, it does not outlive us.
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
        Ok(Self { child: command.spawn()?, _lifeline: lifeline })
    }

    pub(crate) fn stop(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_none() {
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&self.child),
                rustix::process::Signal::TERM,
            )?;
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
