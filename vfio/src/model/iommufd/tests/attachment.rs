// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices, groups and page tables.

use super::*;

/// Two functions of group 1 and one of group 2.
fn three_devices() -> (Host, [u32; 3]) {
    let mut host = Host::new();
    let devices = [1, 1, 2].map(|group| host.context.add_device(Some(group)));
    (host, devices)
}

#[test]
fn a_group_is_blocked_until_one_of_its_devices_is_attached() {
    let (mut host, [first, second, other]) = three_devices();
    let ioas = host.ioas();
    host.map(ioas, &memory(PAGE), 0, PAGE, 0).unwrap();
    assert!(host.context.memory(first).is_none());
    host.attach(first, ioas).unwrap();
    assert_eq!(page_at(&host, first, 0), Some(0));
    assert_eq!(page_at(&host, second, 0), Some(0));
    assert!(host.context.memory(other).is_none());
    host.detach(first);
    assert!(host.context.memory(second).is_none());
}

#[test]
fn devices_of_an_ioas_share_one_automatic_page_table_that_goes_with_the_last() {
    let (mut host, [first, second, other]) = three_devices();
    let ioas = host.ioas();
    let hwpt = host.attach(first, ioas).unwrap();
    assert_eq!(host.attach(second, ioas), Ok(hwpt));
    assert_eq!(host.attach(other, ioas), Ok(hwpt));
    assert_eq!(host.attach(first, ioas), Ok(hwpt));
    host.detach(first);
    host.detach(other);
    assert_eq!(host.destroy(hwpt), Err(Errno::BUSY));
    host.context.remove_device(second, &mut host.locked);
    assert_eq!(host.destroy(hwpt), Err(Errno::NOENT));
}

#[test]
fn a_manual_page_table_is_never_chosen_automatically() {
    let (mut host, [first, _, other]) = three_devices();
    let ioas = host.ioas();
    let manual = host.hwpt(first, ioas).unwrap();
    let automatic = host.attach(other, ioas).unwrap();
    assert_ne!(automatic, manual);
    assert_eq!(host.attach(first, manual), Ok(manual));
    assert_eq!(host.attach(first, ioas), Ok(automatic));
    assert_eq!(host.destroy(manual), Ok(()));
}

#[test]
fn the_second_device_of_a_group_goes_where_the_group_is_or_nowhere() {
    let (mut host, [first, second, _]) = three_devices();
    let (here, there) = (host.ioas(), host.ioas());
    let hwpt = host.attach(first, here).unwrap();
    let elsewhere = host.hwpt(first, there).unwrap();
    assert_eq!(host.attach(second, there), Err(Errno::INVAL));
    assert_eq!(host.attach(second, elsewhere), Err(Errno::INVAL));
    assert_eq!(host.attach(second, hwpt), Ok(hwpt));
}

#[test]
fn an_attached_device_moves_its_whole_group() {
    let (mut host, [first, second, other]) = three_devices();
    let (here, there) = (host.ioas(), host.ioas());
    let file = memory(2 * PAGE);
    host.map(here, &file, 0, PAGE, 0).unwrap();
    host.map(there, &file, PAGE, PAGE, 0).unwrap();
    for device in [first, second, other] {
        host.attach(device, here).unwrap();
    }
    let manual = host.hwpt(second, there).unwrap();
    host.attach(second, manual).unwrap();
    assert_eq!([first, second, other].map(|device| page_at(&host, device, 0)), [Some(1), Some(1), Some(0)]);
    // The sibling can take it back, and nobody is told.
    host.attach(first, here).unwrap();
    assert_eq!([first, second, other].map(|device| page_at(&host, device, 0)), [Some(0); 3]);
    assert_eq!(host.destroy(manual), Ok(()));
}

#[test]
fn a_move_that_fails_leaves_everything_as_it_was() {
    let (mut host, [first, second, _]) = three_devices();
    let (here, there) = (host.ioas(), host.ioas());
    let hwpt = host.attach(first, here).unwrap();
    host.attach(second, here).unwrap();
    host.map_process(there, None, 0, PAGE, 0).unwrap();
    assert_eq!(host.attach(first, there), Err(Errno::FAULT));
    host.unmap(there, 0, PAGE).unwrap();
    host.map(there, &memory(PAGE), 0, PAGE, 0xfee0_0000).unwrap();
    assert_eq!(host.attach(second, there), Err(Errno::ADDRINUSE));
    assert_eq!(host.ranges(there), (vec![(0, u64::MAX)], 1));
    assert_eq!((host.attach(first, here), host.attach(second, here)), (Ok(hwpt), Ok(hwpt)));
    assert_eq!(host.charge(), 0);
}

#[test]
fn moving_between_page_tables_of_one_ioas_is_free() {
    let (mut host, ioas, device) = Host::attached();
    let automatic = host.attach(device, ioas).unwrap();
    host.map(ioas, &memory(PAGE), 0, PAGE, 0).unwrap();
    let manual = host.hwpt(device, ioas).unwrap();
    host.attach(device, manual).unwrap();
    assert_eq!(host.destroy(automatic), Err(Errno::NOENT));
    assert_eq!(host.ranges(ioas).0, [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)]);
    assert_eq!((page_at(&host, device, 0), host.charge()), (Some(0), PAGE));
}

