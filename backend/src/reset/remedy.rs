// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a person can do about what stands in the way, with the commands for a root shell.

use vfio::PciAddress;

/// Turning interrupt remapping on, or doing without.
pub const INTERRUPT_REMAPPING: &str = "Enable interrupt remapping in the firmware and the kernel command line; only on a \
    trusted machine, set the module parameter iommufd.allow_unsafe_interrupts=1";

/// The command that takes a function's driver away.
pub fn unbind(function: PciAddress) -> String {
    format!("echo {function} > /sys/bus/pci/devices/{function}/driver/unbind")
}

/// The command that binds a function without a driver to vfio-pci.
pub fn bind(function: PciAddress) -> String {
    format!(
        "echo vfio-pci > /sys/bus/pci/devices/{function}/driver_override; echo {function} > /sys/bus/pci/drivers_probe"
    )
}

/// The command that makes a function's virtual functions go.
pub fn disable_virtual_functions(physical: PciAddress) -> String {
    format!("echo 0 > /sys/bus/pci/devices/{physical}/sriov_numvfs")
}

/// Where to see what the firmware demands for a function.
pub fn firmware_mapping(function: PciAddress) -> String {
    format!(
        "See the lines `direct` in /sys/bus/pci/devices/{function}/iommu_group/reserved_regions; a firmware setting may \
         lift them"
    )
}
