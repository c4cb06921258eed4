// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's PCI functions and bridges as sysfs shows them at one moment: what is behind which bridge, in which slot and
//! in which IOMMU group. Nothing is opened but attributes, and nothing is written.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use crate::own_reset::OwnReset;
use crate::pci_address::PciAddress;
use crate::topology::{Driver, Function, Sysfs};

/// What leads to a port's hotplug service is called after the port and this (`0000:00:04.0:pcie004`).
const PORT_SERVICE: &str = ":pcie";

/// The machine's PCI functions, bridges among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchy {
    places: BTreeMap<PciAddress, Place>,
    groups: BTreeMap<u32, GroupKind>,
    interrupts_allow_binding: bool,
}

/// A function or bridge, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub function: Function,
    /// The bridge that leads to its bus. None leads to a root bus, or to a bus that SR-IOV made up.
    pub bridge: Option<PciAddress>,
    /// The bus behind it, if it is a bridge.
    pub secondary_bus: Option<u8>,
    /// The name of the hotplug slot behind it, if it is a port whose hotplug driver can reset that.
    pub slot: Option<String>,
    /// Whose virtual function it is.
    pub physical_function: Option<PciAddress>,
    /// The ways to reset it alone that the kernel lists, in the order in which it tries them.
    pub own_resets: Vec<OwnReset>,
    /// Whether there is a node to open it by. A VFIO driver gives none where the kernel has no cdevs, or none for functions
    /// without an IOMMU.
    pub has_node: bool,
}

/// What stands behind the number of an IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// An IOMMU.
    Isolated {
        /// Whether the firmware demands a mapping of its own for a member, which keeps the kernel from giving any away.
        firmware_mapping: bool,
    },
    /// Nothing: vfio made the group up. It has one member.
    NoIommu,
}

impl Hierarchy {
    /// A machine that consists of these. `interrupts_allow_binding`: see [`Sysfs::interrupts_allow_binding`].
    pub fn new(
        places: impl IntoIterator<Item = Place>,
        groups: BTreeMap<u32, GroupKind>,
        interrupts_allow_binding: bool,
    ) -> Self {
        let places = places.into_iter().map(|place| (place.function.address, place)).collect();
        Self { places, groups, interrupts_allow_binding }
    }

