// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Structures, ids and options.

use super::*;

#[test]
fn ids_begin_at_1_and_every_kind_of_object_takes_the_lowest_free_one() {
    let mut host = Host::new();
    assert_eq!(host.ioas(), 1);
    assert_eq!(host.context.add_device(Some(1)), 2);
    assert_eq!(host.hwpt(2, 1), Ok(3));
    assert_eq!(host.ioas(), 4);
    host.context.remove_device(2, &mut host.locked);
    host.destroy(3).unwrap();
    assert_eq!(host.ioas(), 2);
    assert_eq!(host.context.add_device(None), 3);
    assert_eq!(host.context.add_device(None), 5);
}

#[test]
fn a_failed_allocation_uses_up_no_id() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    host.map_process(ioas, None, 0x1000, PAGE, 0).unwrap();
    assert_eq!(host.hwpt(device, ioas), Err(Errno::FAULT));
    assert_eq!(host.attach(device, ioas), Err(Errno::FAULT));
    assert_eq!(host.context.ids().collect::<Vec<_>>(), [ioas, device]);
}

#[test]
fn a_structure_that_is_too_short_is_einval_and_one_that_is_shorter_than_it_says_efault() {
    let sizes = [
        (DESTROY, 8),
        (IOAS_ALLOC, 12),
        (IOAS_ALLOW_IOVAS, 24),
        (IOAS_COPY, 40),
        (IOAS_IOVA_RANGES, 32),
        (IOAS_MAP, 40),
        (IOAS_UNMAP, 24),
        (OPTION, 24),
        (VFIO_IOAS, 12),
        (HWPT_ALLOC, 24),
        (GET_HW_INFO, 32),
        (HWPT_SET_DIRTY_TRACKING, 16),
        (HWPT_GET_DIRTY_BITMAP, 48),
        (HWPT_INVALIDATE, 32),
        (FAULT_QUEUE_ALLOC, 16),
        (IOAS_MAP_FILE, 40),
        (VIOMMU_ALLOC, 24),
        (IOAS_NOIOMMU_GET_PA, 40),
    ];
    let mut host = Host::new();
    for (number, least) in sizes {
        let mut bytes = vec![0; least];
        bytes[..4].copy_from_slice(&u32::try_from(least - 1).unwrap().to_ne_bytes());
        assert_eq!(host.raw(number, &mut Structure(bytes.clone()), None), Err(Errno::INVAL), "{number:#x}");
        bytes[..4].copy_from_slice(&u32::try_from(least + 1).unwrap().to_ne_bytes());
        assert_eq!(host.raw(number, &mut Structure(bytes.clone()), None), Err(Errno::FAULT), "{number:#x}");
        bytes[..4].copy_from_slice(&u32::try_from(least).unwrap().to_ne_bytes());
        let result = host.raw(number, &mut Structure(bytes), None);
        assert_ne!(result, Err(Errno::FAULT), "{number:#x}");
    }
}

#[test]
fn a_longer_structure_is_taken_if_its_tail_is_zero_and_is_e2big_otherwise() {
    let mut host = Host::new();
    let mut reply = host.call(IOAS_ALLOC, &[0, 0, 0, 0], &[0; 512]).unwrap();
    assert_eq!(reply.word(8), 1);
    assert_eq!(host.call(IOAS_ALLOC, &[0, 0, 0, 1], &[]), Err(Errno::TOOBIG));
    assert_eq!(host.call(IOAS_ALLOC, &[0, 0], &[0, 1 << 63]), Err(Errno::TOOBIG));
    assert_eq!(host.ioas(), 2);
}

#[test]
fn an_older_and_shorter_structure_is_answered_as_far_as_it_goes() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    let mut reply = host.call(HWPT_ALLOC, &[0, device, ioas, 0, 0], &[]).unwrap();
    assert_eq!((reply.0.len(), reply.word(16)), (24, 3));
}

