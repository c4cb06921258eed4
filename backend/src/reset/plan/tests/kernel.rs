// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's decisions once more, from what is known of its code and not from the planner's rules: who can be bound, what
//! the rows of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` say, and which resets work.

use protocol::extension::ResetMethod;
use vfio::topology::Driver;
use vfio::{GroupKind, Hierarchy, OwnReset, PciAddress, Place};

use crate::reset::plan::Assignment;

/// A row's number, with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DevId {
    Bound,
    Owned,
    NotOwned,
}

pub(super) struct Kernel<'a> {
    pub(super) machine: &'a Hierarchy,
    pub(super) assignments: &'a [Assignment],
}

impl Kernel<'_> {
    /// Whether every device of every VM can be bound and reset.
    pub(super) fn all_work(&self, wanted: Option<ResetMethod>) -> bool {
        (0..self.assignments.len()).all(|vm| self.works(vm, wanted))
    }

    /// Whether every device of a VM can be bound and reset.
    pub(super) fn works(&self, vm: usize, wanted: Option<ResetMethod>) -> bool {
        self.assignments[vm].functions.iter().all(|device| {
            let own = self.own_resets(*device);
            let is_reset = match wanted {
                Some(ResetMethod::Function) => !own.is_empty(),
                Some(ResetMethod::Hot) => self.hot_reset_works(vm, *device),
                None => !own.is_empty() || self.hot_reset_works(vm, *device),
            };
            self.binds(vm, *device) && is_reset
        })
    }

    fn place(&self, address: PciAddress) -> Option<&Place> {
        self.machine.places().find(|place| place.function.address == address)
    }

    /// The VMs that own a group: the kernel lets one.
    fn owners(&self, group: u32) -> Vec<usize> {
        let has = |vm: &usize| {
            let mut devices = self.assignments[*vm].functions.iter();
            devices.any(|device| {
                self.place(*device).is_some_and(|place| place.function.iommu_group == Some(group))
            })
        };
        (0..self.assignments.len()).filter(has).collect()
    }

    /// `VFIO_DEVICE_BIND_IOMMUFD`.
    fn binds(&self, vm: usize, device: PciAddress) -> bool {
        let Some(place) = self.place(device) else { return false };
        let takers = self.assignments.iter().filter(|other| other.functions.contains(&device)).count();
        let Some(group) = place.function.iommu_group else { return false };
        let is_open = place.function.header_type == 0
            && matches!(place.function.driver, Driver::Vfio { .. })
            && place.has_node
            && takers == 1;
        let is_claimed_by_host = self.machine.places().any(|member| {
            member.function.iommu_group == Some(group)
                && matches!(&member.function.driver, Driver::Kernel(name) if name != "pcieport" && name != "pci-stub")
        });
        is_open
            && match self.machine.group(group) {
                Some(GroupKind::NoIommu) => true,
                Some(GroupKind::Isolated { firmware_mapping }) => {
                    !firmware_mapping
                        && self.machine.interrupts_allow_binding()
                        && !is_claimed_by_host
                        && self.owners(group) == [vm]
                }
                None => false,
            }
    }

    /// Whether `pci_walk_bus` from the bus of `device` comes by.
    fn is_affected(&self, device: &Place, other: &Place) -> bool {
        let mut at = Some(other);
        while let Some(place) = at {
            if place.bridge == device.bridge {
                return true;
            }
            at = place.bridge.and_then(|bridge| self.place(bridge));
        }
        false
    }

    /// Whether the function is in the same `struct vfio_device_set`.
    fn is_in_set(device: &Place, other: &Place) -> bool {
        let is_member = !other.function.is_virtual
            && matches!(other.function.driver, Driver::Vfio { .. })
            && other.function.header_type == 0;
        let is_singleton = device.function.is_virtual || device.bridge.is_none();
        is_member
            && (device.function.address == other.function.address
                || (!is_singleton && device.bridge == other.bridge))
    }

    fn row(&self, vm: usize, device: &Place, other: &Place) -> DevId {
        let address = other.function.address;
        let is_bound = |address| self.assignments[vm].functions.contains(&address) && self.binds(vm, address);
        let is_elsewhere = self.assignments.iter().enumerate();
        let is_elsewhere =
            is_elsewhere.filter(|(at, _)| *at != vm).any(|(_, vm)| vm.functions.contains(&address));
        let shares_group = |group| {
            matches!(self.machine.group(group), Some(GroupKind::Isolated { .. }))
                && self.machine.places().any(|member| {
                    member.function.iommu_group == Some(group) && is_bound(member.function.address)
                })
        };
        if !Self::is_in_set(device, other) {
            DevId::NotOwned
        } else if is_bound(address) {
            DevId::Bound
        } else if !is_elsewhere && other.function.iommu_group.is_some_and(shares_group) {
            DevId::Owned
        } else {
            DevId::NotOwned
        }
    }

    fn hot_reset_works(&self, vm: usize, device: PciAddress) -> bool {
        let Some(device) = self.place(device).filter(|device| device.bridge.is_some()) else { return false };
        let mut affected = self.machine.places().filter(|other| self.is_affected(device, other));
        affected.all(|other| self.row(vm, device, other) != DevId::NotOwned)
    }

    fn own_resets(&self, device: PciAddress) -> Vec<OwnReset> {
        let Some(place) = self.place(device) else { return Vec::new() };
        let is_alone = self.machine.places().filter(|other| self.is_affected(place, other)).count() == 1;
        let has_bus = place.bridge.is_some() && is_alone;
        let works = |method: &OwnReset| !matches!(method, OwnReset::Bus | OwnReset::CxlBus) || has_bus;
        place.own_resets.iter().copied().filter(works).collect()
    }
}
