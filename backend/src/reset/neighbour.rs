// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function that a reset hits, as sysfs shows it.

use vfio::topology::Driver;
use vfio::{Errno, Function, PciAddress, Sysfs};

/// What sysfs says of a function and of who uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// What it is, and who drives it.
    pub function: Function,
    /// Whether somebody uses it, if a VFIO driver has it.
    pub is_used: bool,
    /// The driver that an unbind takes from it, and that waits for its user.
    pub departing_driver: Option<String>,
    /// Whether an IOMMU stands behind it.
    pub has_iommu: bool,
    /// Whether somebody uses another function of its IOMMU group.
    pub is_group_used: bool,
}

impl Neighbour {
    /// Looks at a function.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such function (any more).
    pub fn read(address: PciAddress, sysfs: &Sysfs) -> Result<Self, Errno> {
        let function = sysfs.function(address)?;
        let siblings = match function.iommu_group {
            Some(_) => sysfs.group_siblings(address)?,
            None => Vec::new(),
        };
        Ok(Self {
            is_used: sysfs.is_enabled(address)?,
            departing_driver: sysfs.departing_driver(address)?,
            has_iommu: function.iommu_group.is_some() && !sysfs.is_without_iommu(address),
            is_group_used: siblings.into_iter().any(|sibling| owns_its_group(sibling, sysfs)),
            function,
        })
    }

    /// Name of its driver, also of one that is about to leave it.
    pub fn driver(&self) -> &str {
        match &self.function.driver {
            Driver::None => self.departing_driver.as_deref().unwrap_or_default(),
            Driver::Vfio { name, .. } | Driver::Kernel(name) => name,
        }
    }
}

/// Whether a function is used by somebody who owns the DMA of its IOMMU group by that. One that has just gone is not.
fn owns_its_group(address: PciAddress, sysfs: &Sysfs) -> bool {
    let Ok(function) = sysfs.function(address) else { return false };
    let is_used = || sysfs.is_enabled(address).unwrap_or(false);
    match &function.driver {
        Driver::Vfio { .. } => is_used(),
        Driver::Kernel(_) => function.driver.claimant().is_some(),
        // A bridge without a driver stays switched on when once something behind it was.
        Driver::None => sysfs.departing_driver(address).is_ok_and(|driver| driver.is_some()) && is_used(),
    }
}
