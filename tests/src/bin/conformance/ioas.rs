// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address spaces: which addresses there are, and what can be mapped and unmapped. Without a device nearly anything can.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::SealFlags;
use vfio::iommufd::MemoryAccounting;
use vfio::{Access, CallError, Ioas, Iova};
use vhost_device_vfio_tests::guest_memory::{GuestMemory, memfd};

use crate::answer::{Answer, EEXIST, EFAULT, EINVAL, ENOENT, EOVERFLOW, OK, answer, ok, value};
use crate::check::checks;
use crate::machine::EVERYWHERE;
use crate::scene::{Scene, allocate};

/// What IOASes do does not depend on the device; it depends on whether there is one.
const ANY_DEVICE: &[&str] = &["edu-pair", "rciep"];

checks! {
    EVERYWHERE => an_attached_device_narrows_the_addresses;
    ANY_DEVICE => a_context_tells_what_its_kernel_can_do, an_empty_ioas_has_all_addresses,
        without_a_device_hardly_a_map_is_refused, an_overlapping_map_is_refused,
        an_overlapping_map_is_refused_with_a_device, adjoining_maps_are_not_merged, an_unaligned_map_is_refused,
        the_interrupt_window_cannot_be_mapped, what_a_device_cannot_address_cannot_be_mapped,
        addresses_that_wrap_are_refused, a_map_of_nothing_is_refused, a_map_beyond_the_file_is_refused,
        a_file_can_be_mapped_many_times, a_file_can_be_mapped_in_many_places,
        a_file_opened_for_reading_can_be_mapped_for_writing, memory_sealed_against_writing_can_be_mapped_for_writing,
        an_unmap_is_of_whole_maps, an_unmap_of_nothing_is_refused, an_unmap_may_cover_many_maps,
        an_unmap_that_ends_within_a_map_unmaps_those_before, everything_can_be_unmapped_at_once,
        a_map_can_be_made_again, an_id_is_used_again_at_once, an_ioas_in_use_is_not_destroyed,
        an_ioas_can_be_adopted, an_ioas_of_another_context_is_unknown, what_is_no_ioas_cannot_be_adopted,
        memory_is_pinned_while_a_device_is_attached, memory_mapped_with_a_device_is_pinned_at_once,
        memory_mapped_in_two_places_is_pinned_twice, memory_is_unpinned_with_its_map;
}

pub(crate) const PAGE: u64 = 4096;
pub(crate) const MIB: u64 = 1 << 20;
/// The addresses that are interrupt messages.
pub(crate) const INTERRUPT_WINDOW: u64 = 0xfee0_0000;
/// What the emulated IOMMU translates.
pub(crate) const APERTURE: u64 = 1 << 48;
/// All of them, and those that are left when a device is attached; with the alignment.
pub(crate) const ALL_ADDRESSES: (&[(u64, u64)], u64) = (&[(0, u64::MAX)], 1);
pub(crate) const DEVICE_ADDRESSES: (&[(u64, u64)], u64) =
    (&[(0, INTERRUPT_WINDOW - 1), (INTERRUPT_WINDOW + MIB, APERTURE - 1)], PAGE);

/// What an IOAS can map: ranges and alignment.
pub(crate) fn addresses(ioas: &Ioas) -> (Vec<(u64, u64)>, u64) {
    let ranges = ioas.iova_ranges().expect("the ranges");
    (ranges.usable.iter().map(|range| (range.start.0, range.last.0)).collect(), ranges.alignment)
}

/// Maps memory at its own address.
pub(crate) fn map(ioas: &mut Ioas, memory: &GuestMemory) -> Result<(), CallError> {
    map_for(ioas, memory, Access::ReadWrite)
}

pub(crate) fn map_for(ioas: &mut Ioas, memory: &GuestMemory, access: Access) -> Result<(), CallError> {
    let region = memory.region();
    ioas.map_file(&file(memory), 0, region.size, Iova(region.guest_address), access)
}

pub(crate) fn file(memory: &impl AsFd) -> OwnedFd {
    memory.as_fd().try_clone_to_owned().expect("a copy")
}

