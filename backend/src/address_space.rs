// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VM's I/O address space: guest memory at IOVA = guest-physical address, for every device of the VM.
//!
//! Attach first, map second: without a device attached the kernel checks nothing. A table that comes before the first
//! device is kept and mapped when that device is attached.

use std::sync::Arc;

use protocol::extension::IoasChoice;
use rustix::io::Errno;
use vfio::ioas::IovaRanges;
use vfio::{Access, CallError, Device, Hwpt, Ioas, Iommufd, Iova};

use crate::failure::{Failure, MemoryShortage};
use crate::memory_lock::MemoryLimit;
use crate::memory_table::{MemoryRegion, MemoryTable, size_of_all};

/// An IOAS, the page tables over it, and the memory in it.
#[derive(Debug)]
pub struct AddressSpace {
    // The page tables go before the IOAS that they are over.
    page_tables: Vec<Hwpt>,
    ioas: Ioas,
    choice: IoasChoice,
    iommufd: Arc<Iommufd>,
    table: MemoryTable,
    mapping: Mapping,
    limit: MemoryLimit,
}

/// Whether the table is in the IOAS yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// No device has been attached.
    Deferred,
    /// From the first attachment on. A page table of ours keeps it when the last device is detached; an IOAS that others
    /// use keeps at least the table, which is pinned anew with the next attachment.
    InForce,
}

impl AddressSpace {
    /// An address space without memory, of which so much may be pinned.
    pub fn new(iommufd: Arc<Iommufd>, choice: IoasChoice, limit: MemoryLimit) -> Result<Self, Failure> {
        let ioas = match choice {
            IoasChoice::Allocate => Ioas::allocate(Arc::clone(&iommufd)),
            IoasChoice::Adopt(id) | IoasChoice::Fill(id) => Ioas::adopt(Arc::clone(&iommufd), id),
        };
        let ioas = ioas.map_err(Failure::no_address_space)?;
        Ok(Self {
            page_tables: Vec::new(),
            ioas,
            choice,
            iommufd,
            table: MemoryTable::default(),
            mapping: Mapping::Deferred,
            limit,
        })
    }

    /// The context that devices are bound to.
    pub const fn iommufd(&self) -> &Arc<Iommufd> {
        &self.iommufd
    }

    /// The memory as it was last accepted.
    pub const fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// Whether another process maps this address space.
    pub const fn is_adopted(&self) -> bool {
        matches!(self.choice, IoasChoice::Adopt(_))
    }

    /// Attaches a bound device, and maps the table if it is the first one. On failure it is detached again.
    pub fn attach(&mut self, device: &Device) -> Result<(), Failure> {
        self.attach_to_page_table(device)?;
        if self.mapping == Mapping::InForce {
            return Ok(());
        }
        let table = std::mem::take(&mut self.table);
        self.mapping = Mapping::InForce;
        self.change(table.clone()).inspect_err(|_| {
            self.mapping = Mapping::Deferred;
            self.table = table;
            if let Err(error) = device.detach() {
                log::warn!(
                    "event=detach-failed device={} errno={}",
                    device.address(),
                    error.errno.raw_os_error()
                );
            }
        })
    }

    /// A page table serves every device of its kind; a device that none fits gets one that others may share.
    ///
    /// An IOAS that several servers use has the kernel's own page tables, which all of them share: functions of one IOMMU
    /// group cannot be attached to two, and nobody can name another process's.
    fn attach_to_page_table(&mut self, device: &Device) -> Result<(), Failure> {
        match self.choice {
            IoasChoice::Adopt(_) | IoasChoice::Fill(_) => {
                device.attach_ioas(&self.ioas).map_err(Failure::attach)
            }
            IoasChoice::Allocate => self.attach_to_own_page_table(device),
        }
    }

    fn attach_to_own_page_table(&mut self, device: &Device) -> Result<(), Failure> {
        for page_table in &self.page_tables {
            match device.attach(page_table) {
                Ok(()) => return Ok(()),
                Err(error) if error.errno == Errno::INVAL => {}
                Err(error) => return Err(Failure::attach(error)),
            }
        }
        let page_table = Hwpt::allocate(&self.ioas, device.id()).map_err(Failure::attach)?;
        device.attach(&page_table).map_err(Failure::attach)?;
        self.page_tables.push(page_table);
        Ok(())
    }

