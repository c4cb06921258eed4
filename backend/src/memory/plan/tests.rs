// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio::Access;

use super::super::region::GuestAddress;
use super::super::region::tests::PAGE;
use super::super::view::{MAX_MAPPINGS, Mapping, MemoryView};
use super::*;

const PAGES: u64 = 12;

fn file() -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, PAGES * PAGE).unwrap();
    file
}

/// Guest memory as a file has it: page for page.
fn region(file: &OwnedFd, first: u64, pages: u64, access: Access) -> MemoryRegion {
    let (address, size) = (first * PAGE, pages * PAGE);
    MemoryRegion::new(GuestAddress(address), size, address, file.try_clone().unwrap(), access).unwrap()
}

/// An IOAS as the kernel has it.
#[derive(Clone, Debug, Default)]
struct Kernel {
    areas: Areas,
    successors: usize,
}

impl Kernel {
    /// Carries out what is planned, as the kernel would.
    fn follow(&mut self, plan: Plan) {
        match plan {
            Plan::InPlace { unmap, map } => {
                for area in &unmap {
                    assert!(
                        self.areas.iter().any(|other| other == area),
                        "{area:?} is not mapped as a whole"
                    );
                    self.areas.remove(area);
                }
                for area in map {
                    self.map(area);
                }
            }
            Plan::Successor(pieces) => {
                let old = std::mem::take(&mut self.areas);
                self.successors += 1;
                for piece in pieces {
                    let (Piece::Copied(area) | Piece::Mapped(area)) = &piece;
                    let sources: Vec<_> =
                        old.overlapping(*area.range()).filter(|source| source.agrees_with(area)).collect();
                    if let Piece::Copied(_) = &piece {
                        let [source] = sources[..] else { panic!("{area:?} has {} sources", sources.len()) };
                        assert_eq!(source.range().intersection(area.range()), Some(*area.range()));
                        assert!(source.access() >= area.access());
                    }
                    self.map(area.clone());
                }
            }
        }
    }

    fn map(&mut self, area: MemoryRegion) {
        assert_eq!(self.areas.overlapping(*area.range()).next(), None, "{area:?} is EEXIST");
        self.areas.insert(area);
    }

    /// What a device finds, page by page.
    fn pages(&self) -> Vec<MemoryRegion> {
        pages(self.areas.iter().cloned())
    }

    /// First page and number of pages of each area.
    fn places(&self) -> Vec<(u64, u64)> {
        self.areas.iter().map(|area| (area.address().0 / PAGE, area.size() / PAGE)).collect()
    }
}

fn pages(regions: impl Iterator<Item = MemoryRegion>) -> Vec<MemoryRegion> {
    let pages_of = |region: MemoryRegion| {
        let pages = (0..region.size() / PAGE).map(|page| region.address().0 + page * PAGE);
        let part = |page| region.part(GuestRange::new(GuestAddress(page), PAGE).unwrap());
        pages.map(part).collect::<Vec<_>>()
    };
    regions.flat_map(pages_of).collect()
}

/// Views, their union, and an IOAS that follows.
#[derive(Default)]
struct World {
    union: MemoryUnion,
    kernel: Kernel,
}

impl World {
    fn change(&mut self, removed: &[&MemoryRegion], added: &[&MemoryRegion]) {
        for region in removed {
            self.union.remove(region);
        }
        for region in added {
            self.union.add(region).unwrap();
        }
        let touched: Vec<_> = removed.iter().chain(added).map(|region| *region.range()).collect();
        self.kernel.follow(Plan::new(&self.kernel.areas, &self.union, &touched));
    }
}

#[test]
fn what_comes_as_a_whole_goes_as_a_whole_in_place() {
    let (file, mut world) = (file(), World::default());
    let (low, high) = (region(&file, 0, 4, Access::ReadWrite), region(&file, 4, 8, Access::ReadWrite));
    world.change(&[], &[&low, &high]);
    assert_eq!(world.kernel.places(), [(0, 4), (4, 8)]);
    world.change(&[&low], &[]);
    assert_eq!((world.kernel.places(), world.kernel.successors), (vec![(4, 8)], 0));
}

