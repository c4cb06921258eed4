// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all views together want mapped. Each client says the same of the VM's memory, but in its own order and with its own
//! changes on the way: what two of them want is counted, not wanted twice.

use std::collections::BTreeMap;

use vfio::Access;
use vfio::ioas::IovaRanges;

use super::region::{GuestAddress, GuestRange, MemoryRegion};

/// Memory that the same regions of views are about.
#[derive(Clone, Debug)]
struct Stretch {
    region: MemoryRegion,
    /// How many regions want it for reading only.
    readers: usize,
    /// How many want it for writing, too.
    writers: usize,
}

impl Stretch {
    const fn of(region: MemoryRegion) -> Self {
        Self { region, readers: 0, writers: 0 }
    }

    fn part(&self, range: GuestRange) -> Self {
        Self { region: self.region.part(range), ..*self }
    }

    const fn count(&mut self, access: Access) -> &mut usize {
        match access {
            Access::Read => &mut self.readers,
            Access::ReadWrite => &mut self.writers,
        }
    }

    const fn is_wanted(&self) -> bool {
        self.readers + self.writers > 0
    }

    /// What a device may do is what any view lets it.
    fn wanted(&self) -> MemoryRegion {
        let access = if self.writers > 0 { Access::ReadWrite } else { Access::Read };
        self.region.clone().with_access(access)
    }
}

/// The union of the views' regions.
#[derive(Debug, Default)]
pub struct MemoryUnion {
    /// By their first addresses. None reaches over a cut.
    stretches: BTreeMap<u64, Stretch>,
    /// Where regions begin and end, and how many do: what one of them wants goes as a whole when it goes.
    cuts: BTreeMap<u64, usize>,
    size: u64,
}

impl MemoryUnion {
    /// Adds a region of a view.
    ///
    /// # Errors
    ///
    /// Other memory is wanted at this address.
    pub fn add(&mut self, region: &MemoryRegion) -> Result<(), GuestAddress> {
        let range = *region.range();
        if let Some(other) = self.overlapping(range).find(|other| !other.agrees_with(region)) {
            return Err(other.address());
        }
        self.cut(range.address().0);
        self.cut(range.end());
        let mut next = range.address().0;
        let mut missing = Vec::new();
        for (address, stretch) in self.stretches.range_mut(range.address().0..range.end()) {
            *stretch.count(region.access()) += 1;
            missing.extend(GuestRange::between(next, *address));
            next = stretch.region.range().end();
        }
        missing.extend(GuestRange::between(next, range.end()));
        for range in missing {
            let mut stretch = Stretch::of(region.part(range));
            *stretch.count(region.access()) += 1;
            self.size = self.size.saturating_add(range.size());
            self.stretches.insert(range.address().0, stretch);
        }
        Ok(())
    }

    /// Removes a region that was added.
    pub fn remove(&mut self, region: &MemoryRegion) {
        let range = *region.range();
        let mut unwanted = Vec::new();
        for (address, stretch) in self.stretches.range_mut(range.address().0..range.end()) {
            let count = stretch.count(region.access());
            *count = count.saturating_sub(1);
            if !stretch.is_wanted() {
                unwanted.push(*address);
            }
        }
        for address in unwanted {
            if let Some(stretch) = self.stretches.remove(&address) {
                self.size = self.size.saturating_sub(stretch.region.size());
            }
        }
        self.mend(range.address().0);
        self.mend(range.end());
    }

    /// How many bytes are wanted.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What is wanted, in ascending order of address; one behind the other where regions begin or end.
    pub fn wanted(&self) -> impl Iterator<Item = MemoryRegion> {
        self.stretches.values().map(Stretch::wanted)
    }

    /// The same of what has something in common with `range`.
    pub fn overlapping(&self, range: GuestRange) -> impl Iterator<Item = MemoryRegion> {
        let before = self.stretches.range(..range.address().0).next_back();
        let before = before.filter(move |(_, stretch)| stretch.region.range().end() > range.address().0);
        let others = self.stretches.range(range.address().0..range.end());
        before.into_iter().chain(others).map(|(_, stretch)| stretch.wanted())
    }

    /// Where the highest `size` addresses begin that can be mapped and that nobody wants.
    pub fn highest_gap(&self, ranges: &IovaRanges, size: u64) -> Option<GuestAddress> {
        let aligned = |address: u64| Some(address - address.checked_rem(ranges.alignment)?);
        ranges.usable.iter().rev().find_map(|range| {
            let mut end = range.last.0.saturating_add(1);
            loop {
                let first = aligned(end.checked_sub(size)?)?;
                let candidate =
                    GuestRange::new(GuestAddress(first), size).filter(|_| first >= range.start.0)?;
                match self.overlapping(candidate).next() {
                    None => return Some(GuestAddress(first)),
                    Some(wanted) => end = wanted.address().0,
                }
            }
        })
    }

    /// A region begins or ends here.
    fn cut(&mut self, at: u64) {
        *self.cuts.entry(at).or_default() += 1;
        let Some((_, stretch)) = self.stretches.range_mut(..at).next_back() else { return };
        let (first, end) = (stretch.region.address().0, stretch.region.range().end());
        if let (Some(before), Some(behind)) = (GuestRange::between(first, at), GuestRange::between(at, end)) {
            let rest = stretch.part(behind);
            *stretch = stretch.part(before);
            self.stretches.insert(at, rest);
        }
    }

