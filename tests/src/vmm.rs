// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small VMM: it opens devices, starts a server, and hands everything over.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use protocol::extension::{Cookie, DeviceInfo, Face, IoasChoice, KernelFeatures};
use protocol::{ClientError, ControlClient};
use vfio::PciAddress;

use crate::guest_memory::GuestMemory;
use crate::host::Host;
use crate::pci_function::PciFunction;
use crate::server_process::{PATIENCE, ServerProcess};

/// A VMM with its server.
#[derive(Debug)]
pub struct Vmm {
    /// The server.
    pub server: ServerProcess,
    /// The control connection.
    pub control: ControlClient,
    /// The VM's iommufd, as a VMM keeps it.
    pub iommufd: File,
    /// What the server found that the kernel can do.
    pub kernel_features: KernelFeatures,
    host: Host,
}

impl Vmm {
    /// A VMM that has handed over its iommufd, and no device yet.
    pub fn start() -> Self {
        Self::with_server(ServerProcess::start())
    }

    /// The same with a server that was started in another way.
    pub fn with_server(server: (ServerProcess, UnixStream)) -> Self {
        Self::on_with_server(Host::current(), server)
    }

    /// A VMM on another machine than the current one.
    pub fn on(host: &Host) -> Self {
        Self::on_with_server(host, ServerProcess::start_on(host))
    }

    fn on_with_server(host: &Host, server: (ServerProcess, UnixStream)) -> Self {
        let iommufd = host.open_iommufd().expect("an iommufd");
        Self::with_address_space_on(host, server, iommufd, IoasChoice::Allocate)
    }

    /// The same with an iommufd that is open already, and perhaps has an address space.
    pub fn with_address_space(server: (ServerProcess, UnixStream), iommufd: File, ioas: IoasChoice) -> Self {
        Self::with_address_space_on(Host::current(), server, iommufd, ioas)
    }

    /// The same on another machine than the current one.
    pub fn with_address_space_on(
        host: &Host,
        (server, socket): (ServerProcess, UnixStream),
        iommufd: File,
        ioas: IoasChoice,
    ) -> Self {
        let mut control = ControlClient::new(socket, PATIENCE);
        control.negotiate().expect("the extension is negotiated");
        let reply = control.set_iommufd(&iommufd, ioas).expect("the iommufd is taken");
        Self { server, control, iommufd, kernel_features: reply.kernel_features, host: host.clone() }
    }

    /// The same with a server that listens at `path`, where more clients can connect.
    pub fn listening(path: &Path) -> Self {
        Self::listening_on(Host::current(), path)
    }

    /// The same on another machine than the current one.
    pub fn listening_on(host: &Host, path: &Path) -> Self {
        Self::listening_with(host, path, &[])
    }

    /// The same with more arguments for the server.
    pub fn listening_with(host: &Host, path: &Path, arguments: &[&str]) -> Self {
        Self::on_with_server(host, ServerProcess::listening(host, path, arguments))
    }

    /// Another control connection to the server of [`Self::listening`].
    pub fn connect_again(path: &Path) -> ControlClient {
        let socket = UnixStream::connect(path).expect("the server listens");
        let mut control = ControlClient::new(socket, PATIENCE);
        control.negotiate().expect("the extension is negotiated");
        control
    }

    /// Opens a function and hands it over; no copy stays here.
    pub fn add(&mut self, cookie: u64, address: &str) -> Result<DeviceInfo, ClientError> {
        let address: PciAddress = address.parse().expect("a PCI address");
        let device = self.host.open_cdev(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        self.control.add_device(Cookie(cookie), device)
    }

    /// Guest memory, mapped for every device.
    pub fn map(&mut self, memory: &GuestMemory) -> Result<(), ClientError> {
        self.control.set_memory_table(&[memory.region()], &[memory.as_fd()])
    }

    /// Nothing is mapped any more.
    pub fn unmap_all(&mut self) -> Result<(), ClientError> {
        self.control.set_memory_table(&[], &[])
    }

    /// Connects to a device's vfio-user face.
    pub fn open(&mut self, cookie: u64) -> PciFunction {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        self.control.serve(Cookie(cookie), Face::VfioUser, far).expect("the face is served");
        PciFunction::negotiated(near)
    }
}

/// The id and errno of a refused request.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (String, i32) {
    match result {
        Err(ClientError::Refused { errno, failure, .. }) => (failure.id().to_owned(), errno.raw_os_error()),
        other => panic!("{other:?} instead of a refusal"),
    }
}
