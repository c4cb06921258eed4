// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset group as a person or a management program sees it: who is in it, what blocks it, what to do.

use protocol::extension::{self as wire, GroupReason, Name, ResetGroupRow, RowFlags, RowReason};
use vfio::hot_reset::AffectedFunction;
use vfio::topology::Driver;
use vfio::{Function, Ownership, PciAddress, Sysfs};

use super::group::ResetGroup;
use super::remedy;

/// Config header type of a bridge.
const HEADER_TYPE_BRIDGE: u8 = 1;
/// Shown where sysfs is silent.
const HEADER_TYPE_UNKNOWN: u32 = 255;

/// Why the group can or cannot be reset, without a look at its rows.
pub const fn group_reason(group: &ResetGroup) -> GroupReason {
    match group {
        ResetGroup::None => GroupReason::NoReset,
        ResetGroup::Functions(info) if info.all_owned => GroupReason::Available,
        ResetGroup::Functions(_) => GroupReason::Blocked,
    }
}

/// One function of the group of `target`, with what sysfs adds to the kernel's answer.
pub fn row(
    target: PciAddress,
    affected: &AffectedFunction,
    cookie: Option<wire::Cookie>,
    sysfs: &Sysfs,
) -> ResetGroupRow {
    describe(target, affected, cookie, sysfs.function(affected.address).ok().as_ref())
}

/// The row of a function that sysfs describes so, or not at all.
fn describe(
    target: PciAddress,
    affected: &AffectedFunction,
    cookie: Option<wire::Cookie>,
    function: Option<&Function>,
) -> ResetGroupRow {
    let (vfio_device, driver) = driver_names(function);
    ResetGroupRow {
        address: wire_address(affected.address),
        ownership: match affected.ownership {
            Ownership::Bound(_) => wire::Ownership::Ours,
            Ownership::Implied => wire::Ownership::Implied,
            Ownership::NotOwned => wire::Ownership::Blocking,
        },
        cookie: cookie.unwrap_or(wire::Cookie(0)),
        flags: if cookie.is_some() { RowFlags::HAS_COOKIE } else { RowFlags::default() },
        iommu_group: wire_group(function.and_then(|function| function.iommu_group)),
        reason: row_reason(target, affected.ownership, function),
        header_type: function.map_or(HEADER_TYPE_UNKNOWN, |function| function.header_type.into()),
        vfio_device: Name::new(vfio_device),
        driver: Name::new(driver),
    }
}

/// Why a function blocks. The kernel only says that it does; what it is bound to says why, and a function on another bus
/// is of another reset set whatever it is bound to.
fn row_reason(target: PciAddress, ownership: Ownership, function: Option<&Function>) -> RowReason {
    if ownership != Ownership::NotOwned {
        return RowReason::None;
    }
    let Some(function) = function else { return RowReason::Unknown };
    match &function.driver {
        _ if function.header_type == HEADER_TYPE_BRIDGE => RowReason::Bridge,
        _ if function.is_virtual || !target.is_on_bus_of(function.address) => RowReason::OtherScope,
        Driver::None => RowReason::NoDriver,
        Driver::Kernel(_) => RowReason::KernelDriver,
        Driver::Vfio { .. } => RowReason::NotOurs,
    }
}

/// How hard a blocker is to move: what nothing but another topology moves is highest.
pub const fn permanence(reason: RowReason) -> u8 {
    match reason {
        RowReason::None => 0,
        RowReason::Unknown => 1,
        RowReason::NotOurs | RowReason::NoDriver => 2,
        RowReason::KernelDriver => 3,
        RowReason::OtherScope => 4,
        RowReason::Bridge => 5,
    }
}

/// What to do about a row that blocks, in one sentence that names the command; empty for one that does not.
pub fn remedy(row: &ResetGroupRow) -> String {
    let address = local_address(row.address);
    let bind = remedy::bind(address);
    match row.reason {
        RowReason::None => String::new(),
        RowReason::NoDriver => format!("Bind {address} to vfio-pci ({bind}) and hand it over too"),
        RowReason::KernelDriver => format!(
            "Take {address} from {} ({}), bind it to vfio-pci ({bind}) and hand it over too",
            row.driver.as_str(),
            remedy::unbind(address)
        ),
        RowReason::NotOurs => {
            let device = row.vfio_device.as_str();
            format!(
                "Hand /dev/vfio/devices/{device} over too; if it is in use, stop that first (fuser -v /dev/vfio/devices/{device})"
            )
        }
        RowReason::Bridge => {
            format!("Nothing helps as long as the bridge {address} is in the scope: use a function reset")
        }
        RowReason::OtherScope => format!(
            "Use a function reset, as {address} is reset with another scope; if it is a virtual function, disable those \
             of its physical function (echo 0 > /sys/bus/pci/devices/{address}/physfn/sriov_numvfs)"
        ),
        RowReason::Unknown => format!("Look at {address} with lspci -vks {address}"),
    }
}

