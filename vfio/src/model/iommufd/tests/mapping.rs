// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be mapped, copied and unmapped where.

use super::*;

#[test]
fn without_a_device_nothing_is_checked_but_places_that_overlap() {
    let mut host = Host::new();
    let ioas = host.ioas();
    let ordinary = ordinary_file();
    assert_eq!(host.map_process(ioas, None, 0xdead_0001, 3, 5), Ok(5));
    assert_eq!(host.map_process(ioas, None, 0, PAGE, 0xfee0_0000), Ok(0xfee0_0000));
    assert_eq!(host.map(ioas, &ordinary, 0, 64 * MIB, 1 << 50), Ok(1 << 50));
    assert_eq!(host.map(ioas, &memory(PAGE), 0, PAGE, 7), Err(Errno::EXIST));
    assert_eq!(host.charge(), 0);
    assert_eq!(host.context.mapped_bytes(), 3 + PAGE + 64 * MIB);
}

#[test]
fn with_a_device_everything_is_checked_at_once() {
    let (mut host, ioas, _) = Host::attached();
    let file = memory(4 * PAGE);
    host.map(ioas, &file, 0, 2 * PAGE, MIB).unwrap();
    let at = 8 * MIB;
    for (expected, start, length, iova) in [
        (Errno::EXIST, 0, PAGE, MIB),
        (Errno::EXIST, 0, PAGE, MIB + PAGE),
        (Errno::EXIST, 0, 4 * PAGE, MIB - PAGE),
        (Errno::INVAL, 0, 0, at),
        (Errno::INVAL, 0, PAGE - 1, at),
        (Errno::INVAL, 0, PAGE, at + 1),
        (Errno::INVAL, 1, PAGE, at),
        (Errno::INVAL, 0, PAGE, 0xfee0_0000),
        (Errno::INVAL, 0, 4 * PAGE, 0xfedf_f000),
        (Errno::INVAL, 0, PAGE, 1 << 48),
        (Errno::INVAL, 0, 5 * PAGE, at),
        (Errno::INVAL, 4 * PAGE, PAGE, at),
        (Errno::OVERFLOW, 0, u64::MAX, at),
        (Errno::OVERFLOW, 0, PAGE, u64::MAX),
        (Errno::OVERFLOW, 0, 2 * PAGE, u64::MAX - PAGE + 1),
        (Errno::OVERFLOW, u64::MAX, PAGE, at),
    ] {
        let result = host.map(ioas, &file, start, length, iova);
        assert_eq!(result, Err(expected), "{start:#x} {length:#x} {iova:#x}");
    }
    assert_eq!(host.map_with(ioas, &file, FIXED, 0, PAGE, at), Err(Errno::INVAL));
    assert_eq!(host.map(ioas, &file, 0, 4 * PAGE, 0xfef0_0000), Ok(0xfef0_0000));
    assert_eq!(host.map(ioas, &file, 0, PAGE, (1 << 48) - PAGE), Ok((1 << 48) - PAGE));
}

#[test]
fn a_file_is_mapped_by_its_descriptor_only_if_it_is_memory() {
    let (mut host, ioas, _) = Host::attached();
    assert_eq!(host.map(ioas, &ordinary_file(), 0, PAGE, 0), Err(Errno::INVAL));
    let no_file = Structure::new(&[ALL_FLAGS, ioas, 0], &[0, PAGE, 0]);
    assert_eq!(host.raw(IOAS_MAP_FILE, &mut { no_file }, None), Err(Errno::BADF));
}

#[test]
fn memory_of_a_process_ends_with_the_page_that_its_file_ends_in() {
    let (mut host, ioas, _) = Host::attached();
    let file = memory(2 * PAGE);
    file.set_len(PAGE + 1).unwrap();
    let behind = |offset| Some((Arc::clone(&file), offset));
    assert_eq!(host.map_process(ioas, behind(0), 0x7f00_0000, 2 * PAGE, 0), Ok(0));
    assert_eq!(host.map_process(ioas, behind(PAGE), 0x7f00_0000, 2 * PAGE, MIB), Err(Errno::FAULT));
    assert_eq!(host.map_process(ioas, None, 0x7f00_0000, PAGE, MIB), Err(Errno::FAULT));
    assert_eq!(host.map_process(ioas, behind(0), u64::MAX - 1, PAGE, MIB), Err(Errno::OVERFLOW));
    // The same file by its descriptor has whole pages only.
    assert_eq!(host.map(ioas, &file, 0, 2 * PAGE, MIB), Err(Errno::INVAL));
}

