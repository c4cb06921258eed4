// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The decision table and the result table, row by row; and that none of these tests would miss a broken row.

use rustix::io::Errno;

use crate::ioctl;
use crate::model::decision::{Broken, Obstacle, Situation};
use crate::model::direct::Direct;
use crate::model::kernel::Node;

const OWNED: u32 = 0;
const NOT_OWNED: u32 = u32::MAX;
const DEV_ID: u32 = 1;
const AVAILABLE: u32 = 2;

/// One slot with a pair in one group and a third function in a group of its own, all on vfio-pci.
const SLOT: &str = r#"
[[bridge]]
address = "0000:00:04.0"
kind = "root-port"
bus = 1
group = 4
[[function]]
address = "0000:01:00.0"
part = "edu"
group = 5
driver = "vfio-pci"
[[function]]
address = "0000:01:00.1"
part = "edu"
group = 5
driver = "vfio-pci"
[[function]]
address = "0000:01:00.2"
part = "igb"
group = 6
driver = "vfio-pci"
"#;
const ASKED: &str = "0000:01:00.0";
const PAIRED: &str = "0000:01:00.1";
const THIRD: &str = "0000:01:00.2";

const ON_ROOT_BUS: &str = r#"
[[function]]
address = "0000:00:05.0"
part = "edu"
group = 1
driver = "vfio-pci"
"#;

type Check = fn(Option<Broken>) -> bool;

fn with(topology: &str, broken: Option<Broken>) -> Direct {
    let mut direct = Direct::new(topology);
    direct.kernel.rules.broken = broken;
    direct
}

/// Binds the asked function after `prepare`, and compares flags and the rows of the other two.
fn rows_are(broken: Option<Broken>, prepare: impl FnOnce(&mut Direct), expected: (u32, u32, u32)) -> bool {
    let mut direct = with(SLOT, broken);
    prepare(&mut direct);
    let context = direct.iommufd();
    let (file, id) = direct.bind(ASKED, context).unwrap();
    let (flags, rows) = direct.info(file).unwrap();
    let own = rows[0] == (ASKED.parse().unwrap(), id);
    own && (flags, rows[1].1, rows[2].1) == expected
}

fn an_unopened_sibling_of_the_group_is_implied(broken: Option<Broken>) -> bool {
    rows_are(broken, |_| {}, (DEV_ID, OWNED, NOT_OWNED))
}

fn a_function_without_a_driver_blocks(broken: Option<Broken>) -> bool {
    let unbind = |direct: &mut Direct| {
        let address = PAIRED.parse().unwrap();
        direct.kernel.begin_unbind(address).unwrap();
        assert!(direct.kernel.finish_unbind(address));
    };
    rows_are(broken, unbind, (DEV_ID, NOT_OWNED, NOT_OWNED))
}

fn an_unopened_function_of_a_foreign_group_blocks(broken: Option<Broken>) -> bool {
    rows_are(broken, |_| {}, (DEV_ID, OWNED, NOT_OWNED))
}

fn a_function_of_another_context_blocks(broken: Option<Broken>) -> bool {
    let bind = |direct: &mut Direct| {
        let other = direct.iommufd();
        direct.bind(THIRD, other).unwrap();
    };
    rows_are(broken, bind, (DEV_ID, OWNED, NOT_OWNED))
}

fn a_function_in_a_legacy_container_blocks(broken: Option<Broken>) -> bool {
    let open = |direct: &mut Direct| {
        let container = direct.kernel.open(Node::Container).unwrap();
        direct.open_by_group(THIRD, container);
    };
    rows_are(broken, open, (DEV_ID, OWNED, NOT_OWNED))
}

fn a_function_without_an_iommu_blocks(broken: Option<Broken>) -> bool {
    let mut direct = with(&SLOT.replace("group = 6\n", ""), broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.info(file).unwrap().1[2].1 == NOT_OWNED
}

fn a_bound_function_is_named_by_its_id(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, first) = direct.bind(ASKED, context).unwrap();
    let (_, third) = direct.bind(THIRD, context).unwrap();
    let (flags, rows) = direct.info(file).unwrap();
    flags == DEV_ID | AVAILABLE && rows.iter().map(|row| row.1).eq([first, OWNED, third])
}

fn a_function_that_its_group_opened_over_the_context_is_named_by_its_id(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.open_by_group(THIRD, context);
    let (flags, rows) = direct.info(file).unwrap();
    flags == DEV_ID | AVAILABLE && rows[2].1 != OWNED && rows[2].1 != NOT_OWNED
}

