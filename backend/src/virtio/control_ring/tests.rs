// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that is played reads what is in the page, by the standard's words and not by the ring's.

use protocol::extension::Cookie;

use super::*;
use crate::control_memory::ControlMemory;

const ADDRESS: u64 = 0xffff_0000;
const RING: RingIndex = RingIndex(4);

fn ring(largest: u16, is_packed: bool) -> Result<(ControlRing, ControlPage), Failure> {
    let page = ControlMemory::new().unwrap().page(Cookie(1)).unwrap();
    let ring = ControlRing::new(RING, largest, is_packed, page.clone(), Iova(ADDRESS))?;
    Ok((ring, page))
}

fn half(page: &ControlPage, address: u64) -> u16 {
    page.look(usize::try_from(address - ADDRESS).unwrap()).unwrap()
}

fn put_half(page: &ControlPage, address: u64, value: u16) {
    page.publish(usize::try_from(address - ADDRESS).unwrap(), value);
}

fn wide(page: &ControlPage, address: u64) -> u64 {
    [6, 4, 2, 0].into_iter().fold(0, |value, at| value << 16 | u64::from(half(page, address + at)))
}

/// Address, length and the two halves at the end of a descriptor.
fn descriptor(page: &ControlPage, table: u64, index: u16) -> (u64, u64, u16, u16) {
    let at = table + 16 * u64::from(index);
    (wide(page, at), wide(page, at + 8) & 0xffff_ffff, half(page, at + 12), half(page, at + 14))
}

/// What is said in the pieces of a command, which it is answered in.
fn expect_command(page: &ControlPage, pieces: [(u64, u64); 3], pairs: u16, answer: u8) {
    let [(command, 2), (argument, 2), (place, 1)] = pieces else { panic!("{pieces:x?}") };
    assert_eq!((half(page, command), half(page, argument)), (4, pairs));
    page.write(usize::try_from(place - ADDRESS).unwrap(), &[answer]);
}

#[test]
fn a_command_of_a_split_ring_is_a_chain_of_three() {
    let (mut ring, page) = ring(64, false).unwrap();
    let RingAreas { descriptors, driver, device } = ring.placement().areas;
    for count in 0..200_u16 {
        assert_eq!(half(&page, driver.0), 1, "no interrupt is wanted");
        let before = ring.offer(SET_QUEUE_PAIRS, count.to_le_bytes());
        assert!(!ring.is_answered(before));
        assert_eq!(half(&page, driver.0 + 2), count + 1);
        let head = half(&page, driver.0 + 4 + 2 * u64::from(count % 64));
        let first = descriptor(&page, descriptors.0, head);
        let second = descriptor(&page, descriptors.0, first.3);
        let third = descriptor(&page, descriptors.0, second.3);
        assert_eq!([first.2, second.2, third.2], [1, 1, 2], "flags");
        expect_command(&page, [(first.0, first.1), (second.0, second.1), (third.0, third.1)], count, 0);
        put_half(&page, device.0 + 2, count + 1);
        assert!(ring.is_answered(before));
    }
}

#[test]
fn commands_of_a_packed_ring_follow_each_other_round() {
    for size in [3, 4, 5, 64] {
        let (mut ring, page) = ring(size, true).unwrap();
        let RingAreas { descriptors, driver, .. } = ring.placement().areas;
        assert_eq!(half(&page, driver.0 + 2), 1, "no interrupt is wanted");
        let (mut place, mut wrap) = (0, true);
        for count in 0..200 {
            let before = ring.offer(SET_QUEUE_PAIRS, u16::to_le_bytes(count));
            assert!(!ring.is_answered(before));
            let (first, first_wrap) = (place, wrap);
            let mut pieces = [(0, 0); 3];
            for (piece, end) in pieces.iter_mut().zip([1, 1, 2]) {
                let (address, length, id, flags) = descriptor(&page, descriptors.0, place);
                let available = if wrap { 1 << 7 } else { 1 << 15 };
                assert_eq!((id, flags), (0, end | available), "descriptor {place} of command {count}");
                *piece = (address, length);
                place += 1;
                if place == ring.placement().size {
                    (place, wrap) = (0, !wrap);
                }
            }
            expect_command(&page, pieces, count, 0);
            let used = if first_wrap { 1 << 7 | 1 << 15 } else { 0 };
            put_half(&page, descriptors.0 + 16 * u64::from(first) + 14, used);
            assert!(ring.is_answered(before));
        }
    }
}

#[test]
fn a_ring_has_a_size_that_the_device_takes() {
    for (largest, split, packed) in
        [(64, Some(64), Some(64)), (1024, Some(64), Some(64)), (7, Some(4), Some(7))]
    {
        let size = |is_packed| ring(largest, is_packed).ok().map(|(ring, _)| ring.placement().size);
        assert_eq!((size(false), size(true)), (split, packed));
    }
    for (largest, is_packed) in [(0, false), (3, false), (2, true)] {
        assert_eq!(ring(largest, is_packed).unwrap_err().id(), "ring-size");
    }
}

#[test]
fn all_of_a_ring_is_in_its_page_and_no_part_is_in_another() {
    for is_packed in [false, true] {
        let (ring, _) = ring(64, is_packed).unwrap();
        let mut parts: Vec<_> =
            ring.placement().parts(is_packed).iter().map(|part| (part.address().0, part.end())).collect();
        parts.extend(
            [COMMAND, ARGUMENT, ANSWER].map(|at| (ADDRESS + u64::from(at), ADDRESS + u64::from(at) + 2)),
        );
        parts.sort_unstable();
        assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{parts:x?}");
        assert!(parts.last().unwrap().1 <= ADDRESS + 0x1000);
    }
}
