// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Attaching devices to address spaces: what is checked only then, and what a group shares.

use std::sync::Arc;

use rustix::fs::{SealFlags, ftruncate};
use vfio::{Access, Ioas, Iova};
use vhost_device_vfio_tests::guest_memory::memfd;

use crate::answer::{EADDRINUSE, EFAULT, EINVAL, ENOENT, OK, answer};
use crate::check::checks;
use crate::ioas::{ALL_ADDRESSES, APERTURE, DEVICE_ADDRESSES, INTERRUPT_WINDOW, PAGE, addresses};
use crate::machine::{EACH_PLACE, SEPARATE_GROUPS, SHARED_GROUP};
use crate::scene::{Scene, allocate};

const ANY_DEVICE: &[&str] = &["edu-pair", "rciep"];

checks! {
    EACH_PLACE => a_device_can_be_attached_again, a_device_that_is_not_attached_can_be_detached,
        a_device_moves_from_one_ioas_to_another, a_device_that_is_closed_leaves_its_ioas;
    ANY_DEVICE => an_ioas_that_is_gone_cannot_be_attached_to, what_is_no_address_space_cannot_be_attached_to,
        a_map_in_the_interrupt_window_shows_when_a_device_is_attached,
        a_map_beyond_the_aperture_shows_when_a_device_is_attached,
        an_unaligned_map_shows_when_a_device_is_attached, memory_that_is_gone_shows_when_a_device_is_attached,
        a_map_beyond_the_file_shows_when_a_device_is_attached,
        an_ioas_can_be_attached_to_when_what_collides_is_unmapped,
        a_device_that_cannot_move_stays_where_it_is;
    SHARED_GROUP => a_sibling_of_the_group_must_attach_to_the_same_ioas, a_refused_sibling_may_try_again,
        one_device_moves_its_group, an_ioas_is_left_with_the_last_device_of_the_group,
        a_sibling_that_is_only_bound_does_not_narrow_another_ioas;
    SEPARATE_GROUPS => functions_of_separate_groups_attach_to_separate_ioases,
        functions_of_separate_groups_share_an_ioas, an_ioas_is_left_with_the_last_device;
}

/// Maps a part of the first page of fresh memory.
fn map_at(ioas: &mut Ioas, iova: u64, length: u64) {
    let memory = memfd(PAGE, SealFlags::SHRINK);
    ioas.map_file(&memory, 0, length, Iova(iova), Access::ReadWrite).expect("nothing is checked yet");
}

fn a_device_can_be_attached_again(scene: &Scene<'_>) {
    let (_context, ioas, device) = scene.attached(scene.first());
    scene.expect("ATTACH to the same IOAS", answer(device.attach_ioas(&ioas)), OK);
    scene.expect("DETACH", answer(device.detach()), OK);
    scene.expect("ATTACH after DETACH", answer(device.attach_ioas(&ioas)), OK);
}

fn a_device_that_is_not_attached_can_be_detached(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    scene.expect("DETACH", answer(device.detach()), OK);
    let ioas = allocate(&context);
    device.attach_ioas(&ioas).expect("the device can be attached");
    scene.expect("DETACH when attached", answer(device.detach()), OK);
    scene.expect("DETACH again", answer(device.detach()), OK);
}

fn a_device_moves_from_one_ioas_to_another(scene: &Scene<'_>) {
    let (context, old, device) = scene.attached(scene.first());
    let new = allocate(&context);
    scene.expect("ATTACH to the new IOAS", answer(device.attach_ioas(&new)), OK);
    scene.expect("addresses of the old", addresses(&old), ALL_ADDRESSES);
    scene.expect("addresses of the new", addresses(&new), DEVICE_ADDRESSES);
}

fn a_device_that_is_closed_leaves_its_ioas(scene: &Scene<'_>) {
    let (context, ioas, device) = scene.attached(scene.first());
    drop(device);
    scene.expect("addresses", addresses(&ioas), ALL_ADDRESSES);
    let id = ioas.id();
    drop(ioas);
    scene.expect("the id is free", allocate(&context).id() == id, true);
}

