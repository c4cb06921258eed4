// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What keeps a device from being handed to a VM, or from being reset there.

use vfio::PciAddress;

use super::change::Change;
use crate::reset::remedy;

/// A function that stands in the way, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The function.
    pub function: PciAddress,
    /// Why.
    pub reason: Reason,
}

/// Why a function stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no function at that address.
    NoSuchFunction,
    /// It is a bridge, which cannot be handed over.
    BridgeHandedOver,
    /// It is a bridge, which VFIO cannot hold.
    Bridge,
    /// No driver has it, and the kernel resets only what VFIO drivers hold.
    NoDriver,
    /// The host's driver of this name has it.
    KernelDriver(String),
    /// A VFIO driver has it, but there is no node to open.
    NoCdev,
    /// It is behind no IOMMU.
    NoIommu,
    /// The platform does not remap interrupts.
    NoInterruptRemapping,
    /// The firmware demands a mapping for its IOMMU group.
    FirmwareMapping,
    /// The host's driver of this name has it, which keeps every function of its IOMMU group from being bound.
    SiblingHasDriver(String),
    /// Another VM has it, or has something of its IOMMU group.
    OtherVm {
        /// The VM.
        vm: String,
        /// What it has.
        has: PciAddress,
    },
    /// Nobody hands it over, nor anything of its IOMMU group.
    NotHandedOver,
    /// It is a virtual function, which is in a reset set of its own.
    VirtualFunction,
    /// It is behind another bridge, and so in another reset set.
    OtherScope,
    /// Neither its slot nor its bus can be reset.
    NoSlotOrBusReset,
    /// It cannot be reset alone.
    NoFunctionReset,
    /// It has virtual functions, and VFIO drivers take no such function.
    HasVirtualFunctions,
}

impl Reason {
    /// Its stable name.
    pub const fn id(&self) -> &'static str {
        match self {
            Self::NoSuchFunction => "no-such-function",
            Self::BridgeHandedOver => "bridge-handed-over",
            Self::Bridge => "bridge",
            Self::NoDriver => "no-driver",
            Self::KernelDriver(_) => "kernel-driver",
            Self::NoCdev => "no-cdev",
            Self::NoIommu => "no-iommu",
            Self::NoInterruptRemapping => "no-interrupt-remapping",
            Self::FirmwareMapping => "firmware-mapping",
            Self::SiblingHasDriver(_) => "sibling-has-driver",
            Self::OtherVm { .. } => "other-vm",
            Self::NotHandedOver => "not-handed-over",
            Self::VirtualFunction => "virtual-function",
            Self::OtherScope => "other-scope",
            Self::NoSlotOrBusReset => "no-slot-or-bus-reset",
            Self::NoFunctionReset => "no-function-reset",
            Self::HasVirtualFunctions => "has-virtual-functions",
        }
    }
}

impl Obstacle {
    pub(super) const fn new(function: PciAddress, reason: Reason) -> Self {
        Self { function, reason }
    }

    /// The step that removes it, or brings it nearer to that; `None` if nothing does that a plan may ask for.
    pub fn remedy(&self) -> Option<Change> {
        let function = self.function;
        match &self.reason {
            Reason::NoDriver => Some(Change::Bind { function }),
            Reason::KernelDriver(driver) | Reason::SiblingHasDriver(driver) => {
                Some(Change::Unbind { function, driver: driver.clone() })
            }
            Reason::NotHandedOver => Some(Change::HandOver { function }),
            _ => None,
        }
    }

    /// Whether it stays whatever the plan asks for.
    pub fn is_permanent(&self) -> bool {
        self.remedy().is_none()
    }

    /// What is so.
    pub fn sentence(&self) -> String {
        let function = self.function;
        match &self.reason {
            Reason::NoSuchFunction => format!("there is no function {function}"),
            Reason::BridgeHandedOver => format!("{function} is a bridge, which cannot be handed over"),
            Reason::Bridge => format!("{function} is a bridge, which VFIO cannot hold"),
            Reason::NoDriver => {
                format!("{function} has no driver, and the kernel resets only what VFIO holds")
            }
            Reason::KernelDriver(driver) => format!("the host's {driver} has {function}"),
            Reason::NoCdev => format!(
                "the kernel gives {function} no node to open: it has no VFIO cdevs, or none without an IOMMU"
            ),
            Reason::NoIommu => format!("{function} is behind no IOMMU"),
            Reason::NoInterruptRemapping => {
                format!("the platform does not remap interrupts, so {function} could forge them")
            }
            Reason::FirmwareMapping => {
                format!("the firmware demands a mapping of its own for the IOMMU group of {function}")
            }
            Reason::SiblingHasDriver(driver) => {
                format!("the host's {driver} has {function}, and with it the whole IOMMU group")
            }
            Reason::OtherVm { vm, has } if *has == function => format!("VM `{vm}` has {function}"),
            Reason::OtherVm { vm, has } => {
                format!("VM `{vm}` has {has}, and with it the IOMMU group of {function}")
            }
            Reason::NotHandedOver => {
                format!("{function} is not handed over, nor anything of its IOMMU group")
            }
            Reason::VirtualFunction => {
                format!("{function} is a virtual function, which is in a reset set of its own")
            }
            Reason::OtherScope => {
                format!("{function} is behind a bridge in the scope, and so in another reset set")
            }
            Reason::NoSlotOrBusReset => format!("neither slot nor bus of {function} can be reset"),
            Reason::NoFunctionReset => format!("{function} cannot be reset alone"),
            Reason::HasVirtualFunctions => {
                format!("{function} has virtual functions, and no VFIO driver takes it with those")
            }
        }
    }

    /// What to do about one that the plan does not remove.
    pub fn advice(&self) -> String {
        let function = self.function;
        match &self.reason {
            Reason::NoSuchFunction => "Look at the addresses with lspci -D".into(),
            Reason::BridgeHandedOver => format!("Name the functions behind {function} instead"),
            Reason::Bridge | Reason::OtherScope => {
                "Put the device behind a port of its own, where no bridge is reset along".into()
            }
            Reason::NoCdev => {
                "Use a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, without an IOMMU Linux 7.3 \
                               or newer"
                    .into()
            }
            Reason::NoIommu => {
                "Enable the IOMMU in the firmware and the kernel command line (intel_iommu=on)".into()
            }
            Reason::NoInterruptRemapping => remedy::INTERRUPT_REMAPPING.into(),
            Reason::FirmwareMapping => remedy::firmware_mapping(function),
            Reason::OtherVm { vm, .. } => {
                format!(
                    "Give both to one VM: what is reset together, or in one IOMMU group, cannot be shared with `{vm}`"
                )
            }
            Reason::VirtualFunction => format!(
                "Use a function reset, or disable the virtual functions (echo 0 > \
                 /sys/bus/pci/devices/{function}/physfn/sriov_numvfs)"
            ),
            Reason::NoSlotOrBusReset => {
                format!("Put {function} behind a port of its own, or do without a reset")
            }
            Reason::NoFunctionReset => "Use a hot reset".into(),
            Reason::HasVirtualFunctions => {
                format!("Disable them ({}) and plan again", remedy::disable_virtual_functions(function))
            }
            Reason::NoDriver
            | Reason::KernelDriver(_)
            | Reason::SiblingHasDriver(_)
            | Reason::NotHandedOver => String::new(),
        }
    }
}