fn a_complete_set_is_reset(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, context).unwrap();
    direct.hot_reset(file) == Ok(0)
}

fn a_reset_with_flags_is_malformed(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, context).unwrap();
    direct.plain(file, ioctl::DEVICE_PCI_HOT_RESET, &[12, 1, 0]) == Err(Errno::INVAL)
}

fn a_cdev_takes_no_list_of_groups(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, context).unwrap();
    direct.plain(file, ioctl::DEVICE_PCI_HOT_RESET, &[16, 0, 1, 0]) == Err(Errno::INVAL)
}

fn there_is_no_reset_on_the_root_bus(broken: Option<Broken>) -> bool {
    let mut direct = with(ON_ROOT_BUS, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind("0000:00:05.0", context).unwrap();
    direct.hot_reset(file) == Err(Errno::NODEV)
}

fn a_set_without_all_affected_functions_is_not_reset(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    direct.bind_driver(THIRD, "igb");
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.hot_reset(file) == Err(Errno::INVAL)
}

fn a_set_with_a_foreign_member_is_not_reset(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let (context, other) = (direct.iommufd(), direct.iommufd());
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, other).unwrap();
    direct.hot_reset(file) == Err(Errno::INVAL)
}

fn a_set_with_memory_in_use_is_busy(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, context).unwrap();
    direct.kernel.busy.insert(THIRD.parse().unwrap());
    direct.hot_reset(file) == Err(Errno::BUSY)
}

fn a_set_with_a_pending_unbind_is_asked_again_later(broken: Option<Broken>) -> bool {
    let mut direct = with(SLOT, broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, context).unwrap();
    direct.kernel.begin_unbind(THIRD.parse().unwrap()).unwrap();
    direct.hot_reset(file) == Err(Errno::AGAIN)
}

fn a_link_that_does_not_come_back_is_enotty(broken: Option<Broken>) -> bool {
    let port = "kind = \"root-port\"";
    let mut direct = with(&SLOT.replace(port, &format!("{port}\nlink = \"unconfirmed\"")), broken);
    let context = direct.iommufd();
    let (file, _) = direct.bind(ASKED, context).unwrap();
    direct.bind(THIRD, context).unwrap();
    direct.hot_reset(file) == Err(Errno::NOTTY)
}

/// Every check, by its name.
macro_rules! checks {
    ($($check:ident),+ $(,)?) => {
        const CHECKS: &[(&str, Check)] = &[$((stringify!($check), $check)),+];
    };
}

checks![
    an_unopened_sibling_of_the_group_is_implied,
    a_function_without_a_driver_blocks,
    an_unopened_function_of_a_foreign_group_blocks,
    a_function_of_another_context_blocks,
    a_function_in_a_legacy_container_blocks,
    a_function_without_an_iommu_blocks,
    a_bound_function_is_named_by_its_id,
    a_function_that_its_group_opened_over_the_context_is_named_by_its_id,
    a_complete_set_is_reset,
    a_reset_with_flags_is_malformed,
    a_cdev_takes_no_list_of_groups,
    there_is_no_reset_on_the_root_bus,
    a_set_without_all_affected_functions_is_not_reset,
    a_set_with_a_foreign_member_is_not_reset,
    a_set_with_memory_in_use_is_busy,
    a_set_with_a_pending_unbind_is_asked_again_later,
    a_link_that_does_not_come_back_is_enotty,
];

/// The checks that do not hold.
fn failing(broken: Option<Broken>) -> Vec<&'static str> {
    CHECKS.iter().filter(|(_, check)| !check(broken)).map(|(name, _)| *name).collect()
}

#[test]
fn every_row_of_both_tables_is_as_the_kernel_has_it() {
    assert_eq!(failing(None), Vec::<&str>::new());
}

#[test]
fn a_broken_row_of_either_table_is_noticed() {
    let rows = [
        Situation::OutsideSet,
        Situation::Bound(0),
        Situation::GroupBound,
        Situation::OtherContext,
        Situation::ForeignGroup,
        Situation::Contained,
        Situation::NoGroup,
    ];
    let obstacles = [
        Obstacle::Argument,
        Obstacle::NoReset,
        Obstacle::SetIncomplete,
        Obstacle::NotOwned,
        Obstacle::MemoryInUse,
        Obstacle::DeviceLocked,
        Obstacle::LinkUnconfirmed,
    ];
    let broken =
        rows.map(Broken::Row).into_iter().chain(obstacles.map(Broken::Check)).chain([Broken::OwnedFlag]);
    for broken in broken {
        assert!(!failing(Some(broken)).is_empty(), "nobody notices {broken:?}");
    }
}