#[test]
fn what_is_reserved_or_unknown_is_eopnotsupp() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    let hwpt = host.hwpt(device, ioas).unwrap();
    let requests: &[(u32, &[u32], &[u64])] = &[
        (IOAS_ALLOC, &[1, 0], &[]),
        (IOAS_ALLOW_IOVAS, &[ioas, 0, 1], &[0]),
        (IOAS_COPY, &[8, ioas, ioas], &[PAGE, 0, 0]),
        (IOAS_IOVA_RANGES, &[ioas, 0, 1], &[0, 0]),
        (IOAS_MAP, &[8 | READABLE, ioas, 0], &[0, PAGE, 0]),
        (IOAS_MAP, &[READABLE, ioas, 1], &[0, PAGE, 0]),
        (IOAS_MAP_FILE, &[8 | READABLE, ioas, 0], &[0, PAGE, 0]),
        (OPTION, &[2, 0, 0], &[0]),
        (OPTION, &[0, 1 << 16, 0], &[0]),
        (OPTION, &[0, 2, 0], &[0]),
        (OPTION, &[0, 1, ioas], &[0]),
        (OPTION, &[1, 2, ioas], &[0]),
        (VFIO_IOAS, &[ioas, 3], &[]),
        (VFIO_IOAS, &[ioas, 1 << 16], &[]),
        (HWPT_ALLOC, &[0, device, ioas, 0, 1], &[]),
        (HWPT_ALLOC, &[1, device, ioas, 0, 0], &[]),
        (HWPT_ALLOC, &[2, device, ioas, 0, 0], &[]),
        (HWPT_ALLOC, &[16, device, ioas, 0, 0], &[]),
        (HWPT_ALLOC, &[0, device, ioas, 0, 0, 1, 8], &[0, 0]),
        (HWPT_ALLOC, &[0, device, hwpt, 0, 0], &[]),
        (GET_HW_INFO, &[2, device, 0], &[0, 0, 0]),
        (GET_HW_INFO, &[0, device, 0], &[0, 1 << 40, 0]),
        (GET_HW_INFO, &[1, device, 0], &[0, 2, 0]),
        (HWPT_SET_DIRTY_TRACKING, &[2, hwpt, 0], &[]),
        (HWPT_SET_DIRTY_TRACKING, &[1, hwpt, 0], &[]),
        (HWPT_GET_DIRTY_BITMAP, &[hwpt, 0, 0], &[0, PAGE, PAGE, 0]),
        (HWPT_INVALIDATE, &[hwpt], &[0, 0, 1 << 32]),
        (FAULT_QUEUE_ALLOC, &[0, 0, 0], &[]),
        (VIOMMU_ALLOC, &[0, 1, device, hwpt, 0], &[]),
        (IOAS_NOIOMMU_GET_PA, &[0, ioas, 0], &[0, PAGE, 0]),
    ];
    for (number, words, doubles) in requests {
        assert_eq!(host.call(*number, words, doubles), Err(Errno::OPNOTSUPP), "{number:#x} {words:?}");
    }
}

#[test]
fn an_id_of_nothing_or_of_the_wrong_kind_is_enoent() {
    let mut host = Host::new();
    let device = host.context.add_device(Some(1));
    let ioas = host.ioas();
    for id in [0, device, 77, u32::MAX] {
        let requests: &[(u32, &[u32], &[u64])] = &[
            (IOAS_ALLOW_IOVAS, &[id, 0, 0], &[0]),
            (IOAS_COPY, &[READABLE, ioas, id], &[PAGE, 0, 0]),
            (IOAS_IOVA_RANGES, &[id, 0, 0], &[0, 0]),
            (IOAS_MAP, &[READABLE, id, 0], &[0, PAGE, 0]),
            (IOAS_MAP_FILE, &[READABLE, id, 0], &[0, PAGE, 0]),
            (IOAS_UNMAP, &[id], &[0, PAGE]),
            (OPTION, &[1, 1, id], &[0]),
            (VFIO_IOAS, &[id, 1], &[]),
            (HWPT_SET_DIRTY_TRACKING, &[1, id, 0], &[]),
            (HWPT_GET_DIRTY_BITMAP, &[id, 0, 0], &[0, PAGE, PAGE, 0]),
        ];
        for (number, words, doubles) in requests {
            assert_eq!(host.call(*number, words, doubles), Err(Errno::NOENT), "{number:#x} {id}");
        }
    }
    for id in [0, ioas, 77] {
        assert_eq!(host.hwpt(id, ioas), Err(Errno::NOENT));
        assert_eq!(host.call(GET_HW_INFO, &[0, id, 0], &[0, 0, 0]), Err(Errno::NOENT));
    }
    for id in [0, 77] {
        assert_eq!(host.destroy(id), Err(Errno::NOENT));
        assert_eq!(host.call(HWPT_INVALIDATE, &[id], &[0, 0, 0]), Err(Errno::NOENT));
        assert_eq!(host.hwpt(device, id), Err(Errno::INVAL));
    }
    assert_eq!(host.hwpt(device, device), Err(Errno::INVAL));
}

#[test]
fn what_the_kernel_does_not_know_is_enotty() {
    for (kernel, number) in [
        (KernelVersion::Linux6_12, IOAS_MAP_FILE),
        (KernelVersion::Linux6_12, VIOMMU_ALLOC),
        (KernelVersion::Linux6_12, IOAS_NOIOMMU_GET_PA),
        (KernelVersion::Linux7_3, IOAS_CHANGE_PROCESS),
        (KernelVersion::Linux7_3, 0x3b96),
        (KernelVersion::Linux7_3, 0x3b7f),
        (KernelVersion::Linux7_3, 0x4b81),
        (KernelVersion::Linux7_3, 0xc00c_3b81),
    ] {
        let mut host = Host::with_kernel(kernel);
        assert_eq!(host.call(number, &[0; 9], &[]), Err(Errno::NOTTY), "{number:#x}");
    }
}

