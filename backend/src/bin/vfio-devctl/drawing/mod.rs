// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A part of the machine to be seen: bridges, what is behind them, what is reset together and what the IOMMU holds together.
//! [`tree`] draws it as text, [`svg`] as a picture.

mod svg;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use vfio::{Hierarchy, PciAddress, Place, ResetScope};

use crate::tool_error::ToolError;
use crate::view::driver_names;

/// What is drawn.
#[derive(Debug)]
pub(crate) struct Drawing {
    rows: Vec<Row>,
    /// What is reset together; by their first rows.
    scopes: Vec<Scope>,
    /// IOMMU groups with more than one function shown; by their first rows.
    groups: Vec<Group>,
}

/// A function or bridge.
#[derive(Debug)]
struct Row {
    address: PciAddress,
    /// For every bridge above it, the outermost first, and then for itself: whether nothing more follows there.
    ends: Vec<bool>,
    what: String,
    driver: String,
    vfio_device: String,
    iommu_group: Option<u32>,
    mark: Mark,
}

/// What is to be said about a function, in a few words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The words.
    pub(crate) text: String,
    /// Whether it stands in the way of something.
    pub(crate) blocks: bool,
}

/// Functions that are reset together.
#[derive(Debug)]
struct Scope {
    /// A letter, by which the legend names it.
    name: String,
    what: String,
    /// Whether the kernel ever resets it.
    is_possible: bool,
    span: Span,
}

#[derive(Debug)]
struct Group {
    number: u32,
    span: Span,
}

/// Rows that belong together, and the lane in which that is drawn: spans that overlap are in different ones.
#[derive(Debug)]
struct Span {
    /// In ascending order, at least one.
    rows: Vec<usize>,
    lane: usize,
}

impl Drawing {
    /// The scopes and groups of these functions and the bridges above; the whole machine if there are none.
    pub(crate) fn new(
        hierarchy: &Hierarchy,
        focus: &[PciAddress],
        mark: impl Fn(PciAddress) -> Mark,
    ) -> Self {
        let shown = shown(hierarchy, focus);
        let mut rows = Vec::new();
        let roots = children(hierarchy, &shown, None);
        add_rows(hierarchy, &shown, &roots, &[], &mut rows);
        for row in &mut rows {
            row.mark = mark(row.address);
        }
        let places: BTreeMap<_, _> =
            rows.iter().enumerate().map(|(place, row)| (row.address, place)).collect();
        let scopes = scopes(hierarchy, &places);
        let groups = groups(&rows);
        Self { rows, scopes, groups }
    }

    /// What is drawn, from the top.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = PciAddress> {
        self.rows.iter().map(|row| row.address)
    }

    /// Writes the picture.
    pub(crate) fn write_svg(&self, path: &Path) -> Result<(), ToolError> {
        std::fs::write(path, self.svg()).map_err(|error| ToolError::write(path, &error))
    }
}

impl Span {
    fn first(&self) -> usize {
        self.rows.first().copied().unwrap_or_default()
    }

    fn last(&self) -> usize {
        self.rows.last().copied().unwrap_or_default()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first() <= other.last() && other.first() <= self.last()
    }
}

impl Scope {
    /// The legend's line.
    fn legend(&self) -> String {
        let consequence =
            if self.is_possible { "is reset as a whole" } else { "can never be reset as a whole" };
        format!("{}: {} {consequence}", self.name, self.what)
    }
}

fn shown(hierarchy: &Hierarchy, focus: &[PciAddress]) -> BTreeSet<PciAddress> {
    if focus.is_empty() {
        return hierarchy.places().map(|place| place.function.address).collect();
    }
    let mut shown: BTreeSet<_> =
        focus.iter().copied().filter(|address| hierarchy.place(*address).is_some()).collect();
    for address in focus {
        shown.extend(hierarchy.reset_scope(*address).affected());
        let group = hierarchy.place(*address).and_then(|place| place.function.iommu_group);
        let members = group.into_iter().flat_map(|group| hierarchy.group_members(group));
        shown.extend(members.map(|member| member.function.address));
    }
    let above = |address: &PciAddress| {
        let bridge = |address: &PciAddress| hierarchy.place(*address)?.bridge;
        std::iter::successors(bridge(address), bridge).collect::<Vec<_>>()
    };
    let bridges: Vec<_> = shown.iter().flat_map(above).collect();
    shown.extend(bridges);
    shown
}

/// What is shown of the bus behind a bridge, or of the root buses, in the kernel's order.
fn children<'a>(
    hierarchy: &'a Hierarchy,
    shown: &BTreeSet<PciAddress>,
    bridge: Option<PciAddress>,
) -> Vec<&'a Place> {
    let is_child = |place: &&Place| place.bridge == bridge && shown.contains(&place.function.address);
    let mut children: Vec<_> = hierarchy.places().filter(is_child).collect();
    children.sort_by_key(|place| place.function.is_virtual);
    children
}

