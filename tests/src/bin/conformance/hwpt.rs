// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page tables of our own making: they last, and so does what is pinned for them.

use std::sync::Arc;

use rustix::fs::{SealFlags, ftruncate};
use vfio::{Access, Device, Hwpt, Ioas, Iommufd, Iova};
use vhost_device_vfio_tests::guest_memory::memfd;

use crate::answer::{EADDRINUSE, EFAULT, EINVAL, ENOENT, OK, answer};
use crate::check::checks;
use crate::ioas::{ALL_ADDRESSES, APERTURE, DEVICE_ADDRESSES, INTERRUPT_WINDOW, MIB, PAGE, addresses};
use crate::machine::{EACH_PLACE, SEPARATE_GROUPS, SHARED_GROUP};
use crate::scene::{Scene, allocate};

const ANY_DEVICE: &[&str] = &["edu-pair", "rciep"];

checks! {
    EACH_PLACE => a_page_table_is_attached_and_detached_at_will, a_page_table_outlives_its_device;
    ANY_DEVICE => a_page_table_narrows_the_addresses_to_its_own, a_page_table_needs_an_ioas,
        a_page_table_needs_a_device_of_its_context, a_page_table_may_be_over_the_interrupt_window,
        a_page_table_cannot_reach_beyond_its_aperture, a_page_table_is_of_whole_pages,
        a_page_table_needs_the_memory_that_is_mapped, a_page_table_in_use_is_not_destroyed,
        an_ioas_under_a_page_table_is_not_destroyed, an_ioas_is_free_when_its_page_table_is_destroyed,
        a_page_table_keeps_its_memory_pinned, page_tables_of_one_ioas_pin_memory_once,
        a_map_reaches_every_page_table, a_device_moves_from_one_page_table_to_another,
        a_device_moves_from_an_ioas_to_a_page_table, a_file_that_is_mapped_stays_after_it_is_closed;
    SHARED_GROUP => a_sibling_must_attach_to_the_same_page_table, one_device_moves_its_group_to_a_page_table,
        a_page_table_made_for_one_serves_its_sibling;
    SEPARATE_GROUPS => functions_of_separate_groups_share_a_page_table;
}

/// Nothing is reserved for interrupts before a device is attached.
const APERTURE_ADDRESSES: (&[(u64, u64)], u64) = (&[(0, APERTURE - 1)], PAGE);

fn bound(scene: &Scene<'_>) -> (Arc<Iommufd>, Ioas, Device) {
    let context = scene.context();
    let ioas = allocate(&context);
    let device = scene.bind(scene.first(), &context);
    (context, ioas, device)
}

fn page_table(ioas: &Ioas, device: &Device) -> Hwpt {
    Hwpt::allocate(ioas, device.id()).expect("a page table")
}

fn map_at(ioas: &mut Ioas, iova: u64, length: u64) -> Result<(), &'static str> {
    let memory = memfd(length.next_multiple_of(PAGE), SealFlags::SHRINK);
    answer(ioas.map_file(&memory, 0, length, Iova(iova), Access::ReadWrite))
}

fn a_page_table_is_attached_and_detached_at_will(scene: &Scene<'_>) {
    let (_context, ioas, device) = bound(scene);
    let hwpt = page_table(&ioas, &device);
    for round in 0..2 {
        scene.expect(&format!("ATTACH, round {round}"), answer(device.attach(&hwpt)), OK);
        scene.expect(&format!("ATTACH again, round {round}"), answer(device.attach(&hwpt)), OK);
        scene.expect(&format!("DETACH, round {round}"), answer(device.detach()), OK);
    }
}

fn a_page_table_outlives_its_device(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    let hwpt = page_table(&ioas, &device);
    device.attach(&hwpt).expect("the device can be attached");
    drop(device);
    let device = scene.bind(scene.first(), &context);
    scene.expect("ATTACH of the device bound again", answer(device.attach(&hwpt)), OK);
    scene.expect("DETACH", answer(device.detach()), OK);
}

fn a_page_table_narrows_the_addresses_to_its_own(scene: &Scene<'_>) {
    let (_context, ioas, device) = bound(scene);
    let hwpt = page_table(&ioas, &device);
    scene.expect("addresses with a page table", addresses(&ioas), APERTURE_ADDRESSES);
    device.attach(&hwpt).expect("the device can be attached");
    scene.expect("addresses with a device", addresses(&ioas), DEVICE_ADDRESSES);
    device.detach().expect("the device can be detached");
    scene.expect("addresses when detached", addresses(&ioas), APERTURE_ADDRESSES);
    drop(hwpt);
    scene.expect("addresses when destroyed", addresses(&ioas), ALL_ADDRESSES);
}