#[test]
fn an_object_in_use_is_not_destroyed() {
    let (mut host, ioas, device) = Host::attached();
    let hwpt = host.attach(device, ioas).unwrap();
    for id in [device, hwpt, ioas] {
        assert_eq!(host.destroy(id), Err(Errno::BUSY), "{id}");
    }
    host.detach(device);
    assert_eq!(host.destroy(device), Err(Errno::BUSY));
    assert_eq!(host.destroy(hwpt), Err(Errno::NOENT));
    assert_eq!(host.destroy(ioas), Ok(()));
}

#[test]
fn a_manual_page_table_holds_its_ioas_until_it_is_destroyed() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    let hwpt = host.hwpt(device, ioas).unwrap();
    assert_eq!(host.destroy(ioas), Err(Errno::BUSY));
    assert_eq!(host.destroy(hwpt), Ok(()));
    assert_eq!(host.destroy(ioas), Ok(()));
}

#[test]
fn the_compatibility_ioas_is_set_told_cleared_and_forgotten_with_its_ioas() {
    let mut host = Host::new();
    let ioas = host.ioas();
    assert_eq!(host.call(VFIO_IOAS, &[0, 0], &[]), Err(Errno::NODEV));
    assert_eq!(host.call(0x3b71, &[0; 7], &[]), Err(Errno::NODEV));
    for clear in [false, true] {
        host.call(VFIO_IOAS, &[ioas, 1], &[]).unwrap();
        assert_eq!(host.call(VFIO_IOAS, &[0, 0], &[]).unwrap().word(4), ioas);
        if clear {
            host.call(VFIO_IOAS, &[0, 2], &[]).unwrap();
        } else {
            host.destroy(ioas).unwrap();
            assert_eq!(host.ioas(), ioas);
        }
        assert_eq!(host.call(VFIO_IOAS, &[0, 0], &[]), Err(Errno::NODEV));
    }
}

#[test]
fn accounting_changes_only_for_who_may_and_before_there_are_objects() {
    let mut host = Host::new();
    let set = |host: &mut Host, value| host.call(OPTION, &[0, 0, 0], &[value]).map(drop);
    let get = |host: &mut Host| host.call(OPTION, &[0, 1, 0], &[7]).unwrap().double(16);
    assert_eq!(set(&mut host, 1), Err(Errno::PERM));
    host.caller.may_change_accounting = true;
    assert_eq!(set(&mut host, 2), Err(Errno::INVAL));
    assert_eq!(get(&mut host), 0);
    assert_eq!(set(&mut host, 1), Ok(()));
    assert_eq!(get(&mut host), 1);
    host.ioas();
    assert_eq!(set(&mut host, 0), Err(Errno::BUSY));
}

#[test]
fn large_pages_are_turned_off_only_before_they_may_be_used() {
    let (mut host, ioas, device) = Host::attached();
    let set = |host: &mut Host, value| host.call(OPTION, &[1, 0, ioas], &[value]).map(drop);
    let get = |host: &mut Host| host.call(OPTION, &[1, 1, ioas], &[7]).unwrap().double(16);
    assert_eq!(get(&mut host), 1);
    assert_eq!(set(&mut host, 2), Err(Errno::INVAL));
    host.map(ioas, &memory(PAGE), 0, PAGE, 0).unwrap();
    assert_eq!(set(&mut host, 0), Err(Errno::INVAL));
    host.detach(device);
    assert_eq!(set(&mut host, 0), Ok(()));
    assert_eq!((get(&mut host), host.ranges(ioas).1), (0, PAGE));
    assert_eq!(set(&mut host, 1), Ok(()));
    host.map(ioas, &memory(PAGE), 0, 1, PAGE).unwrap();
    assert_eq!(set(&mut host, 0), Err(Errno::ADDRINUSE));
}

#[test]
fn the_hardware_describes_itself_as_far_as_there_is_room() {
    let mut host = Host::new();
    let device = host.context.add_device(Some(1));
    for (room, written) in [(0, 0), (8, 8), (24, 24), (30, 30)] {
        let mut info = host.call(GET_HW_INFO, &[0, device, room], &[0, 0, 0]).unwrap();
        assert_eq!((info.word(12), info.word(24), info.word(28), info.double(32)), (24, 1, 0, 8));
        assert_eq!(host.array.len(), written);
        host.array.clear();
    }
    let alone = host.context.add_device(None);
    assert_eq!(host.call(GET_HW_INFO, &[0, alone, 0], &[0, 0, 0]), Err(Errno::OPNOTSUPP));
}