    /// Reads the machine. A function that goes away meanwhile is left out, as is one in a segment beyond 16 bits.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no PCI; otherwise that of the attribute that could not be read.
    pub fn read(sysfs: &Sysfs) -> Result<Self, Errno> {
        let mut places = Vec::new();
        for name in sysfs.directory("bus/pci/devices")? {
            let Ok(address) = name.parse() else { continue };
            match Place::read(sysfs, address) {
                Ok(place) => places.push(place),
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        let member = |place: &Place| Some((place.function.iommu_group?, place.function.address));
        let members: BTreeMap<_, _> = places.iter().filter_map(member).collect();
        let groups =
            members.into_iter().map(|(group, member)| (group, GroupKind::read(sysfs, member))).collect();
        let mut hierarchy = Self::new(places, groups, sysfs.interrupts_allow_binding());
        hierarchy.drop_bridges_to_other_buses();
        hierarchy.name_slots(sysfs);
        Ok(hierarchy)
    }

    /// A function or bridge.
    pub fn place(&self, address: PciAddress) -> Option<&Place> {
        self.places.get(&address)
    }

    /// All of them, by address.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.values()
    }

    /// What stands behind the number of a group.
    pub fn group(&self, number: u32) -> Option<GroupKind> {
        self.groups.get(&number).copied()
    }

    /// The PCI functions of a group, by address.
    pub fn group_members(&self, number: u32) -> impl Iterator<Item = &Place> {
        self.places.values().filter(move |place| place.function.iommu_group == Some(number))
    }

    /// Whether a device may be bound as far as its interrupts go.
    pub const fn interrupts_allow_binding(&self) -> bool {
        self.interrupts_allow_binding
    }

    /// The virtual functions of a function, by address.
    pub fn virtual_functions(&self, physical: PciAddress) -> impl Iterator<Item = PciAddress> {
        let of_it = move |place: &&Place| place.physical_function == Some(physical);
        self.places.values().filter(of_it).map(|place| place.function.address)
    }

    /// What is behind a bridge and, after each bridge there, what is behind that: the order of the kernel's `pci_walk_bus`,
    /// which has virtual functions after the others of a bus.
    pub fn below(&self, bridge: PciAddress) -> Vec<PciAddress> {
        let Some(bridge) = self.places.get(&bridge) else { return Vec::new() };
        let on_bus = self.places.values().filter(|place| place.bridge == Some(bridge.function.address));
        // A bus behind a bus has a greater number, so that this ends.
        let on_bus = on_bus.filter(|place| place.function.address.bus() > bridge.function.address.bus());
        let (virtual_ones, others): (Vec<_>, Vec<_>) = on_bus.partition(|place| place.function.is_virtual);
        let found = others.into_iter().chain(virtual_ones).map(|place| place.function.address);
        found.flat_map(|address| [vec![address], self.below(address)].concat()).collect()
    }

    /// The machine is as it would be after this driver took a function, or its driver was taken away.
    pub fn set_driver(&mut self, address: PciAddress, driver: Driver) {
        if let Some(place) = self.places.get_mut(&address) {
            place.has_node = matches!(driver, Driver::Vfio { .. });
            place.function.driver = driver;
        }
    }

    /// The functions that SR-IOV puts on a bus of its own have the same parent in sysfs as those on the bridge's bus.
    fn drop_bridges_to_other_buses(&mut self) {
        let leads_to = |bridge: &Place| Some((bridge.function.address.segment(), bridge.secondary_bus?));
        let buses: BTreeMap<_, _> = self.places.iter().map(|(at, place)| (*at, leads_to(place))).collect();
        for (address, place) in &mut self.places {
            let bus = Some((address.segment(), address.bus()));
            place.bridge = place.bridge.filter(|bridge| buses.get(bridge).is_some_and(|to| *to == bus));
        }
    }

    /// A slot can be reset if the port that leads to it is driven by the hotplug driver of PCI Express. Its name is only for
    /// people: the slot's directory tells which bus it is on, but not who drives it.
    fn name_slots(&mut self, sysfs: &Sysfs) {
        let services = sysfs.directory("bus/pci_express/drivers/pciehp").unwrap_or_default();
        let ports = services.iter().filter_map(|service| service.split_once(PORT_SERVICE)?.0.parse().ok());
        let ports: BTreeSet<PciAddress> = ports.collect();
        if ports.is_empty() {
            return;
        }
        let slots = sysfs.directory("bus/pci/slots").unwrap_or_default();
        let bus_of = |slot: &String| sysfs.attribute(&format!("bus/pci/slots/{slot}/address")).ok();
        let slots: Vec<_> = slots.iter().filter_map(|slot| Some((bus_of(slot)?, slot))).collect();
        for (address, place) in &mut self.places {
            let Some(bus) = place.secondary_bus.filter(|_| ports.contains(address)) else { continue };
            let bus = format!("{:04x}:{bus:02x}", address.segment());
            let found = slots.iter().find(|(address, _)| address.starts_with(&bus));
            place.slot = found.map(|(_, slot)| (*slot).clone());
        }
    }
}

impl Place {
    fn read(sysfs: &Sysfs, address: PciAddress) -> Result<Self, Errno> {
        let directory = format!("bus/pci/devices/{address}");
        let function = sysfs.function(address)?;
        let has_node = match &function.driver {
            Driver::Vfio { device, .. } => sysfs.exists(&format!("{directory}/vfio-dev/{device}/dev")),
            Driver::Kernel(_) | Driver::None => false,
        };
        let parent = sysfs.link(&directory)?.rsplit('/').nth(1).and_then(|parent| parent.parse().ok());
        let secondary_bus = sysfs.attribute(&format!("{directory}/secondary_bus_number")).ok();
        let own_resets = sysfs.attribute(&format!("{directory}/reset_method")).unwrap_or_default();
        let physical_function = sysfs.link_target(&format!("{directory}/physfn")).ok();
        Ok(Self {
            function,
            bridge: parent,
            secondary_bus: secondary_bus.and_then(|number| number.parse().ok()),
            slot: None,
            physical_function: physical_function.and_then(|address| address.parse().ok()),
            own_resets: OwnReset::parse_list(&own_resets),
            has_node,
        })
    }

    /// Whether it is a bridge or another function that VFIO cannot take.
    pub const fn is_bridge(&self) -> bool {
        self.function.header_type != 0
    }
}

impl GroupKind {
    fn read(sysfs: &Sysfs, member: PciAddress) -> Self {
        if sysfs.is_without_iommu(member) {
            Self::NoIommu
        } else {
            Self::Isolated { firmware_mapping: sysfs.has_firmware_mapping(member) }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "model")]
mod tests;
