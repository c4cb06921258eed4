// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory as one client describes it.

use std::collections::BTreeMap;

use super::region::{GuestAddress, GuestRange, MemoryRegion};
use crate::failure::Failure;

/// Most regions that a memory table has.
pub const MAX_REGIONS: usize = 256;
/// Most mappings that a client of a data face has; what vfio-user clients take for granted.
pub const MAX_MAPPINGS: usize = 65_535;

/// What a client says about a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Memory.
    Backed(MemoryRegion),
    /// Something that cannot be reached by devices: a ROM of the VMM's, or memory of another device.
    Unbacked(GuestRange),
}

impl Mapping {
    /// Where it is.
    pub const fn range(&self) -> &GuestRange {
        match self {
            Self::Backed(region) => region.range(),
            Self::Unbacked(range) => range,
        }
    }

    /// The memory, if it is some.
    pub const fn region(&self) -> Option<&MemoryRegion> {
        match self {
            Self::Backed(region) => Some(region),
            Self::Unbacked(_) => None,
        }
    }
}

/// All that a client says. No two ranges overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryView {
    mappings: BTreeMap<GuestAddress, Mapping>,
}

impl MemoryView {
    /// A memory table of these regions.
    ///
    /// # Errors
    ///
    /// Two of them overlap, or there are more than [`MAX_REGIONS`].
    pub fn from_regions(regions: impl IntoIterator<Item = MemoryRegion>) -> Result<Self, Failure> {
        regions.into_iter().try_fold(Self::default(), Self::with)
    }

    /// This memory table and one more region.
    ///
    /// # Errors
    ///
    /// It overlaps another one, or there are [`MAX_REGIONS`] already.
    pub fn with(mut self, region: MemoryRegion) -> Result<Self, Failure> {
        self.insert(Mapping::Backed(region), MAX_REGIONS).map(|()| self)
    }

    /// This memory table without the region at `address`.
    ///
    /// # Errors
    ///
    /// There is none of that address and size.
    pub fn without(mut self, address: GuestAddress, size: u64) -> Result<Self, Failure> {
        let range = GuestRange::new(address, size).ok_or_else(|| Failure::region_unknown(address.0))?;
        self.remove(range).map(|_| self)
    }

    /// Adds a mapping, to no more than `most`.
    ///
    /// # Errors
    ///
    /// It overlaps another one, or there are so many already.
    pub fn insert(&mut self, mapping: Mapping, most: usize) -> Result<(), Failure> {
        let range = mapping.range();
        let before = self.mappings.range(..GuestAddress(range.end())).next_back();
        if let Some((address, _)) = before.filter(|(_, other)| other.range().end() > range.address().0) {
            return Err(Failure::region_overlaps(range.address().0, address.0));
        }
        if self.mappings.len() >= most {
            return Err(Failure::too_many_regions(range.address().0, most));
        }
        self.mappings.insert(range.address(), mapping);
        Ok(())
    }

    /// Takes out what was added with just this range.
    ///
    /// # Errors
    ///
    /// There is no such mapping.
    pub fn remove(&mut self, range: GuestRange) -> Result<Mapping, Failure> {
        let address = range.address();
        let found = self.mappings.get(&address).filter(|mapping| *mapping.range() == range);
        found.ok_or_else(|| Failure::region_unknown(address.0))?;
        self.mappings.remove(&address).ok_or_else(|| Failure::region_unknown(address.0))
    }

    /// What has to be removed from this view, and then added to it, to come to `next`. What is in both is left alone.
    pub fn change_to(&self, next: &Self) -> (Vec<Mapping>, Vec<Mapping>) {
        let missing = |from: &Self, other: &Self| {
            let is_missing =
                |(address, mapping): &(&GuestAddress, &Mapping)| other.mappings.get(address) != Some(mapping);
            from.mappings.iter().filter(is_missing).map(|(_, mapping)| mapping.clone()).collect()
        };
        (missing(self, next), missing(next, self))
    }

    /// The mappings in ascending order of address.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// Reads from the file behind an address: a few bytes, for which nothing needs to be mapped. `None` where there is no
    /// memory.
    pub fn read<const N: usize>(&self, address: GuestAddress) -> Option<[u8; N]> {
        let (_, mapping) = self.mappings.range(..=address).next_back()?;
        let region = mapping.region()?;
        let start = address.0 - region.address().0;
        let end = start.checked_add(u64::try_from(N).ok()?)?;
        let mut data = [0; N];
        let position = region.offset().checked_add(start).filter(|_| end <= region.size())?;
        (rustix::io::pread(region.file(), &mut data, position) == Ok(N)).then_some(data)
    }

