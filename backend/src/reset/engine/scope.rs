// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a hot reset of a device would hit, as the engine needs to know it.

use protocol::extension::{Ownership, PciAddress};

use crate::reset::group::ResetGroup;
use crate::reset::report;

/// The kernel's answer about a device's reset set; true at the moment it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Neither the slot nor the bus can be reset.
    None,
    /// These functions are hit, the device among them.
    Functions {
        /// Whether the kernel would do it.
        is_available: bool,
        /// Which.
        functions: Vec<ScopeFunction>,
    },
}

/// A function that a hot reset hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Whose it is. One that is `Ours` is bound to our iommufd, by this process or another.
    pub ownership: Ownership,
}

impl From<&ResetGroup> for Scope {
    fn from(group: &ResetGroup) -> Self {
        let ResetGroup::Functions(info) = group else { return Self::None };
        let functions = info.functions.iter().map(|function| ScopeFunction {
            address: report::wire_address(function.address),
            ownership: match function.ownership {
                vfio::Ownership::Bound(_) => Ownership::Ours,
                vfio::Ownership::Implied => Ownership::Implied,
                vfio::Ownership::NotOwned => Ownership::Blocking,
            },
        });
        Self::Functions { is_available: info.all_owned, functions: functions.collect() }
    }
}

impl ScopeFunction {
    pub(super) fn is_bound(self) -> bool {
        self.ownership == Ownership::Ours
    }

    pub(super) fn is_blocking(self) -> bool {
        self.ownership == Ownership::Blocking
    }
}
