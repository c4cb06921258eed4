// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Giving devices up: by closing them, and by dying.

use vfio::Device;
use vhost_device_vfio_tests::edu::Edu;

use crate::answer::{OK, answer, bind_answer, refused};
use crate::check::checks;
use crate::dma::{copy_arrives, memory};
use crate::holder::Holder;
use crate::ioas::map;
use crate::machine::{EACH_PLACE, EVERYWHERE, SEPARATE_GROUPS, SHARED_GROUP};
use crate::registers::{IGB_VET_DEFAULT, command, enable, igb_vet, raises_interrupt, soil_igb};
use crate::scene::{Scene, address, allocate};

checks! {
    EVERYWHERE => a_closed_device_can_be_bound_again, a_closed_device_leaves_its_group;
    EACH_PLACE => a_device_bound_again_has_the_same_id, a_device_lives_as_long_as_a_copy_of_its_descriptor,
        a_device_lives_as_long_as_a_copy_in_another_process, a_device_of_a_killed_process_is_free,
        a_device_held_by_another_process_is_refused, a_file_held_by_another_process_does_not_hinder,
        ids_are_given_in_the_order_of_binding;
    SHARED_GROUP => the_group_of_a_killed_process_is_free;
    SEPARATE_GROUPS => a_killed_process_does_not_take_its_neighbours_along;
    &["edu-pair", "edu-igb"] => a_dirty_device_is_not_reset_while_a_sibling_is_open,
        a_dirty_device_is_reset_with_the_last_close;
    &["rciep"] => a_dirty_device_without_any_reset_stays_dirty;
    &["igb-pair"] => a_device_with_a_function_reset_is_reset_when_it_is_bound_again;
    &["edu-pair"] => a_closed_device_does_no_dma, a_killed_process_leaves_memory_alone;
}

const ALREADY_BOUND: Result<(), &str> = Err("EINVAL AlreadyBound");

fn a_closed_device_can_be_bound_again(scene: &Scene<'_>) {
    for function in scene.functions() {
        for round in 0..2 {
            let bound = scene.try_bind(function, &scene.context());
            scene.expect(&format!("BIND of {}, round {round}", function.address), bind_answer(bound), OK);
        }
    }
}

fn a_closed_device_leaves_its_group(scene: &Scene<'_>) {
    for function in scene.functions() {
        let device = scene.bind(function, &scene.context());
        let group = |what: &str, expected: Result<(), &str>| {
            let opened = scene.host.open_group(function.group).map(drop);
            scene.expect(&format!("opening group {} {what}", function.group), answer(opened), expected);
        };
        group("while bound", Err("EBUSY"));
        drop(device);
        group("when closed", Ok(()));
    }
}

fn a_device_bound_again_has_the_same_id(scene: &Scene<'_>) {
    let context = scene.context();
    let _ioas = allocate(&context);
    let device = scene.bind(scene.first(), &context);
    let id = device.id();
    drop(device);
    let device = scene.bind(scene.first(), &context);
    scene.expect("same id", device.id() == id, true);
}

fn a_device_lives_as_long_as_a_copy_of_its_descriptor(scene: &Scene<'_>) {
    let context = scene.context();
    let file = scene.open_file(scene.first());
    let copy = file.try_clone().expect("a copy");
    let device = scene.recognize(file).bind(&context, &scene.sysfs()).expect("the device can be bound");
    drop(device);
    scene.expect(
        "BIND while there is a copy",
        bind_answer(scene.try_bind(scene.first(), &context)),
        ALREADY_BOUND,
    );
    drop(copy);
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), OK);
}

fn a_device_lives_as_long_as_a_copy_in_another_process(scene: &Scene<'_>) {
    let context = scene.context();
    let file = scene.open_file(scene.first());
    let holder = Holder::of_copy(file.try_clone().expect("a copy"));
    let device = scene.recognize(file).bind(&context, &scene.sysfs()).expect("the device can be bound");
    drop(device);
    scene.expect(
        "BIND while there is a copy",
        bind_answer(scene.try_bind(scene.first(), &context)),
        ALREADY_BOUND,
    );
    holder.kill();
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), OK);
}

fn a_device_of_a_killed_process_is_free(scene: &Scene<'_>) {
    Holder::of_bound(scene.host, address(scene.first())).kill();
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &scene.context())), OK);
}

fn a_device_held_by_another_process_is_refused(scene: &Scene<'_>) {
    let _holder = Holder::of_bound(scene.host, address(scene.first()));
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &scene.context())), ALREADY_BOUND);
}