#[test]
fn what_a_second_view_has_too_is_neither_mapped_again_nor_unmapped_too_early() {
    let (file, mut world) = (file(), World::default());
    let ram = region(&file, 0, 8, Access::ReadWrite);
    world.change(&[], &[&ram]);
    world.change(&[], &[&ram]);
    world.change(&[&ram], &[]);
    assert_eq!(world.kernel.places(), [(0, 8)]);
    world.change(&[&ram], &[]);
    assert_eq!((world.kernel.places(), world.kernel.successors), (vec![], 0));
}

/// What QEMU's machine does when firmware changes what is in the low megabyte, for one device after the other.
#[test]
fn memory_that_is_remapped_in_pieces_is_not_pinned_anew() {
    let (file, mut world) = (file(), World::default());
    let whole = region(&file, 0, 8, Access::ReadWrite);
    let pieces = [region(&file, 0, 2, Access::ReadWrite), region(&file, 3, 5, Access::ReadWrite)];
    world.change(&[], &[&whole]);
    world.change(&[], &[&whole]);
    let [first, second] = &pieces;
    world.change(&[&whole], &[first, second]);
    assert_eq!((world.kernel.places(), world.kernel.successors), (vec![(0, 8)], 0), "the other still has it");
    let plan = {
        world.union.remove(&whole);
        for piece in &pieces {
            world.union.add(piece).unwrap();
        }
        Plan::new(&world.kernel.areas, &world.union, &[*whole.range()])
    };
    let Plan::Successor(areas) = &plan else { panic!("{plan:?}") };
    assert!(areas.iter().all(|piece| matches!(piece, Piece::Copied(_))), "{plan:?}");
    world.kernel.follow(plan);
    assert_eq!(world.kernel.places(), [(0, 2), (3, 5)]);
}

#[test]
fn memory_that_becomes_read_only_is_copied_with_less_permission() {
    let (file, mut world) = (file(), World::default());
    let (writable, read_only) = (region(&file, 0, 4, Access::ReadWrite), region(&file, 0, 4, Access::Read));
    world.change(&[], &[&writable]);
    world.change(&[&writable], &[&read_only]);
    assert_eq!(world.kernel.pages(), pages([read_only.clone()].into_iter()));
    world.change(&[&read_only], &[&writable]);
    assert_eq!(world.kernel.pages(), pages([writable].into_iter()));
    assert_eq!(world.kernel.successors, 2);
}

#[test]
fn other_memory_in_the_place_of_some_is_mapped_in_place() {
    let (old, new) = (file(), file());
    let (old, new) = (region(&old, 0, 4, Access::ReadWrite), region(&new, 0, 4, Access::ReadWrite));
    let mut world = World::default();
    world.change(&[], &[&old]);
    world.change(&[&old], &[&new]);
    assert_eq!((world.kernel.pages(), world.kernel.successors), (pages([new].into_iter()), 0));
}

/// What a client does.
#[derive(Clone, Debug)]
enum Deed {
    Map { file: usize, first: u64, pages: u64, access: Access },
    Unmap(prop::sample::Index),
}

fn deed() -> impl Strategy<Value = Deed> {
    // Mostly all say the same of the memory.
    let file = prop_oneof![9 => Just(0), 1 => Just(1)];
    let access = prop_oneof![3 => Just(Access::ReadWrite), 1 => Just(Access::Read)];
    let map = (file, 0..PAGES, 1..=PAGES, access).prop_map(|(file, first, pages, access)| {
        let pages = pages.min(PAGES - first);
        Deed::Map { file, first, pages, access }
    });
    prop_oneof![3 => map, 2 => any::<prop::sample::Index>().prop_map(Deed::Unmap)]
}

