// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model's `/sys`: a directory tree of the same shape, kept up to date. Whatever a reader sees of a function is complete,
//! because the links that lead to a thing come last and go first.

mod group;
mod identity;
mod tree;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use self::group::{Group, GroupKind};
use self::tree::Tree;
use super::topology::{Bridge, Bus, Driver, Endpoint, FunctionReset, Part, Topology};
use crate::pci_address::PciAddress;
use crate::topology::DeviceNumber;

pub(crate) use self::identity::Identity;

/// The number of `/dev/iommu`.
pub(crate) const IOMMU: DeviceNumber = DeviceNumber { major: 10, minor: 258 };

/// What drives a port's hotplug slot, and can reset it.
const HOTPLUG_DRIVER: &str = "bus/pci_express/drivers/pciehp";

/// The node of a function that a VFIO driver drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cdev {
    /// Its name below `/dev/vfio/devices`.
    pub(crate) name: String,
    /// Its number; `None` where the kernel has no cdevs for functions without an IOMMU.
    pub(crate) number: Option<DeviceNumber>,
}

/// A tree in the place of `/sys`.
#[derive(Debug)]
pub(crate) struct SysfsTree {
    tree: Tree,
    functions: BTreeMap<PciAddress, Function>,
    /// The directories of the bridges and host bridges that lead to each bus.
    buses: BTreeMap<Bus, String>,
    slots: u32,
}

/// What the tree shows of a function or bridge.
#[derive(Debug)]
struct Function {
    directory: String,
    group: Option<Group>,
    driver: Option<String>,
    cdev: Option<Cdev>,
    /// What `uevent` says whoever drives it.
    properties: String,
}

/// How a function is used, as far as that shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// The driver that the kernel has for it, also when an unbind has taken the link to it away and waits.
    pub(crate) driver: Option<String>,
    /// Whether its driver has switched it on.
    pub(crate) is_enabled: bool,
}

impl SysfsTree {
    /// Makes the tree `sys` in a folder. No function has a driver yet, every bridge has its own.
    pub(crate) fn create(
        folder: &Path,
        topology: &Topology,
        identities: impl Fn(PciAddress) -> Identity,
    ) -> io::Result<Self> {
        let mut tree = Self {
            tree: Tree(folder.join("sys")),
            functions: BTreeMap::new(),
            buses: BTreeMap::new(),
            slots: 0,
        };
        tree.create_machine(topology.interrupt_remapping)?;
        for address in found(topology) {
            if let Some(bridge) = topology.bridge(address) {
                tree.add_bridge(bridge, topology.last_bus(bridge))?;
            } else if let Some(function) = topology.function(address) {
                tree.add(function, &identities(address))?;
            }
        }
        Ok(tree)
    }

    /// A function appears, without a driver.
    pub(crate) fn add(&mut self, function: &Endpoint, identity: &Identity) -> io::Result<()> {
        let directory = self.add_directory(function.address, function.physical_function)?;
        self.describe(&directory, identity)?;
        let methods = self.reset_methods(function);
        if !methods.is_empty() {
            self.tree.write(&format!("{directory}/reset_method"), format!("{}\n", methods.join(" ")))?;
        }
        if let Some(physical) = function.physical_function {
            let physical = self.function(physical)?.directory.clone();
            self.tree.link(&format!("{directory}/physfn"), &physical)?;
        }
        let kind = GroupKind::Isolated { firmware_mapping: function.firmware_mapping };
        let properties = properties(function.address, identity);
        self.describe_use(&directory, &properties, &Use::default())?;
        let group = function.iommu_group.map(|number| Group { number, kind });
        self.show(function.address, directory, group, properties)
    }

    /// Who drives a function changes what it says of itself, and so does whether it is switched on.
    pub(crate) fn set_use(&self, address: PciAddress, shown: &Use) -> io::Result<()> {
        let function = self.function(address)?;
        self.describe_use(&function.directory, &function.properties, shown)
    }

