// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the modelled machine consists of, and which parts of it a reset takes together.

mod contradiction;
mod error;
mod field;
mod file;

use crate::pci_address::PciAddress;

pub use error::{LoadError, Problem, TopologyError};

/// A kernel whose behaviour is modelled; they differ in little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelVersion {
    /// 6.12: no `IOMMU_IOAS_MAP_FILE`, no no-IOMMU cdevs, the error interrupt on PCI Express only.
    Linux6_12,
    /// 7.3.
    #[default]
    Linux7_3,
}

/// A machine.
///
/// A file describes it, as those in the folder `topologies` do. These are all the fields there are. `address`, `kind`, `bus` and
/// `part` are needed; the comment beside any other says what holds without it, and what else it may be.
///
/// ```toml
/// description = "for people"              # nothing
/// kernel = "7.3"                          # "7.3"; or "6.12"
/// interrupt-remapping = true              # true; false: no device can be bound
/// dynamic-msix = true                     # true; false: MSI-X gets no more vectors while it is on
///
/// [[bridge]]
/// address = "0000:00:04.0"
/// kind = "root-port"                      # or "upstream-port", "downstream-port", "express-to-pci", "pci"
/// bus = 1                                 # the one behind it
/// group = 1                               # no IOMMU
/// slot-reset = true                       # false: it leads to no hotplug slot that can be reset on its own
/// no-bus-reset = true                     # false: what is behind it survives a reset of the bus
/// link = "unconfirmed"                    # "trains": the link comes up again after a reset
/// ari = true                              # false: the device behind it has functions 0 to 7 only
///
/// [[function]]
/// address = "0000:01:00.0"
/// part = "edu"                            # or "igb", "e1000e", "i82559er", "nvme", "virtio-blk", "virtio-net",
///                                         # "virtio-net-mq", "virtio-net-mq-refusing", "virtio-net-mq-silent", "virtio-rng"
/// group = 5                               # no IOMMU
/// driver = "vfio-pci"                     # none
/// reset = "flr"                           # the part's own way; or "pm", "none"
/// firmware-mapping = true                 # false: the firmware demands no mapping
/// virtual-function-of = "0000:01:00.1"    # it is a physical function
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The kernel that runs there.
    pub kernel: KernelVersion,
    /// Whether interrupts are remapped; without it no device can be bound.
    pub interrupt_remapping: bool,
    /// Whether MSI-X can get more vectors while it is on, which is for the platform's interrupt controller to say.
    pub dynamic_msix: bool,
    /// In the order of their addresses.
    pub bridges: Vec<Bridge>,
    /// In the order in which the kernel found them: by address, virtual functions last. What is added later is found later.
    pub functions: Vec<Endpoint>,
}

/// A bus. Number 0 is its segment's root bus; to any other leads a bridge, or SR-IOV made it up for virtual functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bus {
    /// PCI segment (domain).
    pub segment: u16,
    /// Bus number.
    pub number: u8,
}

/// What a bridge is, which decides what lies below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeKind {
    /// A PCI Express root port.
    RootPort,
    /// The port of a switch that faces the root.
    UpstreamPort,
    /// A port of a switch that faces a device.
    DownstreamPort,
    /// A bridge to a conventional bus, itself an Express device.
    ExpressToPci,
    /// A bridge between two conventional buses.
    Pci,
}

/// What a bridge's link does after a reset of what is below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// It comes up again.
    #[default]
    Trains,
    /// The kernel does not see it come up: a hot reset is `ENOTTY`, although it was done.
    Unconfirmed,
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub kind: BridgeKind,
    /// The number of the bus behind it, in its own segment.
    pub bus: u8,
    /// Whether what it leads to is a hotplug slot whose driver can reset it.
    pub slot_reset: bool,
    /// Whether a reset of its bus is known not to work (`PCI_DEV_FLAGS_NO_BUS_RESET`).
    pub no_bus_reset: bool,
    /// What its link does.
    pub link: Link,
    /// `None` without an IOMMU.
    pub iommu_group: Option<u32>,
}