    /// Whether there is memory at all addresses of a range, in one region.
    pub fn holds(&self, range: GuestRange) -> bool {
        let found = self.mappings.range(..=range.address()).next_back();
        let region = found.and_then(|(_, mapping)| mapping.region());
        region.is_some_and(|region| region.range().end() >= range.end())
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::io::Errno;

    use super::super::region::tests::{PAGE, region};
    use super::*;

    #[test]
    fn what_is_read_is_within_a_region() {
        let view = MemoryView::from_regions([region(4 * PAGE, 2)]).unwrap();
        assert_eq!(view.read(GuestAddress(5 * PAGE)), Some([0; 2]));
        assert_eq!(view.read(GuestAddress(6 * PAGE - 2)), Some([0; 2]));
        for beyond in [0, 4 * PAGE - 1, 6 * PAGE - 1, 6 * PAGE, u64::MAX] {
            assert_eq!(view.read::<2>(GuestAddress(beyond)), None);
        }
    }

    #[test]
    fn a_range_is_held_by_one_region_or_not_at_all() {
        let view = MemoryView::from_regions([region(4 * PAGE, 2), region(6 * PAGE, 1)]).unwrap();
        let holds = |address, size| view.holds(GuestRange::new(GuestAddress(address), size).unwrap());
        assert!(holds(4 * PAGE, 2 * PAGE) && holds(6 * PAGE - 1, 1) && holds(6 * PAGE, PAGE));
        assert!(!holds(4 * PAGE - 1, 2) && !holds(5 * PAGE, 2 * PAGE) && !holds(7 * PAGE, 1) && !holds(0, 1));
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let table = MemoryView::from_regions([region(4 * PAGE, 4)]).unwrap();
        for (page, pages) in [(7, 4), (1, 4), (4, 4), (5, 1), (3, 6)] {
            let refused = table.clone().with(region(page * PAGE, pages)).unwrap_err();
            assert_eq!((refused.id(), refused.errno), ("region-overlaps", Errno::EXIST));
        }
        assert!(table.with(region(8 * PAGE, 1)).unwrap().with(region(3 * PAGE, 1)).is_ok());
    }

    #[test]
    fn a_region_is_removed_only_as_it_was_added() {
        let table = MemoryView::from_regions([region(0, 4)]).unwrap();
        for (page, pages) in [(0, 1), (1, 3), (0, 5), (9, 1)] {
            let refused = table.clone().without(GuestAddress(page * PAGE), pages * PAGE).unwrap_err();
            assert_eq!((refused.id(), refused.errno), ("region-unknown", Errno::NOENT));
        }
        assert_eq!(table.without(GuestAddress(0), 4 * PAGE).unwrap(), MemoryView::default());
    }

    #[test]
    fn a_view_has_no_more_mappings_than_it_may() {
        let mut view = MemoryView::default();
        let unbacked =
            |page: u64| Mapping::Unbacked(GuestRange::new(GuestAddress(page * PAGE), PAGE).unwrap());
        view.insert(unbacked(0), 2).unwrap();
        view.insert(unbacked(1), 2).unwrap();
        let refused = view.insert(unbacked(2), 2).unwrap_err();
        assert_eq!((refused.id(), refused.errno), ("too-many-regions", Errno::NOSPC));
    }

    #[test]
    fn the_same_file_through_another_descriptor_is_the_same_region() {
        let first = region(0, 4);
        let again = first.file().try_clone().unwrap();
        let second = MemoryRegion::sealed(first.address(), first.size(), first.offset(), again).unwrap();
        let table = |region| MemoryView::from_regions([region]).unwrap();
        assert_eq!(table(first).change_to(&table(second)), (vec![], vec![]));
    }

    #[test]
    fn another_file_at_the_same_address_is_another_region() {
        let table = |region| MemoryView::from_regions([region]).unwrap();
        let (removed, added) = table(region(0, 4)).change_to(&table(region(0, 4)));
        assert_eq!((removed.len(), added.len()), (1, 1));
    }

    proptest! {
        #[test]
        fn following_a_change_leads_from_one_view_to_the_other(from in any::<u8>(), to in any::<u8>()) {
            let all: Vec<_> = (0..8).map(|number| region(number * PAGE, 1)).collect();
            let view = |bits: u8| {
                let chosen = all.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, region)| region.clone());
                MemoryView::from_regions(chosen).unwrap()
            };
            let (mut from, to) = (view(from), view(to));
            let (removed, added) = from.change_to(&to);
            for mapping in removed {
                from.remove(*mapping.range()).unwrap();
            }
            for mapping in added {
                from.insert(mapping, MAX_REGIONS).unwrap();
            }
            prop_assert_eq!(from, to);
        }
    }
}
