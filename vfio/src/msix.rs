// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where MSI-X keeps its structures (PCIe 6.0, 7.7.2): in BARs, beside the device's own registers.

use std::ops::Range;

use crate::region::RegionIndex;

/// Bytes of one entry of the table.
const ENTRY: u64 = 16;
/// Vectors whose pending bits are in one 8-byte word.
const WORD_BITS: u64 = 64;

/// A structure in a BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Structure {
    bar: RegionIndex,
    range: Range<u64>,
}

impl Structure {
    /// `register` has the number of the BAR in bits 0-2 and the offset in the others.
    fn new(register: u32, length: u64) -> Self {
        let offset = u64::from(register & !0b111);
        Self { bar: RegionIndex(register & 0b111), range: offset..offset + length }
    }
}

/// The table of vectors and the array of pending bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    table: Structure,
    pending: Structure,
}

impl Msix {
    /// Bytes of the capability.
    pub(crate) const LENGTH: usize = 12;

    /// Reads the capability: id, next, message control, table, pending bits.
    pub(crate) fn decode([_, _, control @ .., t0, t1, t2, t3, p0, p1, p2, p3]: [u8; Self::LENGTH]) -> Self {
        let vectors = u64::from(u16::from_le_bytes(control) & 0x7ff) + 1;
        Self {
            table: Structure::new(u32::from_le_bytes([t0, t1, t2, t3]), vectors * ENTRY),
            pending: Structure::new(u32::from_le_bytes([p0, p1, p2, p3]), vectors.div_ceil(WORD_BITS) * 8),
        }
    }

    /// What of a region the structures take up.
    pub fn ranges_in(&self, region: RegionIndex) -> impl Iterator<Item = Range<u64>> {
        let structures = [&self.table, &self.pending].into_iter();
        structures.filter(move |structure| structure.bar == region).map(|structure| structure.range.clone())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn msix(control: u16, table: u32, pending: u32) -> Msix {
        let [c0, c1] = control.to_le_bytes();
        let [t0, t1, t2, t3] = table.to_le_bytes();
        let [p0, p1, p2, p3] = pending.to_le_bytes();
        Msix::decode([0x11, 0, c0, c1, t0, t1, t2, t3, p0, p1, p2, p3])
    }

    fn ranges(msix: &Msix, region: u32) -> Vec<Range<u64>> {
        msix.ranges_in(RegionIndex(region)).collect()
    }

    #[test]
    fn table_and_pending_bits_may_be_in_one_bar() {
        // As QEMU's nvme: 65 vectors.
        let nvme = msix(64, 0x2000, 0x3000);
        assert_eq!(ranges(&nvme, 0), [0x2000..0x2410, 0x3000..0x3010]);
        assert_eq!(ranges(&nvme, 1), []);
    }

    #[test]
    fn table_and_pending_bits_may_be_in_two_bars() {
        let split = msix(0, 0x2003, 0x1004);
        assert_eq!((ranges(&split, 3), ranges(&split, 4)), (vec![0x2000..0x2010], vec![0x1000..0x1008]));
    }

    #[test]
    fn enable_and_mask_are_no_vectors() {
        assert_eq!(msix(0xc000, 3, 0x803), msix(0, 3, 0x803));
    }

    #[test]
    fn the_largest_capability_does_not_overflow() {
        let largest = msix(u16::MAX, u32::MAX, u32::MAX);
        assert_eq!(ranges(&largest, 7), [0xffff_fff8..0x1_0000_7ff8, 0xffff_fff8..0x1_0000_00f8]);
    }
}
