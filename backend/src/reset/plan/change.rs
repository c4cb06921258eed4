// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One step from the machine as it is to one on which a VM's devices can be reset.

use vfio::PciAddress;

use crate::reset::remedy;

/// A step, which somebody else takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The host's driver lets the function go.
    Unbind {
        /// The function.
        function: PciAddress,
        /// The driver.
        driver: String,
    },
    /// vfio-pci takes the function.
    Bind {
        /// The function.
        function: PciAddress,
    },
    /// The function goes to the VM as well.
    HandOver {
        /// The function.
        function: PciAddress,
    },
}

impl Change {
    /// The function that it is about.
    pub const fn function(&self) -> PciAddress {
        match self {
            Self::Unbind { function, .. } | Self::Bind { function } | Self::HandOver { function } => {
                *function
            }
        }
    }

    /// Its stable name.
    pub const fn id(&self) -> &'static str {
        match self {
            Self::Unbind { .. } => "unbind",
            Self::Bind { .. } => "bind",
            Self::HandOver { .. } => "hand-over",
        }
    }

    /// What it is, said of `function`: its address, or a word for it.
    pub fn sentence(&self, function: &str) -> String {
        match self {
            Self::Unbind { driver, .. } => format!("take {function} from {driver}"),
            Self::Bind { .. } => format!("bind {function} to vfio-pci"),
            Self::HandOver { .. } => format!("hand {function} over too"),
        }
    }

    /// The command that does it. Handing over is the launcher's, who names all functions of a VM at once.
    pub fn command(&self) -> Option<String> {
        match self {
            Self::Unbind { function, .. } => Some(remedy::unbind(*function)),
            Self::Bind { function } => Some(remedy::bind(*function)),
            Self::HandOver { .. } => None,
        }
    }
}
