// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The functions of the machine under test, and who drives them.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};
use vhost_device_vfio_tests::host::Host;

const VFIO: &str = "vfio-pci";
const VIRTIO_VENDOR: u16 = 0x1af4;

/// Who drives a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DrivenBy {
    Nobody,
    Vfio,
    Kernel(String),
}

impl fmt::Display for DrivenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "no-driver",
            Self::Vfio => "vfio-pci",
            Self::Kernel(name) => name,
        })
    }
}

/// A function that a sequence uses.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) address: PciAddress,
    pub(crate) iommu_group: u32,
    pub(crate) driver: DrivenBy,
    /// Drivers that it can have. Every kernel of the test VM has the one for virtio.
    pub(crate) drivers: &'static [&'static str],
}

impl Function {
    /// Whether a driver that does DMA itself drives it.
    pub(crate) fn has_kernel_driver(&self) -> bool {
        matches!(self.driver, DrivenBy::Kernel(_))
    }
}

/// The functions that the test VM's topology binds to vfio-pci.
pub(crate) fn functions(topology: &str, sysfs: &Sysfs) -> Vec<Function> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/qemu/testvm/topologies");
    let text = std::fs::read_to_string(folder.join(topology)).expect("a topology of the test VM");
    let lines = text.lines().filter_map(|line| line.strip_prefix("bind "));
    let addresses = lines.flat_map(str::split_whitespace).map(|text| text.parse().expect("a PCI address"));
    addresses.map(|address| function(address, sysfs)).collect()
}

fn function(address: PciAddress, sysfs: &Sysfs) -> Function {
    let found = sysfs.function(address).expect("the topology's function");
    Function {
        address,
        iommu_group: found.iommu_group.expect("an IOMMU group"),
        driver: driver(address, sysfs),
        drivers: if found.vendor == VIRTIO_VENDOR { &[VFIO, "virtio-pci"] } else { &[VFIO] },
    }
}

/// Who drives a function now.
pub(crate) fn driver(address: PciAddress, sysfs: &Sysfs) -> DrivenBy {
    match sysfs.function(address).expect("the topology's function").driver {
        Driver::None => DrivenBy::Nobody,
        Driver::Vfio { .. } => DrivenBy::Vfio,
        Driver::Kernel(name) => DrivenBy::Kernel(name),
    }
}

/// Has vfio-pci drive every function again. Nobody has one open.
pub(crate) fn restore(functions: &[Function], host: &Host, sysfs: &Sysfs) {
    for function in functions {
        let address = function.address;
        if let DrivenBy::Kernel(_) = driver(address, sysfs) {
            host.unbind_driver(address).expect("the driver can be taken away");
        }
        if driver(address, sysfs) == DrivenBy::Nobody {
            host.bind_driver(address, VFIO).expect("vfio-pci can be bound");
        }
        assert_eq!(driver(address, sysfs), DrivenBy::Vfio, "{address}");
    }
}