/// Maps as many bytes at an address as there may be, from the beginning of memory that is large enough.
fn map_at(ioas: &mut Ioas, iova: u64, length: u64) -> Answer<()> {
    let memory = memfd(length.next_multiple_of(PAGE).max(PAGE), SealFlags::SHRINK);
    answer(ioas.map_file(&memory, 0, length, Iova(iova), Access::ReadWrite))
}

fn unmap(ioas: &mut Ioas, iova: u64, length: u64) -> Answer<()> {
    answer(ioas.unmap(Iova(iova), length))
}

fn a_context_tells_what_its_kernel_can_do(scene: &Scene<'_>) {
    let context = scene.context();
    scene.expect("MAP_FILE", context.has_map_file(), scene.by_kernel(false, true));
    scene.expect("accounting", value(context.memory_accounting()), ok(MemoryAccounting::User));
}

fn an_empty_ioas_has_all_addresses(scene: &Scene<'_>) {
    let ioas = allocate(&scene.context());
    scene.expect("addresses", addresses(&ioas), ALL_ADDRESSES);
}

fn an_attached_device_narrows_the_addresses(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let ioas = allocate(&context);
        let device = scene.bind(function, &context);
        scene.expect("addresses when bound", addresses(&ioas), ALL_ADDRESSES);
        device.attach_ioas(&ioas).expect("the device can be attached");
        scene.expect("addresses when attached", addresses(&ioas), DEVICE_ADDRESSES);
        device.detach().expect("the device can be detached");
        scene.expect("addresses when detached", addresses(&ioas), ALL_ADDRESSES);
    }
}

fn without_a_device_hardly_a_map_is_refused(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("in the interrupt window", map_at(&mut ioas, INTERRUPT_WINDOW, PAGE), OK);
    scene.expect("beyond the aperture", map_at(&mut ioas, APERTURE, PAGE), OK);
    scene.expect("at an odd address", map_at(&mut ioas, PAGE + 1, PAGE), OK);
    scene.expect("of an odd length", map_at(&mut ioas, 8 * PAGE, 100), OK);
    scene.expect("right behind that", map_at(&mut ioas, 8 * PAGE + 100, 1), OK);
}

fn overlaps(scene: &Scene<'_>, ioas: &mut Ioas) {
    scene.expect("a map", map_at(ioas, 4 * PAGE, 4 * PAGE), OK);
    scene.expect("the same", map_at(ioas, 4 * PAGE, 4 * PAGE), EEXIST);
    scene.expect("over its start", map_at(ioas, 3 * PAGE, 2 * PAGE), EEXIST);
    scene.expect("over its end", map_at(ioas, 7 * PAGE, 2 * PAGE), EEXIST);
    scene.expect("within", map_at(ioas, 5 * PAGE, PAGE), EEXIST);
    scene.expect("around", map_at(ioas, 0, 16 * PAGE), EEXIST);
    scene.expect("right before", map_at(ioas, 3 * PAGE, PAGE), OK);
    scene.expect("right behind", map_at(ioas, 8 * PAGE, PAGE), OK);
}

fn an_overlapping_map_is_refused(scene: &Scene<'_>) {
    overlaps(scene, &mut allocate(&scene.context()));
}

fn an_overlapping_map_is_refused_with_a_device(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    overlaps(scene, &mut ioas);
}

fn adjoining_maps_are_not_merged(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("a map", map_at(&mut ioas, 0, PAGE), OK);
    scene.expect("another behind it", map_at(&mut ioas, PAGE, PAGE), OK);
    scene.expect("unmapping the second", unmap(&mut ioas, PAGE, PAGE), OK);
    scene.expect("unmapping the first", unmap(&mut ioas, 0, PAGE), OK);
}

fn an_unaligned_map_is_refused(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    scene.expect("at an odd address", map_at(&mut ioas, PAGE + 1, PAGE), EINVAL);
    scene.expect("at half a page", map_at(&mut ioas, PAGE / 2, PAGE), EINVAL);
    scene.expect("of an odd length", map_at(&mut ioas, 0, PAGE + 100), EINVAL);
    scene.expect("of half a page", map_at(&mut ioas, 0, PAGE / 2), EINVAL);
    let memory = memfd(4 * PAGE, SealFlags::SHRINK);
    let from_half_a_page = ioas.map_file(&memory, PAGE / 2, PAGE, Iova(0), Access::ReadWrite);
    scene.expect("from half a page of the file", answer(from_half_a_page), EINVAL);
}