    /// A region that began or ended here is gone: if it was the last, what is on both sides is one.
    fn mend(&mut self, at: u64) {
        let Some(count) = self.cuts.get_mut(&at) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.cuts.remove(&at);
        let Some(behind) = self.stretches.get(&at) else { return };
        let Some((_, before)) = self.stretches.range(..at).next_back() else { return };
        if let Some(region) = before.region.joined_with(&behind.region) {
            let joined = Stretch { region, ..*before };
            self.stretches.remove(&at);
            self.stretches.insert(joined.region.address().0, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use vfio::{Iova, IovaRange};

    use super::super::region::tests::{PAGE, region};
    use super::*;

    /// First page, number of pages, and access of what is wanted.
    fn pages(union: &MemoryUnion) -> Vec<(u64, u64, Access)> {
        let pages = |region: MemoryRegion| (region.address().0 / PAGE, region.size() / PAGE, region.access());
        union.wanted().map(pages).collect()
    }

    impl MemoryUnion {
        pub(in crate::memory) fn cuts_left(&self) -> usize {
            self.cuts.len()
        }
    }

    fn part(of: &MemoryRegion, first: u64, pages: u64) -> MemoryRegion {
        of.part(GuestRange::new(GuestAddress(first * PAGE), pages * PAGE).unwrap())
    }

    #[test]
    fn what_two_views_say_is_wanted_until_neither_says_it() {
        let (ram, mut union) = (region(0, 8), MemoryUnion::default());
        union.add(&ram).unwrap();
        union.add(&ram).unwrap();
        assert_eq!((pages(&union), union.size()), (vec![(0, 8, Access::ReadWrite)], 8 * PAGE));
        union.remove(&ram);
        assert_eq!(pages(&union), [(0, 8, Access::ReadWrite)]);
        union.remove(&ram);
        assert_eq!((pages(&union), union.size()), (vec![], 0));
    }

    #[test]
    fn a_view_that_has_the_memory_in_pieces_wants_the_same() {
        let (ram, mut union) = (region(0, 8), MemoryUnion::default());
        union.add(&ram).unwrap();
        union.add(&part(&ram, 0, 2)).unwrap();
        union.add(&part(&ram, 3, 5)).unwrap();
        union.remove(&ram);
        assert_eq!(pages(&union), [(0, 2, Access::ReadWrite), (3, 5, Access::ReadWrite)]);
        union.add(&ram).unwrap();
        union.remove(&part(&ram, 0, 2));
        union.remove(&part(&ram, 3, 5));
        assert_eq!(pages(&union), [(0, 8, Access::ReadWrite)], "what was cut is one again");
    }

    #[test]
    fn other_memory_at_the_same_address_is_refused() {
        let mut union = MemoryUnion::default();
        union.add(&region(0, 8)).unwrap();
        assert_eq!(union.add(&region(7 * PAGE, 2)), Err(GuestAddress(0)));
        assert_eq!(pages(&union), [(0, 8, Access::ReadWrite)]);
    }

    #[test]
    fn the_highest_gap_is_at_the_top_and_below_what_is_wanted() {
        let range =
            |first: u64, end: u64| IovaRange { start: Iova(first * PAGE), last: Iova(end * PAGE - 1) };
        let ranges = IovaRanges { usable: vec![range(0, 8), range(16, 20)], alignment: PAGE };
        let mut union = MemoryUnion::default();
        let gap = |union: &MemoryUnion, pages: u64| {
            union.highest_gap(&ranges, pages * PAGE).map(|GuestAddress(address)| address / PAGE)
        };
        assert_eq!((gap(&union, 1), gap(&union, 4), gap(&union, 5)), (Some(19), Some(16), Some(3)));
        union.add(&region(17 * PAGE, 2)).unwrap();
        assert_eq!((gap(&union, 1), gap(&union, 2)), (Some(19), Some(6)));
        union.add(&region(19 * PAGE, 1)).unwrap();
        assert_eq!(gap(&union, 1), Some(16));
        union.add(&region(16 * PAGE, 1)).unwrap();
        union.add(&region(0, 8)).unwrap();
        assert_eq!(gap(&union, 1), None);
    }

    #[test]
    fn the_last_addresses_of_all_are_no_gap() {
        let all = IovaRange { start: Iova(0), last: Iova(u64::MAX) };
        let ranges = IovaRanges { usable: vec![all], alignment: PAGE };
        let found = MemoryUnion::default().highest_gap(&ranges, PAGE);
        assert_eq!(found, Some(GuestAddress(u64::MAX - 2 * PAGE + 1)));
    }

    #[test]
    fn who_lets_devices_write_prevails() {
        let (ram, mut union) = (region(0, 4), MemoryUnion::default());
        let read_only = part(&ram, 1, 2).with_access(Access::Read);
        union.add(&read_only).unwrap();
        assert_eq!(pages(&union), [(1, 2, Access::Read)]);
        union.add(&ram).unwrap();
        let all = [(0, 1, Access::ReadWrite), (1, 2, Access::ReadWrite), (3, 1, Access::ReadWrite)];
        assert_eq!(pages(&union), all);
        union.remove(&ram);
        assert_eq!(pages(&union), [(1, 2, Access::Read)]);
    }
}