fn a_page_table_needs_an_ioas(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    let ghost = Ioas::adopt(Arc::clone(&context), ioas.id()).expect("it is there");
    drop(ioas);
    scene.expect("HWPT_ALLOC over an id that is free", answer(Hwpt::allocate(&ghost, device.id())), EINVAL);
    let _second = scene.functions().get(1).map(|function| scene.bind(function, &context));
    let outcome = answer(Hwpt::allocate(&ghost, device.id()));
    scene.expect("HWPT_ALLOC over an id that may be a device's", outcome, EINVAL);
}

fn a_page_table_needs_a_device_of_its_context(scene: &Scene<'_>) {
    let (_context, _ioas, device) = bound(scene);
    let ioas = allocate(&scene.context());
    scene.expect("HWPT_ALLOC for a device of another", answer(Hwpt::allocate(&ioas, device.id())), ENOENT);
}

fn a_page_table_may_be_over_the_interrupt_window(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    scene.expect("map", map_at(&mut ioas, INTERRUPT_WINDOW, PAGE), OK);
    let hwpt = page_table(&ioas, &device);
    scene.expect("ATTACH", answer(device.attach(&hwpt)), EADDRINUSE);
    scene.expect("UNMAP", answer(ioas.unmap(Iova(INTERRUPT_WINDOW), PAGE)), OK);
    scene.expect("ATTACH again", answer(device.attach(&hwpt)), OK);
}

fn a_page_table_cannot_reach_beyond_its_aperture(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    scene.expect("map", map_at(&mut ioas, APERTURE, PAGE), OK);
    scene.expect("HWPT_ALLOC", answer(Hwpt::allocate(&ioas, device.id())), EADDRINUSE);
}

fn a_page_table_is_of_whole_pages(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    scene.expect("map", map_at(&mut ioas, PAGE, 100), OK);
    scene.expect("HWPT_ALLOC", answer(Hwpt::allocate(&ioas, device.id())), EADDRINUSE);
    scene.expect("UNMAP", answer(ioas.unmap(Iova(PAGE), 100)), OK);
    let _hwpt = page_table(&ioas, &device);
    scene.expect("map when there is a page table", map_at(&mut ioas, PAGE, 100), EINVAL);
}

fn a_page_table_needs_the_memory_that_is_mapped(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    let memory = memfd(4 * PAGE, SealFlags::empty());
    ioas.map_file(&memory, 0, 4 * PAGE, Iova(0), Access::ReadWrite).expect("it can be mapped");
    ftruncate(&memory, PAGE).expect("the file can shrink");
    let outcome = answer(Hwpt::allocate(&ioas, device.id()));
    scene.expect("HWPT_ALLOC", outcome, scene.by_kernel(EFAULT, EINVAL));
}

fn a_page_table_in_use_is_not_destroyed(scene: &Scene<'_>) {
    let (_context, ioas, device) = bound(scene);
    let hwpt = page_table(&ioas, &device);
    device.attach(&hwpt).expect("the device can be attached");
    drop(hwpt);
    scene.expect("addresses", addresses(&ioas), DEVICE_ADDRESSES);
    device.detach().expect("the device can be detached");
    scene.expect("addresses when detached", addresses(&ioas), APERTURE_ADDRESSES);
}

fn an_ioas_under_a_page_table_is_not_destroyed(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    let _hwpt = page_table(&ioas, &device);
    let id = ioas.id();
    drop(ioas);
    let kept = Ioas::adopt(context, id);
    scene.expect("adopting it", answer(kept), OK);
}

fn an_ioas_is_free_when_its_page_table_is_destroyed(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    drop(page_table(&ioas, &device));
    let id = ioas.id();
    drop(ioas);
    scene.expect("adopting it", answer(Ioas::adopt(context, id)), ENOENT);
}

fn a_page_table_keeps_its_memory_pinned(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    let before = scene.host.pinned_memory();
    let pinned = || scene.host.pinned_memory() - before;
    scene.expect("map", map_at(&mut ioas, 0, MIB), OK);
    let hwpt = page_table(&ioas, &device);
    scene.expect("pinned with a page table", pinned(), MIB);
    device.attach(&hwpt).expect("the device can be attached");
    scene.expect("pinned when attached", pinned(), MIB);
    device.detach().expect("the device can be detached");
    scene.expect("pinned when detached", pinned(), MIB);
    drop(device);
    scene.expect("pinned when closed", pinned(), MIB);
    drop(hwpt);
    scene.expect("pinned when destroyed", pinned(), 0);
}

fn page_tables_of_one_ioas_pin_memory_once(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    let before = scene.host.pinned_memory();
    scene.expect("map", map_at(&mut ioas, 0, MIB), OK);
    let first = page_table(&ioas, &device);
    let _second = page_table(&ioas, &device);
    scene.expect("pinned for two", scene.host.pinned_memory() - before, MIB);
    drop(first);
    scene.expect("pinned for the other", scene.host.pinned_memory() - before, MIB);
}