fn the_interrupt_window_cannot_be_mapped(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    scene.expect("its first page", map_at(&mut ioas, INTERRUPT_WINDOW, PAGE), EINVAL);
    scene.expect("its last page", map_at(&mut ioas, INTERRUPT_WINDOW + MIB - PAGE, PAGE), EINVAL);
    scene.expect("the whole of it", map_at(&mut ioas, INTERRUPT_WINDOW, MIB), EINVAL);
    scene.expect("over its start", map_at(&mut ioas, INTERRUPT_WINDOW - PAGE, 2 * PAGE), EINVAL);
    scene.expect("right before", map_at(&mut ioas, INTERRUPT_WINDOW - PAGE, PAGE), OK);
    scene.expect("right behind", map_at(&mut ioas, INTERRUPT_WINDOW + MIB, PAGE), OK);
}

fn what_a_device_cannot_address_cannot_be_mapped(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    scene.expect("the last page", map_at(&mut ioas, APERTURE - PAGE, PAGE), OK);
    scene.expect("the page behind", map_at(&mut ioas, APERTURE, PAGE), EINVAL);
    scene.expect("over the end", map_at(&mut ioas, APERTURE - 2 * PAGE, 4 * PAGE), EINVAL);
}

fn addresses_that_wrap_are_refused(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("mapping the last byte", map_at(&mut ioas, u64::MAX, 1), EOVERFLOW);
    scene.expect("mapping the last page", map_at(&mut ioas, u64::MAX - PAGE + 1, PAGE), OK);
    scene.expect("mapping over the end", map_at(&mut ioas, u64::MAX - PAGE, 2 * PAGE), EOVERFLOW);
    scene.expect("unmapping over the end", unmap(&mut ioas, u64::MAX - PAGE, 2 * PAGE), EOVERFLOW);
    scene.expect("unmapping the last byte", unmap(&mut ioas, u64::MAX, 1), EOVERFLOW);
    scene.expect("unmapping all but the first byte", unmap(&mut ioas, 1, u64::MAX), EOVERFLOW);
}

fn a_map_of_nothing_is_refused(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("mapping", map_at(&mut ioas, 0, 0), EINVAL);
    scene.expect("unmapping", unmap(&mut ioas, 0, 0), EINVAL);
}

fn a_map_beyond_the_file_is_refused(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let memory = memfd(4 * PAGE, SealFlags::SHRINK);
    for (start, length) in [(0, 8 * PAGE), (3 * PAGE, 2 * PAGE), (4 * PAGE, PAGE)] {
        let mapped = ioas.map_file(&memory, start, length, Iova(0), Access::ReadWrite);
        let expected = scene.by_kernel(EFAULT, EINVAL);
        scene.expect(&format!("{length} bytes from {start} of 16384"), answer(mapped), expected);
    }
}

fn a_file_can_be_mapped_many_times(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let memory = memfd(4 * PAGE, SealFlags::SHRINK);
    for iova in [0, 4 * PAGE, 64 * PAGE] {
        let mapped = ioas.map_file(&memory, 0, 4 * PAGE, Iova(iova), Access::ReadWrite);
        scene.expect(&format!("at {iova:#x}"), answer(mapped), OK);
    }
}

fn a_file_can_be_mapped_in_many_places(scene: &Scene<'_>) {
    let context = scene.context();
    let memory = memfd(PAGE, SealFlags::SHRINK);
    let mut spaces = [allocate(&context), allocate(&context)];
    for ioas in &mut spaces {
        let mapped = ioas.map_file(&memory, 0, PAGE, Iova(0), Access::ReadWrite);
        scene.expect("map", answer(mapped), OK);
    }
}

/// What the file allows its user is not asked for, unless the user has to map it.
fn a_file_opened_for_reading_can_be_mapped_for_writing(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let memory = memfd(PAGE, SealFlags::SHRINK);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    let readable = std::fs::File::open(path).expect("the memory can be opened again").into();
    let mapped = answer(ioas.map_file(&readable, 0, PAGE, Iova(0), Access::ReadWrite));
    scene.expect("map", mapped, scene.by_kernel(Err("EACCES"), Ok(())));
}

