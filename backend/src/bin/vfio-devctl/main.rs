// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client of the device server: hands devices over, asks about them, resets them.

mod blocker;
#[cfg(feature = "model")]
mod demo;
mod drawing;
mod holder;
mod launch;
mod memory_lock;
#[cfg(feature = "model")]
mod model;
mod outlook;
mod plan;
mod plan_view;
mod reset_group_view;
mod run;
mod server;
mod table;
mod tool_error;
mod topology;
mod view;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use protocol::extension::{
    Cookie, DEFAULT_RESET_DEADLINE, DeviceInfo, LONGEST_ATTEMPT, ResetGroup, ResetMethod,
};
use protocol::{ClientError, ControlClient};
use vhost_device_vfio::host::{Host, HostArguments};
use vhost_device_vfio::reset::report;

use self::holder::Holder;
use self::launch::Launch;
#[cfg(feature = "model")]
use self::model::Model;
use self::plan::PlanArguments;
use self::reset_group_view::ResetGroupView;
use self::run::Run;
use self::tool_error::ToolError;
use self::topology::TopologyArguments;
use self::view::{DeviceView, ResetView, View};

/// How long a server may take to answer: a request may have to wait for another client's reset.
const PATIENCE: Duration = DEFAULT_RESET_DEADLINE.saturating_add(LONGEST_ATTEMPT);

/// Talks to vhost-device-vfio.
///
/// Exit status: 0 done; 1 refused, with the reason on standard error; 2 wrong usage; 3 the server cannot be reached. That of
/// `plan` is its verdict, see its help.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    host: HostArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Describe the devices of a server, or one of them.
    Info {
        #[command(flatten)]
        server: ServerSocket,
        /// A device, by its PCI address or its cookie.
        device: Option<String>,
    },
    /// Show who is reset along with a device, and whether that can be done now.
    ResetGroup {
        #[command(flatten)]
        server: ServerSocket,
        /// The device, by its PCI address or its cookie.
        device: String,
        #[command(flatten)]
        form: GroupForm,
    },
    /// Reset a device.
    Reset {
        #[command(flatten)]
        server: ServerSocket,
        /// The device, by its PCI address or its cookie.
        device: String,
        /// How far the reset may reach.
        #[arg(long, default_value = "auto")]
        method: Method,
        /// For how many seconds a busy kernel is asked again.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        deadline: u32,
    },
    /// Open devices, start a server and hand them over; ends with the server or on a signal.
    Launch(Launch),
    Run(Run),
    Plan(PlanArguments),
    Topology(TopologyArguments),
    /// Show what the server is for, with devices of a modelled machine.
    #[cfg(feature = "model")]
    Demo,
    /// Run a modelled machine, whose devices --model then finds; ends on a signal.
    #[cfg(feature = "model")]
    Model(Model),
}

#[derive(Debug, clap::Args)]
struct ServerSocket {
    /// The server's control socket.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

/// How a reset group is shown. Bridges and slots are those of this machine.
#[derive(Debug, clap::Args)]
struct GroupForm {
    /// Print a table: what is done without this, too.
    #[arg(long, conflicts_with = "tree")]
    table: bool,
    /// Draw the bridges, slots and groups instead.
    #[arg(long)]
    tree: bool,
    /// Draw the same into an SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    /// The function alone if it can be, else its slot or bus.
    Auto,
    /// The function alone.
    Function,
    /// The whole slot or bus.
    Hot,
}

impl Method {
    const fn wire(self) -> Option<ResetMethod> {
        match self {
            Self::Auto => None,
            Self::Function => Some(ResetMethod::Function),
            Self::Hot => Some(ResetMethod::Hot),
        }
    }
}

/// A negotiated session with the server at `path`.
fn connect(path: &Path) -> Result<ControlClient, ToolError> {
    let stream = UnixStream::connect(path).map_err(|error| ToolError::unreachable(path, &error))?;
    let mut client = ControlClient::new(stream, PATIENCE);
    client.negotiate()?;
    Ok(client)
}

fn all_devices(client: &mut ControlClient) -> Result<Vec<DeviceInfo>, ClientError> {
    let cookies = client.list_devices()?;
    cookies.into_iter().map(|cookie| client.device_info(cookie)).collect()
}

/// The device that a person means.
fn find(client: &mut ControlClient, name: &str) -> Result<DeviceInfo, ToolError> {
    let devices = all_devices(client)?;
    let cookie = name.parse().map(Cookie);
    let is_meant = |info: &DeviceInfo| cookie == Ok(info.cookie) || info.address.to_string() == name;
    devices.into_iter().find(is_meant).ok_or_else(|| ToolError::no_such_device(name))
}

fn show_reset_group(
    server: &ServerSocket,
    device: &str,
    form: &GroupForm,
    host: &Host,
) -> Result<ResetGroupView, ToolError> {
    let mut client = connect(&server.socket)?;
    let device = find(&mut client, device)?;
    let group = described_group(client.reset_group(device.cookie)?, &device, host);
    let holders = Holder::find(Path::new(holder::PROC), host, &group.rows);
    let view = ResetGroupView::new(&device, &group, &holders, &server.socket);
    if !form.tree && form.svg.is_none() {
        return Ok(view);
    }
    let drawing = view.drawing(&plan::read_hierarchy(host)?);
    if let Some(path) = &form.svg {
        drawing.write_svg(path)?;
    }
    Ok(if form.tree { view.with_tree(&drawing) } else { view })
}

/// A server that does not read sysfs leaves to the tool what sysfs says of the group's functions.
fn described_group(group: ResetGroup, device: &DeviceInfo, host: &Host) -> ResetGroup {
    let Ok(sysfs) = host.sysfs() else { return group };
    let target = report::local_address(device.address);
    let rows = group.rows.into_iter().map(|row| report::described_here(target, row, &sysfs)).collect();
    ResetGroup { rows, ..group }
}

fn run(command: Command, host: &Host, json: bool) -> Result<ExitCode, ToolError> {
    let done = match command {
        Command::Info { server, device } => {
            let mut client = connect(&server.socket)?;
            let devices = match device {
                Some(name) => vec![find(&mut client, &name)?],
                None => all_devices(&mut client)?,
            };
            DeviceView::list(&devices).print(json)
        }
        Command::ResetGroup { server, device, form } => {
            show_reset_group(&server, &device, &form, host)?.print(json)
        }
        Command::Reset { server, device, method, deadline } => {
            let mut client = connect(&server.socket)?;
            let device = find(&mut client, &device)?;
            let deadline = Duration::from_secs(deadline.into());
            let report = client.reset(device.cookie, method.wire(), Some(deadline))?;
            ResetView::new(&device, &report).print(json)
        }
        Command::Launch(launch) => launch.run(host, json),
        Command::Run(run) => return run.run(host, json),
        Command::Plan(plan) => return plan.run(host, json),
        Command::Topology(topology) => topology.run(host, json),
        #[cfg(feature = "model")]
        Command::Demo => demo::run(),
        #[cfg(feature = "model")]
        Command::Model(model) => model.run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    #[cfg(feature = "model")]
    if demo::is_server() {
        return vhost_device_vfio::program::main();
    }
    let arguments = Arguments::parse();
    let host = Host::from(&arguments.host);
    match run(arguments.command, &host, arguments.json) {
        Ok(status) => status,
        Err(error) => {
            error.print(arguments.json);
            error.exit_code()
        }
    }
}
