// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a function says it is.

use crate::model::topology::{Bridge, BridgeKind};

/// The class of a PCI bridge.
const BRIDGE: u32 = 0x06_0400;

/// What a function says it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// PCI vendor id.
    pub(crate) vendor: u16,
    /// PCI device id.
    pub(crate) device: u16,
    /// Class code, 24 bits.
    pub(crate) class: u32,
    /// The config space.
    pub(crate) config: Vec<u8>,
}

impl Identity {
    /// A bridge of QEMU's; `last_bus` is the greatest number of a bus behind it.
    pub(super) fn of_bridge(bridge: &Bridge, last_bus: u8) -> Self {
        let (vendor, device): (u16, u16) = match bridge.kind {
            BridgeKind::RootPort => (0x1b36, 0x000c),
            BridgeKind::UpstreamPort => (0x104c, 0x8232),
            BridgeKind::DownstreamPort => (0x104c, 0x8233),
            BridgeKind::ExpressToPci => (0x1b36, 0x000e),
            BridgeKind::Pci => (0x1b36, 0x0001),
        };
        let mut config = vec![0; 64];
        let fields: [(usize, &[u8]); 5] = [
            (0x00, &vendor.to_le_bytes()),
            (0x02, &device.to_le_bytes()),
            (0x08, &(BRIDGE << 8).to_le_bytes()),
            (0x0e, &[1]),
            (0x18, &[bridge.address.bus(), bridge.bus, last_bus]),
        ];
        for (offset, bytes) in fields {
            config.splice(offset..offset + bytes.len(), bytes.iter().copied());
        }
        Self { vendor, device, class: BRIDGE, config }
    }
}
