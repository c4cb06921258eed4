// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a check has before it: a machine on which nothing is open, and a transcript for what it sees.

use std::cell::RefCell;
use std::fmt::Debug;
use std::io::{Stdout, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vfio::device::BindError;
use vfio::{Device, Ioas, Iommufd, PciAddress, Sysfs, UnboundDevice};
use vhost_device_vfio_tests::host::Host;

use crate::machine::{Function, Machine};

/// The kernels that differ in what the checks see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The long-term lane.
    Linux6_12,
    /// The current lane.
    Linux7_3,
}

impl Kernel {
    /// The kernel of a lane of the test VM.
    pub(crate) fn of_lane(lane: &str) -> Self {
        match lane {
            "6.12" => Self::Linux6_12,
            "7.3" => Self::Linux7_3,
            other => panic!("`{other}` is no lane: --kernel 6.12 or --kernel 7.3"),
        }
    }
}

/// A check's surroundings.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// The machine whose kernel is asked.
    pub(crate) host: &'a Host,
    /// What is known of it.
    pub(crate) machine: &'static Machine,
    kernel: Kernel,
    check: &'static str,
    transcript: RefCell<Stdout>,
    surprises: RefCell<Vec<String>>,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(
        host: &'a Host,
        machine: &'static Machine,
        kernel: Kernel,
        check: &'static str,
        transcript: Stdout,
    ) -> Self {
        let (transcript, surprises) = (RefCell::new(transcript), RefCell::default());
        Self { host, machine, kernel, check, transcript, surprises }
    }

    /// Writes what was seen to the transcript. What counts is what stands there, so that is what is compared.
    pub(crate) fn expect(&self, what: &str, seen: impl Debug, expected: impl Debug) {
        let (seen, expected) = (format!("{seen:?}"), format!("{expected:?}"));
        writeln!(self.transcript.borrow_mut(), "{} | {what} | {seen}", self.check).expect("the transcript");
        if seen != expected {
            self.surprises.borrow_mut().push(format!("{what}: {seen}, expected was {expected}"));
        }
    }

    /// All that was not as expected.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.surprises.take()
    }

    /// What is expected where the kernels differ.
    pub(crate) fn by_kernel<T>(&self, linux_6_12: T, linux_7_3: T) -> T {
        match self.kernel {
            Kernel::Linux6_12 => linux_6_12,
            Kernel::Linux7_3 => linux_7_3,
        }
    }

    /// The functions that are there for the checks.
    pub(crate) fn functions(&self) -> &'static [Function] {
        self.machine.functions
    }

    /// The first of them.
    pub(crate) fn first(&self) -> &'static Function {
        &self.machine.functions[0]
    }

    /// The second of them.
    pub(crate) fn second(&self) -> &'static Function {
        &self.machine.functions[1]
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        self.host.sysfs()
    }

    /// Opens a function's cdev.
    pub(crate) fn open_file(&self, function: &Function) -> OwnedFd {
        self.host.open_cdev(address(function)).expect("the cdev can be opened").into()
    }

    /// Opens a function's cdev, and takes it for what it is.
    pub(crate) fn open(&self, function: &Function) -> UnboundDevice {
        self.recognize(self.open_file(function))
    }

    /// Takes a cdev for what it is.
    pub(crate) fn recognize(&self, file: OwnedFd) -> UnboundDevice {
        UnboundDevice::from_fd(file, &self.sysfs()).expect("it is a cdev")
    }

    /// A fresh context.
    pub(crate) fn context(&self) -> Arc<Iommufd> {
        let file = self.host.open_iommufd().expect("the iommufd can be opened");
        Arc::new(Iommufd::from_fd(file.into(), &self.sysfs()).expect("it is an iommufd"))
    }

    /// Opens a function and binds it, if the kernel lets us.
    pub(crate) fn try_bind(&self, function: &Function, context: &Iommufd) -> Result<Device, BindError> {
        self.open(function).bind(context, &self.sysfs())
    }

    /// Opens a function and binds it.
    pub(crate) fn bind(&self, function: &Function, context: &Iommufd) -> Device {
        self.try_bind(function, context).unwrap_or_else(|error| panic!("{error}: {}", error.call.errno))
    }

    /// Binds every function to one context.
    pub(crate) fn bind_all(&self, context: &Iommufd) -> Vec<Device> {
        self.functions().iter().map(|function| self.bind(function, context)).collect()
    }

    /// A device of a context of its own, attached to an empty IOAS.
    pub(crate) fn attached(&self, function: &Function) -> (Arc<Iommufd>, Ioas, Device) {
        let context = self.context();
        let ioas = allocate(&context);
        let device = self.bind(function, &context);
        device.attach_ioas(&ioas).expect("the device can be attached");
        (context, ioas, device)
    }
}

/// A fresh IOAS.
pub(crate) fn allocate(context: &Arc<Iommufd>) -> Ioas {
    Ioas::allocate(Arc::clone(context)).expect("an IOAS")
}

/// Where a function is.
pub(crate) fn address(function: &Function) -> PciAddress {
    function.address.parse().expect("an address")
}
