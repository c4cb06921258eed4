// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the IOAS maps: how it comes to be what is wanted, and what is left when the kernel refuses.

use std::sync::Arc;

use protocol::extension::IoasChoice;
use rustix::io::Errno;
use vfio::ioas::IovaRanges;
use vfio::{CallError, Device, Ioas, Iova};

use super::{AddressSpace, MappingState, attach_to_one_of};
use crate::failure::{Failure, MemoryShortage};
use crate::memory::plan::{Areas, Piece, Plan};
use crate::memory::{GuestRange, MemoryRegion};

impl AddressSpace {
    /// Has the IOAS map what is wanted, which has changed in `touched` only. On failure it maps what it did before.
    pub(super) fn map_wanted(
        &mut self,
        touched: &[GuestRange],
        devices: &[Arc<Device>],
    ) -> Result<(), Failure> {
        let needed = self.wanted.size();
        if let Some(limit) = self.limit.exceeded_by(needed) {
            let shortage = MemoryShortage { needed, limit, charged: self.charged(), refused: needed };
            return Err(Failure::memory_lock_limit(&shortage));
        }
        let everything = GuestRange::between(0, u64::MAX);
        let plan = match self.mapping {
            MappingState::Deferred => return Ok(()),
            MappingState::InForce => Plan::new(&self.areas, &self.wanted, touched),
            MappingState::Incomplete => Plan::new(&self.areas, &self.wanted, everything.as_slice()),
        };
        match plan {
            Plan::InPlace { unmap, map } => self.replace(&unmap, &map)?,
            Plan::Successor(_) if self.choice != IoasChoice::Allocate => {
                return Err(Failure::memory_is_shared());
            }
            Plan::Successor(pieces) => self.succeed(pieces, devices)?,
        }
        self.mapping = MappingState::InForce;
        Ok(())
    }

