// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An I/O address space (`struct io_pagetable`): what is mapped where, whether or not a device can see it yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::PAGE;
use super::hwpt::Translation;
use super::locked_memory::LockedMemory;
use super::pages::Pages;
use super::span::Span;
use crate::ioas::Iova;
use crate::model::memory_map::{Mapping, MemoryMap};

/// What a mapping lets a device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protection {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// A part of some memory.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) pages: Arc<Pages>,
    /// In bytes from the start of the memory's first page.
    pub(super) offset: u64,
    /// In bytes; at least 1 once it is mapped.
    pub(super) length: u64,
}

/// A mapping, which need not have been looked at yet.
#[derive(Clone, Debug)]
pub(super) struct Area {
    pub(super) slice: Slice,
    pub(super) protection: Protection,
}

/// What reserves addresses of an IOAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReservedFor {
    /// An attached device.
    Device(u32),
    /// A page table.
    Hwpt(u32),
}

/// An address space of a context.
#[derive(Debug)]
pub(super) struct Ioas {
    pub(super) areas: BTreeMap<Iova, Area>,
    /// What each of the page tables holds: all areas, or nothing as long as there is no page table.
    pub(super) memory: MemoryMap,
    /// The page tables over it, oldest first.
    pub(super) hwpts: Vec<u32>,
    reserved: Vec<(ReservedFor, Span)>,
    /// Where automatic addresses are taken from, and what no device may reserve; empty for no such promise.
    allowed: Vec<Span>,
    pub(super) large_pages: bool,
}

impl Slice {
    /// The pages it touches.
    pub(super) fn span(&self) -> Span {
        let last = self.offset.saturating_add(self.length.saturating_sub(1));
        Span { first: self.offset / PAGE, last: last / PAGE }
    }

    /// The address that an automatic IOVA should be congruent to.
    fn address(&self) -> u64 {
        self.pages.address.saturating_add(self.offset)
    }
}

impl Area {
    /// Where it lies when it starts at `start`.
    pub(super) fn span(&self, start: Iova) -> Span {
        Span { first: start.0, last: start.0.saturating_add(self.slice.length - 1) }
    }

    /// Pins its memory for a page table.
    fn pin(&self, locked: &mut LockedMemory) -> Result<Mapping, Errno> {
        let Slice { pages, offset, length } = &self.slice;
        let (file, offset) = pages.file_at(*offset)?;
        locked.pin(pages, self.slice.span())?;
        let Protection { readable, writable } = self.protection;
        Ok(Mapping { length: *length, file, offset, readable, writable })
    }

    fn unpin(&self, locked: &mut LockedMemory) {
        locked.unpin(&self.slice.pages, self.slice.span());
    }
}

impl Ioas {
    pub(super) const fn new() -> Self {
        Self {
            areas: BTreeMap::new(),
            memory: MemoryMap(BTreeMap::new()),
            hwpts: Vec::new(),
            reserved: Vec::new(),
            allowed: Vec::new(),
            large_pages: true,
        }
    }

    /// What addresses and lengths have to be multiples of.
    pub(super) const fn alignment(&self) -> u64 {
        if self.hwpts.is_empty() && self.large_pages { 1 } else { PAGE }
    }

    /// What is not reserved.
    pub(super) fn usable(&self) -> Vec<Span> {
        Span::ALL.gaps(self.reserved.iter().map(|(_, span)| *span))
    }

    /// The first mapping that touches the span.
    fn first_area(&self, span: Span) -> Option<(Span, &Area)> {
        let before = self.areas.range(..=Iova(span.first)).next_back();
        let inside = self.areas.range(Iova(span.first)..=Iova(span.last)).next();
        let mut candidates = before.into_iter().chain(inside).map(|(start, area)| (area.span(*start), area));
        candidates.find(|(place, _)| place.meets(span))
    }