    /// A function's place below `/sys`.
    pub(crate) fn directory(&self, address: PciAddress) -> Option<&str> {
        self.functions.get(&address).map(|function| function.directory.as_str())
    }

    fn describe_use(&self, directory: &str, properties: &str, shown: &Use) -> io::Result<()> {
        let driver = shown.driver.as_ref().map_or(String::new(), |name| format!("DRIVER={name}\n"));
        self.tree.write(&format!("{directory}/uevent"), driver + properties)?;
        self.tree.write(&format!("{directory}/enable"), format!("{}\n", u8::from(shown.is_enabled)))
    }

    /// A function disappears.
    pub(crate) fn remove(&mut self, address: PciAddress) -> io::Result<()> {
        self.set_driver(address, &Driver::Missing, None)?;
        self.tree.unlink(&format!("bus/pci/devices/{address}"))?;
        self.set_group(address, None)?;
        let function = self.functions.remove(&address).ok_or(Errno::NODEV)?;
        self.tree.remove_directory(&function.directory)
    }

    /// Another driver takes a function, or none does. A VFIO driver comes with a cdev.
    pub(crate) fn set_driver(
        &mut self,
        address: PciAddress,
        driver: &Driver,
        cdev: Option<Cdev>,
    ) -> io::Result<()> {
        self.take_driver_away(address)?;
        let directory = self.function(address)?.directory.clone();
        let name = match driver {
            Driver::Missing => return Ok(()),
            Driver::Kernel(name) => name,
            Driver::Vfio(name) => {
                self.tree.write(&format!("{directory}/driver_override"), format!("{name}\n"))?;
                name
            }
        };
        if let Some(cdev) = &cdev {
            self.add_cdev(&directory, cdev)?;
        }
        self.bind(&directory, address, name)?;
        let function = self.functions.get_mut(&address).ok_or(Errno::NODEV)?;
        function.driver = Some(name.clone());
        function.cdev = cdev;
        Ok(())
    }

    /// The group that vfio makes up for a function without an IOMMU while it drives it.
    pub(crate) fn set_no_iommu_group(&mut self, address: PciAddress, number: Option<u32>) -> io::Result<()> {
        self.set_group(address, number.map(|number| Group { number, kind: GroupKind::NoIommu }))
    }

    /// What there is besides functions.
    fn create_machine(&self, interrupt_remapping: bool) -> io::Result<()> {
        for directory in
            ["bus/pci/devices", "bus/pci/slots", "class/vfio-dev", "dev/char", "kernel/iommu_groups"]
        {
            self.tree.make_directory(directory)?;
        }
        let controller = if interrupt_remapping { "IR-IO-APIC" } else { "IO-APIC" };
        for (number, name) in [(2, "XT-PIC"), (9, controller), (24, "DMAR-MSI")] {
            self.tree.make_directory(&format!("kernel/irq/{number}"))?;
            self.tree.write(&format!("kernel/irq/{number}/chip_name"), format!("{name}\n"))?;
        }
        let iommu = "devices/virtual/misc/iommu";
        self.tree.make_directory(iommu)?;
        self.tree.make_directory("class/misc")?;
        self.tree.write(&format!("{iommu}/dev"), format!("{}\n", number_text(IOMMU)))?;
        self.tree.link(&format!("{iommu}/subsystem"), "class/misc")?;
        self.tree.link(&format!("dev/char/{}", number_text(IOMMU)), iommu)?;
        self.tree.link("class/misc/iommu", iommu)
    }

