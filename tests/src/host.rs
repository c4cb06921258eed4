// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine whose kernel is asked: device nodes, sysfs and drivers below one root folder.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;

use vfio::model::order::{DriverOrder, FunctionOrder};
use vfio::model::topology::KernelVersion;
use vfio::model::{Machine, Order, Settings, Topology};
use vfio::{PciAddress, Sysfs};

/// The machine that the fixtures of the server use.
static CURRENT: OnceLock<Host> = OnceLock::new();

/// A machine: this one, or a modelled one in a folder.
#[derive(Clone, Debug)]
pub struct Host(vhost_device_vfio::host::Host);

/// A modelled machine that runs until this is dropped.
#[derive(Debug)]
pub struct ModelledMachine {
    machine: Machine,
    _folder: tempfile::TempDir,
}

impl ModelledMachine {
    /// Starts the machine of one of the topologies that come with the model.
    pub fn start(topology: &str) -> Self {
        Self::start_with(topology, Settings::default())
    }

    /// The same with settings.
    pub fn start_with(topology: &str, settings: Settings) -> Self {
        Self::of(load(topology), settings)
    }

    /// Starts the machine of a topology with the kernel that `TESTVM_KERNEL` names.
    pub fn of_lane(topology: &str) -> Self {
        Self::of_kernel(topology, &std::env::var("TESTVM_KERNEL").expect("a kernel"))
    }

    /// Starts the machine of a topology with a kernel of this version.
    pub fn of_kernel(topology: &str, kernel: &str) -> Self {
        let kernel = match kernel {
            "6.12" => KernelVersion::Linux6_12,
            "7.3" => KernelVersion::Linux7_3,
            other => panic!("the kernel {other} is not modelled"),
        };
        Self::of(Topology { kernel, ..load(topology) }, Settings::default())
    }

    /// The same where MSI-X gets no more vectors while it is on.
    pub fn with_fixed_vectors(topology: &str) -> Self {
        Self::of(Topology { dynamic_msix: false, ..load(topology) }, Settings::default())
    }

    /// Starts a machine of the test's own.
    pub fn of(topology: Topology, settings: Settings) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Servers without privileges look into it, too.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("the folder's mode");
        let machine = Machine::start(topology, settings, folder.path()).expect("the machine starts");
        Self { machine, _folder: folder }
    }

    /// The machine as others see it.
    pub fn host(&self) -> Host {
        Host::at(self.machine.folder())
    }

    /// Gives it an order.
    pub fn order(&self, order: &Order) -> String {
        self.machine.order(order).unwrap_or_else(|errno| panic!("{order:?}: {errno}"))
    }
}

fn load(topology: &str) -> Topology {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../vfio/topologies"));
    // A name may have a dot in it.
    let path = path.join(format!("{topology}.toml"));
    Topology::load(&path).unwrap_or_else(|error| panic!("{error}"))
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        Self(vhost_device_vfio::host::Host::this())
    }

    /// The modelled machine in a folder, or this one for `/`.
    pub fn at(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        if root == Path::new("/") {
            Self::this()
        } else {
            Self(vhost_device_vfio::host::Host::modelled(root.into()))
        }
    }

    /// The machine that [`crate::vmm::Vmm`] and [`crate::server_process::ServerProcess`] use: this one, unless
    /// [`Self::make_current`] said otherwise.
    pub fn current() -> &'static Self {
        CURRENT.get_or_init(Self::this)
    }

    /// Makes this the machine of the whole process, before anybody asks for it.
    pub fn make_current(self) {
        CURRENT.set(self).expect("no machine was used yet");
    }

    /// Its root folder, by which another process finds the same machine.
    pub fn root(&self) -> &Path {
        self.0.root()
    }

    /// What a server must be started with to serve devices of this machine.
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        self.0.arguments()
    }

    /// Its sysfs.
    pub fn sysfs(&self) -> Sysfs {
        self.0.sysfs().expect("sysfs")
    }

    /// Opens a node below `/dev`.
    pub fn open(&self, node: impl AsRef<Path>) -> io::Result<File> {
        self.0.open(&self.root().join("dev").join(node))
    }

    /// Opens `/dev/iommu`.
    pub fn open_iommufd(&self) -> io::Result<File> {
        self.0.open(&self.0.iommufd())
    }

    /// Opens the VFIO cdev of a function.
    ///
    /// # Errors
    ///
    /// `NotFound` where the function has none; otherwise open's.
    pub fn open_cdev(&self, address: PciAddress) -> io::Result<File> {
        self.0.open_cdev(address)
    }

    /// Opens a legacy container.
    pub fn open_container(&self) -> io::Result<File> {
        self.open("vfio/vfio")
    }

    /// Opens an IOMMU group the legacy way.
    pub fn open_group(&self, group: u32) -> io::Result<File> {
        self.open(Path::new("vfio").join(group.to_string()))
    }

    /// Has `driver` drive a function that has no driver.
    pub fn bind_driver(&self, address: PciAddress, driver: &str) -> io::Result<()> {
        if self.is_modelled() {
            return self
                .order(&Order::Bind(DriverOrder { function: address, driver: driver.into() }))
                .map(drop);
        }
        let directory = Path::new("/sys/bus/pci/devices").join(address.to_string());
        std::fs::write(directory.join("driver_override"), driver)?;
        std::fs::write("/sys/bus/pci/drivers_probe", address.to_string())
    }

    /// Takes a function's driver away. Waits until nobody has the function open, if the driver is a VFIO one.
    pub fn unbind_driver(&self, address: PciAddress) -> io::Result<()> {
        if self.is_modelled() {
            return self.order(&Order::Unbind(FunctionOrder { function: address })).map(drop);
        }
        let unbind = Path::new("/sys/bus/pci/devices").join(address.to_string()).join("driver/unbind");
        std::fs::write(unbind, address.to_string())
    }

    /// How many bytes of memory are pinned for devices on behalf of this process.
    pub fn pinned_memory(&self) -> u64 {
        self.pinned_memory_of(std::process::id())
    }

    /// The same of another process.
    pub fn pinned_memory_of(&self, process: u32) -> u64 {
        if self.is_modelled() {
            let usage = self.order(&Order::Inspect(vfio::model::order::Nothing {})).expect("the usage");
            let name = format!("pinned-bytes-of-{process} = ");
            let pinned = usage.lines().find_map(|line| line.strip_prefix(&name));
            return pinned.map_or(0, |bytes| bytes.parse().expect("a number"));
        }
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the status");
        let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:")?.strip_suffix("kB"));
        pinned.expect("a line of the status").trim().parse::<u64>().expect("a number") << 10
    }

    /// Whether it is no real one.
    pub fn is_modelled(&self) -> bool {
        self.root() != Path::new("/")
    }

    fn order(&self, order: &Order) -> io::Result<String> {
        Ok(vfio::model::order::give(self.root(), order)?)
    }
}
