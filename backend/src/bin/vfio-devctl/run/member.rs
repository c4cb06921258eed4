// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One of a VM's servers, and the devices that it has.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use protocol::ControlClient;
use protocol::extension::{Cookie, Face, MemberName};
use vfio::PciAddress;
use vhost_device_vfio::broker::MemberId;
use vhost_device_vfio::own_socket::OwnSocket;

use crate::server::{RunningServer, listen};
use crate::tool_error::ToolError;

/// A device, and where it is served.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) cookie: Cookie,
    pub(crate) address: PciAddress,
    pub(crate) face: Face,
    pub(crate) socket: PathBuf,
}

/// What a server is to have.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) name: String,
    /// Where its control socket is.
    pub(crate) control: PathBuf,
    pub(crate) devices: Vec<Placement>,
}

/// How a server has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Whether we had asked it to.
    pub(crate) is_asked: bool,
}

/// The resets that a server has told of, and what else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) resets_done: u64,
    pub(crate) resets_failed: u64,
    pub(crate) device_errors: u64,
}

/// A server.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) assignment: Assignment,
    process: RunningServer,
    /// The session that owns what was handed over: it stays as long as this.
    pub(crate) owner: Option<ControlClient>,
    /// What the broker calls it.
    pub(crate) id: Option<MemberId>,
    pub(crate) end: Option<End>,
    pub(crate) tally: Tally,
    _sockets: Vec<OwnSocket>,
}

/// The sockets on which the devices of a server are to be served.
pub(crate) type Faces = Vec<(Cookie, Face, UnixListener)>;

impl Member {
    /// Makes the sockets and starts the server.
    pub(crate) fn start(assignment: Assignment, command: Command) -> Result<(Self, Faces), ToolError> {
        let (control, listener) = listen(&assignment.control)?;
        let mut sockets = vec![control];
        let mut faces = Vec::new();
        for device in &assignment.devices {
            let (socket, listener) = listen(&device.socket)?;
            sockets.push(socket);
            faces.push((device.cookie, device.face, listener));
        }
        let program = PathBuf::from(command.get_program());
        let process =
            RunningServer::spawn(command, listener).map_err(|error| ToolError::server(&program, &error))?;
        let (name, pid) = (&assignment.name, process.id());
        log::info!("event=server-started server={name} pid={pid}");
        let member = Self {
            assignment,
            process,
            owner: None,
            id: None,
            end: None,
            tally: Tally::default(),
            _sockets: sockets,
        };
        Ok((member, faces))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What people and other servers call it.
    pub(crate) fn name(&self) -> MemberName {
        MemberName::new(&self.assignment.name)
    }

    /// Another session with it, in which it may take `patience` for each answer.
    pub(crate) fn connect(&self, patience: Duration) -> Result<ControlClient, ToolError> {
        let path = &self.assignment.control;
        let stream = UnixStream::connect(path).map_err(|error| ToolError::unreachable(path, &error))?;
        Ok(ControlClient::new(stream, patience))
    }

    /// Sends it a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        if self.end.is_none()
            && let Err(error) = self.process.signal(signal)
        {
            log::warn!("event=signal-failed server={} reason=\"{error}\"", self.assignment.name);
        }
    }

    /// Whether it has ended since it was looked at last.
    pub(crate) fn look_for_end(&mut self, is_asked: bool) -> io::Result<bool> {
        if self.end.is_some() {
            return Ok(false);
        }
        self.end = self.process.ended()?.map(|status| End { status, is_asked });
        if let Some(End { status, .. }) = self.end {
            self.owner = None;
            let devices = self.addresses().join(",");
            let name = &self.assignment.name;
            if is_asked && status.success() {
                log::info!("event=server-ended server={name} devices={devices} how=\"{status}\"");
            } else {
                log::error!("event=server-ended server={name} devices={devices} how=\"{status}\"");
            }
        }
        Ok(self.end.is_some())
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.assignment.devices.iter().map(|device| device.address.to_string()).collect()
    }
}
