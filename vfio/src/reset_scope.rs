// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reset of a function takes along, as the kernel computes it when it is asked (`VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`),
//! but without asking it.

use crate::hierarchy::Hierarchy;
use crate::own_reset::OwnReset;
use crate::pci_address::PciAddress;

/// What a hot reset of a function takes along.
///
/// One thing sysfs does not show: that the kernel knows of a bridge or device that does not survive such a reset
/// (`PCI_DEV_FLAGS_NO_BUS_RESET`). Where it does, there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetScope {
    /// There is no hot reset: no bridge leads to the function's bus.
    Missing,
    /// The hotplug slot. Older kernels (6.12) count only functions with device number 0 as in it.
    Slot {
        /// The slot's name.
        name: String,
        /// The port that leads to it.
        bridge: PciAddress,
        /// In the kernel's order.
        affected: Vec<PciAddress>,
    },
    /// The bus.
    Bus {
        /// The bridge that leads to it.
        bridge: PciAddress,
        /// In the kernel's order.
        affected: Vec<PciAddress>,
    },
}

impl ResetScope {
    /// The functions that it takes, those behind further bridges among them.
    pub fn affected(&self) -> &[PciAddress] {
        match self {
            Self::Missing => &[],
            Self::Slot { affected, .. } | Self::Bus { affected, .. } => affected,
        }
    }

    /// The bridge that the reset is asserted at.
    pub const fn bridge(&self) -> Option<PciAddress> {
        match self {
            Self::Missing => None,
            Self::Slot { bridge, .. } | Self::Bus { bridge, .. } => Some(*bridge),
        }
    }
}

impl Hierarchy {
    /// What a hot reset of a function takes along.
    pub fn reset_scope(&self, address: PciAddress) -> ResetScope {
        let bridge = self.place(address).and_then(|place| place.bridge);
        let Some(bridge) = bridge.and_then(|bridge| self.place(bridge)) else { return ResetScope::Missing };
        let (slot, bridge) = (bridge.slot.clone(), bridge.function.address);
        let affected = self.below(bridge);
        match slot {
            Some(name) => ResetScope::Slot { name, bridge, affected },
            None => ResetScope::Bus { bridge, affected },
        }
    }

    /// Whether vfio holds `other` in the same set as `address`, once its drivers have both: virtual functions are each alone, and
    /// what is behind another bridge is of that bridge's set.
    pub fn is_in_set_of(&self, address: PciAddress, other: PciAddress) -> bool {
        let is_set_member = |address| {
            self.place(address).is_some_and(|place| {
                place.bridge.is_some() && !place.function.is_virtual && !place.is_bridge()
            })
        };
        address == other || (is_set_member(address) && is_set_member(other) && address.is_on_bus_of(other))
    }

    /// How the kernel would reset a function alone: the first way it lists that works. A bus reset is listed for what was
    /// found first on a bus, and works only where nothing else is.
    pub fn own_reset(&self, address: PciAddress) -> Option<OwnReset> {
        let scope = self.reset_scope(address);
        let is_alone = scope.affected() == [address];
        let mut listed = self.place(address)?.own_resets.iter();
        listed.find(|method| is_alone || !method.reaches_bus()).copied()
    }
}