/// The address in the protocol's form.
pub const fn wire_address(address: PciAddress) -> wire::PciAddress {
    wire::PciAddress { segment: address.segment(), bus: address.bus(), devfn: address.devfn() }
}

/// The address behind the protocol's form.
pub const fn local_address(address: wire::PciAddress) -> PciAddress {
    PciAddress::from_devfn(address.segment, address.bus, address.devfn)
}

/// The group in the protocol's form.
pub fn wire_group(group: Option<u32>) -> wire::IommuGroup {
    group.map_or(wire::IommuGroup::NONE, wire::IommuGroup)
}

/// Name of the cdev and of the driver, empty where there is none.
pub fn driver_names(function: Option<&Function>) -> (&str, &str) {
    match function.map(|function| &function.driver) {
        None | Some(Driver::None) => ("", ""),
        Some(Driver::Kernel(name)) => ("", name),
        Some(Driver::Vfio { name, device }) => (device, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(header_type: u8, driver: Driver, is_virtual: bool) -> Function {
        let address = PciAddress::from_devfn(0, 1, 1);
        Function {
            address,
            vendor: 0x8086,
            device: 0x10c9,
            class: 0x02_0000,
            header_type,
            iommu_group: Some(7),
            driver,
            is_virtual,
        }
    }

    fn vfio_driver() -> Driver {
        Driver::Vfio { name: "vfio-pci".into(), device: "vfio1".into() }
    }

    fn row_of(function: &Function, ownership: Ownership) -> ResetGroupRow {
        let affected = AffectedFunction { address: function.address, ownership };
        describe(TARGET, &affected, None, Some(function))
    }

    const TARGET: PciAddress = PciAddress::from_devfn(0, 1, 0);

    #[test]
    fn each_kind_of_blocker_has_its_reason() {
        let cases = [
            (function(0, Driver::None, false), RowReason::NoDriver),
            (function(0, Driver::Kernel("igb".into()), false), RowReason::KernelDriver),
            (function(0, vfio_driver(), false), RowReason::NotOurs),
            (function(0, vfio_driver(), true), RowReason::OtherScope),
            (function(1, Driver::Kernel("pcieport".into()), false), RowReason::Bridge),
        ];
        for (function, reason) in cases {
            assert_eq!(row_reason(TARGET, Ownership::NotOwned, Some(&function)), reason);
        }
        assert_eq!(row_reason(TARGET, Ownership::NotOwned, None), RowReason::Unknown);
    }

    #[test]
    fn a_function_on_another_bus_is_of_another_scope() {
        let target = PciAddress::from_devfn(0, 3, 0);
        let function = function(0, vfio_driver(), false);
        assert_eq!(row_reason(target, Ownership::NotOwned, Some(&function)), RowReason::OtherScope);
    }

    #[test]
    fn every_blocker_has_a_remedy_that_names_it() {
        let blockers = [
            function(0, Driver::None, false),
            function(0, Driver::Kernel("igb".into()), false),
            function(0, vfio_driver(), true),
            function(1, Driver::Kernel("pcieport".into()), false),
        ];
        for function in blockers {
            let row = row_of(&function, Ownership::NotOwned);
            let remedy = remedy(&row);
            assert!(remedy.contains("0000:01:00.1"), "{:?}: {remedy}", row.reason);
        }
        let on_vfio = remedy(&row_of(&function(0, vfio_driver(), false), Ownership::NotOwned));
        assert!(on_vfio.contains("/dev/vfio/devices/vfio1"), "{on_vfio}");
        assert_eq!(remedy(&row_of(&function(0, vfio_driver(), false), Ownership::Implied)), "");
    }

    #[test]
    fn what_does_not_block_has_no_reason() {
        let function = function(0, Driver::Kernel("igb".into()), false);
        assert_eq!(row_reason(TARGET, Ownership::Implied, Some(&function)), RowReason::None);
    }
}
