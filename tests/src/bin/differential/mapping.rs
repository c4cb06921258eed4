// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What to map and to unmap: something that works, or something with one thing odd about it.

use std::collections::BTreeMap;

use crate::actor::MEMORY;
use crate::random::Random;

/// Addresses that can be mapped on every machine.
const IOVAS: [u64; 8] =
    [0x0, 0x1000, 0x4000, 0x1_0000, 0x10_0000, 0xfedf_f000, 0x1_0000_0000, 0x40_0000_0000];
const LENGTHS: [u64; 4] = [0x1000, 0x2000, 0x4000, MEMORY];
/// In, into and across the window of interrupt messages; not on a page; above what 39, 48 and 57 bits address; at the end.
const ODD_IOVAS: [u64; 10] = [
    0xfee0_0000,
    0xfee0_1000,
    0xfede_f000,
    0xfeef_f000,
    0x1800,
    0x80_0000_0000,
    0x1_0000_0000_0000,
    0x0200_0000_0000_0000,
    0xffff_ffff_ffff_0000,
    0xffff_ffff_ffff_f000,
];
/// Nothing, not a page, not all of a page; from a part of a page, from the last page, from the end, from beyond.
const ODD_LENGTHS: [u64; 4] = [0, 0x800, 0x1001, 2 * MEMORY];
const ODD_STARTS: [u64; 4] = [0x800, MEMORY - 0x1000, MEMORY, 2 * MEMORY];
/// Never mapped.
const UNMAPPED: (u64, u64) = (0x7000_0000, 0x1000);
/// The last page before the window of interrupt messages.
const BEFORE_WINDOW: u64 = 0xfedf_f000;

/// A part of a process's memory at an IOVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) iova: u64,
    pub(crate) writable: bool,
}

/// A mapping that works; `None` where what was drawn is not free. `mapped` has the length of each mapping at its IOVA.
pub(crate) fn sensible(random: &mut Random, mapped: &BTreeMap<u64, u64>) -> Option<Mapping> {
    let mapping = Mapping {
        start: 0,
        length: random.pick(&LENGTHS),
        iova: random.pick(&IOVAS),
        writable: random.chance(70),
    };
    let end = mapping.iova + mapping.length;
    let is_free =
        mapped.iter().all(|(iova, length)| end <= *iova || iova.saturating_add(*length) <= mapping.iova);
    let is_in_window = mapping.iova == BEFORE_WINDOW && mapping.length > 0x1000;
    (is_free && !is_in_window).then_some(mapping)
}

/// One thing about it is odd: where it lies, its length, where it begins in the file, or that something is there.
pub(crate) fn doubtful(random: &mut Random, mapped: &BTreeMap<u64, u64>) -> Mapping {
    let (start, length, iova) = (0, random.pick(&LENGTHS), random.pick(&IOVAS));
    let writable = random.chance(70);
    let (start, length, iova) = match random.below(8) {
        0 => (start, length, random.pick(&ODD_IOVAS)),
        1 => (start, random.pick(&ODD_LENGTHS), iova),
        2 => (random.pick(&ODD_STARTS), length, iova),
        _ => (start, length, self::mapped(random, mapped).map_or(iova, |(iova, _)| iova)),
    };
    Mapping { start, length, iova, writable }
}

/// One of the mappings, if there is one: its IOVA and length.
pub(crate) fn mapped(random: &mut Random, mapped: &BTreeMap<u64, u64>) -> Option<(u64, u64)> {
    let mapped: Vec<_> = mapped.iter().map(|(iova, length)| (*iova, *length)).collect();
    (!mapped.is_empty()).then(|| random.pick(&mapped))
}

/// A part of a mapping, more than one, everything, or nothing; `None` where nothing is mapped.
///
/// No part is the beginning of a mapping: the `vfio` crate would then take memory away that a kernel without
/// `IOMMU_IOAS_MAP_FILE` goes on using, and what comes of that depends on where the process has its memory.
pub(crate) fn doubtful_range(random: &mut Random, mapped: &BTreeMap<u64, u64>) -> Option<(u64, u64)> {
    let (iova, length) = self::mapped(random, mapped)?;
    let range = match random.below(8) {
        0..3 => (iova.saturating_add(0x1000), length),
        3..5 => (iova.saturating_sub(0x1000), length),
        5 => (iova.saturating_sub(0x1000), length.saturating_add(0x2000)),
        6 => (0, u64::MAX),
        _ => UNMAPPED,
    };
    let is_beginning = mapped.get(&range.0).is_some_and(|length| *length > range.1);
    Some(if is_beginning { UNMAPPED } else { range })
}