/// A device that the model can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// QEMU's teaching device: a DMA engine and an interrupt; no reset of its own.
    Edu,
    /// Intel 82576: Express, FLR, MSI-X.
    Igb,
    /// Intel 82574L: power management reset only.
    E1000e,
    /// Intel 82559ER: conventional, power management.
    I82559er,
    /// An `NVMe` controller: FLR, MSI-X.
    Nvme,
    /// A modern virtio block device.
    VirtioBlock,
    /// A modern virtio network device.
    VirtioNet,
    /// The same with two queue pairs.
    VirtioQueues(ControlQueue),
    /// A modern virtio entropy device.
    VirtioEntropy,
}

/// What becomes of the commands of a network device with several queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlQueue {
    /// They are carried out.
    Answers,
    /// They are refused: the device is broken.
    Refuses,
    /// Nothing: the device is broken.
    Silent,
}

/// A way to reset one function alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionReset {
    /// Function level reset.
    FunctionLevel,
    /// To sleep and back.
    PowerManagement,
    /// None.
    Missing,
}

/// Who drives a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Nobody.
    Missing,
    /// `vfio-pci` or a variant of it, by name.
    Vfio(String),
    /// Any other driver, by name.
    Kernel(String),
}

/// A function that is no bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub part: Part,
    /// How it can be reset alone; a part's own way unless the file says otherwise.
    pub reset: FunctionReset,
    /// `None` without an IOMMU.
    pub iommu_group: Option<u32>,
    /// Who drives it when the machine starts.
    pub driver: Driver,
    /// The function that it is a virtual function of.
    pub physical_function: Option<PciAddress>,
    /// Whether the firmware demands a mapping of its own for it.
    pub firmware_mapping: bool,
}

/// What a hot reset of a function takes along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetScope {
    /// There is no such reset: on a root bus, on a bus made up by SR-IOV, or where a bridge is known not to survive it.
    Missing,
    /// The hotplug slot.
    Slot {
        /// The port that leads to it.
        bridge: PciAddress,
        /// As `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` lists them.
        affected: Vec<PciAddress>,
    },
    /// The bus.
    Bus {
        /// The bridge that leads to it.
        bridge: PciAddress,
        /// As `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` lists them.
        affected: Vec<PciAddress>,
    },
}

/// The functions that vfio resets together (`struct vfio_device_set`), by what makes them one. Only those that a VFIO driver
/// drives are members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceSet {
    /// One function.
    Alone(PciAddress),
    /// What is in the hotplug slot on a bus.
    Slot(Bus),
    /// What is on a bus.
    Bus(Bus),
}

impl Bus {
    /// The bus that an address is on.
    pub const fn of(address: PciAddress) -> Self {
        Self { segment: address.segment(), number: address.bus() }
    }

    /// Whether it is its segment's root bus.
    pub const fn is_root(self) -> bool {
        self.number == 0
    }
}

impl Bridge {
    /// The bus behind it.
    pub const fn leads_to(&self) -> Bus {
        Bus { segment: self.address.segment(), number: self.bus }
    }
}

impl BridgeKind {
    /// Whether it leads to an Express link, at whose end there is one device.
    pub const fn is_express_port(self) -> bool {
        matches!(self, Self::RootPort | Self::DownstreamPort)
    }

    /// Whether the bus behind it is a conventional one.
    pub const fn is_conventional(self) -> bool {
        matches!(self, Self::ExpressToPci | Self::Pci)
    }
}

impl Part {
    /// How it is reset alone.
    pub const fn own_reset(self) -> FunctionReset {
        match self {
            Self::Edu => FunctionReset::Missing,
            Self::E1000e | Self::I82559er => FunctionReset::PowerManagement,
            Self::Igb
            | Self::Nvme
            | Self::VirtioBlock
            | Self::VirtioNet
            | Self::VirtioQueues(_)
            | Self::VirtioEntropy => FunctionReset::FunctionLevel,
        }
    }
}

impl Driver {
    /// The driver of this name; `None` where no driver can be called so.
    pub fn from_name(name: &str) -> Option<Self> {
        let is_name = name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        // Variants are called after it: `mlx5_vfio_pci`, `nvgrace-gpu-vfio-pci`.
        let is_vfio = name.replace('_', "-").ends_with("vfio-pci");
        is_name.then(|| if is_vfio { Self::Vfio(name.to_owned()) } else { Self::Kernel(name.to_owned()) })
    }
}

impl Driver {
    /// Its name, if there is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Missing => None,
            Self::Vfio(name) | Self::Kernel(name) => Some(name),
        }
    }

    /// Whether it uses the DMA of its function's IOMMU group, of which there is one user. Those of ports and pci-stub do not.
    pub fn uses_dma(&self) -> bool {
        matches!(self, Self::Kernel(name) if name != "pcieport" && name != "pci-stub")
    }
}

