// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What sysfs said at one moment, for a process that cannot read it any more.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::{DeviceNumber, Function, Sysfs};
use crate::pci_address::PciAddress;

/// The functions that had a VFIO cdev, and the iommufd's number.
#[derive(Debug)]
pub(super) struct Snapshot {
    functions: BTreeMap<DeviceNumber, KnownFunction>,
    iommufd: Option<DeviceNumber>,
    interrupts_allow_binding: bool,
}

#[derive(Debug)]
struct KnownFunction {
    function: Function,
    has_firmware_mapping: bool,
}

impl Snapshot {
    /// Reads what there is to know.
    ///
    /// # Errors
    ///
    /// Those of reading the attributes; a function that goes meanwhile is left out.
    pub(super) fn take(sysfs: &Sysfs) -> Result<Self, Errno> {
        let cdevs = match sysfs.directory("class/vfio-dev") {
            // No driver that makes them is loaded.
            Err(Errno::NOENT) => Vec::new(),
            cdevs => cdevs?,
        };
        let mut functions = BTreeMap::new();
        for cdev in cdevs {
            match Self::known(sysfs, &cdev) {
                Ok((number, function)) => drop(functions.insert(number, function)),
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self {
            functions,
            iommufd: sysfs.device_number("class/misc/iommu/dev").ok(),
            interrupts_allow_binding: sysfs.interrupts_allow_binding(),
        })
    }

    fn known(sysfs: &Sysfs, cdev: &str) -> Result<(DeviceNumber, KnownFunction), Errno> {
        let number = sysfs.device_number(&format!("class/vfio-dev/{cdev}/dev"))?;
        let address = sysfs.function_of_cdev(number)?;
        let has_firmware_mapping = sysfs.has_firmware_mapping(address);
        Ok((number, KnownFunction { function: sysfs.function(address)?, has_firmware_mapping }))
    }

    pub(super) fn is_iommufd(&self, number: DeviceNumber) -> bool {
        self.iommufd == Some(number)
    }

    pub(super) fn function_of_cdev(&self, number: DeviceNumber) -> Result<PciAddress, Errno> {
        self.functions.get(&number).map(|known| known.function.address).ok_or(Errno::NOENT)
    }

    pub(super) fn function(&self, address: PciAddress) -> Result<Function, Errno> {
        self.find(address).map(|known| known.function.clone()).ok_or(Errno::NOENT)
    }

    pub(super) fn has_firmware_mapping(&self, address: PciAddress) -> bool {
        self.find(address).is_some_and(|known| known.has_firmware_mapping)
    }

    pub(super) const fn interrupts_allow_binding(&self) -> bool {
        self.interrupts_allow_binding
    }

    fn find(&self, address: PciAddress) -> Option<&KnownFunction> {
        self.functions.values().find(|known| known.function.address == address)
    }
}