#[test]
fn a_device_cannot_be_let_write_to_a_mapped_file_whose_writes_have_to_be_tracked() {
    let (mut host, ioas, _) = Host::attached();
    let file = Some((ordinary_file(), 0));
    assert_eq!(host.map_process(ioas, file.clone(), 0x7f00_0000, PAGE, 0), Err(Errno::FAULT));
    let mut structure = Structure::new(&[FIXED | READABLE, ioas, 0], &[0x7f00_0000, PAGE, 0]);
    assert_eq!(host.raw(IOAS_MAP, &mut structure, file), Ok(()));
}

#[test]
fn a_device_reads_and_writes_what_is_mapped() {
    let (mut host, ioas, device) = Host::attached();
    let file = memory(8 * PAGE);
    host.map(ioas, &file, 2 * PAGE, 2 * PAGE, MIB).unwrap();
    host.map_process(ioas, Some((Arc::clone(&file), 5 * PAGE)), 0x7f00_0000, PAGE, MIB + 2 * PAGE).unwrap();
    assert_eq!(page_at(&host, device, MIB), Some(2));
    assert_eq!(page_at(&host, device, MIB + PAGE), Some(3));
    assert_eq!(page_at(&host, device, MIB + 2 * PAGE), Some(5));
    assert_eq!(page_at(&host, device, MIB + 3 * PAGE), None);
    let dma = host.context.memory(device).unwrap();
    dma.write(Iova(MIB + PAGE - 2), b"over").unwrap();
    let mut written = [0; 4];
    file.read_exact_at(&mut written, 3 * PAGE - 2).unwrap();
    assert_eq!(&written, b"over");
}

#[test]
fn a_mapping_lets_a_device_do_what_its_flags_say() {
    let (mut host, ioas, device) = Host::attached();
    let file = memory(2 * PAGE);
    host.map_with(ioas, &file, FIXED | READABLE, 0, PAGE, 0).unwrap();
    host.map_with(ioas, &file, FIXED | WRITABLE, PAGE, PAGE, PAGE).unwrap();
    let dma = host.context.memory(device).unwrap();
    assert!(dma.read(Iova(0), &mut [0]).is_ok() && dma.write(Iova(0), &[0]).is_err());
    assert!(dma.read(Iova(PAGE), &mut [0]).is_err() && dma.write(Iova(PAGE), &[0]).is_ok());
}

#[test]
fn a_device_writes_through_a_descriptor_that_can_only_read() {
    use std::os::fd::AsRawFd;
    let (mut host, ioas, device) = Host::attached();
    let file = memory(PAGE);
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    host.map(ioas, &Arc::new(read_only), 0, PAGE, 0).unwrap();
    host.context.memory(device).unwrap().write(Iova(0), b"oops").unwrap();
    let mut written = [0; 4];
    file.read_exact_at(&mut written, 0).unwrap();
    assert_eq!(&written, b"oops");
}

#[test]
fn the_usable_ranges_narrow_while_a_device_is_attached() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    let everything = (vec![(0, u64::MAX)], 1);
    let narrowed = (vec![(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)], PAGE);
    assert_eq!(host.ranges(ioas), everything);
    host.attach(device, ioas).unwrap();
    assert_eq!(host.ranges(ioas), narrowed);
    host.detach(device);
    assert_eq!(host.ranges(ioas), everything);
    // A page table alone has no interrupt messages.
    host.hwpt(device, ioas).unwrap();
    assert_eq!(host.ranges(ioas), (vec![(0, 0xffff_ffff_ffff)], PAGE));
}

#[test]
fn too_many_ranges_are_counted_and_cut_off() {
    let (mut host, ioas, _) = Host::attached();
    let mut structure = Structure::new(&[ioas, 1, 0], &[0, 0]);
    assert_eq!(host.raw(IOAS_IOVA_RANGES, &mut structure, None), Err(Errno::MSGSIZE));
    assert_eq!((structure.word(8), structure.double(24)), (2, PAGE));
    assert_eq!(host.array.len(), 16);
}

