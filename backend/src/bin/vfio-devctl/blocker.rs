// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a row blocks and what to do about it: the server's word, and more where the tool sees who has the function open.

use protocol::extension::{ResetGroupRow, RowReason};
use vhost_device_vfio::reset::{remedy, report};

use crate::holder::{Holder, Way};

/// Another process has the function bound to an iommufd of its own.
pub(crate) const OTHER_CONTEXT: &str = "other-context";
/// Another process has the function's IOMMU group open, as one did before there were cdevs.
pub(crate) const LEGACY_GROUP: &str = "legacy-group";

/// Whether it makes a difference who has a row's function open.
pub(crate) const fn depends_on_holders(reason: RowReason) -> bool {
    match reason {
        RowReason::Unopened
        | RowReason::InUse
        | RowReason::GroupInUse
        | RowReason::NoIommu
        | RowReason::HostUnbind => true,
        RowReason::None
        | RowReason::NoDriver
        | RowReason::KernelDriver
        | RowReason::Bridge
        | RowReason::OtherScope
        | RowReason::VirtualFunction
        | RowReason::Unknown => false,
    }
}

/// The stable name of why a row blocks, which docs/operations.md explains.
pub(crate) fn reason_id(row: &ResetGroupRow, holders: &[Holder]) -> &'static str {
    let is_held = |way| holders.iter().any(|holder| holder.way == way);
    match row.reason {
        RowReason::Unopened | RowReason::InUse | RowReason::GroupInUse | RowReason::NoIommu
            if is_held(Way::Group) =>
        {
            LEGACY_GROUP
        }
        RowReason::InUse if is_held(Way::Cdev) => OTHER_CONTEXT,
        reason => report::reason_id(reason),
    }
}

/// What to do about a row that blocks, in one sentence that names the command; empty for one that does not.
pub(crate) fn remedy(row: &ResetGroupRow, holders: &[Holder]) -> String {
    let address = report::local_address(row.address);
    let hand_over = remedy::hand_over(row);
    let who = names(holders);
    let kill = kill(holders);
    match (reason_id(row, holders), row.reason) {
        (LEGACY_GROUP, _) => format!(
            "Stop {who} ({kill}), as whoever has IOMMU group {} open the legacy way keeps everybody else out, and hand \
             {hand_over}",
            row.iommu_group.0
        ),
        (OTHER_CONTEXT, _) => {
            format!("Stop {who} ({kill}), which has {address} on another iommufd, and hand {hand_over}")
        }
        (_, RowReason::HostUnbind) if !holders.is_empty() => format!(
            "Stop {who} ({kill}), for which the host's unbind of {address} waits; then bind it to vfio-pci again ({}) and hand \
             it over too",
            remedy::bind(address)
        ),
        _ => report::remedy(row),
    }
}

fn names(holders: &[Holder]) -> String {
    let names = holders.iter().map(|holder| format!("process {} ({})", holder.process, holder.command));
    names.collect::<Vec<_>>().join(" and ")
}

fn kill(holders: &[Holder]) -> String {
    let mut processes: Vec<_> = holders.iter().map(|holder| holder.process).collect();
    processes.dedup();
    processes.iter().fold("kill".to_owned(), |command, process| format!("{command} {process}"))
}
