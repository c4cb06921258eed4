// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA: which memory edu's engine reaches, and when none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vfio::config_space::command;
use vfio::{Access, Device, Hwpt, Ioas, Iommufd, Iova};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;

use crate::answer::{EADDRINUSE, ENOENT, answer};
use crate::check::checks;
use crate::ioas::{MIB, file, map, map_for};
use crate::machine::EDU_FIRST;
use crate::registers::{enable, set_command};
use crate::scene::{Scene, allocate};

/// Pairs of edus in one IOMMU group.
const EDU_PAIRS: &[&str] = &["edu-pair", "bridge", "switch"];

checks! {
    EDU_FIRST => memory_is_reached_when_a_device_is_attached, no_memory_is_reached_before,
        no_memory_is_reached_after_detaching, memory_is_reached_again_when_attached_again,
        no_memory_is_reached_without_bus_mastering;
    &["edu-pair", "rciep"] => memory_mapped_before_attaching_is_reached, memory_that_is_unmapped_is_not_reached,
        memory_mapped_later_is_reached, memory_mapped_for_reading_is_not_written, a_hole_is_not_reached,
        memory_of_two_maps_is_reached_across_their_border, memory_high_up_is_reached,
        a_map_begins_where_it_shall_in_the_file, the_same_memory_is_reached_at_two_addresses,
        other_memory_takes_the_place_of_the_first, a_refused_unmap_leaves_memory_reachable,
        a_device_that_moved_reaches_the_other_memory, a_device_that_moved_back_reaches_the_first_memory,
        a_refused_move_leaves_memory_reachable, a_page_table_reaches_memory, a_page_table_reaches_what_is_mapped_later,
        a_context_without_descriptors_still_reaches_memory, an_ioas_that_was_given_up_is_still_reached;
    EDU_PAIRS => a_sibling_that_is_only_bound_reaches_memory, a_sibling_moves_with_its_group,
        a_sibling_reaches_memory_when_the_first_is_detached, no_memory_is_reached_when_all_are_detached;
}

/// Where the engine reads and writes.
const SOURCE: u64 = 0x1_0000;
const TARGET: u64 = 0x2_3000;
const LENGTH: usize = 2048;

/// Memory for the engine, at address 0.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::new(0, MIB)
}

/// Whether a fresh pattern that the device copies within memory arrives.
pub(crate) fn copy_arrives(device: &Device, memory: &GuestMemory) -> bool {
    copy_arrives_between(device, (memory, SOURCE), (memory, TARGET))
}

fn copy_arrives_between(device: &Device, from: (&GuestMemory, u64), to: (&GuestMemory, u64)) -> bool {
    // The engine keeps what it has read before.
    static SEED: AtomicU8 = AtomicU8::new(0);
    let seed = SEED.fetch_add(1, Ordering::Relaxed);
    let pattern: Vec<u8> = (0..251).cycle().take(LENGTH).map(|byte: u8| byte ^ seed).collect();
    from.0.write(from.1, &pattern);
    let blank: Vec<u8> = pattern.iter().map(|byte| !byte).collect();
    to.0.write(to.1, &blank);
    Edu::new(device).copy(from.1, to.1, LENGTH as u64);
    let found = to.0.read(to.1, LENGTH);
    assert!(found == pattern || found == blank, "only a part has arrived");
    found == pattern
}

/// A device that may do DMA, bound to a context, and an IOAS that it is not attached to.
fn enabled(scene: &Scene<'_>) -> (Arc<Iommufd>, Ioas, Device) {
    let context = scene.context();
    let ioas = allocate(&context);
    let device = scene.bind(scene.first(), &context);
    enable(&device);
    (context, ioas, device)
}

/// The same, attached, and memory mapped.
fn reaching(scene: &Scene<'_>) -> (Arc<Iommufd>, Ioas, Device, GuestMemory) {
    let (context, mut ioas, device) = enabled(scene);
    let memory = memory();
    device.attach_ioas(&ioas).expect("the device can be attached");
    map(&mut ioas, &memory).expect("memory can be mapped");
    (context, ioas, device, memory)
}