fn a_map_reaches_every_page_table(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    let hwpts = [page_table(&ioas, &device), page_table(&ioas, &device)];
    scene.expect("map", map_at(&mut ioas, 0, MIB), OK);
    for hwpt in &hwpts {
        scene.expect("ATTACH", answer(device.attach(hwpt)), OK);
    }
    scene.expect("UNMAP", answer(ioas.unmap(Iova(0), MIB)), OK);
    scene.expect("DETACH", answer(device.detach()), OK);
}

fn a_device_moves_from_one_page_table_to_another(scene: &Scene<'_>) {
    let (context, old, device) = bound(scene);
    let new = allocate(&context);
    let (old_table, new_table) = (page_table(&old, &device), page_table(&new, &device));
    device.attach(&old_table).expect("the device can be attached");
    scene.expect("ATTACH to the new", answer(device.attach(&new_table)), OK);
    scene.expect("addresses of the old", addresses(&old), APERTURE_ADDRESSES);
    scene.expect("addresses of the new", addresses(&new), DEVICE_ADDRESSES);
    device.detach().expect("the device can be detached");
}

fn a_device_moves_from_an_ioas_to_a_page_table(scene: &Scene<'_>) {
    let (_context, ioas, device) = bound(scene);
    device.attach_ioas(&ioas).expect("the device can be attached");
    let hwpt = page_table(&ioas, &device);
    scene.expect("ATTACH to the page table", answer(device.attach(&hwpt)), OK);
    scene.expect("ATTACH to the IOAS", answer(device.attach_ioas(&ioas)), OK);
    drop(hwpt);
    scene.expect("DETACH", answer(device.detach()), OK);
    scene.expect("addresses", addresses(&ioas), ALL_ADDRESSES);
}

fn a_file_that_is_mapped_stays_after_it_is_closed(scene: &Scene<'_>) {
    let (_context, mut ioas, device) = bound(scene);
    // The descriptor is closed on return.
    scene.expect("map", map_at(&mut ioas, 0, MIB), OK);
    let hwpt = page_table(&ioas, &device);
    scene.expect("ATTACH", answer(device.attach(&hwpt)), OK);
    scene.expect("DETACH", answer(device.detach()), OK);
}

fn a_sibling_must_attach_to_the_same_page_table(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    let (first, second) = (page_table(&ioas, &device), page_table(&ioas, &device));
    device.attach(&first).expect("the device can be attached");
    let sibling = scene.bind(scene.second(), &context);
    scene.expect("ATTACH to another of the same IOAS", answer(sibling.attach(&second)), EINVAL);
    scene.expect("ATTACH to the IOAS", answer(sibling.attach_ioas(&ioas)), EINVAL);
    scene.expect("ATTACH to the same", answer(sibling.attach(&first)), OK);
    device.detach().expect("the device can be detached");
    sibling.detach().expect("the sibling can be detached");
}

fn one_device_moves_its_group_to_a_page_table(scene: &Scene<'_>) {
    let (context, old, device) = bound(scene);
    let new = allocate(&context);
    let (old_table, new_table) = (page_table(&old, &device), page_table(&new, &device));
    let sibling = scene.bind(scene.second(), &context);
    device.attach(&old_table).expect("the device can be attached");
    sibling.attach(&old_table).expect("the sibling can be attached");
    scene.expect("ATTACH of one to the new", answer(device.attach(&new_table)), OK);
    scene.expect("addresses of the old", addresses(&old), APERTURE_ADDRESSES);
    scene.expect("ATTACH of the other to the old", answer(sibling.attach(&old_table)), OK);
    scene.expect("addresses of the new", addresses(&new), APERTURE_ADDRESSES);
    device.detach().expect("the device can be detached");
    sibling.detach().expect("the sibling can be detached");
}

fn a_page_table_made_for_one_serves_its_sibling(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    let hwpt = page_table(&ioas, &device);
    let sibling = scene.bind(scene.second(), &context);
    drop(device);
    scene.expect("ATTACH", answer(sibling.attach(&hwpt)), OK);
    scene.expect("DETACH", answer(sibling.detach()), OK);
}

fn functions_of_separate_groups_share_a_page_table(scene: &Scene<'_>) {
    let (context, ioas, device) = bound(scene);
    let hwpt = page_table(&ioas, &device);
    let other = scene.bind(scene.second(), &context);
    scene.expect("ATTACH of the first", answer(device.attach(&hwpt)), OK);
    scene.expect("ATTACH of the second", answer(other.attach(&hwpt)), OK);
    device.detach().expect("the device can be detached");
    scene.expect("addresses with one left", addresses(&ioas), DEVICE_ADDRESSES);
    other.detach().expect("the second can be detached");
    scene.expect("addresses with none left", addresses(&ioas), APERTURE_ADDRESSES);
}
