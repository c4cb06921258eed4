// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset group as a person or a management program sees it: who is in it, what blocks it, what to do.

use protocol::extension::{self as wire, GroupReason, Name, ResetGroupRow, RowFlags, RowReason};
use vfio::hot_reset::AffectedFunction;
use vfio::topology::Driver;
use vfio::{Function, Ownership, PciAddress, Sysfs};

use super::group::ResetGroup;
use super::neighbour::Neighbour;
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
    // A virtual function is in a set of its own, so that whatever else is in its scope is in another one.
    let has_set = sysfs.function(target).is_ok_and(|function| !function.is_virtual);
    let set_of = has_set.then_some(target);
    describe(set_of, affected, cookie, Neighbour::read(affected.address, sysfs).ok().as_ref())
}

/// A row of the group of `target` that a server could not describe because it does not read sysfs, described by who does. Who
/// owns the function is the kernel's word, and stays.
pub fn described_here(target: PciAddress, row: ResetGroupRow, sysfs: &Sysfs) -> ResetGroupRow {
    if row.header_type != HEADER_TYPE_UNKNOWN {
        return row;
    }
    let affected = AffectedFunction { address: local_address(row.address), ownership: Ownership::NotOwned };
    let described = self::row(target, &affected, row.cookie(), sysfs);
    let reason = if row.reason == RowReason::Unknown { described.reason } else { row.reason };
    ResetGroupRow { ownership: row.ownership, reason, ..described }
}

/// The row of a function that sysfs describes so, or not at all, in the reset set of `set_of`.
fn describe(
    set_of: Option<PciAddress>,
    affected: &AffectedFunction,
    cookie: Option<wire::Cookie>,
    neighbour: Option<&Neighbour>,
) -> ResetGroupRow {
    let function = neighbour.map(|neighbour| &neighbour.function);
    let (vfio_device, _) = driver_names(function);
    let reason = match (affected.ownership, neighbour) {
        (Ownership::Bound(_) | Ownership::Implied, _) => RowReason::None,
        (Ownership::NotOwned, Some(neighbour)) => row_reason(set_of, cookie.is_some(), neighbour),
        (Ownership::NotOwned, None) => RowReason::Unknown,
    };
    ResetGroupRow {
        address: wire_address(affected.address),
        ownership: match affected.ownership {
            Ownership::Bound(_) => wire::Ownership::Ours,
            Ownership::Implied => wire::Ownership::Implied,
            Ownership::NotOwned => wire::Ownership::Blocking,
        },
        cookie: cookie.unwrap_or(wire::Cookie(0)),
        flags: row_flags(cookie.is_some(), neighbour),
        iommu_group: wire_group(function.and_then(|function| function.iommu_group)),
        reason,
        header_type: function.map_or(HEADER_TYPE_UNKNOWN, |function| function.header_type.into()),
        vfio_device: Name::new(vfio_device),
        driver: Name::new(neighbour.map(Neighbour::driver).unwrap_or_default()),
    }
}

fn row_flags(has_cookie: bool, neighbour: Option<&Neighbour>) -> RowFlags {
    let is_leaving = neighbour.is_some_and(|neighbour| neighbour.departing_driver.is_some());
    let is_without_iommu = neighbour.is_some_and(|neighbour| !neighbour.has_iommu);
    [
        (has_cookie, RowFlags::HAS_COOKIE),
        (is_leaving, RowFlags::UNBINDING),
        (is_without_iommu, RowFlags::NO_IOMMU),
    ]
    .into_iter()
    .filter(|(is_so, _)| *is_so)
    .fold(RowFlags::default(), |flags, (_, flag)| flags | flag)
}