fn add_rows(
    hierarchy: &Hierarchy,
    shown: &BTreeSet<PciAddress>,
    siblings: &[&Place],
    above: &[bool],
    rows: &mut Vec<Row>,
) {
    for (at, place) in siblings.iter().enumerate() {
        let ends = [above, &[at + 1 == siblings.len()]].concat();
        rows.push(Row::new(place, ends.clone()));
        // Nothing is behind what has no bus behind it.
        if place.secondary_bus.is_some_and(|bus| bus > place.function.address.bus()) {
            let behind = children(hierarchy, shown, Some(place.function.address));
            add_rows(hierarchy, shown, &behind, &ends, rows);
        }
    }
}

impl Row {
    fn new(place: &Place, ends: Vec<bool>) -> Self {
        let function = &place.function;
        let (vfio_device, driver) = driver_names(&function.driver);
        Self {
            address: function.address,
            ends,
            what: what(place),
            driver: driver.into(),
            vfio_device: vfio_device.into(),
            iommu_group: function.iommu_group,
            mark: Mark::default(),
        }
    }
}

fn what(place: &Place) -> String {
    let function = &place.function;
    match (place.secondary_bus, &place.slot) {
        (Some(bus), Some(slot)) => format!("bridge to bus {bus:02x}, slot {slot}"),
        (Some(bus), None) => format!("bridge to bus {bus:02x}"),
        (None, _) => {
            let kind = if function.is_virtual { "virtual " } else { "" };
            format!("{kind}{} {:04x}:{:04x}", class(function.class), function.vendor, function.device)
        }
    }
}

/// A word for a class code.
const fn class(code: u32) -> &'static str {
    match code >> 16 {
        0x01 => "storage",
        0x02 => "network",
        0x03 => "display",
        0x04 => "multimedia",
        0x05 => "memory",
        0x06 => "bridge",
        0x07 => "communication",
        0x08 => "system",
        0x09 => "input",
        0x0c => "serial bus",
        0x0d => "wireless",
        0x12 => "accelerator",
        _ => "device",
    }
}

/// What is reset together, as far as all of it is shown.
fn scopes(hierarchy: &Hierarchy, places: &BTreeMap<PciAddress, usize>) -> Vec<Scope> {
    let endpoints =
        places.keys().filter(|address| hierarchy.place(**address).is_some_and(|place| !place.is_bridge()));
    let scopes = endpoints.map(|address| (*address, hierarchy.reset_scope(*address)));
    let by_bridge: BTreeMap<_, _> =
        scopes.filter_map(|(asked, scope)| Some((scope.bridge()?, (asked, scope)))).collect();
    let mut found = Vec::new();
    for (asked, scope) in by_bridge.into_values() {
        let rows: Option<BTreeSet<_>> =
            scope.affected().iter().map(|address| places.get(address).copied()).collect();
        let Some(rows) = rows.filter(|rows| !rows.is_empty()) else { continue };
        let is_possible = scope.affected().iter().all(|other| hierarchy.is_in_set_of(asked, *other));
        let what = scope_name(&scope);
        let span = Span { rows: rows.into_iter().collect(), lane: 0 };
        found.push(Scope { name: String::new(), what, is_possible, span });
    }
    found.sort_by_key(|scope| scope.span.first());
    for (number, scope) in found.iter_mut().enumerate() {
        scope.name = letters(number);
    }
    assign_lanes(found.iter_mut().map(|scope| &mut scope.span).collect());
    found
}

/// What a scope is called.
pub(crate) fn scope_name(scope: &ResetScope) -> String {
    let bus = |affected: &[PciAddress]| {
        affected.first().map_or(String::new(), |first| format!("{:04x}:{:02x}", first.segment(), first.bus()))
    };
    match scope {
        ResetScope::Missing => "no slot or bus".into(),
        ResetScope::Slot { name, bridge, .. } => format!("slot {name} behind {bridge}"),
        ResetScope::Bus { bridge, affected } => format!("bus {} behind {bridge}", bus(affected)),
    }
}

fn groups(rows: &[Row]) -> Vec<Group> {
    let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (place, row) in rows.iter().enumerate() {
        if let Some(group) = row.iommu_group {
            members.entry(group).or_default().push(place);
        }
    }
    let several = members.into_iter().filter(|(_, rows)| rows.len() > 1);
    let mut groups: Vec<_> =
        several.map(|(number, rows)| Group { number, span: Span { rows, lane: 0 } }).collect();
    groups.sort_by_key(|group| group.span.first());
    assign_lanes(groups.iter_mut().map(|group| &mut group.span).collect());
    groups
}

/// Short spans are in the first lanes, so that one within another is nearer to what it is about.
fn assign_lanes(mut spans: Vec<&mut Span>) {
    spans.sort_by_key(|span| (span.last() - span.first(), span.first()));
    for at in 0..spans.len() {
        let (placed, rest) = spans.split_at_mut(at);
        let Some(span) = rest.first_mut() else { return };
        let taken: BTreeSet<_> =
            placed.iter().filter(|other| other.overlaps(span)).map(|other| other.lane).collect();
        // One more lane than there are spans placed is always free.
        span.lane = (0..=at).find(|lane| !taken.contains(lane)).unwrap_or(at);
    }
}

/// A, B, … Z, AA, AB, …
fn letters(number: usize) -> String {
    let last = u8::try_from(number % 26).map_or('?', |letter| char::from(b'A' + letter));
    if number < 26 { last.to_string() } else { letters(number / 26 - 1) + &last.to_string() }
}
