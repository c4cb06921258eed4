// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device nodes that a VMM or its launcher opens and hands over.

use std::fs::File;

use vfio::PciAddress;

use crate::host::Host;

/// `/dev/iommu`.
pub fn iommufd() -> File {
    Host::current().open_iommufd().expect("an iommufd")
}

/// The VFIO cdev of a function.
pub fn cdev(address: &str) -> File {
    let address: PciAddress = address.parse().expect("a PCI address");
    Host::current().open_cdev(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// The legacy group of a function.
pub fn group(address: &str) -> File {
    let address: PciAddress = address.parse().expect("a PCI address");
    let function = Host::current().sysfs().function(address).expect("the function");
    let group = function.iommu_group.expect("an IOMMU group");
    Host::current().open_group(group).expect("the group's node")
}
