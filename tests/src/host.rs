// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine whose kernel is asked: device nodes, sysfs and drivers below one root folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};

/// A machine.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        Self { root: "/".into() }
    }

    /// Its sysfs.
    pub fn sysfs(&self) -> Sysfs {
        Sysfs::open_at(&self.root.join("sys")).expect("sysfs")
    }

    /// Opens a node below `/dev`.
    pub fn open(&self, node: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.root.join("dev").join(node))
    }

    /// Opens `/dev/iommu`.
    pub fn open_iommufd(&self) -> io::Result<File> {
        self.open("iommu")
    }

    /// Opens the VFIO cdev of a function.
    ///
    /// # Errors
    ///
    /// `NotFound` where the function has none; otherwise open's.
    pub fn open_cdev(&self, address: PciAddress) -> io::Result<File> {
        match self.sysfs().function(address)?.driver {
            Driver::Vfio { device, .. } => self.open(Path::new("vfio/devices").join(device)),
            Driver::Kernel(_) | Driver::None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens an IOMMU group the legacy way.
    pub fn open_group(&self, group: u32) -> io::Result<File> {
        self.open(Path::new("vfio").join(group.to_string()))
    }

    /// Has `driver` drive a function that has no driver.
    pub fn bind_driver(&self, address: PciAddress, driver: &str) -> io::Result<()> {
        let directory = self.pci().join("devices").join(address.to_string());
        std::fs::write(directory.join("driver_override"), driver)?;
        std::fs::write(self.pci().join("drivers_probe"), address.to_string())
    }

    /// Takes a function's driver away. Waits until nobody has the function open, if the driver is a VFIO one.
    pub fn unbind_driver(&self, address: PciAddress) -> io::Result<()> {
        let unbind = self.pci().join("devices").join(address.to_string()).join("driver/unbind");
        std::fs::write(unbind, address.to_string())
    }

    fn pci(&self) -> PathBuf {
        self.root.join("sys/bus/pci")
    }
}
