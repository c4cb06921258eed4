// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a person can do about what stands in the way, with the commands for a root shell.

use protocol::extension::{ResetGroupRow, RowFlags};
use vfio::PciAddress;

/// The command that resets a function alone.
pub const FUNCTION_RESET: &str = "vfio-devctl reset --method function";
/// The command that shows every user of VFIO, also of nodes that are gone.
pub const FIND_ALL_USERS: &str = "ls -l /proc/[0-9]*/fd | grep vfio";
/// What the names of cdevs and groups of functions without an IOMMU begin with.
const NO_IOMMU_PREFIX: &str = "noiommu-";

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

/// The node of a row's function and how it is handed over (`/dev/vfio/devices/vfio1 over too (…)`).
pub fn hand_over(row: &ResetGroupRow) -> String {
    let cdev = row.vfio_device.as_str();
    format!("/dev/vfio/devices/{cdev} over too (vfio-devctl launch … --device {})", row.address)
}

/// Whether the kernel has a cdev for a row's function, behind which no IOMMU stands. It is called after that.
pub fn has_no_iommu_cdev(row: &ResetGroupRow) -> bool {
    row.vfio_device.as_str().starts_with(NO_IOMMU_PREFIX)
}

/// The command that shows who has a row's function open, as its cdev or by way of its group.
pub fn find_users(row: &ResetGroupRow) -> String {
    format!("fuser -v {}", nodes(row).join(" "))
}

/// The nodes by which a row's function can be opened.
pub fn nodes(row: &ResetGroupRow) -> Vec<String> {
    let cdev = row.vfio_device.as_str();
    let group_prefix = if row.flags.contains(RowFlags::NO_IOMMU) { NO_IOMMU_PREFIX } else { "" };
    let group = row.iommu_group.number().map(|number| format!("/dev/vfio/{group_prefix}{number}"));
    let cdev = (!cdev.is_empty()).then(|| format!("/dev/vfio/devices/{cdev}"));
    cdev.into_iter().chain(group).collect()
}