/// Why a function blocks. The kernel only says that it does. What keeps it out of the set of `set_of` does so whoever has it;
/// for everything else the reason is who has it.
fn row_reason(set_of: Option<PciAddress>, is_held: bool, neighbour: &Neighbour) -> RowReason {
    let function = &neighbour.function;
    let is_on_bus = set_of.is_some_and(|target| target.is_on_bus_of(function.address));
    match &function.driver {
        _ if function.header_type == HEADER_TYPE_BRIDGE => RowReason::Bridge,
        _ if function.is_virtual => RowReason::VirtualFunction,
        // A device of ours is bound, so nothing else can be the matter.
        _ if is_held || !is_on_bus => RowReason::OtherScope,
        Driver::None if neighbour.departing_driver.is_some() => RowReason::HostUnbind,
        Driver::None => RowReason::NoDriver,
        Driver::Kernel(_) => RowReason::KernelDriver,
        Driver::Vfio { .. } if neighbour.is_used => RowReason::InUse,
        Driver::Vfio { .. } if neighbour.is_group_used => RowReason::GroupInUse,
        Driver::Vfio { .. } if !neighbour.has_iommu => RowReason::NoIommu,
        Driver::Vfio { .. } => RowReason::Unopened,
    }
}

/// How hard a blocker is to move: what an administrator moves alone is lowest, then what somebody else has to let go of, and
/// what nothing but another topology moves is highest.
pub const fn permanence(reason: RowReason) -> u8 {
    match reason {
        RowReason::None => 0,
        RowReason::Unknown => 1,
        RowReason::NoDriver | RowReason::Unopened | RowReason::NoIommu => 2,
        RowReason::KernelDriver => 3,
        RowReason::HostUnbind | RowReason::InUse | RowReason::GroupInUse => 4,
        RowReason::VirtualFunction => 5,
        RowReason::OtherScope => 6,
        RowReason::Bridge => 7,
    }
}

/// Whether nothing that is done with a function ever makes it stop blocking.
pub const fn is_permanent(reason: RowReason) -> bool {
    permanence(reason) >= permanence(RowReason::VirtualFunction)
}

/// The stable name of a reason, which docs/operations.md explains.
pub const fn reason_id(reason: RowReason) -> &'static str {
    match reason {
        RowReason::None => "none",
        RowReason::NoDriver => "no-driver",
        RowReason::KernelDriver => "kernel-driver",
        RowReason::Unopened => "unopened",
        RowReason::Bridge => "bridge",
        RowReason::OtherScope => "other-scope",
        RowReason::VirtualFunction => "virtual-function",
        RowReason::InUse => "in-use",
        RowReason::GroupInUse => "group-in-use",
        RowReason::NoIommu => "no-iommu",
        RowReason::HostUnbind => "host-unbind",
        RowReason::Unknown => "unknown",
    }
}