#[test]
fn an_automatic_place_is_congruent_to_the_memory_and_never_0() {
    let mut host = Host::new();
    let ioas = host.ioas();
    let file = memory(PAGE);
    let automatic =
        |host: &mut Host, start, length| host.map_with(ioas, &file, READABLE, start, length, 0x1234).unwrap();
    assert_eq!(automatic(&mut host, 0, PAGE), 0x1000);
    assert_eq!(automatic(&mut host, 0, PAGE), 0x2000);
    assert_eq!(automatic(&mut host, 0, 2 * MIB), 2 * MIB);
    assert_eq!(automatic(&mut host, 0, 64 * MIB), 4 * MIB);
    assert_eq!(automatic(&mut host, 5 * PAGE, 2 * PAGE), 0x3000);
    assert_eq!(automatic(&mut host, 6 * PAGE, 3 * PAGE), 0x6000);
    assert_eq!(automatic(&mut host, 0x10_0123, 0x10), 0x5123);
}

#[test]
fn an_automatic_place_is_an_allowed_one_or_none() {
    let mut host = Host::new();
    let ioas = host.ioas();
    let file = memory(PAGE);
    host.allow(ioas, &[(0x8000, 0x8fff), (0x9000, 0x9fff), (0x2_0000, 0x2_1fff)]).unwrap();
    let automatic = |host: &mut Host, length| host.map_with(ioas, &file, READABLE, 0, length, 0);
    assert_eq!(automatic(&mut host, 2 * PAGE), Ok(0x8000));
    assert_eq!(automatic(&mut host, 2 * PAGE), Ok(0x2_0000));
    assert_eq!(automatic(&mut host, PAGE), Err(Errno::NOSPC));
    assert_eq!(automatic(&mut host, u64::MAX / 2), Err(Errno::OVERFLOW));
    // The kernel overlooks a hole of one byte.
    host.allow(ioas, &[(0x3_0000, 0x3_0001)]).unwrap();
    assert_eq!((automatic(&mut host, 1), automatic(&mut host, 1)), (Ok(0x3_0000), Err(Errno::NOSPC)));
    // A fixed place may be anywhere.
    assert_eq!(host.map(ioas, &file, 0, PAGE, 0), Ok(0));
    host.allow(ioas, &[]).unwrap();
    assert_eq!(automatic(&mut host, PAGE), Ok(0x1000));
}

#[test]
fn allowed_ranges_are_a_promise_that_a_device_would_break() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    for (ranges, expected) in [
        (&[(1, 1)][..], Err(Errno::INVAL)),
        (&[(2, 1)], Err(Errno::INVAL)),
        (&[(0, 9), (9, 10)], Err(Errno::INVAL)),
        (&[(0, u64::MAX)], Ok(())),
        (&[(0xfee0_0000, 0xfee0_0fff)], Ok(())),
    ] {
        assert_eq!(host.allow(ioas, ranges), expected, "{ranges:x?}");
    }
    assert_eq!(host.attach(device, ioas), Err(Errno::ADDRINUSE));
    host.allow(ioas, &[(0, MIB)]).unwrap();
    host.attach(device, ioas).unwrap();
    assert_eq!(host.allow(ioas, &[(0xfeef_ffff, 0xffff_ffff)]), Err(Errno::ADDRINUSE));
    assert_eq!(host.call(IOAS_ALLOW_IOVAS, &[ioas, 1, 0], &[0]), Err(Errno::FAULT));
}