    /// Maps slices one behind the other, at `place` or wherever they fit; all or nothing.
    ///
    /// Returns where.
    pub(super) fn map(
        &mut self,
        place: Option<Iova>,
        slices: Vec<Slice>,
        protection: Protection,
        locked: &mut LockedMemory,
    ) -> Result<Iova, Errno> {
        let length = slices.iter().fold(0, |sum: u64, slice| sum.saturating_add(slice.length));
        if length == 0 || !length.is_multiple_of(self.alignment()) {
            return Err(Errno::INVAL);
        }
        let address = slices.first().map_or(0, Slice::address);
        let start = match place {
            Some(iova) => self.check_place(iova, length).map(|()| iova)?,
            None => self.free_place(address, length)?,
        };
        let mut areas = BTreeMap::new();
        let mut next = start.0;
        for slice in slices {
            if protection.writable && !slice.pages.writable {
                return Err(Errno::PERM);
            }
            if !(slice.offset % PAGE).is_multiple_of(self.alignment()) {
                return Err(Errno::INVAL);
            }
            let end = next.wrapping_add(slice.length);
            areas.insert(Iova(next), Area { slice, protection });
            next = end;
        }
        if !self.hwpts.is_empty() {
            self.memory.0.append(&mut pin_all(&areas, locked)?.0);
        }
        self.areas.append(&mut areas);
        Ok(start)
    }

    fn check_place(&self, start: Iova, length: u64) -> Result<(), Errno> {
        if !start.0.is_multiple_of(self.alignment()) {
            return Err(Errno::INVAL);
        }
        let place = Span::new(start.0, length).ok_or(Errno::OVERFLOW)?;
        if self.reserved.iter().any(|(_, reserved)| reserved.meets(place)) {
            return Err(Errno::INVAL);
        }
        if self.first_area(place).is_some() { Err(Errno::EXIST) } else { Ok(()) }
    }

    /// Finds a place for memory at `address`, congruent to it up to a huge page, and never at 0.
    fn free_place(&self, address: u64, length: u64) -> Result<Iova, Errno> {
        const HUGE_PAGE: u64 = 2 << 20;
        if length >= u64::MAX / 2 {
            return Err(Errno::OVERFLOW);
        }
        let natural = 1_u64.checked_shl(address.trailing_zeros()).unwrap_or(HUGE_PAGE);
        let alignment = natural.min(length.next_power_of_two()).min(HUGE_PAGE);
        if alignment < self.alignment() {
            return Err(Errno::INVAL);
        }
        let fits = |span: &Span| {
            let start = (span.first.checked_add(alignment - 1)? & !(alignment - 1)) | (address % PAGE);
            let room = span.last.checked_sub(start).filter(|room| *room > 0 && *room >= length - 1);
            room.map(|_| Span { first: start, last: span.last })
        };
        let everywhere = Span { first: PAGE, last: u64::MAX - PAGE };
        // Allowed spans that touch are one.
        let forbidden = everywhere.gaps(self.allowed.iter().copied());
        let allowed = if self.allowed.is_empty() { vec![everywhere] } else { everywhere.gaps(forbidden) };
        let reserved = self.reserved.iter().map(|(_, span)| *span);
        let used: Vec<_> = self.areas.iter().map(|(start, area)| area.span(*start)).chain(reserved).collect();
        let places = allowed.iter().filter_map(fits).flat_map(|span| span.gaps(used.iter().copied()));
        places.into_iter().find_map(|gap| fits(&gap)).map(|place| Iova(place.first)).ok_or(Errno::NOSPC)
    }

    /// Unmaps every mapping in the span, one after the other.
    ///
    /// Returns how many bytes.
    ///
    /// # Errors
    ///
    /// `ENOENT` at a mapping that reaches beyond the span; those before it are gone by then.
    pub(super) fn unmap(&mut self, span: Span, locked: &mut LockedMemory) -> Result<u64, Errno> {
        let mut unmapped = 0_u64;
        while let Some((place, _)) = self.first_area(span) {
            if !span.contains(place) {
                return Err(Errno::NOENT);
            }
            let Some(area) = self.areas.remove(&Iova(place.first)) else { break };
            if self.memory.0.remove(&Iova(place.first)).is_some() {
                area.unpin(locked);
            }
            unmapped = unmapped.wrapping_add(area.slice.length);
        }
        Ok(unmapped)
    }

