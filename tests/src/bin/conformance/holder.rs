// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Another process that holds a device, to be killed: this program once more, with an argument of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use vfio::{Ioas, Iommufd, PciAddress, UnboundDevice};
use vhost_device_vfio_tests::host::Host;

const BOUND: &str = "--hold";
const OPEN: &str = "--hold-open";
const COPY: &str = "--hold-copy";

/// What this process is asked to hold.
#[derive(Debug)]
pub(crate) enum Holding {
    /// A device, bound and attached.
    Bound(Host, PciAddress),
    /// A device's file, not bound.
    Open(Host, PciAddress),
    /// Whatever its standard input is.
    Copy,
}

/// What the command line asks for, if this process is a holder.
pub(crate) fn requested() -> Option<Holding> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let function = |text: &String| text.parse().expect("an address");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [BOUND, root, _] => Some(Holding::Bound(Host::at(root), function(&arguments[2]))),
        [OPEN, root, _] => Some(Holding::Open(Host::at(root), function(&arguments[2]))),
        [COPY] => Some(Holding::Copy),
        _ => None,
    }
}

impl Holding {
    /// Holds it until the process is killed.
    pub(crate) fn hold(self) -> ! {
        let _held = match &self {
            Self::Bound(host, address) => {
                let sysfs = host.sysfs();
                let context = host.open_iommufd().expect("the iommufd").into();
                let context = Arc::new(Iommufd::from_fd(context, &sysfs).expect("the context"));
                let file = host.open_cdev(*address).expect("the cdev").into();
                let device = UnboundDevice::from_fd(file, &sysfs).expect("a cdev");
                let device = device.bind(&context, &sysfs).expect("the device can be bound");
                let ioas = Ioas::allocate(context).expect("an IOAS");
                device.attach_ioas(&ioas).expect("the device can be attached");
                (Some((device, ioas)), None)
            }
            Self::Open(host, address) => (None, Some(host.open_cdev(*address).expect("the cdev"))),
            Self::Copy => (None, None),
        };
        std::io::stdout().write_all(b"!").expect("the parent listens");
        std::io::stdout().flush().expect("the parent listens");
        loop {
            std::thread::park();
        }
    }
}

/// Such a process. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Holder {
    process: Child,
}

impl Holder {
    /// Another process that has a function bound and attached.
    pub(crate) fn of_bound(host: &Host, function: PciAddress) -> Self {
        Self::start(
            Self::command().arg(BOUND).arg(host.root()).arg(function.to_string()).stdin(Stdio::null()),
        )
    }

    /// Another process that has a function's file open.
    pub(crate) fn of_open(host: &Host, function: PciAddress) -> Self {
        Self::start(Self::command().arg(OPEN).arg(host.root()).arg(function.to_string()).stdin(Stdio::null()))
    }

    /// Another process with a copy of a descriptor.
    pub(crate) fn of_copy(file: OwnedFd) -> Self {
        Self::start(Self::command().arg(COPY).stdin(File::from(file)))
    }

    fn command() -> Command {
        Command::new(std::env::current_exe().expect("the path of this program"))
    }

    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().expect("the process starts");
        let mut ready = [0];
        let stdout = process.stdout.as_mut().expect("its output");
        stdout.read_exact(&mut ready).expect("the process holds what it is to hold");
        Self { process }
    }

    /// Kills the process and waits until nothing of it is left.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