/// An IOAS and another owner of it, which does not know when it is gone.
fn adopted(context: &Arc<vfio::Iommufd>) -> (Ioas, Ioas) {
    let ioas = allocate(context);
    let ghost = Ioas::adopt(Arc::clone(context), ioas.id()).expect("it is there");
    (ioas, ghost)
}

fn an_ioas_that_is_gone_cannot_be_attached_to(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    let (ioas, ghost) = adopted(&context);
    drop(ioas);
    scene.expect("ATTACH", answer(device.attach_ioas(&ghost)), ENOENT);
    let elsewhere = allocate(&context);
    scene.expect("ATTACH when the id is another's", answer(device.attach_ioas(&ghost)), OK);
    scene.expect("addresses of the other", addresses(&elsewhere), DEVICE_ADDRESSES);
}

fn what_is_no_address_space_cannot_be_attached_to(scene: &Scene<'_>) {
    let context = scene.context();
    let (ioas, ghost) = adopted(&context);
    drop(ioas);
    // The id is now the device's own.
    let device = scene.bind(scene.first(), &context);
    scene.expect("ATTACH", answer(device.attach_ioas(&ghost)), EINVAL);
}

/// An IOAS with a map that no device can live with; what the map is told by the check.
fn collides(scene: &Scene<'_>, iova: u64, length: u64) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    map_at(&mut ioas, iova, length);
    let device = scene.bind(scene.first(), &context);
    scene.expect("ATTACH", answer(device.attach_ioas(&ioas)), EADDRINUSE);
    scene.expect("addresses", addresses(&ioas), ALL_ADDRESSES);
}

fn a_map_in_the_interrupt_window_shows_when_a_device_is_attached(scene: &Scene<'_>) {
    collides(scene, INTERRUPT_WINDOW, PAGE);
}

fn a_map_beyond_the_aperture_shows_when_a_device_is_attached(scene: &Scene<'_>) {
    collides(scene, APERTURE, PAGE);
}

fn an_unaligned_map_shows_when_a_device_is_attached(scene: &Scene<'_>) {
    collides(scene, PAGE, 100);
    collides(scene, PAGE + 100, PAGE);
}

fn memory_that_is_gone_shows_when_a_device_is_attached(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    let memory = memfd(4 * PAGE, SealFlags::empty());
    ioas.map_file(&memory, 0, 4 * PAGE, Iova(0), Access::ReadWrite).expect("it can be mapped");
    ftruncate(&memory, PAGE).expect("the file can shrink");
    let device = scene.bind(scene.first(), &context);
    let outcome = answer(device.attach_ioas(&ioas));
    scene.expect("ATTACH", outcome, scene.by_kernel(EFAULT, EINVAL));
    ftruncate(&memory, 4 * PAGE).expect("the file can grow");
    scene.expect("ATTACH when the file has grown again", answer(device.attach_ioas(&ioas)), OK);
}

fn a_map_beyond_the_file_shows_when_a_device_is_attached(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    let memory = memfd(PAGE, SealFlags::SHRINK);
    let mapped = ioas.map_file(&memory, 0, 4 * PAGE, Iova(0), Access::ReadWrite);
    scene.expect("map", answer(mapped), OK);
    let device = scene.bind(scene.first(), &context);
    scene.expect("ATTACH", answer(device.attach_ioas(&ioas)), scene.by_kernel(EFAULT, EINVAL));
    scene.expect("addresses", addresses(&ioas), ALL_ADDRESSES);
}

fn an_ioas_can_be_attached_to_when_what_collides_is_unmapped(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    map_at(&mut ioas, INTERRUPT_WINDOW, PAGE);
    map_at(&mut ioas, 0, PAGE);
    let device = scene.bind(scene.first(), &context);
    scene.expect("ATTACH", answer(device.attach_ioas(&ioas)), EADDRINUSE);
    scene.expect("UNMAP", answer(ioas.unmap(Iova(INTERRUPT_WINDOW), PAGE)), OK);
    scene.expect("ATTACH again", answer(device.attach_ioas(&ioas)), OK);
}

fn a_device_that_cannot_move_stays_where_it_is(scene: &Scene<'_>) {
    let (context, old, device) = scene.attached(scene.first());
    let mut new = allocate(&context);
    map_at(&mut new, INTERRUPT_WINDOW, PAGE);
    scene.expect("ATTACH to the new IOAS", answer(device.attach_ioas(&new)), EADDRINUSE);
    scene.expect("addresses of the old", addresses(&old), DEVICE_ADDRESSES);
    scene.expect("addresses of the new", addresses(&new), ALL_ADDRESSES);
}

