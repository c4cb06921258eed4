// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way from what an IOAS maps to what is wanted. The kernel takes a mapping away only as a whole, so where a part of one has
//! to stay, another IOAS succeeds: it shares the pages, and devices move over without a moment in which they reach nothing.

use std::collections::BTreeMap;

use super::region::{GuestRange, MemoryRegion};
use super::union::MemoryUnion;

/// The mappings of an IOAS: each was made by one call, and can go by one.
#[derive(Clone, Debug, Default)]
pub struct Areas(BTreeMap<u64, MemoryRegion>);

impl Areas {
    /// One more.
    pub fn insert(&mut self, area: MemoryRegion) {
        self.0.insert(area.address().0, area);
    }

    /// One less.
    pub fn remove(&mut self, area: &MemoryRegion) {
        self.0.remove(&area.address().0);
    }

    /// In ascending order of address.
    pub fn iter(&self) -> impl Iterator<Item = &MemoryRegion> {
        self.0.values()
    }

    /// Those that have something in common with `range`.
    fn overlapping(&self, range: GuestRange) -> impl Iterator<Item = &MemoryRegion> {
        let before = self.0.range(..range.address().0).next_back();
        let before = before.filter(move |(_, area)| area.range().end() > range.address().0);
        before.into_iter().chain(self.0.range(range.address().0..range.end())).map(|(_, area)| area)
    }
}

/// What has to be done.
#[derive(Debug)]
pub enum Plan {
    /// In the IOAS itself.
    InPlace {
        /// Areas to be unmapped, before anything is mapped.
        unmap: Vec<MemoryRegion>,
        /// Areas to be mapped.
        map: Vec<MemoryRegion>,
    },
    /// In another IOAS, which has all of these.
    Successor(Vec<Piece>),
}

/// An area of a successor.
#[derive(Debug)]
pub enum Piece {
    /// It shares the pages of its predecessor's area.
    Copied(MemoryRegion),
    /// It is new.
    Mapped(MemoryRegion),
}

impl Piece {
    /// The area.
    pub const fn area(&self) -> &MemoryRegion {
        let (Self::Copied(area) | Self::Mapped(area)) = self;
        area
    }
}

/// What becomes of an area.
enum Fate {
    Kept,
    Dropped,
    /// A part of it stays, or all of it with another permission.
    Split,
}

impl Plan {
    /// How to come from `areas` to `wanted`, which differ in `touched` only.
    pub fn new(areas: &Areas, wanted: &MemoryUnion, touched: &[GuestRange]) -> Self {
        let (mut unmap, mut map) = (BTreeMap::new(), BTreeMap::new());
        let mut kept = Areas::default();
        for area in touched.iter().flat_map(|range| areas.overlapping(*range)) {
            match fate(area, wanted) {
                Fate::Kept => kept.insert(area.clone()),
                Fate::Dropped => drop(unmap.insert(area.address().0, area.clone())),
                Fate::Split => return Self::Successor(pieces(areas, wanted)),
            }
        }
        for region in touched.iter().flat_map(|range| wanted.overlapping(*range)) {
            // What is wanted may reach beyond what was touched.
            let still = areas.overlapping(*region.range()).filter(|area| area.agrees_with(&region));
            for part in without(&region, still) {
                map.insert(part.address().0, part);
            }
        }
        Self::InPlace { unmap: unmap.into_values().collect(), map: map.into_values().collect() }
    }
}

fn fate(area: &MemoryRegion, wanted: &MemoryUnion) -> Fate {
    let (mut staying, mut is_same) = (0_u64, true);
    for region in wanted.overlapping(*area.range()).filter(|region| region.agrees_with(area)) {
        staying += region.range().intersection(area.range()).map_or(0, |common| common.size());
        is_same &= region.access() == area.access();
    }
    match staying {
        0 => Fate::Dropped,
        all if all == area.size() && is_same => Fate::Kept,
        _ => Fate::Split,
    }
}

/// All that is wanted: copied where an area has it already and lets devices do as much, and otherwise new.
fn pieces(areas: &Areas, wanted: &MemoryUnion) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for region in wanted.wanted() {
        let is_source = |area: &&MemoryRegion| area.agrees_with(&region) && area.access() >= region.access();
        let sources: Vec<_> = areas.overlapping(*region.range()).filter(is_source).collect();
        let common = sources.iter().filter_map(|area| area.range().intersection(region.range()));
        pieces.extend(common.map(|range| Piece::Copied(region.part(range))));
        pieces.extend(without(&region, sources.into_iter()).map(Piece::Mapped));
    }
    pieces
}

/// What is left of a region without `areas`, which are in ascending order.
fn without<'a>(
    region: &MemoryRegion,
    areas: impl Iterator<Item = &'a MemoryRegion>,
) -> impl Iterator<Item = MemoryRegion> {
    let mut next = region.address().0;
    let mut left = Vec::new();
    for area in areas {
        left.extend(GuestRange::between(next, area.address().0));
        next = next.max(area.range().end());
    }
    left.extend(GuestRange::between(next, region.range().end()));
    left.into_iter().map(|range| region.part(range))
}

#[cfg(test)]
mod tests;