impl Endpoint {
    /// Whether it is a virtual function.
    pub const fn is_virtual(&self) -> bool {
        self.physical_function.is_some()
    }
}

impl ResetScope {
    /// The functions that it takes.
    pub fn affected(&self) -> &[PciAddress] {
        match self {
            Self::Missing => &[],
            Self::Slot { affected, .. } | Self::Bus { affected, .. } => affected,
        }
    }
}

impl Topology {
    /// The bridge at an address.
    pub fn bridge(&self, address: PciAddress) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.address == address)
    }

    /// The function at an address that is no bridge.
    pub fn function(&self, address: PciAddress) -> Option<&Endpoint> {
        self.functions.iter().find(|function| function.address == address)
    }

    /// The bridge that leads to an address's bus.
    pub fn parent_bridge(&self, address: PciAddress) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.leads_to() == Bus::of(address))
    }

    /// What is on a bus and, after each bridge, what is below that: the order of `pci_walk_bus`.
    pub fn below(&self, bus: Bus) -> Vec<PciAddress> {
        let below =
            |address| self.bridge(address).map_or_else(Vec::new, |bridge| self.below(bridge.leads_to()));
        self.on(bus).into_iter().flat_map(|address| [vec![address], below(address)].concat()).collect()
    }

    /// The greatest number of a bus behind a bridge.
    pub fn last_bus(&self, bridge: &Bridge) -> u8 {
        let below = self.below(bridge.leads_to());
        let buses = below.iter().filter_map(|address| self.bridge(*address)).map(|bridge| bridge.bus);
        buses.max().unwrap_or(bridge.bus)
    }

    /// What a hot reset of a function takes along.
    pub fn reset_scope(&self, address: PciAddress) -> ResetScope {
        let Some(bridge) = self.parent_bridge(address).filter(|bridge| self.can_reset_below(bridge)) else {
            return ResetScope::Missing;
        };
        let (bridge, mut affected) = (bridge.address, self.below(bridge.leads_to()));
        if self.is_in_slot(address) {
            affected.retain(|other| Bus::of(*other) != Bus::of(address) || self.is_in_slot(*other));
            ResetScope::Slot { bridge, affected }
        } else {
            ResetScope::Bus { bridge, affected }
        }
    }

    /// Which set a function joins when a VFIO driver takes it.
    pub fn device_set(&self, address: PciAddress) -> DeviceSet {
        let bus = Bus::of(address);
        if bus.is_root() || self.function(address).is_some_and(Endpoint::is_virtual) {
            return DeviceSet::Alone(address);
        }
        match self.reset_scope(address) {
            ResetScope::Slot { .. } => DeviceSet::Slot(bus),
            ResetScope::Missing | ResetScope::Bus { .. } => DeviceSet::Bus(bus),
        }
    }

    /// What is on a bus, in the order in which the kernel found it.
    fn on(&self, bus: Bus) -> Vec<PciAddress> {
        let functions = self.functions.iter().map(|function| function.address);
        let mut found: Vec<_> = functions.filter(|address| Bus::of(*address) == bus).collect();
        for bridge in
            self.bridges.iter().map(|bridge| bridge.address).filter(|address| Bus::of(*address) == bus)
        {
            let place = found.iter().take_while(|address| **address < bridge).count();
            found.insert(place, bridge);
        }
        found
    }

    /// Whether neither the bridge nor one below it is known not to survive.
    fn can_reset_below(&self, bridge: &Bridge) -> bool {
        let below = self.below(bridge.leads_to());
        let mut bridges = below.iter().filter_map(|address| self.bridge(*address));
        !bridge.no_bus_reset && !bridges.any(|bridge| bridge.no_bus_reset)
    }

    /// Whether an address is in a hotplug slot. In 6.12 a port's slot is only device 0, so that virtual functions with
    /// greater device numbers are in none.
    fn is_in_slot(&self, address: PciAddress) -> bool {
        let is_held = match self.kernel {
            KernelVersion::Linux6_12 => address.devfn() < 8,
            KernelVersion::Linux7_3 => true,
        };
        is_held && self.parent_bridge(address).is_some_and(|bridge| bridge.slot_reset)
    }
}

#[cfg(test)]
mod tests;