    /// Unmaps `removed`, then maps `added`; undoes what it did when one of them fails.
    fn replace(&mut self, removed: &[MemoryRegion], added: &[MemoryRegion]) -> Result<(), Failure> {
        self.check(added)?;
        for (done, area) in removed.iter().enumerate() {
            if let Err(failure) = self.unmap(area) {
                self.roll_back(&[], removed.get(..done).unwrap_or_default());
                return Err(failure);
            }
        }
        for (done, area) in added.iter().enumerate() {
            if let Err(error) = self.map(area) {
                let mapped = added.get(..done).unwrap_or_default();
                let failure = self.not_mapped(area, error);
                self.roll_back(mapped, removed);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Whether areas can be mapped, as far as the IOMMU is concerned.
    fn check(&self, areas: &[MemoryRegion]) -> Result<(), Failure> {
        if areas.is_empty() {
            return Ok(());
        }
        let ranges = self.ioas.iova_ranges().map_err(Failure::no_address_space)?;
        areas.iter().try_for_each(|area| is_mappable(area, &ranges))
    }

    /// Why the kernel would not map an area, now.
    fn not_mapped(&self, area: &MemoryRegion, error: CallError) -> Failure {
        match self.limit.bytes() {
            Some(limit) if error.errno == Errno::NOMEM => Failure::memory_lock_limit(&MemoryShortage {
                needed: self.wanted.size(),
                limit,
                charged: self.charged(),
                refused: area.size(),
            }),
            _ => Failure::map(iova(area), area.size(), error),
        }
    }

    /// Puts back what was there, as far as that goes.
    fn roll_back(&mut self, mapped: &[MemoryRegion], unmapped: &[MemoryRegion]) {
        for area in mapped {
            if let Err(failure) = self.unmap(area) {
                log::error!("event=roll-back-failed region={} reason=\"{failure}\"", area.address());
            }
        }
        for area in unmapped {
            if let Err(error) = self.map(area) {
                let failure = Failure::map(iova(area), area.size(), error);
                log::error!("event=region-lost region={} reason=\"{failure}\"", area.address());
                self.mapping = MappingState::Incomplete;
            }
        }
    }

    /// Makes an IOAS of these pieces, and moves the devices over to it. On failure they are where they were.
    fn succeed(&mut self, pieces: Vec<Piece>, devices: &[Arc<Device>]) -> Result<(), Failure> {
        let is_new = |piece: &Piece| matches!(piece, Piece::Mapped(_));
        let new: Vec<_> =
            pieces.iter().filter(|piece| is_new(piece)).map(|piece| piece.area().clone()).collect();
        self.check(&new)?;
        let mut ioas = Ioas::allocate(Arc::clone(&self.iommufd)).map_err(Failure::no_address_space)?;
        let mut areas = Areas::default();
        for piece in pieces {
            let area = piece.area();
            let made = match &piece {
                Piece::Copied(_) => ioas.copy_from(&self.ioas, iova(area), area.size(), area.access()),
                Piece::Mapped(_) => map(&mut ioas, area),
            };
            made.map_err(|error| self.not_mapped(area, error))?;
            areas.insert(area.clone());
        }
        let mut page_tables = Vec::new();
        for device in devices {
            if let Err(failure) = attach_to_one_of(&mut page_tables, &ioas, device) {
                self.move_back(devices);
                return Err(failure);
            }
        }
        drop(std::mem::replace(&mut self.page_tables, page_tables));
        drop(std::mem::replace(&mut self.ioas, ioas));
        self.areas = areas;
        log::debug!("event=memory-moved devices={}", devices.len());
        Ok(())
    }

    /// Attaches devices to the page tables on which they were. The kernel keeps the other IOAS for one that cannot be.
    fn move_back(&mut self, devices: &[Arc<Device>]) {
        for device in devices {
            if let Err(failure) = attach_to_one_of(&mut self.page_tables, &self.ioas, device) {
                log::error!("event=device-not-moved-back device={} reason=\"{failure}\"", device.address());
            }
        }
    }

    /// How many bytes the kernel charges us.
    fn charged(&self) -> u64 {
        self.areas.iter().map(MemoryRegion::size).sum()
    }

    fn map(&mut self, area: &MemoryRegion) -> Result<(), CallError> {
        map(&mut self.ioas, area)?;
        self.areas.insert(area.clone());
        Ok(())
    }

    pub(super) fn unmap(&mut self, area: &MemoryRegion) -> Result<(), Failure> {
        let iova = iova(area);
        match self.ioas.unmap(iova, area.size()) {
            Ok(()) => {}
            // Whoever else holds the iommufd was first.
            Err(error) if error.errno == Errno::NOENT => {}
            Err(error) => return Err(Failure::unmap(iova, error)),
        }
        self.areas.remove(area);
        Ok(())
    }
}

fn map(ioas: &mut Ioas, area: &MemoryRegion) -> Result<(), CallError> {
    ioas.map_file(area.file(), area.offset(), area.size(), iova(area), area.access())
}

/// Guest memory is at the address where the guest sees it.
const fn iova(area: &MemoryRegion) -> Iova {
    Iova(area.address().0)
}

/// The kernel would refuse the region with a bare `EINVAL`: say which.
fn is_mappable(region: &MemoryRegion, ranges: &IovaRanges) -> Result<(), Failure> {
    let address = region.address().0;
    let aligned =
        [address, region.size(), region.offset()].iter().all(|value| value.is_multiple_of(ranges.alignment));
    if !aligned {
        return Err(Failure::region_unaligned(address, ranges.alignment));
    }
    let fits =
        ranges.usable.iter().any(|range| range.start.0 <= address && region.range().last() <= range.last.0);
    if fits { Ok(()) } else { Err(Failure::region_reserved(address, &first_hole(address, ranges))) }
}

/// The first range at or behind `address` that cannot be mapped.
fn first_hole(address: u64, ranges: &IovaRanges) -> String {
    let before = ranges.usable.iter().rev().find(|range| range.start.0 <= address);
    let start = before.map_or(0, |range| range.last.0.saturating_add(1));
    match ranges.usable.iter().find(|range| range.start.0 > start) {
        Some(after) => format!("{start:#x}-{:#x}", after.start.0 - 1),
        None => format!("{start:#x} and above"),
    }
}

#[cfg(test)]
mod tests {
    use vfio::IovaRange;

    use super::*;

    fn with_msi_window() -> IovaRanges {
        let range = |start, last| IovaRange { start: Iova(start), last: Iova(last) };
        IovaRanges { usable: vec![range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)], alignment: 4096 }
    }

    #[test]
    fn the_window_for_interrupt_messages_is_named() {
        assert_eq!(first_hole(0xfe00_0000, &with_msi_window()), "0xfee00000-0xfeefffff");
        assert_eq!(first_hole(0xfee0_0000, &with_msi_window()), "0xfee00000-0xfeefffff");
    }

    #[test]
    fn the_end_of_the_address_width_is_named() {
        assert_eq!(first_hole(1 << 48, &with_msi_window()), "0x1000000000000 and above");
    }
}