    fn add_bridge(&mut self, bridge: &Bridge, last_bus: u8) -> io::Result<()> {
        let directory = self.add_directory(bridge.address, None)?;
        let identity = Identity::of_bridge(bridge, last_bus);
        self.describe(&directory, &identity)?;
        let driver = (!bridge.kind.is_conventional()).then(|| "pcieport".to_owned());
        let properties = properties(bridge.address, &identity);
        self.describe_use(
            &directory,
            &properties,
            &Use { is_enabled: driver.is_some(), driver: driver.clone() },
        )?;
        self.tree.write(&format!("{directory}/secondary_bus_number"), format!("{}\n", bridge.bus))?;
        if bridge.slot_reset {
            let slot = format!("bus/pci/slots/{}", self.slots);
            self.slots += 1;
            self.tree.make_directory(&slot)?;
            let Bus { segment, number } = bridge.leads_to();
            self.tree.write(&format!("{slot}/address"), format!("{segment:04x}:{number:02x}:00\n"))?;
            let service = format!("{}:pcie004", bridge.address);
            self.tree.make_directory(&format!("{directory}/{service}"))?;
            self.tree.make_directory(HOTPLUG_DRIVER)?;
            self.tree.link(&format!("{HOTPLUG_DRIVER}/{service}"), &format!("{directory}/{service}"))?;
        }
        self.buses.insert(bridge.leads_to(), directory.clone());
        if let Some(driver) = driver {
            self.bind(&directory, bridge.address, &driver)?;
        }
        let kind = GroupKind::Isolated { firmware_mapping: false };
        let group = bridge.iommu_group.map(|number| Group { number, kind });
        self.show(bridge.address, directory, group, properties)
    }

    /// The directory for a function is in that of its bridge, as functions on a bus that SR-IOV made up are, too.
    fn add_directory(&mut self, address: PciAddress, physical: Option<PciAddress>) -> io::Result<String> {
        if self.functions.contains_key(&address) {
            return Err(Errno::EXIST.into());
        }
        let bus = Bus::of(physical.unwrap_or(address));
        if bus.is_root() {
            self.buses.entry(bus).or_insert_with(|| format!("devices/pci{:04x}:00", bus.segment));
        }
        let parent = self.buses.get(&bus).ok_or(Errno::NODEV)?;
        let directory = format!("{parent}/{address}");
        self.tree.make_directory(&directory)?;
        Ok(directory)
    }

    fn describe(&self, directory: &str, identity: &Identity) -> io::Result<()> {
        self.tree.write(&format!("{directory}/vendor"), format!("0x{:04x}\n", identity.vendor))?;
        self.tree.write(&format!("{directory}/device"), format!("0x{:04x}\n", identity.device))?;
        self.tree.write(&format!("{directory}/class"), format!("0x{:06x}\n", identity.class))?;
        self.tree.write(&format!("{directory}/config"), &identity.config)?;
        self.tree.write(&format!("{directory}/driver_override"), "(null)\n")?;
        self.tree.link(&format!("{directory}/subsystem"), "bus/pci")
    }

