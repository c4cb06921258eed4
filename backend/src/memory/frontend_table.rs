// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as a vhost-user frontend describes it: where it is for the guest, and which addresses the frontend itself
//! has for it, which it may name rings by.

use std::collections::BTreeMap;

use protocol::vhost_user::BackedRegion;
use vfio::Access;

use super::region::{GuestAddress, GuestRange, MemoryRegion};
use super::view::MemoryView;
use crate::failure::Failure;

/// Something that is to become different.
#[derive(Clone, Debug)]
pub enum TableChange {
    /// A region more, and its first address in the frontend.
    Add(MemoryRegion, u64),
    /// The region with just this range goes.
    Remove(GuestRange),
}

/// The regions that are in force, with their first addresses in the frontend.
#[derive(Clone, Debug, Default)]
pub struct FrontendTable {
    regions: BTreeMap<GuestAddress, (MemoryRegion, u64)>,
}

impl FrontendTable {
    /// What has to be done for these regions to be all that there are. A region that stays is left alone.
    ///
    /// # Errors
    ///
    /// One is no memory that a device can use, or two of them overlap.
    pub fn change_to(&self, regions: Vec<BackedRegion>) -> Result<Vec<TableChange>, Failure> {
        let mut next = Self::default();
        for region in regions {
            next.apply(Self::addition(region)?)?;
        }
        let removed = self.missing_in(&next).map(|(region, _)| TableChange::Remove(*region.range()));
        let added = next.missing_in(self).map(|(region, user)| TableChange::Add(region.clone(), *user));
        Ok(removed.chain(added).collect())
    }

    fn missing_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a (MemoryRegion, u64)> {
        let entries = self.regions.iter();
        entries
            .filter(|(address, region)| other.regions.get(address) != Some(region))
            .map(|(_, region)| region)
    }

    /// What has to be done for one more region.
    ///
    /// # Errors
    ///
    /// It is no memory that a device can use.
    pub fn addition(BackedRegion { region, file }: BackedRegion) -> Result<TableChange, Failure> {
        let address = GuestAddress(region.guest_address);
        // Stock VMMs do not seal their memory.
        let accepted = MemoryRegion::new(address, region.size, region.offset, file, Access::ReadWrite)?;
        Ok(TableChange::Add(accepted, region.user_address))
    }

    /// A change that was carried out.
    ///
    /// # Errors
    ///
    /// It does not fit: a region overlaps another, is one too many, or is not there.
    pub fn apply(&mut self, change: TableChange) -> Result<(), Failure> {
        match change {
            TableChange::Add(region, user_address) => {
                self.view()?.with(region.clone())?;
                self.regions.insert(region.address(), (region, user_address));
            }
            TableChange::Remove(range) => {
                let address = range.address();
                let found = self.regions.get(&address).filter(|(region, _)| *region.range() == range);
                found.ok_or_else(|| Failure::region_unknown(address.0))?;
                self.regions.remove(&address);
            }
        }
        Ok(())
    }

    /// The memory as devices see it.
    pub fn view(&self) -> Result<MemoryView, Failure> {
        MemoryView::from_regions(self.regions.values().map(|(region, _)| region.clone()))
    }

    /// Where an address of the frontend is for the guest.
    pub fn guest_address(&self, user_address: u64) -> Option<GuestAddress> {
        self.regions.values().find_map(|(region, first)| {
            let offset = user_address.checked_sub(*first).filter(|offset| *offset < region.size())?;
            Some(GuestAddress(region.address().0 + offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use protocol::vhost_user::MemoryRegion as WireRegion;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const PAGE: u64 = 4096;

    fn memory() -> OwnedFd {
        let file = memfd_create("memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, 16 * PAGE).unwrap();
        file
    }

    fn backed(file: &OwnedFd, page: u64, pages: u64, user_address: u64) -> BackedRegion {
        let region =
            WireRegion { guest_address: page * PAGE, size: pages * PAGE, user_address, offset: page * PAGE };
        BackedRegion { region, file: file.try_clone().unwrap() }
    }

    fn table(regions: Vec<BackedRegion>) -> FrontendTable {
        let mut table = FrontendTable::default();
        for change in table.change_to(regions).unwrap() {
            table.apply(change).unwrap();
        }
        table
    }

    #[test]
    fn the_same_table_again_changes_nothing() {
        let file = memory();
        let regions = || vec![backed(&file, 0, 4, 0x7000_0000), backed(&file, 8, 2, 0x7f00_0000)];
        assert!(table(regions()).change_to(regions()).unwrap().is_empty());
    }

    #[test]
    fn a_region_that_the_frontend_has_elsewhere_is_another() {
        let file = memory();
        let before = table(vec![backed(&file, 0, 4, 0x7000_0000)]);
        let changes = before.change_to(vec![backed(&file, 0, 4, 0x8000_0000)]).unwrap();
        assert!(matches!(changes[..], [TableChange::Remove(_), TableChange::Add(_, 0x8000_0000)]));
    }

    #[test]
    fn addresses_of_the_frontend_are_found_in_their_region_only() {
        let file = memory();
        let table = table(vec![backed(&file, 0, 4, 0x7000_0000), backed(&file, 8, 2, 0x7f00_0000)]);
        assert_eq!(table.guest_address(0x7000_0010), Some(GuestAddress(0x10)));
        assert_eq!(table.guest_address(0x7f00_1fff), Some(GuestAddress(10 * PAGE - 1)));
        for nowhere in [0, 0x6fff_ffff, 0x7000_4000, 0x7f00_2000, u64::MAX] {
            assert_eq!(table.guest_address(nowhere), None);
        }
    }

    #[test]
    fn regions_that_overlap_are_refused_and_leave_the_table() {
        let file = memory();
        let mut table = table(vec![backed(&file, 0, 4, 0)]);
        let refused = table.change_to(vec![backed(&file, 0, 4, 0), backed(&file, 3, 4, 0x10_0000)]);
        assert_eq!(refused.unwrap_err().id(), "region-overlaps");
        let overlapping = FrontendTable::addition(backed(&file, 3, 1, 0x10_0000)).unwrap();
        assert_eq!(table.apply(overlapping).unwrap_err().id(), "region-overlaps");
        assert_eq!(table.view().unwrap().mappings().count(), 1);
    }

    #[test]
    fn a_region_goes_only_as_it_came() {
        let file = memory();
        let mut table = table(vec![backed(&file, 0, 4, 0)]);
        let part = GuestRange::new(GuestAddress(0), PAGE).unwrap();
        assert_eq!(table.apply(TableChange::Remove(part)).unwrap_err().id(), "region-unknown");
        let whole = GuestRange::new(GuestAddress(0), 4 * PAGE).unwrap();
        table.apply(TableChange::Remove(whole)).unwrap();
        assert!(table.view().unwrap().is_empty());
    }
}
