// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the modelled machine consists of.

use crate::pci_address::PciAddress;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The kernel that runs there.
    pub kernel: KernelVersion,
    /// Whether interrupts are remapped; without it no device can be bound.
    pub interrupt_remapping: bool,
    /// In the order of their addresses.
    pub bridges: Vec<Bridge>,
    /// In the order of their addresses.
    pub functions: Vec<Endpoint>,
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
    /// Whether it has a hotplug slot whose driver can reset it.
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
    /// An NVMe controller: FLR, MSI-X.
    Nvme,
    /// A modern virtio block device.
    VirtioBlock,
    /// A modern virtio network device.
    VirtioNet,
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
