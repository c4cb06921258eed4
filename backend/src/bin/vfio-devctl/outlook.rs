// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether what a reset group answers now will hold, and what that depends on.

use protocol::extension::{GroupReason, Ownership, ResetGroup, ResetGroupRow, RowFlags};
use vhost_device_vfio::reset::report;

/// How the answer can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// The group can be reset, and stays so while the conditions are met.
    Holds,
    /// The group cannot be reset until the conditions are met.
    CanChange,
    /// The group can never be reset as the machine is built.
    Never,
}

impl Outlook {
    pub(crate) fn of(group: &ResetGroup) -> Self {
        let is_permanent = |row: &ResetGroupRow| report::is_permanent(row.reason);
        match group.reason {
            GroupReason::Available if is_locked(group) => Self::CanChange,
            GroupReason::Available => Self::Holds,
            GroupReason::Blocked if !group.rows.iter().any(is_permanent) => Self::CanChange,
            GroupReason::Blocked | GroupReason::NoReset => Self::Never,
        }
    }

    /// Its stable name.
    pub(crate) const fn id(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::CanChange => "can-change",
            Self::Never => "never",
        }
    }

    /// What comes before the conditions in a sentence.
    pub(crate) const fn introduction(self) -> &'static str {
        match self {
            Self::Holds => "yes, as long as",
            Self::CanChange => "it can be reset once",
            Self::Never => "it cannot be reset, because",
        }
    }

    /// What it depends on, each a clause of its own.
    pub(crate) fn conditions(self, group: &ResetGroup) -> Vec<String> {
        match self {
            Self::Holds => holding(&group.rows),
            Self::CanChange => changing(&group.rows),
            Self::Never if group.reason == GroupReason::NoReset => {
                vec!["neither the slot nor the bus of the device has a reset".into()]
            }
            Self::Never => permanent(&group.rows)
                .map(|row| format!("{} is in the scope ({})", row.address, report::reason_id(row.reason)))
                .collect(),
        }
    }
}

fn permanent(rows: &[ResetGroupRow]) -> impl Iterator<Item = &ResetGroupRow> {
    rows.iter().filter(|row| report::is_permanent(row.reason))
}

/// Whether the kernel resets nothing of a group because the host is taking a function of it away.
pub(crate) fn is_locked(group: &ResetGroup) -> bool {
    group.rows.iter().any(is_leaving)
}

fn is_leaving(row: &ResetGroupRow) -> bool {
    row.flags.contains(RowFlags::UNBINDING)
}

/// What has to become different for a group that is blocked or locked.
fn changing(rows: &[ResetGroupRow]) -> Vec<String> {
    let wanted = |row: &ResetGroupRow| match row.ownership {
        _ if is_leaving(row) => Some(format!(
            "{}, which the host is taking from {}, is back on it and handed over",
            row.address,
            row.driver.as_str()
        )),
        Ownership::Blocking => Some(format!("{} does not block any more", row.address)),
        Ownership::Ours | Ownership::Implied => None,
    };
    rows.iter().filter_map(wanted).collect()
}

/// What must stay as it is for an available group.
fn holding(rows: &[ResetGroupRow]) -> Vec<String> {
    let of = |ownership, has_cookie: Option<bool>| {
        let is_wanted = move |row: &&ResetGroupRow| {
            row.ownership == ownership && has_cookie.is_none_or(|wanted| row.cookie().is_some() == wanted)
        };
        rows.iter().filter(is_wanted).map(|row| row.address.to_string()).collect::<Vec<_>>()
    };
    let (ours, others) = (of(Ownership::Ours, Some(true)), of(Ownership::Ours, Some(false)));
    let mut conditions = Vec::new();
    if !ours.is_empty() {
        conditions.push(format!("{} {} bound to this iommufd", ours.join(", "), stay(&ours)));
    }
    if !others.is_empty() {
        let stay = stay(&others);
        conditions.push(format!(
            "{} {stay} bound to it by another process, which may let go at any time",
            others.join(", ")
        ));
    }
    for row in rows.iter().filter(|row| row.ownership == Ownership::Implied) {
        let group = row.iommu_group.0;
        conditions.push(format!(
            "{} stays on its VFIO driver and in IOMMU group {group}, of which a function is bound",
            row.address
        ));
    }
    conditions.push("no other function appears in the slot or on the bus".into());
    conditions
}

fn stay(functions: &[String]) -> &'static str {
    if functions.len() == 1 { "stays" } else { "stay" }
}

#[cfg(test)]
mod tests {
    use protocol::extension::{Cookie, Generation, IommuGroup, Name, PciAddress, RowReason};