#[test]
fn unmapping_takes_whole_mappings_and_says_how_much() {
    let (mut host, ioas, device) = Host::attached();
    let file = memory(4 * PAGE);
    for page in 0..3 {
        host.map(ioas, &file, page * PAGE, PAGE, page * PAGE).unwrap();
    }
    assert_eq!(host.unmap(ioas, 0, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(page_at(&host, device, PAGE), None);
    assert_eq!(page_at(&host, device, 2 * PAGE), Some(2));
    assert_eq!(host.unmap(ioas, 0, 2 * PAGE), Err(Errno::NOENT));
    assert_eq!(host.unmap(ioas, 0, 64 * MIB), Ok(PAGE));
}

#[test]
fn a_part_of_a_mapping_is_not_unmapped_but_what_lies_before_it_is() {
    let (mut host, ioas, device) = Host::attached();
    let file = memory(4 * PAGE);
    host.map(ioas, &file, 0, PAGE, 0).unwrap();
    host.map(ioas, &file, PAGE, 2 * PAGE, PAGE).unwrap();
    host.map(ioas, &file, 3 * PAGE, PAGE, 3 * PAGE).unwrap();
    assert_eq!(host.unmap(ioas, 2 * PAGE, 2 * PAGE), Err(Errno::NOENT));
    assert_eq!(host.unmap(ioas, 0, 2 * PAGE), Err(Errno::NOENT));
    let seen: Vec<_> = (0..4).map(|page| page_at(&host, device, page * PAGE)).collect();
    assert_eq!(seen, [None, Some(1), Some(2), Some(3)]);
}

#[test]
fn unmapping_all_never_fails() {
    let (mut host, ioas, _) = Host::attached();
    assert_eq!(host.unmap(ioas, 0, u64::MAX), Ok(0));
    host.map(ioas, &memory(PAGE), 0, PAGE, 8 * MIB).unwrap();
    assert_eq!(host.unmap(ioas, 0, u64::MAX), Ok(PAGE));
    for (iova, length, expected) in [
        (0, 0, Errno::INVAL),
        (1, u64::MAX, Errno::OVERFLOW),
        (u64::MAX, 1, Errno::OVERFLOW),
        (PAGE, u64::MAX - 1, Errno::OVERFLOW),
        (0, u64::MAX - 1, Errno::NOENT),
    ] {
        assert_eq!(host.unmap(ioas, iova, length), Err(expected), "{iova:#x} {length:#x}");
    }
}

#[test]
fn a_copy_takes_any_part_without_holes() {
    let (mut host, source, device) = Host::attached();
    let file = memory(8 * PAGE);
    host.map(source, &file, 0, 4 * PAGE, 0).unwrap();
    host.map(source, &file, 6 * PAGE, 2 * PAGE, 4 * PAGE).unwrap();
    let copy = host.ioas();
    assert_eq!(host.copy((source, 3 * PAGE), (copy, MIB), 2 * PAGE), Ok(MIB));
    assert_eq!(host.copy((source, 0), (copy, MIB), PAGE), Err(Errno::EXIST));
    assert_eq!(host.copy((source, 4 * PAGE), (copy, 0), 3 * PAGE), Err(Errno::NOENT));
    assert_eq!(host.copy((source, 0), (copy, 0), 0), Err(Errno::INVAL));
    assert_eq!(host.copy((source, 0), (copy, u64::MAX), PAGE), Err(Errno::OVERFLOW));
    assert_eq!(host.copy((source, u64::MAX), (copy, 0), 1), Err(Errno::OVERFLOW));
    host.attach(device, copy).unwrap();
    assert_eq!(page_at(&host, device, MIB), Some(3));
    assert_eq!(page_at(&host, device, MIB + PAGE), Some(6));
    assert_eq!(page_at(&host, device, MIB + 2 * PAGE), None);
}

#[test]
fn a_copy_of_memory_that_was_mapped_to_be_read_is_not_made_writable() {
    let mut host = Host::new();
    let (source, target) = (host.ioas(), host.ioas());
    host.map_with(source, &memory(PAGE), FIXED | READABLE, 0, PAGE, 0).unwrap();
    assert_eq!(host.copy((source, 0), (target, 0), PAGE), Err(Errno::PERM));
    let read_only = host.call(IOAS_COPY, &[FIXED | READABLE, target, source], &[PAGE, 0, 0]);
    assert!(read_only.is_ok());
}

#[test]
fn a_copy_outlives_its_source() {
    let (mut host, source, device) = Host::attached();
    let file = memory(4 * PAGE);
    host.map(source, &file, 0, 4 * PAGE, 0).unwrap();
    let copy = host.ioas();
    host.copy((source, PAGE), (copy, 0), PAGE).unwrap();
    host.attach(device, copy).unwrap();
    host.destroy(source).unwrap();
    assert_eq!(page_at(&host, device, 0), Some(1));
}
