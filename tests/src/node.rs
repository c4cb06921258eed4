// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device nodes that a VMM or its launcher opens and hands over.

use std::fs::{File, OpenOptions};
use std::path::Path;

use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};

fn open(path: impl AsRef<Path>) -> File {
    let path = path.as_ref();
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `/dev/iommu`.
pub fn iommufd() -> File {
    open("/dev/iommu")
}

/// The VFIO cdev of a function.
pub fn cdev(address: &str) -> File {
    let address: PciAddress = address.parse().expect("a PCI address");
    let function = Sysfs::open().and_then(|sysfs| sysfs.function(address)).expect("the function");
    match function.driver {
        Driver::Vfio { device, .. } => open(Path::new("/dev/vfio/devices").join(device)),
        other => panic!("{address} is bound to {other:?}, not to vfio-pci"),
    }
}

/// The legacy group of a function.
pub fn group(address: &str) -> File {
    let address: PciAddress = address.parse().expect("a PCI address");
    let function = Sysfs::open().and_then(|sysfs| sysfs.function(address)).expect("the function");
    let group = function.iommu_group.expect("an IOMMU group");
    open(Path::new("/dev/vfio").join(group.to_string()))
}