/// What to do about a row that blocks, in one sentence that names the command; empty for one that does not.
pub fn remedy(row: &ResetGroupRow) -> String {
    let address = local_address(row.address);
    let bind = remedy::bind(address);
    let hand_over = remedy::hand_over(row);
    let users = remedy::find_users(row);
    match row.reason {
        RowReason::None => String::new(),
        RowReason::NoDriver => format!("Bind {address} to vfio-pci ({bind}) and hand it over too"),
        RowReason::KernelDriver => format!(
            "Take {address} from {} ({}), bind it to vfio-pci ({bind}) and hand it over too",
            row.driver.as_str(),
            remedy::unbind(address)
        ),
        RowReason::Unopened => format!("Hand {hand_over}"),
        RowReason::InUse => format!("Find who uses {address} ({users}), stop that, and hand {hand_over}"),
        RowReason::GroupInUse => format!(
            "Find who uses IOMMU group {} ({users}; vfio-devctl topology {address}), stop that, and hand {hand_over}",
            row.iommu_group.0
        ),
        RowReason::NoIommu if remedy::has_no_iommu_cdev(row) => {
            format!("As there is no IOMMU to imply it, hand {hand_over}")
        }
        RowReason::NoIommu => format!(
            "Enable the IOMMU in the firmware and on the kernel command line (intel_iommu=on), as this kernel has no cdev for \
             {address} without one"
        ),
        RowReason::HostUnbind => format!(
            "Find who uses {address} ({}) and stop that, so that the unbind ends; then bind it to vfio-pci again ({bind}) and \
             hand it over too",
            remedy::FIND_ALL_USERS
        ),
        RowReason::Bridge => format!(
            "Use a function reset ({}), as nothing helps while the bridge {address} is in the scope",
            remedy::FUNCTION_RESET
        ),
        RowReason::OtherScope => format!(
            "Use a function reset ({}), as {address} is reset with another scope",
            remedy::FUNCTION_RESET
        ),
        RowReason::VirtualFunction => format!(
            "Use a function reset ({}), or disable the virtual functions \
             (echo 0 > /sys/bus/pci/devices/{address}/physfn/sriov_numvfs)",
            remedy::FUNCTION_RESET
        ),
        RowReason::Unknown => {
            format!("Ask again, as {address} has perhaps just gone, or see lspci -vks {address}")
        }
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
    use vfio::Function;

    use super::*;

    const TARGET: PciAddress = PciAddress::from_devfn(0, 1, 0);
    const SIBLING: PciAddress = PciAddress::from_devfn(0, 1, 1);

    /// An endpoint beside the target that nobody uses.
    fn neighbour(driver: Driver) -> Neighbour {
        let function = Function {
            address: SIBLING,
            vendor: 0x8086,
            device: 0x10c9,
            class: 0x02_0000,
            header_type: 0,
            iommu_group: Some(7),
            driver,
            is_virtual: false,
        };
        Neighbour { function, is_used: false, departing_driver: None, has_iommu: true, is_group_used: false }
    }

    fn on_vfio() -> Neighbour {
        neighbour(Driver::Vfio { name: "vfio-pci".into(), device: "vfio1".into() })
    }

    fn on_igb() -> Neighbour {
        neighbour(Driver::Kernel("igb".into()))
    }

    fn virtual_function() -> Neighbour {
        let mut neighbour = on_vfio();
        neighbour.function.is_virtual = true;
        neighbour
    }

    fn bridge() -> Neighbour {
        let mut bridge = neighbour(Driver::Kernel("pcieport".into()));
        bridge.function.header_type = HEADER_TYPE_BRIDGE;
        bridge
    }

    fn leaving() -> Neighbour {
        Neighbour { departing_driver: Some("vfio-pci".into()), is_used: true, ..neighbour(Driver::None) }
    }

    fn without_iommu(device: &str) -> Neighbour {
        let driver = Driver::Vfio { name: "vfio-pci".into(), device: device.into() };
        Neighbour { has_iommu: false, ..neighbour(driver) }
    }

    /// Every blocker on the target's own bus, and its reason.
    fn blockers() -> Vec<(Neighbour, RowReason)> {
        vec![
            (neighbour(Driver::None), RowReason::NoDriver),
            (on_igb(), RowReason::KernelDriver),
            (on_vfio(), RowReason::Unopened),
            (Neighbour { is_used: true, ..on_vfio() }, RowReason::InUse),
            (Neighbour { is_group_used: true, ..on_vfio() }, RowReason::GroupInUse),
            (without_iommu("noiommu-vfio1"), RowReason::NoIommu),
            (without_iommu("vfio1"), RowReason::NoIommu),
            (leaving(), RowReason::HostUnbind),
            (virtual_function(), RowReason::VirtualFunction),
            (bridge(), RowReason::Bridge),
        ]
    }

    fn row_of(neighbour: &Neighbour, ownership: Ownership) -> ResetGroupRow {
        let affected = AffectedFunction { address: SIBLING, ownership };
        describe(Some(TARGET), &affected, None, Some(neighbour))
    }

    fn blocking(neighbour: &Neighbour) -> ResetGroupRow {
        row_of(neighbour, Ownership::NotOwned)
    }

    #[test]
    fn each_kind_of_blocker_has_its_reason() {
        for (neighbour, reason) in blockers() {
            assert_eq!(blocking(&neighbour).reason, reason, "{neighbour:?}");
        }
    }

    #[test]
    fn what_sysfs_does_not_describe_is_unknown() {
        let affected = AffectedFunction { address: SIBLING, ownership: Ownership::NotOwned };
        let row = describe(Some(TARGET), &affected, None, None);
        assert_eq!((row.reason, row.header_type), (RowReason::Unknown, HEADER_TYPE_UNKNOWN));
        assert!(remedy(&row).contains("lspci -vks 0000:01:00.1"));
    }

    #[test]
    fn a_function_on_another_bus_is_of_another_scope_whoever_has_it() {
        let elsewhere = Some(PciAddress::from_devfn(0, 3, 0));
        for neighbour in [on_vfio(), on_igb(), neighbour(Driver::None), leaving()] {
            assert_eq!(row_reason(elsewhere, false, &neighbour), RowReason::OtherScope);
        }
    }

    #[test]
    fn beside_a_virtual_function_everything_is_of_another_scope() {
        assert_eq!(row_reason(None, false, &on_igb()), RowReason::OtherScope);
        assert_eq!(row_reason(None, false, &virtual_function()), RowReason::VirtualFunction);
    }

    #[test]
    fn a_device_of_ours_that_blocks_is_of_another_scope() {
        assert_eq!(row_reason(Some(TARGET), true, &on_vfio()), RowReason::OtherScope);
    }

    #[test]
    fn every_blocker_has_a_remedy_that_names_it_and_a_command() {
        for (neighbour, reason) in blockers() {
            let remedy = remedy(&blocking(&neighbour));
            assert!(remedy.contains("0000:01:00.1"), "{reason:?}: {remedy}");
            let words = ["echo ", "fuser ", "vfio-devctl ", "intel_iommu=on"];
            assert!(words.iter().any(|word| remedy.contains(word)), "{reason:?}: {remedy}");
        }
    }

    #[test]
    fn who_is_in_the_way_is_looked_for_at_the_cdev_and_at_the_group() {
        let in_use = Neighbour { is_used: true, ..on_vfio() };
        let remedy = remedy(&blocking(&in_use));
        assert!(remedy.contains("fuser -v /dev/vfio/devices/vfio1 /dev/vfio/7"), "{remedy}");
    }

    #[test]
    fn what_does_not_block_has_no_reason_and_no_remedy() {
        let row = row_of(&on_igb(), Ownership::Implied);
        assert_eq!((row.reason, remedy(&row).as_str()), (RowReason::None, ""));
    }

    #[test]
    fn an_unbind_that_waits_shows_on_every_row() {
        for ownership in [Ownership::NotOwned, Ownership::Implied] {
            let row = row_of(&leaving(), ownership);
            assert!(row.flags.contains(RowFlags::UNBINDING));
            assert_eq!(row.driver.as_str(), "vfio-pci");
        }
        assert!(!blocking(&on_vfio()).flags.contains(RowFlags::UNBINDING));
    }

    #[test]
    fn the_group_of_a_function_without_an_iommu_has_a_name_of_its_own() {
        let row = blocking(&Neighbour { is_used: true, ..without_iommu("vfio1") });
        assert!(row.flags.contains(RowFlags::NO_IOMMU));
        assert!(remedy(&row).contains("/dev/vfio/noiommu-7"), "{}", remedy(&row));
    }

    #[test]
    fn only_what_another_topology_would_move_is_permanent() {
        for (neighbour, reason) in blockers() {
            let expected = neighbour.function.is_virtual || neighbour.function.header_type != 0;
            assert_eq!(is_permanent(reason), expected, "{reason:?}");
        }
        assert!(is_permanent(RowReason::OtherScope) && !is_permanent(RowReason::Unknown));
    }
}