#[test]
fn a_wrong_target_is_enoent_or_einval() {
    let (mut host, [first, second, _]) = three_devices();
    for id in [0, 77, u32::MAX] {
        assert_eq!(host.attach(first, id), Err(Errno::NOENT));
    }
    assert_eq!(host.attach(first, second), Err(Errno::INVAL));
    assert_eq!(host.attach(first, first), Err(Errno::INVAL));
}

/// One way to map something.
type Map<'a> = &'a dyn Fn(&mut Host, u32) -> Result<u64, Errno>;

#[test]
fn what_was_not_checked_without_a_device_fails_when_one_is_attached() {
    let file = memory(PAGE);
    let ordinary = ordinary_file();
    let too_much = memory(32 * MIB);
    let cases: [(Errno, Map<'_>); 8] = [
        (Errno::FAULT, &|host, ioas| host.map_process(ioas, None, 0xdead_0000, PAGE, 0)),
        (Errno::INVAL, &|host, ioas| host.map(ioas, &file, 0, 2 * PAGE, 0)),
        (Errno::INVAL, &|host, ioas| host.map(ioas, &ordinary, 0, PAGE, 0)),
        (Errno::NOMEM, &|host, ioas| host.map(ioas, &too_much, 0, 32 * MIB, 0)),
        (Errno::ADDRINUSE, &|host, ioas| host.map(ioas, &file, 0, PAGE, 0xfeef_f000)),
        (Errno::ADDRINUSE, &|host, ioas| host.map(ioas, &file, 0, PAGE, 1 << 48)),
        (Errno::ADDRINUSE, &|host, ioas| host.map(ioas, &file, 0, PAGE / 2, 0)),
        (Errno::ADDRINUSE, &|host, ioas| host.map(ioas, &file, PAGE / 2, PAGE, 0)),
    ];
    for (index, (expected, map)) in cases.into_iter().enumerate() {
        let mut host = Host::new();
        let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
        map(&mut host, ioas).unwrap();
        assert_eq!(host.attach(device, ioas), Err(expected), "case {index}");
        assert_eq!(host.ranges(ioas), (vec![(0, u64::MAX)], 1), "case {index}");
        assert!(host.locked.is_empty() && host.context.memory(device).is_none(), "case {index}");
    }
}

#[test]
fn a_mapping_where_interrupts_go_fits_a_page_table_but_no_device() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    host.map(ioas, &memory(PAGE), 0, PAGE, 0xfee0_0000).unwrap();
    let hwpt = host.hwpt(device, ioas).unwrap();
    assert_eq!(host.attach(device, hwpt), Err(Errno::ADDRINUSE));
}

#[test]
fn a_group_that_is_elsewhere_is_told_so_before_memory_is_looked_at() {
    let (mut host, [first, second, _]) = three_devices();
    let (here, there) = (host.ioas(), host.ioas());
    host.attach(first, here).unwrap();
    host.map_process(there, None, 0, PAGE, 0).unwrap();
    assert_eq!(host.attach(second, there), Err(Errno::INVAL));
}

#[test]
fn detaching_what_is_not_attached_changes_nothing() {
    let (mut host, [first, second, _]) = three_devices();
    let ioas = host.ioas();
    host.attach(first, ioas).unwrap();
    host.detach(second);
    assert!(host.context.memory(first).is_some());
}

#[test]
fn a_group_is_owned_as_long_as_one_of_its_devices_is_bound() {
    let (mut host, [first, second, _]) = three_devices();
    assert!(host.context.has_device_of_group(1) && !host.context.has_device_of_group(3));
    host.context.remove_device(first, &mut host.locked);
    assert!(host.context.has_device_of_group(1));
    host.context.remove_device(second, &mut host.locked);
    assert!(!host.context.has_device_of_group(1));
}

#[test]
fn a_device_without_an_iommu_reserves_nothing_and_sees_nothing() {
    let (mut host, [first, ..]) = three_devices();
    let alone = host.context.add_device(None);
    let ioas = host.ioas();
    host.map(ioas, &memory(PAGE), 0, PAGE, 0xfee0_0000).unwrap();
    let hwpt = host.attach(alone, ioas).unwrap();
    assert_eq!(host.ranges(ioas), (vec![(0, u64::MAX)], PAGE));
    assert!(host.context.memory(alone).is_none());
    assert_eq!(host.charge(), PAGE);
    // Its table is of no use to the IOMMU.
    assert_eq!(host.attach(first, hwpt), Err(Errno::INVAL));
    // Nor does it have a group to take along.
    let (second, elsewhere) = (host.context.add_device(None), host.ioas());
    assert_eq!(host.attach(second, ioas), Ok(hwpt));
    host.attach(second, elsewhere).unwrap();
    assert_eq!(host.destroy(hwpt), Err(Errno::BUSY));
    host.unmap(ioas, 0, u64::MAX).unwrap();
    let automatic = host.attach(first, ioas).unwrap();
    assert_ne!(automatic, hwpt);
}
