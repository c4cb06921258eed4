// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How far a reset may reach, and which sibling that protects.

use std::collections::BTreeSet;

use protocol::extension::{PciAddress, ResetPolicy};

use super::device::{Consent, Device};
use super::ladder::Reason;

/// The sibling that `policy` protects from a hot reset of `target`: one of `functions`, the whole set, or of `devices`,
/// those of this process in it. Another process protects its own.
pub(super) fn protection<'a>(
    policy: ResetPolicy,
    target: PciAddress,
    functions: &BTreeSet<PciAddress>,
    mut devices: impl Iterator<Item = &'a Device>,
) -> Option<Reason> {
    let sibling = match policy {
        ResetPolicy::Function => functions.iter().copied().find(|function| *function != target),
        ResetPolicy::Group => {
            devices.find(|device| device.address != target && is_in_use(device)).map(|device| device.address)
        }
        ResetPolicy::Force => None,
    };
    sibling.map(|sibling| Reason::Protected { sibling, policy })
}

/// A device that is idle has nothing to lose.
fn is_in_use(device: &Device) -> bool {
    device.usage.is_active() && device.consent == Consent::Nobody
}