fn memory_is_reached_when_a_device_is_attached(scene: &Scene<'_>) {
    let (_context, _ioas, device, memory) = reaching(scene);
    scene.expect("arrives", copy_arrives(&device, &memory), true);
}

fn no_memory_is_reached_before(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = enabled(scene);
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    scene.expect("arrives", copy_arrives(&device, &memory), false);
}

fn no_memory_is_reached_after_detaching(scene: &Scene<'_>) {
    let (_context, _ioas, device, memory) = reaching(scene);
    device.detach().expect("the device can be detached");
    scene.expect("arrives", copy_arrives(&device, &memory), false);
}

fn memory_is_reached_again_when_attached_again(scene: &Scene<'_>) {
    let (_context, ioas, device, memory) = reaching(scene);
    device.detach().expect("the device can be detached");
    device.attach_ioas(&ioas).expect("the device can be attached");
    scene.expect("arrives", copy_arrives(&device, &memory), true);
}

fn no_memory_is_reached_without_bus_mastering(scene: &Scene<'_>) {
    let (_context, _ioas, device, memory) = reaching(scene);
    set_command(&device, command::MEMORY);
    scene.expect("arrives without", copy_arrives(&device, &memory), false);
    enable(&device);
    scene.expect("arrives with it", copy_arrives(&device, &memory), true);
}

fn memory_mapped_before_attaching_is_reached(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = enabled(scene);
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    device.attach_ioas(&ioas).expect("the device can be attached");
    scene.expect("arrives", copy_arrives(&device, &memory), true);
}

fn memory_that_is_unmapped_is_not_reached(scene: &Scene<'_>) {
    let (_context, mut ioas, device, memory) = reaching(scene);
    ioas.unmap(Iova(0), MIB).expect("memory can be unmapped");
    scene.expect("arrives", copy_arrives(&device, &memory), false);
}

fn memory_mapped_later_is_reached(scene: &Scene<'_>) {
    let (_context, mut ioas, device, _memory) = reaching(scene);
    let later = GuestMemory::new(16 * MIB, MIB);
    map(&mut ioas, &later).expect("memory can be mapped");
    let copied = copy_arrives_between(&device, (&later, 16 * MIB), (&later, 16 * MIB + TARGET));
    scene.expect("arrives", copied, true);
}

fn memory_mapped_for_reading_is_not_written(scene: &Scene<'_>) {
    let (_context, mut ioas, device, memory) = reaching(scene);
    let readable = GuestMemory::new(16 * MIB, MIB);
    map_for(&mut ioas, &readable, Access::Read).expect("memory can be mapped");
    let readable = (&readable, 16 * MIB);
    scene.expect("arrives from there", copy_arrives_between(&device, readable, (&memory, TARGET)), true);
    scene.expect("arrives there", copy_arrives_between(&device, (&memory, SOURCE), readable), false);
}

fn a_hole_is_not_reached(scene: &Scene<'_>) {
    let (_context, _ioas, device, memory) = reaching(scene);
    let nowhere = GuestMemory::new(16 * MIB, MIB);
    let copied = copy_arrives_between(&device, (&memory, SOURCE), (&nowhere, 16 * MIB));
    scene.expect("arrives in a hole", copied, false);
    scene.expect("arrives beside it", copy_arrives(&device, &memory), true);
}

fn memory_of_two_maps_is_reached_across_their_border(scene: &Scene<'_>) {
    let (_context, mut ioas, device, memory) = reaching(scene);
    let second = GuestMemory::new(MIB, MIB);
    map(&mut ioas, &second).expect("memory can be mapped");
    memory.write(SOURCE, b"the first half, the second half.");
    Edu::new(&device).copy(SOURCE, MIB - 16, 32);
    let halves = [memory.read(MIB - 16, 16), second.read(MIB, 16)];
    let halves = halves.map(|half| String::from_utf8_lossy(&half).into_owned());
    scene.expect("both halves", halves, ["the first half, ", "the second half."]);
}

