// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines to plan on, made of what sysfs would say about them.

use std::collections::BTreeMap;

use vfio::topology::{Driver, Function};
use vfio::{GroupKind, Hierarchy, OwnReset, PciAddress, Place};

pub(super) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A machine in the making. A function behind a bridge comes after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Builder {
    places: Vec<Place>,
    groups: BTreeMap<u32, GroupKind>,
    interrupts_allow_binding: bool,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { interrupts_allow_binding: true, ..Self::default() }
    }

    pub(super) fn build(self) -> Hierarchy {
        Hierarchy::new(self.places, self.groups, self.interrupts_allow_binding)
    }

    fn place(mut self, at: PciAddress, group: Option<u32>, driver: &Driver, own_resets: &[OwnReset]) -> Self {
        let above = self.places.iter().find(|place| place.secondary_bus == Some(at.bus()));
        let bridge = above.map(|place| place.function.address);
        if let Some(group) = group {
            self.groups.entry(group).or_insert(GroupKind::Isolated { firmware_mapping: false });
        }
        let function = Function {
            address: at,
            vendor: 0x1234,
            device: 0x11e8,
            class: 0,
            header_type: 0,
            iommu_group: group,
            driver: driver.clone(),
            is_virtual: false,
        };
        self.places.push(Place {
            function,
            bridge,
            secondary_bus: None,
            slot: None,
            physical_function: None,
            own_resets: own_resets.to_vec(),
            has_node: matches!(driver, Driver::Vfio { .. }),
        });
        self
    }

    /// A function on this driver; on none if its name is empty.
    pub(super) fn function(self, at: &str, group: u32, driver: &str, own_resets: &[OwnReset]) -> Self {
        let driver = match driver {
            "" => Driver::None,
            "vfio-pci" => Driver::Vfio { name: driver.into(), device: format!("vfio-{at}") },
            _ => Driver::Kernel(driver.into()),
        };
        self.place(address(at), Some(group), &driver, own_resets)
    }

    /// A bridge in a group with nobody else.
    pub(super) fn bridge(self, at: &str, bus: u8) -> Self {
        let at = address(at);
        let group = 1000 + u32::from(bus);
        let mut made = self.place(at, Some(group), &Driver::Kernel("pcieport".into()), &[]);
        made.change(at, |place| {
            place.function.header_type = 1;
            place.secondary_bus = Some(bus);
        });
        made
    }

    /// A root port.
    pub(super) fn port(self, at: &str, bus: u8) -> Self {
        self.bridge(at, bus)
    }

    /// A root port with a hotplug slot that can be reset.
    pub(super) fn slot(self, at: &str, bus: u8) -> Self {
        let mut made = self.bridge(at, bus);
        made.change(address(at), |place| place.slot = Some(bus.to_string()));
        made
    }

    /// A virtual function on vfio-pci.
    pub(super) fn virtual_function(self, at: &str, physical: &str, group: u32) -> Self {
        let mut made = self.function(at, group, "vfio-pci", &[OwnReset::FunctionLevel]);
        made.change(address(at), |place| {
            place.function.is_virtual = true;
            place.physical_function = Some(address(physical));
        });
        made
    }

    pub(super) fn firmware_mapping(mut self, group: u32) -> Self {
        self.groups.insert(group, GroupKind::Isolated { firmware_mapping: true });
        self
    }

    pub(super) fn unsafe_interrupts(mut self) -> Self {
        self.interrupts_allow_binding = false;
        self
    }

    /// A function that no IOMMU isolates and vfio does not drive that way.
    pub(super) fn without_iommu(mut self, at: &str) -> Self {
        self.change(address(at), |place| place.function.iommu_group = None);
        self
    }

    /// A function in a group that vfio made up.
    pub(super) fn no_iommu_group(mut self, at: &str) -> Self {
        let at = address(at);
        let group = 10_000 + (u32::from(at.bus()) << 8) + u32::from(at.devfn());
        self.groups.insert(group, GroupKind::NoIommu);
        self.change(at, |place| place.function.iommu_group = Some(group));
        self
    }

    pub(super) fn without_node(mut self, at: &str) -> Self {
        self.change(address(at), |place| place.has_node = false);
        self
    }

    fn change(&mut self, at: PciAddress, change: impl FnOnce(&mut Place)) {
        change(self.places.iter_mut().find(|place| place.function.address == at).unwrap());
    }
}