    /// What is mapped in the span, which has to have no holes.
    pub(super) fn slices(&self, span: Span) -> Result<Vec<Slice>, Errno> {
        let mut slices = Vec::new();
        let mut first = span.first;
        loop {
            let (place, area) = self.first_area(Span { first, last: first }).ok_or(Errno::NOENT)?;
            let last = place.last.min(span.last);
            let offset = area.slice.offset.saturating_add(first - place.first);
            let length = Span { first, last }.length();
            slices.push(Slice { pages: Arc::clone(&area.slice.pages), offset, length });
            if last == span.last {
                return Ok(slices);
            }
            first = last + 1;
        }
    }

    /// Keeps addresses free of mappings.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` something is mapped there, or was promised to be usable.
    pub(super) fn reserve(&mut self, owner: ReservedFor, span: Span) -> Result<(), Errno> {
        if self.first_area(span).is_some() || self.allowed.iter().any(|allowed| allowed.meets(span)) {
            return Err(Errno::ADDRINUSE);
        }
        self.reserved.push((owner, span));
        Ok(())
    }

    /// Undoes every [`Self::reserve`] of an owner.
    pub(super) fn release(&mut self, owner: ReservedFor) {
        self.reserved.retain(|(reserved_for, _)| *reserved_for != owner);
    }

    /// Promises that addresses stay usable, in place of the last such promise.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` some are reserved already.
    pub(super) fn allow(&mut self, spans: Vec<Span>) -> Result<(), Errno> {
        let is_reserved = |span: &Span| self.reserved.iter().any(|(_, reserved)| reserved.meets(*span));
        if spans.iter().any(is_reserved) {
            return Err(Errno::ADDRINUSE);
        }
        self.allowed = spans;
        Ok(())
    }

    /// A page table comes to be over this address space. With the first one everything mapped is pinned. One that fails
    /// is to be removed too.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` a mapping is too fine or lies beyond what the table reaches; those of pinning.
    pub(super) fn add_hwpt(
        &mut self,
        id: u32,
        translation: Translation,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        self.check_alignment()?;
        if let Some(beyond) = translation.out_of_reach() {
            self.reserve(ReservedFor::Hwpt(id), beyond)?;
        }
        if self.hwpts.is_empty() {
            self.memory = pin_all(&self.areas, locked)?;
        }
        self.hwpts.push(id);
        Ok(())
    }

    /// A page table is gone, if it was there. With the last one everything is unpinned.
    pub(super) fn remove_hwpt(&mut self, id: u32, locked: &mut LockedMemory) {
        self.hwpts.retain(|hwpt| *hwpt != id);
        self.release(ReservedFor::Hwpt(id));
        if self.hwpts.is_empty() {
            for start in std::mem::take(&mut self.memory.0).into_keys() {
                if let Some(area) = self.areas.get(&start) {
                    area.unpin(locked);
                }
            }
        }
    }

    /// Whether page tables may use large pages (`IOMMU_OPTION_HUGE_PAGES`).
    ///
    /// # Errors
    ///
    /// For turning them off: `EINVAL` tables hold something; `EADDRINUSE` a mapping is finer than a page.
    pub(super) fn set_large_pages(&mut self, enabled: bool) -> Result<(), Errno> {
        if !enabled && self.large_pages {
            if !self.hwpts.is_empty() && !self.areas.is_empty() {
                return Err(Errno::INVAL);
            }
            self.check_alignment()?;
        }
        self.large_pages = enabled;
        Ok(())
    }

    /// Whether all that is mapped can be said in pages.
    fn check_alignment(&self) -> Result<(), Errno> {
        let fine = self.areas.iter().any(|(start, area)| {
            [start.0, area.slice.length, area.slice.offset].iter().any(|value| !value.is_multiple_of(PAGE))
        });
        if fine { Err(Errno::ADDRINUSE) } else { Ok(()) }
    }
}

/// Pins everything or nothing.
fn pin_all(areas: &BTreeMap<Iova, Area>, locked: &mut LockedMemory) -> Result<MemoryMap, Errno> {
    let mut memory = MemoryMap::default();
    for (start, area) in areas {
        match area.pin(locked) {
            Ok(mapping) => drop(memory.0.insert(*start, mapping)),
            Err(errno) => {
                areas.range(..start).for_each(|(_, area)| area.unpin(locked));
                return Err(errno);
            }
        }
    }
    Ok(memory)
}