fn memory_high_up_is_reached(scene: &Scene<'_>) {
    const HIGH: u64 = 1 << 40;
    let (_context, mut ioas, device, memory) = reaching(scene);
    let high = GuestMemory::new(HIGH, MIB);
    map(&mut ioas, &high).expect("memory can be mapped");
    scene.expect("arrives", copy_arrives_between(&device, (&memory, SOURCE), (&high, HIGH + TARGET)), true);
}

fn a_map_begins_where_it_shall_in_the_file(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = enabled(scene);
    let memory = memory();
    device.attach_ioas(&ioas).expect("the device can be attached");
    let half = ioas.map_file(&file(&memory), MIB / 2, MIB / 2, Iova(0), Access::ReadWrite);
    half.expect("half of the memory can be mapped");
    memory.write(MIB / 2, b"in the second half");
    Edu::new(&device).copy(0, 0x1000, 18);
    let found = memory.read(MIB / 2 + 0x1000, 18);
    scene.expect("found", String::from_utf8_lossy(&found), "in the second half");
}

fn the_same_memory_is_reached_at_two_addresses(scene: &Scene<'_>) {
    let (_context, mut ioas, device, memory) = reaching(scene);
    let again = ioas.map_file(&file(&memory), 0, MIB, Iova(16 * MIB), Access::ReadWrite);
    again.expect("the memory can be mapped again");
    memory.write(SOURCE, b"from here to there");
    Edu::new(&device).copy(16 * MIB + SOURCE, TARGET, 18);
    scene.expect("found", String::from_utf8_lossy(&memory.read(TARGET, 18)), "from here to there");
}

fn other_memory_takes_the_place_of_the_first(scene: &Scene<'_>) {
    let (_context, mut ioas, device, first) = reaching(scene);
    ioas.unmap(Iova(0), MIB).expect("memory can be unmapped");
    let second = memory();
    map(&mut ioas, &second).expect("memory can be mapped");
    scene.expect("arrives in the second", copy_arrives(&device, &second), true);
    scene.expect("arrives in the first", copy_arrives(&device, &first), false);
}

fn a_refused_unmap_leaves_memory_reachable(scene: &Scene<'_>) {
    let (_context, mut ioas, device, memory) = reaching(scene);
    scene.expect("unmapping half of it", answer(ioas.unmap(Iova(0), MIB / 2)), ENOENT);
    scene.expect("arrives", copy_arrives(&device, &memory), true);
}

/// A second IOAS, with memory of its own at the same addresses.
fn successor(context: &Arc<Iommufd>) -> (Ioas, GuestMemory) {
    let mut ioas = allocate(context);
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    (ioas, memory)
}

fn a_device_that_moved_reaches_the_other_memory(scene: &Scene<'_>) {
    let (context, _old, device, old_memory) = reaching(scene);
    let (new, new_memory) = successor(&context);
    device.attach_ioas(&new).expect("the device can move");
    scene.expect("arrives in the new", copy_arrives(&device, &new_memory), true);
    scene.expect("arrives in the old", copy_arrives(&device, &old_memory), false);
}

fn a_device_that_moved_back_reaches_the_first_memory(scene: &Scene<'_>) {
    let (context, old, device, old_memory) = reaching(scene);
    let (new, new_memory) = successor(&context);
    device.attach_ioas(&new).expect("the device can move");
    device.attach_ioas(&old).expect("the device can move back");
    scene.expect("arrives in the new", copy_arrives(&device, &new_memory), false);
    scene.expect("arrives in the old", copy_arrives(&device, &old_memory), true);
}

fn a_refused_move_leaves_memory_reachable(scene: &Scene<'_>) {
    let (context, _old, device, memory) = reaching(scene);
    let mut new = allocate(&context);
    map(&mut new, &GuestMemory::new(crate::ioas::INTERRUPT_WINDOW, MIB)).expect("nothing is checked yet");
    scene.expect("ATTACH", answer(device.attach_ioas(&new)), EADDRINUSE);
    scene.expect("arrives", copy_arrives(&device, &memory), true);
}