fn a_file_held_by_another_process_does_not_hinder(scene: &Scene<'_>) {
    let _holder = Holder::of_open(scene.host, address(scene.first()));
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &scene.context())), OK);
}

fn ids_are_given_in_the_order_of_binding(scene: &Scene<'_>) {
    let context = scene.context();
    let devices: Vec<_> =
        scene.functions().iter().rev().map(|function| scene.bind(function, &context)).collect();
    scene.expect("ascending", devices.iter().map(Device::id).is_sorted(), true);
}

fn the_group_of_a_killed_process_is_free(scene: &Scene<'_>) {
    let holder = Holder::of_bound(scene.host, address(scene.first()));
    let context = scene.context();
    let foreign = refused("EPERM ForeignOwner");
    scene.expect("BIND of a sibling", bind_answer(scene.try_bind(scene.second(), &context)), foreign);
    holder.kill();
    scene.expect("BIND afterwards", bind_answer(scene.try_bind(scene.second(), &context)), OK);
}

fn a_killed_process_does_not_take_its_neighbours_along(scene: &Scene<'_>) {
    let device = scene.bind(scene.second(), &scene.context());
    soil_igb(&device);
    Holder::of_bound(scene.host, address(scene.first())).kill();
    scene.expect("the neighbour's register", igb_vet(&device), 0x1234);
}

/// Leaves edu with its interrupt line raised, which the reset of its bus lowers. It has no reset of its own.
fn soil(edu: &Device) {
    enable(edu);
    Edu::new(edu).raise_interrupt();
    assert!(raises_interrupt(edu));
}

/// For the next check.
fn clean(edu: &Device) {
    enable(edu);
    Edu::new(edu).acknowledge_interrupt();
}

fn a_dirty_device_is_not_reset_while_a_sibling_is_open(scene: &Scene<'_>) {
    let context = scene.context();
    let edu = scene.bind(scene.first(), &context);
    let _sibling = scene.bind(scene.second(), &context);
    soil(&edu);
    drop(edu);
    let edu = scene.bind(scene.first(), &context);
    scene.expect("raised", raises_interrupt(&edu), true);
    clean(&edu);
}

fn a_dirty_device_is_reset_with_the_last_close(scene: &Scene<'_>) {
    let context = scene.context();
    let edu = scene.bind(scene.first(), &context);
    let sibling = scene.bind(scene.second(), &context);
    soil(&edu);
    drop(edu);
    drop(sibling);
    let edu = scene.bind(scene.first(), &context);
    scene.expect("raised", raises_interrupt(&edu), false);
    clean(&edu);
}

fn a_dirty_device_without_any_reset_stays_dirty(scene: &Scene<'_>) {
    let context = scene.context();
    let edu = scene.bind(scene.first(), &context);
    soil(&edu);
    drop(edu);
    let edu = scene.bind(scene.first(), &context);
    scene.expect("raised", raises_interrupt(&edu), true);
    clean(&edu);
}

fn a_device_with_a_function_reset_is_reset_when_it_is_bound_again(scene: &Scene<'_>) {
    let context = scene.context();
    let igb = scene.bind(scene.first(), &context);
    let _sibling = scene.bind(scene.second(), &context);
    soil_igb(&igb);
    drop(igb);
    let igb = scene.bind(scene.first(), &context);
    scene.expect("register", igb_vet(&igb), IGB_VET_DEFAULT);
}

fn a_closed_device_does_no_dma(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    let device = scene.bind(scene.first(), &context);
    device.attach_ioas(&ioas).expect("the device can be attached");
    enable(&device);
    scene.expect("arrives", copy_arrives(&device, &memory), true);
    drop(device);
    let device = scene.bind(scene.first(), &context);
    scene.expect("command when bound again", command(&device), scene.first().part.command);
    enable(&device);
    scene.expect("arrives when bound again", copy_arrives(&device, &memory), false);
}

fn a_killed_process_leaves_memory_alone(scene: &Scene<'_>) {
    Holder::of_bound(scene.host, address(scene.first())).kill();
    let context = scene.context();
    let mut ioas = allocate(&context);
    let memory = memory();
    let device = scene.bind(scene.second(), &context);
    device.attach_ioas(&ioas).expect("the device can be attached");
    map(&mut ioas, &memory).expect("memory can be mapped");
    enable(&device);
    scene.expect("arrives for the next", copy_arrives(&device, &memory), true);
}
