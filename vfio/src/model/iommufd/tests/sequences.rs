// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What holds after whatever was done in whatever order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::hwpt::{Origin, Translation};
use super::super::ioas::Area;
use super::*;

/// Stands for one of the objects of the right kind, or for itself.
type Id = u32;

#[derive(Clone, Debug)]
enum Step {
    Ioas,
    Hwpt { device: Id, ioas: Id },
    Destroy(Id),
    Bind(Option<u32>),
    Close(Id),
    Attach { device: Id, to: Id },
    Detach(Id),
    Map { ioas: Id, flags: u32, start: u64, pages: u64, iova: u64 },
    MapNothing { ioas: Id, iova: u64 },
    Unmap { ioas: Id, iova: u64, pages: u64 },
    UnmapAll(Id),
    Copy { from: (Id, u64), to: (Id, u64), pages: u64 },
    Allow { ioas: Id, first: u64, pages: u64 },
    LargePages { ioas: Id, enabled: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1_u32..8;
    // Few addresses, so that they meet; some around the interrupt messages and the end of what can be reached.
    let iova = || {
        prop_oneof![
            8 => (0_u64..12).prop_map(|page| page * PAGE),
            1 => prop::sample::select(vec![1, 0xfedf_f000, 0xfee0_0000, 0xfeef_f000, (1 << 48) - PAGE]),
        ]
    };
    let flags = prop_oneof![Just(FIXED | READABLE), Just(ALL_FLAGS), Just(READABLE | WRITABLE)];
    prop_oneof![
        1 => Just(Step::Ioas),
        1 => (id(), id()).prop_map(|(device, ioas)| Step::Hwpt { device, ioas }),
        1 => id().prop_map(Step::Destroy),
        1 => prop::option::weighted(0.9, 1_u32..3).prop_map(Step::Bind),
        1 => id().prop_map(Step::Close),
        4 => (id(), id()).prop_map(|(device, to)| Step::Attach { device, to }),
        2 => id().prop_map(Step::Detach),
        8 => (id(), flags, 0_u64..14, 0_u64..6, iova()).prop_map(|(ioas, flags, start, pages, iova)| {
            Step::Map { ioas, flags, start: start * PAGE, pages, iova }
        }),
        1 => (id(), iova()).prop_map(|(ioas, iova)| Step::MapNothing { ioas, iova }),
        3 => (id(), iova(), 1_u64..12).prop_map(|(ioas, iova, pages)| Step::Unmap { ioas, iova, pages }),
        1 => id().prop_map(Step::UnmapAll),
        6 => ((id(), iova()), (id(), iova()), 1_u64..4)
            .prop_map(|(from, to, pages)| Step::Copy { from, to, pages }),
        1 => (id(), iova(), 0_u64..20).prop_map(|(ioas, first, pages)| Step::Allow { ioas, first, pages }),
        1 => (id(), any::<bool>()).prop_map(|(ioas, enabled)| Step::LargePages { ioas, enabled }),
    ]
}

/// The ids of one kind of object.
struct Objects(Vec<u32>);

impl Objects {
    fn choose(&self, id: Id) -> u32 {
        // Now and then what is named is not of the right kind.
        let right = usize::try_from(id).unwrap().checked_rem(self.0.len()).filter(|_| id != 7);
        right.map_or(id, |index| self.0[index])
    }
}

fn take(host: &mut Host, file: &Arc<File>, step: &Step) -> Result<(), Errno> {
    let ioases = Objects(ioases(host).map(|(id, _)| id).collect());
    let devices = Objects(host.context.devices().map(|(id, _)| id).collect());
    let targets = hwpts(host).map(|(id, _)| id).chain(ioases.0.iter().copied());
    let targets = Objects(targets.collect());
    match *step {
        Step::Ioas => drop(host.ioas()),
        Step::Hwpt { device, ioas } => {
            return host.hwpt(devices.choose(device), ioases.choose(ioas)).map(drop);
        }
        Step::Destroy(id) => return host.destroy(id),
        Step::Bind(group) => drop(host.context.add_device(group)),
        Step::Close(id) => host.context.remove_device(id, &mut host.locked),
        Step::Attach { device, to } => {
            return host.attach(devices.choose(device), targets.choose(to)).map(drop);
        }
        Step::Detach(device) => host.detach(devices.choose(device)),
        Step::Map { ioas, flags, start, pages, iova } => {
            return host.map_with(ioases.choose(ioas), file, flags, start, pages * PAGE, iova).map(drop);
        }
        Step::MapNothing { ioas, iova } => {
            return host.map_process(ioases.choose(ioas), None, PAGE, PAGE, iova).map(drop);
        }
        Step::Unmap { ioas, iova, pages } => {
            return host.unmap(ioases.choose(ioas), iova, pages * PAGE).map(drop);
        }
        Step::UnmapAll(ioas) => return host.unmap(ioases.choose(ioas), 0, u64::MAX).map(drop),
        Step::Copy { from: (from, from_iova), to: (to, to_iova), pages } => {
            let (from, to) = (ioases.choose(from), ioases.choose(to));
            return host.copy((from, from_iova), (to, to_iova), pages * PAGE).map(drop);
        }
        Step::Allow { ioas, first, pages } => {
            let promise = (first, first + (pages * PAGE).saturating_sub(1));
            let promises = if pages == 0 { &[] } else { std::slice::from_ref(&promise) };
            return host.allow(ioases.choose(ioas), promises);
        }
        Step::LargePages { ioas, enabled } => {
            return host.call(OPTION, &[1, 0, ioases.choose(ioas)], &[u64::from(enabled)]).map(drop);
        }
    }
    Ok(())
}

fn ioases(host: &Host) -> impl Iterator<Item = (u32, &Ioas)> {
    host.context.objects.keys().filter_map(|id| host.context.ioas(*id).ok().map(|ioas| (*id, ioas)))
}

fn hwpts(host: &Host) -> impl Iterator<Item = (u32, Hwpt)> {
    host.context.objects.keys().filter_map(|id| host.context.hwpt(*id).ok().map(|hwpt| (*id, hwpt)))
}

/// No two mappings overlap, none lies where it must not, and devices see all of them or none.
fn mappings_are_sound(host: &Host) {
    for (_, ioas) in ioases(host) {
        let places: Vec<_> = ioas.areas.iter().map(|(start, area)| area.span(*start)).collect();
        let usable = ioas.usable();
        for (index, place) in places.iter().enumerate() {
            assert!(places[..index].iter().all(|before| before.last < place.first));
            assert!(usable.iter().any(|usable| usable.contains(*place)));
        }
        let seen: Vec<_> = ioas.memory.0.iter().map(|(start, mapping)| (*start, mapping.length)).collect();
        let mapped: Vec<_> = ioas.areas.iter().map(|(start, area)| (*start, area.slice.length)).collect();
        assert_eq!(seen, if ioas.hwpts.is_empty() { vec![] } else { mapped });
        for (start, mapping) in &ioas.memory.0 {
            let values = [start.0, mapping.length, mapping.offset];
            assert!(values.iter().all(|value| value % PAGE == 0));
        }
    }
}

/// What is charged are the pages that page tables hold, each once for each time it was mapped.
fn charges_are_sound(host: &Host) {
    let mut pinned = BTreeSet::new();
    for (_, ioas) in ioases(host).filter(|(_, ioas)| !ioas.hwpts.is_empty()) {
        for Area { slice, .. } in ioas.areas.values() {
            let Span { first, last } = slice.span();
            pinned.extend((first..=last).map(|page| (slice.pages.id, page)));
        }
    }
    assert_eq!(host.charge(), pinned.len() as u64 * PAGE);
    assert!(host.charge() <= host.caller.memory_lock_limit);
    assert_eq!(host.locked.is_empty(), pinned.is_empty());
}

/// A group is in one place, its devices keep the messages free there, and automatic page tables are in use.
fn attachments_are_sound(host: &Host) {
    let devices: Vec<_> = host.context.devices().collect();
    for (id, device) in &devices {
        let Some(hwpt) = device.hwpt else { continue };
        let table = host.context.hwpt(hwpt).unwrap();
        let ioas = host.context.ioas(table.ioas).unwrap();
        assert!(ioas.hwpts.contains(&hwpt));
        let Some(group) = device.iommu_group else { continue };
        assert_eq!(table.translation, Translation::Iommu);
        assert!(ioas.usable().iter().all(|usable| usable.last < 0xfee0_0000 || usable.first > 0xfeef_ffff));
        let siblings = devices.iter().filter(|(_, other)| other.iommu_group == Some(group));
        assert!(siblings.filter_map(|(_, sibling)| sibling.hwpt).all(|other| other == hwpt), "{id}");
    }
    for (id, hwpt) in hwpts(host) {
        assert!(host.context.ioas(hwpt.ioas).unwrap().hwpts.contains(&id));
        assert!(hwpt.origin == Origin::Manual || devices.iter().any(|(_, device)| device.hwpt == Some(id)));
    }
    for (id, ioas) in ioases(host) {
        assert!(ioas.hwpts.iter().all(|hwpt| host.context.hwpt(*hwpt).unwrap().ioas == id));
        let attached = devices.iter().any(|(_, device)| {
            device.iommu_group.is_some() && device.hwpt.is_some_and(|hwpt| ioas.hwpts.contains(&hwpt))
        });
        let reaches_all = ioas.usable().last().is_some_and(|usable| usable.last == u64::MAX);
        let tables = ioas.hwpts.iter().map(|hwpt| host.context.hwpt(*hwpt).unwrap().translation);
        assert_eq!(reaches_all, tables.into_iter().all(|translation| translation == Translation::Missing));
        assert_eq!(ioas.usable().len(), 1 + usize::from(attached));
    }
}

proptest! {
    #[test]
    fn any_sequence_leaves_the_context_sound(steps in prop::collection::vec(step(), 1..60)) {
        let file = memory(16 * PAGE);
        let mut host = Host::new();
        host.caller.memory_lock_limit = 12 * PAGE;
        let [_, _] = [host.ioas(), host.ioas()];
        let _devices = [Some(1), Some(1), Some(2), None].map(|group| host.context.add_device(group));
        for step in &steps {
            let before: BTreeSet<u32> = host.context.ids().collect();
            let state = (format!("{:?}", host.context), host.charge());
            let result = take(&mut host, &file, step);
            // Unmapping alone may have done a part.
            if result.is_err() && !matches!(step, Step::Unmap { .. }) {
                prop_assert_eq!(state, (format!("{:?}", host.context), host.charge()), "{:?}", step);
            }
            let lowest = (1..=u32::MAX).find(|id| !before.contains(id));
            let new: Vec<u32> = host.context.ids().filter(|id| !before.contains(id)).collect();
            prop_assert!(new.is_empty() || new.first().copied() == lowest && new.len() == 1, "{:?}", new);
            mappings_are_sound(&host);
            charges_are_sound(&host);
            attachments_are_sound(&host);
        }
        host.context.close(&mut host.locked);
        prop_assert!(host.locked.is_empty());
    }

    #[test]
    fn any_bytes_are_answered_without_a_panic(
        requests in prop::collection::vec((0x3b60_u32..0x3ba0, prop::collection::vec(any::<u8>(), 0..64), any::<bool>()), 1..40)
    ) {
        let (mut host, ..) = Host::attached();
        let file = memory(PAGE);
        for (number, mut bytes, says_its_length) in requests {
            // Most of the rest is zero, or nothing would get past the first look.
            bytes.iter_mut().skip(4).filter(|byte| **byte > 9).for_each(|byte| *byte = 0);
            let length = u32::try_from(bytes.len()).unwrap().to_ne_bytes();
            if says_its_length && let Some(size) = bytes.first_chunk_mut() {
                *size = length;
            }
            let _answer = host.raw(number, &mut Structure(bytes), Some((Arc::clone(&file), 0)));
            host.array.clear();
            mappings_are_sound(&host);
            attachments_are_sound(&host);
        }
    }
}