fn memory_sealed_against_writing_can_be_mapped_for_writing(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let memory = memfd(PAGE, SealFlags::SHRINK | SealFlags::WRITE);
    let mapped = answer(ioas.map_file(&memory, 0, PAGE, Iova(0), Access::ReadWrite));
    scene.expect("map", mapped, scene.by_kernel(Err("EPERM"), Ok(())));
}

fn an_unmap_is_of_whole_maps(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("a map", map_at(&mut ioas, 4 * PAGE, 4 * PAGE), OK);
    scene.expect("unmapping its start", unmap(&mut ioas, 4 * PAGE, PAGE), ENOENT);
    scene.expect("unmapping its middle", unmap(&mut ioas, 5 * PAGE, PAGE), ENOENT);
    scene.expect("unmapping its end", unmap(&mut ioas, 7 * PAGE, PAGE), ENOENT);
    scene.expect("unmapping from before into it", unmap(&mut ioas, 0, 6 * PAGE), ENOENT);
    scene.expect("it is still there", map_at(&mut ioas, 4 * PAGE, PAGE), EEXIST);
    scene.expect("unmapping all of it", unmap(&mut ioas, 4 * PAGE, 4 * PAGE), OK);
}

fn an_unmap_of_nothing_is_refused(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("in an empty IOAS", unmap(&mut ioas, 0, PAGE), ENOENT);
    scene.expect("a map", map_at(&mut ioas, 0, PAGE), OK);
    scene.expect("beside the map", unmap(&mut ioas, PAGE, PAGE), ENOENT);
    scene.expect("unmapping", unmap(&mut ioas, 0, PAGE), OK);
    scene.expect("unmapping again", unmap(&mut ioas, 0, PAGE), ENOENT);
}

fn an_unmap_may_cover_many_maps(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    for iova in [0, PAGE, 8 * PAGE] {
        scene.expect(&format!("mapping {iova:#x}"), map_at(&mut ioas, iova, PAGE), OK);
    }
    scene.expect("unmapping from before the last to behind it", unmap(&mut ioas, 4 * PAGE, 8 * PAGE), OK);
    scene.expect("unmapping two", unmap(&mut ioas, 0, 2 * PAGE), OK);
    scene.expect("nothing is left", unmap(&mut ioas, 0, 16 * PAGE), ENOENT);
}

fn an_unmap_that_ends_within_a_map_unmaps_those_before(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("a map", map_at(&mut ioas, 0, PAGE), OK);
    scene.expect("a larger one behind", map_at(&mut ioas, PAGE, 2 * PAGE), OK);
    scene.expect("unmapping into the second", unmap(&mut ioas, 0, 2 * PAGE), ENOENT);
    scene.expect("mapping where the first was", map_at(&mut ioas, 0, PAGE), OK);
    scene.expect("mapping where the second is", map_at(&mut ioas, PAGE, PAGE), EEXIST);
}

fn everything_can_be_unmapped_at_once(scene: &Scene<'_>) {
    let mut ioas = allocate(&scene.context());
    scene.expect("unmapping all of nothing", unmap(&mut ioas, 0, u64::MAX), OK);
    scene.expect("a map", map_at(&mut ioas, 0, PAGE), OK);
    scene.expect("another", map_at(&mut ioas, u64::MAX - PAGE + 1, PAGE), OK);
    scene.expect("unmapping all", unmap(&mut ioas, 0, u64::MAX), OK);
    scene.expect("mapping again", map_at(&mut ioas, 0, PAGE), OK);
}

fn a_map_can_be_made_again(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    for round in 0..3 {
        scene.expect(&format!("mapping, round {round}"), map_at(&mut ioas, 0, 16 * PAGE), OK);
        scene.expect(&format!("unmapping, round {round}"), unmap(&mut ioas, 0, 16 * PAGE), OK);
    }
}

fn an_id_is_used_again_at_once(scene: &Scene<'_>) {
    let context = scene.context();
    let (first, second) = (allocate(&context), allocate(&context));
    let (low, high) = (first.id(), second.id());
    scene.expect("the second id follows the first", high - low, 1);
    drop(first);
    let third = allocate(&context);
    scene.expect("the third has the id of the first", third.id() == low, true);
    let fourth = allocate(&context);
    scene.expect("the fourth id follows the second", fourth.id() - high, 1);
}