fn a_sibling_of_the_group_must_attach_to_the_same_ioas(scene: &Scene<'_>) {
    let (context, ioas, _device) = scene.attached(scene.first());
    let sibling = scene.bind(scene.second(), &context);
    let other = allocate(&context);
    scene.expect("ATTACH to another IOAS", answer(sibling.attach_ioas(&other)), EINVAL);
    scene.expect("addresses of that", addresses(&other), ALL_ADDRESSES);
    scene.expect("ATTACH to the same IOAS", answer(sibling.attach_ioas(&ioas)), OK);
}

fn a_refused_sibling_may_try_again(scene: &Scene<'_>) {
    let (context, ioas, device) = scene.attached(scene.first());
    let sibling = scene.bind(scene.second(), &context);
    let other = allocate(&context);
    scene.expect("ATTACH to another IOAS", answer(sibling.attach_ioas(&other)), EINVAL);
    device.detach().expect("the device can be detached");
    scene.expect("ATTACH when the group is free", answer(sibling.attach_ioas(&other)), OK);
    scene.expect("ATTACH of the first to the old IOAS", answer(device.attach_ioas(&ioas)), EINVAL);
}

fn one_device_moves_its_group(scene: &Scene<'_>) {
    let (context, old, device) = scene.attached(scene.first());
    let sibling = scene.bind(scene.second(), &context);
    sibling.attach_ioas(&old).expect("the sibling can be attached");
    let new = allocate(&context);
    scene.expect("ATTACH of one to the new IOAS", answer(device.attach_ioas(&new)), OK);
    scene.expect("addresses of the old", addresses(&old), ALL_ADDRESSES);
    scene.expect("addresses of the new", addresses(&new), DEVICE_ADDRESSES);
    scene.expect("ATTACH of the other to the old IOAS", answer(sibling.attach_ioas(&old)), OK);
    scene.expect("addresses of the old again", addresses(&old), DEVICE_ADDRESSES);
    scene.expect("addresses of the new again", addresses(&new), ALL_ADDRESSES);
}

fn an_ioas_is_left_with_the_last_device_of_the_group(scene: &Scene<'_>) {
    two_leave_one_after_the_other(scene);
}

fn two_leave_one_after_the_other(scene: &Scene<'_>) {
    let (context, ioas, device) = scene.attached(scene.first());
    let other = scene.bind(scene.second(), &context);
    other.attach_ioas(&ioas).expect("the second can be attached");
    device.detach().expect("the device can be detached");
    scene.expect("addresses with one device", addresses(&ioas), DEVICE_ADDRESSES);
    other.detach().expect("the second can be detached");
    scene.expect("addresses with none", addresses(&ioas), ALL_ADDRESSES);
}

fn a_sibling_that_is_only_bound_does_not_narrow_another_ioas(scene: &Scene<'_>) {
    let (context, _ioas, _device) = scene.attached(scene.first());
    let other = allocate(&context);
    let _sibling = scene.bind(scene.second(), &context);
    scene.expect("addresses of another IOAS", addresses(&other), ALL_ADDRESSES);
}

fn functions_of_separate_groups_attach_to_separate_ioases(scene: &Scene<'_>) {
    let (context, _ioas, _device) = scene.attached(scene.first());
    let other = scene.bind(scene.second(), &context);
    let ioas = allocate(&context);
    scene.expect("ATTACH", answer(other.attach_ioas(&ioas)), OK);
}

fn functions_of_separate_groups_share_an_ioas(scene: &Scene<'_>) {
    let (context, ioas, _device) = scene.attached(scene.first());
    let other = scene.bind(scene.second(), &context);
    scene.expect("ATTACH", answer(other.attach_ioas(&ioas)), OK);
    scene.expect("addresses", addresses(&ioas), DEVICE_ADDRESSES);
}

fn an_ioas_is_left_with_the_last_device(scene: &Scene<'_>) {
    two_leave_one_after_the_other(scene);
}