/// What the union of views is, by definition.
fn by_definition(views: &[MemoryView]) -> Vec<MemoryRegion> {
    let regions = views.iter().flat_map(MemoryView::mappings).filter_map(Mapping::region).cloned();
    let mut by_page: BTreeMap<u64, MemoryRegion> = BTreeMap::new();
    for page in pages(regions) {
        let entry = by_page.entry(page.address().0).or_insert_with(|| page.clone());
        assert!(entry.agrees_with(&page));
        *entry = page.clone().with_access(entry.access().max(page.access()));
    }
    by_page.into_values().collect()
}

proptest! {
    #[test]
    fn devices_find_the_union_of_the_views_whatever_clients_do(
        batches in prop::collection::vec((0..3_usize, prop::collection::vec(deed(), 1..5)), 1..24),
    ) {
        let files = [file(), file()];
        let mut views = vec![MemoryView::default(); 3];
        let mut world = World::default();
        for (view, deeds) in batches {
            let mut touched = Vec::new();
            for deed in deeds {
                match deed {
                    Deed::Map { file, first, pages: count, access } => {
                        let region = region(&files[file], first, count, access);
                        let mut next = views[view].clone();
                        if next.insert(Mapping::Backed(region.clone()), MAX_MAPPINGS).is_err() {
                            continue;
                        }
                        let all = views.iter().flat_map(MemoryView::mappings).filter_map(Mapping::region);
                        let agrees = all.into_iter().all(|other| other.agrees_with(&region));
                        prop_assert_eq!(world.union.add(&region).is_ok(), agrees);
                        if agrees {
                            views[view] = next;
                            touched.push(*region.range());
                        }
                    }
                    Deed::Unmap(which) => {
                        let mappings: Vec<_> = views[view].mappings().cloned().collect();
                        if mappings.is_empty() {
                            continue;
                        }
                        let Mapping::Backed(region) = which.get(&mappings) else { unreachable!() };
                        views[view].remove(*region.range()).unwrap();
                        world.union.remove(region);
                        touched.push(*region.range());
                    }
                }
            }
            let plan = Plan::new(&world.kernel.areas, &world.union, &touched);
            world.kernel.follow(plan);
            prop_assert_eq!(world.kernel.pages(), by_definition(&views));
            let size: u64 = world.union.wanted().map(|region| region.size()).sum();
            prop_assert_eq!(size, world.union.size());
        }
        let everything: Vec<_> = views.iter().flat_map(MemoryView::mappings).filter_map(Mapping::region).cloned().collect();
        world.change(&everything.iter().collect::<Vec<_>>(), &[]);
        prop_assert!(world.kernel.places().is_empty() && world.union.cuts_left() == 0);
    }

    /// A client that has the memory to itself takes away just what it gave: no IOAS ever succeeds another for it.
    #[test]
    fn a_single_client_that_changes_one_thing_at_a_time_needs_no_successor(deeds in prop::collection::vec(deed(), 1..24)) {
        let files = [file(), file()];
        let (mut view, mut world) = (MemoryView::default(), World::default());
        for deed in deeds {
            match deed {
                Deed::Map { file, first, pages, access } => {
                    let region = region(&files[file], first, pages, access);
                    if view.insert(Mapping::Backed(region.clone()), MAX_MAPPINGS).is_ok() {
                        world.change(&[], &[&region]);
                    }
                }
                Deed::Unmap(which) => {
                    let mappings: Vec<_> = view.mappings().cloned().collect();
                    if !mappings.is_empty() {
                        let Mapping::Backed(region) = which.get(&mappings) else { unreachable!() };
                        view.remove(*region.range()).unwrap();
                        world.change(&[region], &[]);
                    }
                }
            }
        }
        prop_assert_eq!(world.kernel.successors, 0);
    }
}