    /// Puts another table in force. On failure the old one stands.
    pub fn change(&mut self, next: MemoryTable) -> Result<(), Failure> {
        let needed = next.size();
        if let Some(limit) = self.limit.exceeded_by(needed) {
            let shortage = MemoryShortage { needed, limit, charged: self.charged(&[]), refused: needed };
            return Err(Failure::memory_lock_limit(&shortage));
        }
        if self.mapping == Mapping::InForce {
            let change = self.table.change_to(&next);
            let ranges = self.ioas.iova_ranges().map_err(Failure::no_address_space)?;
            change.added.iter().try_for_each(|region| is_mappable(region, &ranges))?;
            self.replace(&change.removed, &change.added, needed)?;
        }
        self.table = next;
        Ok(())
    }

    /// Unmaps `removed`, then maps `added`, for a table of `needed` bytes; undoes what it did when one of them fails.
    fn replace(
        &mut self,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
        needed: u64,
    ) -> Result<(), Failure> {
        for (done, region) in removed.iter().enumerate() {
            if let Err(failure) = self.unmap(region) {
                self.roll_back(&[], removed.get(..done).unwrap_or_default());
                return Err(failure);
            }
        }
        for (done, region) in added.iter().enumerate() {
            if let Err(error) = self.map(region) {
                let mapped = added.get(..done).unwrap_or_default();
                let charged = self.charged(removed).saturating_add(size_of_all(mapped));
                self.roll_back(mapped, removed);
                return Err(match self.limit.bytes() {
                    Some(limit) if error.errno == Errno::NOMEM => {
                        Failure::memory_lock_limit(&MemoryShortage {
                            needed,
                            limit,
                            charged,
                            refused: region.size(),
                        })
                    }
                    _ => Failure::map(iova(region), region.size(), error),
                });
            }
        }
        Ok(())
    }

    /// Puts the old table back, as far as that goes. What cannot be mapped again leaves the table, which never claims what
    /// is not so: a client that sends the region again has it mapped.
    fn roll_back(&mut self, mapped: &[MemoryRegion], unmapped: &[MemoryRegion]) {
        for region in mapped {
            if let Err(failure) = self.unmap(region) {
                log::error!("event=roll-back-failed region={} reason=\"{failure}\"", region.address());
            }
        }
        for region in unmapped {
            if let Err(error) = self.map(region) {
                let failure = Failure::map(iova(region), region.size(), error);
                log::error!("event=region-lost region={} reason=\"{failure}\"", region.address());
                self.table.forget(region);
            }
        }
    }

    /// Unmaps everything, because the client that described it is gone. Nothing of it is mapped again on the way.
    pub fn clear(&mut self) {
        let table = std::mem::take(&mut self.table);
        if self.mapping == Mapping::Deferred {
            return;
        }
        for region in table.regions() {
            if let Err(failure) = self.unmap(region) {
                log::error!("event=region-not-released region={} reason=\"{failure}\"", region.address());
            }
        }
    }

    /// How many bytes the kernel charges us for the table without `removed`.
    fn charged(&self, removed: &[MemoryRegion]) -> u64 {
        match self.mapping {
            Mapping::Deferred => 0,
            Mapping::InForce => self.table.size().saturating_sub(size_of_all(removed)),
        }
    }

    fn map(&mut self, region: &MemoryRegion) -> Result<(), CallError> {
        let (offset, size) = (region.offset(), region.size());
        self.ioas.map_file(region.file(), offset, size, iova(region), Access::ReadWrite)
    }

    fn unmap(&mut self, region: &MemoryRegion) -> Result<(), Failure> {
        let iova = iova(region);
        match self.ioas.unmap(iova, region.size()) {
            // Whoever else holds the iommufd was first.
            Err(error) if error.errno == Errno::NOENT => Ok(()),
            result => result.map_err(|error| Failure::unmap(iova, error)),
        }
    }
}

impl Drop for AddressSpace {
    /// An IOAS that is not ours stays, and what we have mapped in it must not.
    fn drop(&mut self) {
        if let IoasChoice::Fill(_) = self.choice {
            self.clear();
        }
    }
}

/// Guest memory is at the address where the guest sees it.
const fn iova(region: &MemoryRegion) -> Iova {
    Iova(region.address().0)
}

/// The kernel would refuse the region with a bare `EINVAL`: say which.
fn is_mappable(region: &MemoryRegion, ranges: &IovaRanges) -> Result<(), Failure> {
    let address = region.address().0;
    let aligned =
        [address, region.size(), region.offset()].iter().all(|value| value.is_multiple_of(ranges.alignment));
    if !aligned {
        return Err(Failure::region_unaligned(address, ranges.alignment));
    }
    let fits = ranges.usable.iter().any(|range| range.start.0 <= address && region.last() <= range.last.0);
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
