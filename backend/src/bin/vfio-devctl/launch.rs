// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The launcher of one server: opens what the server may not open, and hands it over. What it handed over stays as long as
//! it does.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use protocol::ControlClient;
use protocol::extension::{Cookie, Face, IoasChoice};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use vfio::PciAddress;
use vhost_device_vfio::host::Host;
use vhost_device_vfio::own_socket::OwnSocket;

use crate::server::{self, RunningServer};
use crate::tool_error::ToolError;
use crate::view::{DeviceView, View};

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
    vfio_user: Vec<(Cookie, PathBuf)>,
    /// Serve the virtio device with this cookie over vhost-user on a new socket at this path.
    #[arg(long = "vhost-user", value_name = "COOKIE=PATH", value_parser = face)]
    vhost_user: Vec<(Cookie, PathBuf)>,
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

impl Launch {
    pub(crate) fn run(self, host: &Host, json: bool) -> Result<(), ToolError> {
        let devices = self.open_devices(host)?;
        let iommufd = server::open_iommufd(host)?;
        let (_control_path, listener) = server::listen(&self.socket)?;
        let server = server::program(self.server.as_deref());
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
        let sysfs = server::open_sysfs(host)?;
        (1..)
            .zip(&self.devices)
            .map(|(place, (address, cookie))| {
                Ok((Cookie(cookie.unwrap_or(place)), server::open_cdev(host, &sysfs, *address)?))
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
        let vfio_user = self.vfio_user.iter().map(|place| (Face::VfioUser, place));
        let vhost_user = self.vhost_user.iter().map(|place| (Face::VhostUser, place));
        let serve = |(face, (cookie, path)): (Face, &(Cookie, PathBuf))| {
            let (bound, listener) = server::listen(path)?;
            client.serve(*cookie, face, listener)?;
            Ok(bound)
        };
        vfio_user.chain(vhost_user).map(serve).collect()
    }
}
