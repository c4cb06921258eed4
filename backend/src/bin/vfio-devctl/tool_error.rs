// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tool tells a person when it fails: the server's words, or its own in the same form.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use protocol::ClientError;
use protocol::extension::Failure;
use serde::Serialize;
use vfio::PciAddress;
use vhost_device_vfio::reset::remedy;

const EXIT_REFUSED: u8 = 1;
/// Nobody could be asked.
const EXIT_UNREACHABLE: u8 = 3;

/// A failed command.
#[derive(Debug)]
pub(crate) struct ToolError {
    failure: Failure,
    /// Of Linux, 0 where no call failed.
    errno: i32,
    exit_code: u8,
}

#[derive(Serialize)]
struct ErrorView<'a> {
    id: &'a str,
    errno: i32,
    what: &'a str,
    why: &'a str,
    fix: &'a str,
}

impl ToolError {
    fn refused(failure: Failure, errno: i32) -> Self {
        Self { failure, errno, exit_code: EXIT_REFUSED }
    }

    fn from_io(id: &str, what: String, error: &io::Error, fix: &str) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        Self::refused(Failure::new(id, what, format!("The system says: {error}."), fix), errno)
    }

    /// Nobody listens at the path.
    pub(crate) fn unreachable(path: &Path, error: &io::Error) -> Self {
        let what = format!("There is no server at {}.", path.display());
        let fix = "Start one with `vfio-devctl launch`, or name the socket of the one that runs.";
        Self { exit_code: EXIT_UNREACHABLE, ..Self::from_io("server-unreachable", what, error, fix) }
    }

    /// The server has no device of that name.
    pub(crate) fn no_such_device(name: &str) -> Self {
        let what = format!("The server has no device `{name}`.");
        let why = "No device with that PCI address or cookie was handed over.";
        Self::refused(Failure::new("no-such-device", what, why, "Look at `vfio-devctl info`."), 0)
    }

    /// The function is not there, or has no cdev.
    pub(crate) fn no_cdev(address: PciAddress, why: String) -> Self {
        let what = format!("{address} has no VFIO device to open.");
        let fix = format!("Bind it: {}.", remedy::bind(address));
        Self::refused(Failure::new("not-on-vfio", what, why, fix), 0)
    }

    /// A file of /dev cannot be opened.
    pub(crate) fn open(path: &Path, error: &io::Error) -> Self {
        let what = format!("{} cannot be opened.", path.display());
        Self::from_io(
            "cannot-open",
            what,
            error,
            "Check that the kernel has iommufd and VFIO cdevs (before Linux 7.3 only with an IOMMU), and the file's owner.",
        )
    }

    /// The machine's functions cannot be read.
    pub(crate) fn sysfs(error: &io::Error) -> Self {
        let what = "The machine's PCI functions cannot be read.".into();
        let fix = "Mount sysfs at /sys, and check that the machine has PCI.";
        Self::from_io("cannot-read-sysfs", what, error, fix)
    }

    /// The machine has no such function.
    pub(crate) fn no_such_function(address: PciAddress) -> Self {
        let what = format!("The machine has no function {address}.");
        let why = "Sysfs does not show one there.";
        Self::refused(Failure::new("no-such-function", what, why, "Look at `vfio-devctl topology`."), 0)
    }

    /// A picture cannot be written.
    pub(crate) fn write(path: &Path, error: &io::Error) -> Self {
        let what = format!("{} cannot be written.", path.display());
        Self::from_io("cannot-write", what, error, "Name a file in a folder that you can write.")
    }

    /// The same where exit status 1 is an answer.
    pub(crate) fn without_a_verdict(self) -> Self {
        Self { exit_code: EXIT_UNREACHABLE, ..self }
    }

    /// A socket of ours cannot be made.
    pub(crate) fn socket(path: &Path, error: &io::Error) -> Self {
        let what = format!("A socket at {} cannot be made.", path.display());
        Self::from_io(
            "cannot-listen",
            what,
            error,
            "Name a path that does not exist, in a folder that you can write.",
        )
    }

    /// The server does not start, or ends badly.
    pub(crate) fn server(path: &Path, error: &io::Error) -> Self {
        let what = format!("The server {} does not run.", path.display());
        Self::from_io("server-failed", what, error, "Read its log above, or name another one with --server.")
    }

    /// One of several servers fails while it is set up.
    pub(crate) fn of_server(name: &str, error: ClientError) -> Self {
        let Self { failure, errno, exit_code } = error.into();
        let what = format!("The server {name}: {}", failure.what());
        let failure = Failure::new(failure.id(), what, failure.why(), failure.fix());
        Self { failure, errno, exit_code }
    }

    /// The servers of a VM cannot share an address space.
    pub(crate) fn address_space(error: &(dyn std::error::Error + 'static)) -> Self {
        let what = "The servers get no address space to share.";
        let errno = error.downcast_ref::<vfio::CallError>().map_or(0, |error| error.errno.raw_os_error());
        let fix = "Check that the kernel has iommufd; see its log.";
        Self::refused(Failure::new("no-shared-address-space", what, format!("{error}."), fix), errno)
    }

    /// The folder for a VM's sockets cannot be made.
    pub(crate) fn directory(path: &Path, error: &io::Error) -> Self {
        let what = format!("The folder {} cannot be made.", path.display());
        Self::from_io("cannot-make-directory", what, error, "Name one with --directory.")
    }

    /// The descriptor of --ready-fd is none.
    pub(crate) fn ready_fd(error: &dyn std::error::Error) -> Self {
        let what = "Nobody can be told when everything is ready.";
        let fix = "Leave a descriptor open for --ready-fd, as `--ready-fd 3 3>FIFO` does.";
        Self::refused(Failure::new("bad-ready-fd", what, format!("{error}."), fix), 0)
    }

    /// The system does not let us watch over servers.
    pub(crate) fn supervision(error: &io::Error) -> Self {
        let what = "The servers cannot be watched over.".into();
        Self::from_io("cannot-supervise", what, error, "Check the limits on open files and processes.")
    }

    /// Output cannot be written.
    pub(crate) fn output(error: &io::Error) -> Self {
        Self::from_io("cannot-print", "The answer cannot be printed.".into(), error, "Check standard output.")
    }

    /// A topology or a fault script is not as it should be.
    #[cfg(feature = "model")]
    pub(crate) fn model_file(path: &Path, why: &str) -> Self {
        let what = format!("{} does not describe a machine or its faults.", path.display());
        let fix = "Change the line it names; vfio/topologies has examples.";
        Self::refused(Failure::new("bad-model-file", what, why, fix), 0)
    }

    /// A modelled machine does not run.
    #[cfg(feature = "model")]
    pub(crate) fn model(folder: &Path, error: &io::Error) -> Self {
        let what = format!("The modelled machine in {} does not run.", folder.display());
        Self::from_io(
            "model-failed",
            what,
            error,
            "Name a folder that does not exist, with a path of at most 60 bytes.",
        )
    }

    /// The demonstration did not come to its end.
    #[cfg(feature = "model")]
    pub(crate) fn demo(error: &dyn std::error::Error) -> Self {
        let fix = "Read the server's log above; this is a defect, or the machine is out of something.";
        Self::refused(Failure::new("demo-failed", "The demonstration failed.", format!("{error}."), fix), 0)
    }

    pub(crate) fn print(&self, json: bool) {
        let Self { failure, errno, .. } = self;
        let (id, what, why, fix) = (failure.id(), failure.what(), failure.why(), failure.fix());
        let view = ErrorView { id, errno: *errno, what, why, fix };
        match serde_json::to_string(&view) {
            Ok(text) if json => eprintln!("{text}"),
            _ => eprintln!("vfio-devctl: {what}\n  why: {why}\n  fix: {fix}\n  id:  {id}"),
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        self.exit_code.into()
    }
}

impl From<ClientError> for ToolError {
    fn from(error: ClientError) -> Self {
        if let ClientError::Refused { errno, failure, .. } = error {
            return Self::refused(failure, errno.raw_os_error());
        }
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        let why: Vec<_> = causes.map(|cause| format!("{cause}.")).collect();
        let failure =
            Failure::new("session-broken", format!("{error}."), why.join(" "), "Look at the server's log.");
        Self { failure, errno: 0, exit_code: EXIT_UNREACHABLE }
    }
}
