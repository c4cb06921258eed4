// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The launcher of a VM's servers, and the broker of their resets.

mod handover;
mod member;
mod readiness;
mod runtime_directory;
mod signals;
mod view;
mod vm;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::ValueEnum;
use log::LevelFilter;
use protocol::extension::{Cookie, Face};
use vfio::{PciAddress, Sysfs};
use vhost_device_vfio::host::Host;
use vhost_device_vfio::logger;

use self::member::{Assignment, Placement};
use self::readiness::Readiness;
use self::runtime_directory::RuntimeDirectory;
use self::signals::Signals;
use self::view::{SetUpView, SummaryView};
use self::vm::Vm;
use crate::server;
use crate::tool_error::ToolError;
use crate::view::View;

/// Longest name of a VM, in bytes: as long as the broker's names for servers.
const MAX_NAME: usize = 31;

/// Open devices, start the servers of a VM, hand over, and coordinate their resets; ends with the servers or on a signal.
///
/// Each device is served over vfio-user, or vhost-user, on a socket of its own, each server has a control socket beside these. A VMM's
/// vfio-user client describes guest memory to each.
///
/// Exit status: 0 ended by a signal, and every server ended well; 1 refused, or a server failed, which is named; 2 wrong
/// usage; 3 a server could not be reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// What the VM is called: at most 31 letters, digits, dots, dashes and underscores.
    #[arg(long, value_name = "NAME", value_parser = vm_name)]
    vm: String,
    /// What gets a server of its own.
    #[arg(long, value_enum, default_value = "device")]
    servers: Division,
    /// All servers share one address space. Guest memory goes to the control socket of the first, and is there for the devices
    /// of all: this is for a VMM that sends a memory table there. Without it each server has an address space of its own, and
    /// one server has all functions of an IOMMU group.
    #[arg(long)]
    shared_memory: bool,
    /// Serve this one of the devices over vhost-user: a virtio device, whose rings run for any vhost-user frontend. May be given
    /// more than once.
    #[arg(long, value_name = "ADDRESS")]
    vhost_user: Vec<PciAddress>,
    /// Where the sockets shall be; by default systemd's runtime directory, or else /run/vfio-NAME. Made if it is not there,
    /// and then removed in the end.
    #[arg(long, value_name = "FOLDER")]
    directory: Option<PathBuf>,
    /// Write a line to this inherited descriptor and close it once everything is served. systemd is told without this.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<RawFd>,
    /// The server to start; by default the one beside this tool.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// An argument for every server, as `--server-argument=--sanitize=off`. May be given more than once.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    server_argument: Vec<OsString>,
    /// A device by its PCI address, and the path of its socket if that shall not be ADDRESS.sock in the folder.
    #[arg(required = true, value_name = "ADDRESS[=SOCKET]", value_parser = device)]
    devices: Vec<(PciAddress, Option<PathBuf>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Division {
    /// Each device.
    Device,
    /// The VM: one server has all devices.
    Vm,
}

fn vm_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name =
        text.bytes().all(is_allowed) && (1..=MAX_NAME).contains(&text.len()) && !text.starts_with('.');
    if is_name { Ok(text.into()) } else { Err("expected letters, digits, dots, dashes, underscores".into()) }
}

fn device(text: &str) -> Result<(PciAddress, Option<PathBuf>), String> {
    let (address, socket) =
        text.split_once('=').map_or((text, None), |(address, path)| (address, Some(path)));
    let address = address.parse().map_err(|error| format!("{error}"))?;
    Ok((address, socket.map(PathBuf::from)))
}

impl Run {
    pub(crate) fn run(self, host: &Host, json: bool) -> Result<ExitCode, ToolError> {
        // Before anything else is open, and before a server could inherit it.
        let readiness = Readiness::new(self.ready_fd)?;
        // A logger that is there already does as well.
        let _ = logger::start(LevelFilter::Info);
        let signals = Signals::register()?;
        let directory = RuntimeDirectory::make(self.directory(), &self.vm)?;
        let sysfs = server::open_sysfs(host)?;
        let assignments = self.assign(directory.path(), &sysfs);
        let program = server::program(self.server.as_deref());
        let command = || {
            let mut command = Command::new(&program);
            command.args(host.arguments()).args(&self.server_argument);
            command
        };
        let mut vm = Vm::start(host, &sysfs, assignments, self.shared_memory, command, signals)?;
        if vm.hand_over()? {
            let set_up = SetUpView::new(&self.vm, vm.members(), self.shared_memory);
            set_up.print(json)?;
            readiness.tell(&set_up.status());
            vm.run(&readiness)?;
        }
        readiness.tell_end();
        let summary = SummaryView::new(&self.vm, &vm);
        summary.print(json)?;
        Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn directory(&self) -> Option<PathBuf> {
        // systemd separates several by colons.
        let systemds = || {
            let directories = std::env::var("RUNTIME_DIRECTORY").ok()?;
            directories.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from)
        };
        self.directory.clone().or_else(systemds)
    }

    /// Which device goes to which server, and where the sockets are. Cookies count from 1 on, over all servers.
    fn assign(&self, directory: &Path, sysfs: &Sysfs) -> Vec<Assignment> {
        let mut assignments: Vec<(Option<u32>, Assignment)> = Vec::new();
        for (cookie, (address, socket)) in (1..).map(Cookie).zip(&self.devices) {
            let socket = socket.clone().unwrap_or_else(|| directory.join(format!("{address}.sock")));
            let face = if self.vhost_user.contains(address) { Face::VhostUser } else { Face::VfioUser };
            let device = Placement { cookie, address: *address, face, socket };
            let group = sysfs.function(*address).ok().and_then(|function| function.iommu_group);
            let same = assignments.iter_mut().find(|(other, _)| match self.servers {
                Division::Vm => true,
                // The kernel gives functions of a group one address space, and so one process has it.
                Division::Device => !self.shared_memory && group.is_some() && *other == group,
            });
            match same {
                Some((_, assignment)) => assignment.devices.push(device),
                None => assignments.push((group, self.assignment(directory, device))),
            }
        }
        assignments.into_iter().map(|(_, assignment)| assignment).collect()
    }

    /// A server that begins with this device.
    fn assignment(&self, directory: &Path, device: Placement) -> Assignment {
        let name = match self.servers {
            Division::Vm => self.vm.clone(),
            Division::Device => device.address.to_string(),
        };
        Assignment { control: directory.join(format!("{name}.control")), name, devices: vec![device] }
    }
}