fn a_page_table_reaches_memory(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = enabled(scene);
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    let hwpt = Hwpt::allocate(&ioas, device.id()).expect("a page table");
    scene.expect("arrives before attaching", copy_arrives(&device, &memory), false);
    device.attach(&hwpt).expect("the device can be attached");
    scene.expect("arrives when attached", copy_arrives(&device, &memory), true);
    device.detach().expect("the device can be detached");
    scene.expect("arrives when detached", copy_arrives(&device, &memory), false);
    device.attach(&hwpt).expect("the device can be attached");
    scene.expect("arrives when attached again", copy_arrives(&device, &memory), true);
    device.detach().expect("the device can be detached");
}

fn a_page_table_reaches_what_is_mapped_later(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = enabled(scene);
    let hwpts = [(); 2].map(|()| Hwpt::allocate(&ioas, device.id()).expect("a page table"));
    device.attach(&hwpts[0]).expect("the device can be attached");
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    scene.expect("arrives", copy_arrives(&device, &memory), true);
    device.attach(&hwpts[1]).expect("the device can move");
    scene.expect("arrives through another page table", copy_arrives(&device, &memory), true);
    device.detach().expect("the device can be detached");
}

fn a_context_without_descriptors_still_reaches_memory(scene: &Scene<'_>) {
    let (context, ioas, device, memory) = reaching(scene);
    drop((ioas, context));
    scene.expect("arrives", copy_arrives(&device, &memory), true);
}

fn an_ioas_that_was_given_up_is_still_reached(scene: &Scene<'_>) {
    let (_context, ioas, device, memory) = reaching(scene);
    drop(ioas);
    scene.expect("arrives", copy_arrives(&device, &memory), true);
    device.detach().expect("the device can be detached");
    scene.expect("arrives when detached", copy_arrives(&device, &memory), false);
}

/// A second function of the group that may do DMA, too.
fn enabled_sibling(scene: &Scene<'_>, context: &Iommufd) -> Device {
    let sibling = scene.bind(scene.second(), context);
    enable(&sibling);
    sibling
}

fn a_sibling_that_is_only_bound_reaches_memory(scene: &Scene<'_>) {
    let (context, _ioas, _device, memory) = reaching(scene);
    let sibling = enabled_sibling(scene, &context);
    scene.expect("arrives", copy_arrives(&sibling, &memory), true);
}

fn a_sibling_moves_with_its_group(scene: &Scene<'_>) {
    let (context, old, device, old_memory) = reaching(scene);
    let sibling = enabled_sibling(scene, &context);
    sibling.attach_ioas(&old).expect("the sibling can be attached");
    let (new, new_memory) = successor(&context);
    device.attach_ioas(&new).expect("the group can move");
    scene.expect("arrives in the new", copy_arrives(&sibling, &new_memory), true);
    scene.expect("arrives in the old", copy_arrives(&sibling, &old_memory), false);
}

fn a_sibling_reaches_memory_when_the_first_is_detached(scene: &Scene<'_>) {
    let (context, ioas, device, memory) = reaching(scene);
    let sibling = enabled_sibling(scene, &context);
    sibling.attach_ioas(&ioas).expect("the sibling can be attached");
    device.detach().expect("the first can be detached");
    scene.expect("the sibling's arrives", copy_arrives(&sibling, &memory), true);
    scene.expect("the first's arrives", copy_arrives(&device, &memory), true);
}

fn no_memory_is_reached_when_all_are_detached(scene: &Scene<'_>) {
    let (context, ioas, device, memory) = reaching(scene);
    let sibling = enabled_sibling(scene, &context);
    sibling.attach_ioas(&ioas).expect("the sibling can be attached");
    device.detach().expect("the first can be detached");
    sibling.detach().expect("the sibling can be detached");
    scene.expect("the sibling's arrives", copy_arrives(&sibling, &memory), false);
    scene.expect("the first's arrives", copy_arrives(&device, &memory), false);
}