fn an_ioas_in_use_is_not_destroyed(scene: &Scene<'_>) {
    let (context, ioas, device) = scene.attached(scene.first());
    let id = ioas.id();
    drop(ioas);
    let kept = Ioas::adopt(Arc::clone(&context), id).expect("it is still there");
    scene.expect("addresses", addresses(&kept), DEVICE_ADDRESSES);
    device.detach().expect("the device can be detached");
    scene.expect("addresses when detached", addresses(&kept), ALL_ADDRESSES);
}

fn an_ioas_can_be_adopted(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    let mut adopted = Ioas::adopt(context, ioas.id()).expect("it is there");
    scene.expect("adopted", (ioas.is_adopted(), adopted.is_adopted()), (false, true));
    scene.expect("mapping through the second", map_at(&mut adopted, 0, PAGE), OK);
    scene.expect("mapping through the first", map_at(&mut ioas, 0, PAGE), EEXIST);
    let id = adopted.id();
    drop(adopted);
    scene.expect("it is the first's still", addresses(&ioas).1, 1);
    scene.expect("same id", ioas.id() == id, true);
}

fn an_ioas_of_another_context_is_unknown(scene: &Scene<'_>) {
    let ioas = allocate(&scene.context());
    let adopted = Ioas::adopt(scene.context(), ioas.id()).map(drop);
    scene.expect("adopting", answer(adopted), ENOENT);
}

fn what_is_no_ioas_cannot_be_adopted(scene: &Scene<'_>) {
    let context = scene.context();
    let adopt = |id| answer(Ioas::adopt(Arc::clone(&context), id));
    scene.expect("id 0", adopt(0), ENOENT);
    scene.expect("id 4294967295", adopt(u32::MAX), ENOENT);
    let id = allocate(&context).id();
    scene.expect("an id that is free", adopt(id), ENOENT);
    let _device = scene.bind(scene.first(), &context);
    scene.expect("an id that is a device's", adopt(id), ENOENT);
}

fn memory_is_pinned_while_a_device_is_attached(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    let before = scene.host.pinned_memory();
    let pinned = || scene.host.pinned_memory() - before;
    scene.expect("map", map_at(&mut ioas, 0, MIB), OK);
    scene.expect("pinned without a device", pinned(), 0);
    let device = scene.bind(scene.first(), &context);
    scene.expect("pinned when bound", pinned(), 0);
    device.attach_ioas(&ioas).expect("the device can be attached");
    scene.expect("pinned when attached", pinned(), MIB);
    device.detach().expect("the device can be detached");
    scene.expect("pinned when detached", pinned(), 0);
    device.attach_ioas(&ioas).expect("the device can be attached");
    scene.expect("pinned when attached again", pinned(), MIB);
    drop(device);
    scene.expect("pinned when closed", pinned(), 0);
}

fn memory_mapped_with_a_device_is_pinned_at_once(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let before = scene.host.pinned_memory();
    scene.expect("map", map_at(&mut ioas, 0, MIB), OK);
    scene.expect("pinned", scene.host.pinned_memory() - before, MIB);
}

fn memory_mapped_in_two_places_is_pinned_twice(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let before = scene.host.pinned_memory();
    let memory = memfd(MIB, SealFlags::SHRINK);
    for iova in [0, MIB] {
        ioas.map_file(&memory, 0, MIB, Iova(iova), Access::ReadWrite).expect("it can be mapped");
    }
    scene.expect("pinned", scene.host.pinned_memory() - before, 2 * MIB);
}

fn memory_is_unpinned_with_its_map(scene: &Scene<'_>) {
    let (_context, mut ioas, _device) = scene.attached(scene.first());
    let before = scene.host.pinned_memory();
    scene.expect("mapping one", map_at(&mut ioas, 0, MIB), OK);
    scene.expect("mapping two", map_at(&mut ioas, MIB, 2 * MIB), OK);
    scene.expect("unmapping one", unmap(&mut ioas, 0, MIB), OK);
    scene.expect("pinned", scene.host.pinned_memory() - before, 2 * MIB);
}