    use super::*;

    fn row(devfn: u8, ownership: Ownership, reason: RowReason) -> ResetGroupRow {
        ResetGroupRow {
            address: PciAddress { segment: 0, bus: 1, devfn },
            ownership,
            cookie: Cookie(0),
            flags: RowFlags::default(),
            iommu_group: IommuGroup(7),
            reason,
            header_type: 0,
            vfio_device: Name::new("vfio1"),
            driver: Name::new("vfio-pci"),
        }
    }

    fn ours(devfn: u8) -> ResetGroupRow {
        let row = row(devfn, Ownership::Ours, RowReason::None);
        ResetGroupRow { cookie: Cookie(u64::from(devfn)), flags: RowFlags::HAS_COOKIE, ..row }
    }

    fn elsewhere(devfn: u8) -> ResetGroupRow {
        row(devfn, Ownership::Ours, RowReason::None)
    }

    fn implied(devfn: u8) -> ResetGroupRow {
        row(devfn, Ownership::Implied, RowReason::None)
    }

    fn blocking(devfn: u8, reason: RowReason) -> ResetGroupRow {
        row(devfn, Ownership::Blocking, reason)
    }

    fn group(reason: GroupReason, rows: &[ResetGroupRow]) -> ResetGroup {
        ResetGroup { generation: Generation(1), reason, rows: rows.into() }
    }

    fn answer(group: &ResetGroup) -> (Outlook, Vec<String>) {
        let outlook = Outlook::of(group);
        (outlook, outlook.conditions(group))
    }

    const NOTHING_APPEARS: &str = "no other function appears in the slot or on the bus";

    #[test]
    fn an_available_group_depends_on_its_devices_staying_bound() {
        let group = group(GroupReason::Available, &[ours(0), ours(1)]);
        let bound = "0000:01:00.0, 0000:01:00.1 stay bound to this iommufd".to_owned();
        assert_eq!(answer(&group), (Outlook::Holds, vec![bound, NOTHING_APPEARS.into()]));
    }

    #[test]
    fn an_implied_function_must_stay_where_it_is() {
        let group = group(GroupReason::Available, &[ours(0), implied(1)]);
        let (_, conditions) = answer(&group);
        let implied =
            "0000:01:00.1 stays on its VFIO driver and in IOMMU group 7, of which a function is bound";
        assert_eq!(conditions, ["0000:01:00.0 stays bound to this iommufd", implied, NOTHING_APPEARS]);
    }

    #[test]
    fn a_device_of_another_process_may_be_let_go() {
        let group = group(GroupReason::Available, &[ours(0), elsewhere(1)]);
        let (_, conditions) = answer(&group);
        let other = "0000:01:00.1 stays bound to it by another process, which may let go at any time";
        assert_eq!(conditions[1], other);
    }

    #[test]
    fn an_unbind_that_waits_locks_a_group_that_is_all_ours() {
        let leaving = ResetGroupRow { flags: RowFlags::HAS_COOKIE | RowFlags::UNBINDING, ..ours(1) };
        let (outlook, conditions) = answer(&group(GroupReason::Available, &[ours(0), leaving]));
        assert_eq!(outlook, Outlook::CanChange);
        let back = "0000:01:00.1, which the host is taking from vfio-pci, is back on it and handed over";
        assert_eq!(conditions, [back]);
    }

    #[test]
    fn a_blocked_group_can_change_with_what_blocks() {
        let rows = [ours(0), blocking(1, RowReason::InUse), blocking(2, RowReason::NoDriver)];
        let expected = ["0000:01:00.1 does not block any more", "0000:01:00.2 does not block any more"];
        let (outlook, conditions) = answer(&group(GroupReason::Blocked, &rows));
        assert_eq!(outlook, Outlook::CanChange);
        assert_eq!(conditions, expected);
    }

    #[test]
    fn a_bridge_in_the_scope_is_for_ever() {
        let rows = [ours(1), blocking(0, RowReason::Bridge), blocking(2, RowReason::NoDriver)];
        let (outlook, conditions) = answer(&group(GroupReason::Blocked, &rows));
        assert_eq!(outlook, Outlook::Never);
        assert_eq!(conditions, ["0000:01:00.0 is in the scope (bridge)"]);
    }

    #[test]
    fn where_no_reset_is_there_never_is_one() {
        let (outlook, conditions) = answer(&group(GroupReason::NoReset, &[]));
        assert_eq!(outlook, Outlook::Never);
        assert_eq!(conditions, ["neither the slot nor the bus of the device has a reset"]);
    }
}