    /// The ways to reset a function alone as the kernel probes them: when it finds the function, so the first on a bus still
    /// looks as if it were the only one.
    fn reset_methods(&self, function: &Endpoint) -> Vec<&'static str> {
        let bus = Bus::of(function.address);
        let is_first = !self.functions.keys().any(|other| Bus::of(*other) == bus);
        let forgets = !function.is_virtual() && forgets_in_sleep(function.part);
        let mut methods = match function.reset {
            FunctionReset::FunctionLevel if forgets => vec!["flr", "pm"],
            FunctionReset::FunctionLevel => vec!["flr"],
            FunctionReset::PowerManagement => vec!["pm"],
            FunctionReset::Missing => vec![],
        };
        if is_first && !bus.is_root() && self.buses.contains_key(&bus) {
            methods.push("bus");
        }
        methods
    }

    /// What is described can be found from here on.
    fn show(
        &mut self,
        address: PciAddress,
        directory: String,
        group: Option<Group>,
        properties: String,
    ) -> io::Result<()> {
        let link = format!("bus/pci/devices/{address}");
        let target = directory.clone();
        let function = Function { directory, group: None, driver: None, cdev: None, properties };
        self.functions.insert(address, function);
        self.set_group(address, group)?;
        self.tree.link(&link, &target)
    }

    fn bind(&self, directory: &str, address: PciAddress, name: &str) -> io::Result<()> {
        let driver = format!("bus/pci/drivers/{name}");
        self.tree.make_directory(&driver)?;
        self.tree.link(&format!("{driver}/{address}"), directory)?;
        self.tree.link(&format!("{directory}/driver"), &driver)
    }

    fn add_cdev(&self, directory: &str, cdev: &Cdev) -> io::Result<()> {
        let node = format!("{directory}/vfio-dev/{}", cdev.name);
        self.tree.make_directory(&node)?;
        self.tree.link(&format!("{node}/subsystem"), "class/vfio-dev")?;
        self.tree.link(&format!("{node}/device"), directory)?;
        self.tree.link(&format!("class/vfio-dev/{}", cdev.name), &node)?;
        if let Some(number) = cdev.number {
            self.tree.write(&format!("{node}/dev"), format!("{}\n", number_text(number)))?;
            self.tree.link(&format!("dev/char/{}", number_text(number)), &node)?;
        }
        Ok(())
    }

    fn take_driver_away(&mut self, address: PciAddress) -> io::Result<()> {
        let function = self.functions.get_mut(&address).ok_or(Errno::NODEV)?;
        let (directory, driver, cdev) =
            (function.directory.clone(), function.driver.take(), function.cdev.take());
        if let Some(driver) = driver {
            self.tree.unlink(&format!("{directory}/driver"))?;
            self.tree.unlink(&format!("bus/pci/drivers/{driver}/{address}"))?;
        }
        let Some(cdev) = cdev else { return Ok(()) };
        if let Some(number) = cdev.number {
            self.tree.unlink(&format!("dev/char/{}", number_text(number)))?;
        }
        self.tree.unlink(&format!("class/vfio-dev/{}", cdev.name))?;
        self.tree.remove_directory(&format!("{directory}/vfio-dev"))
    }

    fn function(&self, address: PciAddress) -> Result<&Function, Errno> {
        self.functions.get(&address).ok_or(Errno::NODEV)
    }
}

/// Everything in the order in which the kernel finds it: what is on buses that SR-IOV made up at last.
fn found(topology: &Topology) -> Vec<PciAddress> {
    let bridges = topology.bridges.iter().map(|bridge| bridge.address);
    let all = bridges.chain(topology.functions.iter().map(|function| function.address));
    let mut segments: Vec<_> = all.map(PciAddress::segment).collect();
    segments.sort_unstable();
    segments.dedup();
    let below = |segment| topology.below(Bus { segment, number: 0 });
    let mut found: Vec<_> = segments.into_iter().flat_map(below).collect();
    let others = topology.functions.iter().map(|function| function.address);
    let others: Vec<_> = others.filter(|address| !found.contains(address)).collect();
    found.extend(others);
    found
}

/// Whether a part comes back from sleep as after a reset (`NoSoftRst-`), so that this is a way to reset it.
fn forgets_in_sleep(part: Part) -> bool {
    match part {
        Part::Edu | Part::Nvme => false,
        Part::Igb
        | Part::E1000e
        | Part::I82559er
        | Part::VirtioBlock
        | Part::VirtioNet
        | Part::VirtioQueues(_)
        | Part::VirtioEntropy => true,
    }
}

/// What `uevent` says of a function that nobody drives.
fn properties(address: PciAddress, identity: &Identity) -> String {
    let Identity { vendor, device, class, .. } = identity;
    format!("PCI_CLASS={class:04X}\nPCI_ID={vendor:04X}:{device:04X}\nPCI_SLOT_NAME={address}\n")
}

fn number_text(number: DeviceNumber) -> String {
    format!("{}:{}", number.major, number.minor)
}

#[cfg(test)]
mod tests;
