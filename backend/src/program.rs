// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device server as a program. It opens nothing under /dev: what it works on is handed to it, by inheritance or over
//! its control socket.
//!
//! The order of start-up is the sandbox's: parse → take descriptors → sandbox → open sysfs, or read it for the last time →
//! take in what was inherited → filters → first byte.

use std::error::Error;
use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::control_memory::ControlMemory;
use crate::face::socket::FaceSocket;
use crate::host::{Host, HostArguments};
use crate::logger;
use crate::machine::Machine;
use crate::own_socket::OwnSocket;
use crate::owner::Owner;
use crate::policy::{self, Policies};
use crate::reset::engine::Sanitizing;
use crate::server::Server;
use clap::{ArgGroup, Parser, ValueEnum};
use log::LevelFilter;
use protocol::extension::{Cookie, Face, IoasChoice, ResetPolicy};
use sandbox::{Confinement, FilterError, Filters, Identity, InheritedFds, Scope, Violation};
use signal_hook::consts::{SIGINT, SIGTERM};
use vfio::Sysfs;

/// Most files that the server has open: for 64 devices their own, their interrupts, memory and clients.
const OPEN_FILES: u64 = 65_536;

/// Serves VFIO devices that were opened by somebody else.
#[derive(Debug, Parser)]
#[command(name = "vhost-device-vfio", version, group = ArgGroup::new("control").required(true).multiple(true))]
struct Arguments {
    /// Listen for control connections on a new socket at this path.
    #[arg(long, group = "control", value_name = "PATH")]
    socket_path: Option<PathBuf>,
    /// Serve the control face on this inherited socket, listening or connected; with a connected one, end with its peer.
    /// May be given more than once.
    #[arg(long, group = "control", value_name = "FD", conflicts_with = "socket_path")]
    fd: Vec<RawFd>,
    /// Print what this backend can do, as JSON, and exit. Other options are ignored.
    #[arg(long, group = "control")]
    print_capabilities: bool,
    /// The VM's inherited iommufd.
    #[arg(long, value_name = "FD")]
    iommufd_fd: Option<RawFd>,
    /// An inherited VFIO device and the name it gets.
    #[arg(long, value_name = "COOKIE=FD", requires = "iommufd_fd", value_parser = named_fd)]
    device_fd: Vec<(Cookie, RawFd)>,
    /// An inherited socket, listening or connected, to serve a device of --device-fd over vfio-user.
    #[arg(long, value_name = "COOKIE=FD", requires = "device_fd", value_parser = named_fd)]
    vfio_user_fd: Vec<(Cookie, RawFd)>,
    /// An inherited socket, listening or connected, to serve a virtio device of --device-fd over vhost-user.
    #[arg(long, value_name = "COOKIE=FD", requires = "device_fd", value_parser = named_fd)]
    vhost_user_fd: Vec<(Cookie, RawFd)>,
    /// How far a reset may reach where the client does not say.
    #[arg(long, value_enum, default_value = "group")]
    reset_policy: Reach,
    /// Whether a device is reset before somebody gets it and after somebody had it. What was done is in the log.
    #[arg(long, value_enum, default_value = "best-effort")]
    sanitize: Sanitize,
    /// Serve a device only if it can be reset, alone or with its group; may be refused while others hold its siblings.
    #[arg(long, value_enum)]
    require: Option<Requirement>,
    /// How a vfio-user client reaches the BARs of its device: by messages, or by mapping them. To map it gets the device's
    /// descriptor, and with that all power over the device.
    #[arg(long, value_enum, default_value = "trap")]
    bar_access: BarAccess,
    /// How the doorbells of a vhost-user frontend's rings ring: by eventfds, or by the guest itself where the frontend can map them.
    /// To map them it gets the device's descriptor, and with that all power over the device.
    #[arg(long, value_enum, default_value = "eventfd")]
    doorbell: Doorbell,
    /// What the server gives up before it reads anything from a client.
    #[arg(long, value_enum, default_value = "full")]
    sandbox: Sandbox,
    /// What becomes of a system call that the server has no use for.
    #[arg(long, value_enum, default_value = "kill")]
    seccomp: Seccomp,
    /// Read sysfs while serving, or only at the start: then no file is ever opened, and reports say less.
    #[arg(long, value_enum, default_value = "on")]
    sysfs: SysfsUse,
    /// Serve what is inherited, and nothing that a client hands over.
    #[arg(long, requires = "device_fd")]
    fixed_devices: bool,
    /// Turn away whoever connects and is another user than this one. May be given more than once.
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
    /// Let this group connect at --socket-path, and not only this user.
    #[arg(long, value_name = "GID", requires = "socket_path")]
    socket_group: Option<u32>,
    /// Become this user after start-up.
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Become this group after start-up.
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// How much to log: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
    #[command(flatten)]
    host: HostArguments,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reach {
    /// To no sibling.
    Function,
    /// To siblings that are idle, and those whose VM asked too.
    Group,
    /// To every sibling.
    Force,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sanitize {
    /// A device that could not be reset is not served.
    Required,
    /// It is served all the same.
    BestEffort,
    /// Nothing is tried.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BarAccess {
    /// Each access is a message, and no client gets a device's descriptor.
    Trap,
    /// The client gets the descriptor: it can reset the device, hot reset what belongs to its iommufd, attach it anew and change
    /// its interrupts, all without the server.
    Mmap,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Doorbell {
    /// A kick is an eventfd, with which the kernel rings, and no client gets a device's descriptor.
    Eventfd,
    /// The frontend gets the descriptor, with what `--bar-access mmap` gives away as well.
    Mmap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sandbox {
    /// Everything that it can do without.
    Full,
    /// Nothing: for debugging. A server that is taken over can do what its user can.
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Seccomp {
    /// The server is killed.
    Kill,
    /// The call fails.
    Errno,
    /// It is made, and stands in the audit log: for debugging. Nothing is prevented then.
    Log,
    /// It is made: for debugging.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SysfsUse {
    /// While serving.
    On,
    /// At the start.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Requirement {
    /// A working reset.
    Reset,
}

impl Arguments {
    /// The system-call filters of a server that reads sysfs, or does not.
    fn filters(&self, sysfs: bool) -> Result<Option<Filters>, FilterError> {
        let violation = match self.seccomp {
            Seccomp::Kill => Violation::Kill,
            Seccomp::Errno => Violation::Refuse,
            Seccomp::Log => Violation::Log,
            Seccomp::Off => return Ok(None),
        };
        if self.sandbox == Sandbox::None {
            return Ok(None);
        }
        Filters::compile(Scope { sysfs, new_devices: !self.fixed_devices, violation }).map(Some)
    }

    /// Enters the sandbox, and gives what is left of sysfs.
    fn enter_sandbox(&self) -> Result<Sysfs, Box<dyn Error>> {
        let root = Host::from(&self.host).sysfs_root();
        // Read before, where nothing of it is left afterwards.
        let snapshot = match self.sysfs {
            SysfsUse::On => None,
            SysfsUse::Off => Some(Sysfs::open_at(&root)?.snapshot()?),
        };
        if self.sandbox == Sandbox::None {
            log::warn!("event=sandbox-off reason=\"asked for by --sandbox none\"");
            return Ok(snapshot.map_or_else(|| Sysfs::open_at(&root), Ok)?);
        }
        let entered = sandbox::enter(&Confinement {
            sysfs: snapshot.is_none().then(|| root.clone()),
            identity: Identity { uid: self.uid, gid: self.gid },
            open_files: OPEN_FILES,
        })?;
        log::info!(
            "event=sandbox-entered namespaces={} landlock={:?} seccomp={:?}",
            entered.has_namespaces,
            entered.landlock,
            self.seccomp
        );
        match (snapshot, entered.sysfs) {
            (Some(snapshot), _) => Ok(snapshot),
            (None, Some(root)) => Ok(Sysfs::open_at(&root)?),
            (None, None) => {
                log::warn!(
                    "event=sysfs-off reason=\"neither a mount namespace nor Landlock confines what is read\""
                );
                Ok(Sysfs::open_at(&root)?.snapshot()?)
            }
        }
    }

    fn policies(&self) -> Policies {
        Policies {
            reach: match self.reset_policy {
                Reach::Function => ResetPolicy::Function,
                Reach::Group => ResetPolicy::Group,
                Reach::Force => ResetPolicy::Force,
            },
            sanitizing: match self.sanitize {
                Sanitize::Required => Sanitizing::Required,
                Sanitize::BestEffort => Sanitizing::BestEffort,
                Sanitize::Off => Sanitizing::Off,
            },
            requires_reset: self.require.is_some_and(|Requirement::Reset| true),
            bar_access: match self.bar_access {
                BarAccess::Trap => policy::BarAccess::Trap,
                BarAccess::Mmap => policy::BarAccess::Map,
            },
            doorbells: match self.doorbell {
                Doorbell::Eventfd => policy::DoorbellAccess::Eventfd,
                Doorbell::Mmap => policy::DoorbellAccess::Map,
            },
        }
    }

    /// Who holds the descriptor of a device needs no server.
    fn warn_of_mappings(&self) {
        let power =
            "its device's descriptor, and with it reset, hot reset, interrupts and attachment of the device";
        if let BarAccess::Mmap = self.bar_access {
            log::warn!(
                "event=bar-access-mmap reason=\"asked for by --bar-access mmap: a vfio-user client gets {power}\""
            );
        }
        if let Doorbell::Mmap = self.doorbell {
            log::warn!(
                "event=doorbell-mmap reason=\"asked for by --doorbell mmap: a vhost-user frontend gets {power}\""
            );
        }
    }
}

/// A device's name and the number of a descriptor, as `1=5`.
fn named_fd(text: &str) -> Result<(Cookie, RawFd), String> {
    let (cookie, fd) = text.split_once('=').ok_or("expected COOKIE=FD")?;
    let cookie = cookie.parse().map_err(|_| format!("`{cookie}` is not a number"))?;
    let fd = fd.parse().map_err(|_| format!("`{fd}` is not a number"))?;
    Ok((Cookie(cookie), fd))
}

/// What the parent process handed over.
struct Inheritance {
    control: Vec<OwnedFd>,
    iommufd: Option<OwnedFd>,
    devices: Vec<(Cookie, OwnedFd)>,
    faces: Vec<(Cookie, Face, OwnedFd)>,
}

impl Inheritance {
    /// Takes what the command line names, and closes everything else.
    fn take(arguments: &Arguments) -> Result<Self, sandbox::InheritedFdError> {
        let mut fds = InheritedFds::default();
        let mut take_named = |named: &[(Cookie, RawFd)]| {
            named.iter().map(|(cookie, fd)| Ok((*cookie, fds.take(*fd)?))).collect::<Result<Vec<_>, _>>()
        };
        let devices = take_named(&arguments.device_fd)?;
        let of = |face, named: Vec<(Cookie, OwnedFd)>| {
            named.into_iter().map(move |(cookie, socket)| (cookie, face, socket))
        };
        let vfio_user = of(Face::VfioUser, take_named(&arguments.vfio_user_fd)?);
        let vhost_user = of(Face::VhostUser, take_named(&arguments.vhost_user_fd)?);
        let faces = vfio_user.chain(vhost_user).collect();
        let control = arguments.fd.iter().map(|fd| fds.take(*fd)).collect::<Result<_, _>>()?;
        let iommufd = arguments.iommufd_fd.map(|fd| fds.take(fd)).transpose()?;
        fds.close_others()?;
        Ok(Self { control, iommufd, devices, faces })
    }
}

fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Inheritance { control, iommufd, devices, faces } = Inheritance::take(arguments)?;
    let mut control = control.into_iter().map(FaceSocket::from_fd).collect::<Result<Vec<_>, _>>()?;
    let listen = |path: &Path| {
        OwnSocket::bind(path, arguments.socket_group)
            .map_err(|error| format!("cannot listen on {}: {error}", path.display()))
    };
    let own = arguments.socket_path.as_deref().map(listen).transpose()?;
    let (path, listener) = own.unzip();
    control.extend(listener.map(|listener| FaceSocket::from_fd(listener.into())).transpose()?);
    let (signal, signalled) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, signalled.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, signalled)?;
    let control_memory = ControlMemory::new()?;
    let sysfs = arguments.enter_sandbox()?;
    let filters = arguments.filters(!sysfs.is_snapshot())?;
    if let (Some(path), Sandbox::Full) = (path, arguments.sandbox) {
        // Nothing can be removed in there.
        path.leave();
    }

    let mut server =
        Server::new(Machine::new(sysfs, arguments.policies(), control_memory), filters.as_ref())?;
    server.end_on(signal)?;
    arguments.warn_of_mappings();
    server.admit_only(&arguments.allow_uid);
    if let Some(iommufd) = iommufd {
        server.machine().set_iommufd(Owner::Process, iommufd, IoasChoice::Allocate)?;
    }
    for (cookie, device) in devices {
        let job = server.machine().add_device(Owner::Process, cookie, device)?;
        server.run_job(job)?;
    }
    if arguments.fixed_devices {
        server.machine().fix_devices();
    }
    for (cookie, face, socket) in faces {
        server.machine().unserved(cookie)?;
        server.machine().may_serve(cookie, face)?;
        server.serve_device(cookie, face, FaceSocket::from_fd(socket)?)?;
    }
    for socket in control {
        server.serve_control(socket)?;
    }
    if let Some(filters) = filters {
        filters.install(sandbox::Thread::Loop)?;
    }
    server.run()?;
    Ok(())
}

/// What the server can do when it is called by `name`. By QEMU's conventions a backend program is of one virtio type, and is not told
/// which when it is asked: so there is a name of the server for each type. The server's own name has no type in vhost-user.json.
fn capabilities(name: Option<&OsString>) -> &'static str {
    let name = name.and_then(|path| Path::new(path).file_name()?.to_str());
    match name {
        // The features are options that a management layer may give; the server has none of them.
        Some("vhost-device-vfio-block") => r#"{"type":"block","features":[]}"#,
        Some("vhost-device-vfio-net") => r#"{"type":"net"}"#,
        _ => r#"{"type":"vfio","features":["vfio-extension-1.1","vfio-user-0.1"]}"#,
    }
}

/// Runs the server with the arguments of this process until its work is done.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_capabilities {
        println!("{}", capabilities(std::env::args_os().next().as_ref()));
        return ExitCode::SUCCESS;
    }
    if let Err(error) = logger::start(arguments.log_level) {
        eprintln!("vhost-device-vfio: {error}");
        return ExitCode::FAILURE;
    }
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("event=fatal reason=\"{error}\"");
            ExitCode::FAILURE
        }
    }
}
