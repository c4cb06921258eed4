// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VFIO_DEVICE_BIND_IOMMUFD`: who gets a device, and who does not.

use crate::answer::{OK, answer, bind_answer, refused};
use crate::check::checks;
use crate::machine::{EACH_PLACE, EVERYWHERE, SEPARATE_GROUPS, SHARED_GROUP};
use crate::scene::Scene;

checks! {
    EVERYWHERE => each_function_binds, all_functions_bind_to_one_context,
        a_second_open_file_of_a_bound_device_is_refused;
    EACH_PLACE => a_bound_file_is_refused_a_second_bind, the_first_of_two_open_files_to_bind_wins,
        a_bound_device_is_refused_to_another_context, an_open_group_refuses_the_bind,
        a_refused_bind_can_be_repeated, a_refused_bind_leaves_no_owner,
        a_context_outlives_its_last_descriptor, an_unbound_file_does_not_hinder_the_bind_of_another;
    SHARED_GROUP => a_sibling_of_the_group_is_refused_to_another_context,
        a_group_is_free_when_its_last_device_is_closed, a_sibling_of_the_group_joins_the_same_context,
        a_sibling_that_is_open_does_not_hinder_the_bind;
    &["edu-pair", "virtio-pair"] => a_sibling_without_driver_does_not_hinder_the_bind;
    SEPARATE_GROUPS => functions_of_separate_groups_bind_to_separate_contexts;
    &["edu-noremap"] => without_interrupt_remapping_no_function_binds,
        a_bind_refused_for_interrupts_leaves_no_owner;
}

const ALREADY_BOUND: Result<(), &str> = Err("EINVAL AlreadyBound");
const FOREIGN_OWNER: Result<(), &str> = Err("EPERM ForeignOwner");

fn each_function_binds(scene: &Scene<'_>) {
    for function in scene.functions() {
        let context = scene.context();
        let device = scene.bind(function, &context);
        scene.expect("address", device.address().to_string(), function.address);
        let info = device.info();
        let seen = (info.has_function_reset, info.regions, info.irqs);
        scene.expect(
            &format!("{} function reset, regions, interrupts", function.address),
            seen,
            (function.has_function_reset, 9, 5),
        );
    }
}

fn all_functions_bind_to_one_context(scene: &Scene<'_>) {
    let context = scene.context();
    let devices = scene.bind_all(&context);
    let mut ids: Vec<_> = devices.iter().map(vfio::Device::id).collect();
    let is_ascending = ids.is_sorted();
    ids.dedup();
    scene.expect("ids", (is_ascending, ids.len()), (true, scene.functions().len()));
}

fn a_second_open_file_of_a_bound_device_is_refused(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let _device = scene.bind(function, &context);
        let second = scene.try_bind(function, &context);
        scene.expect(&format!("second BIND of {}", function.address), bind_answer(second), ALREADY_BOUND);
    }
}

fn a_bound_file_is_refused_a_second_bind(scene: &Scene<'_>) {
    let context = scene.context();
    let file = scene.open_file(scene.first());
    let again = scene.recognize(file.try_clone().expect("a copy"));
    let _device = scene.recognize(file).bind(&context, &scene.sysfs()).expect("the device can be bound");
    scene.expect("second BIND", bind_answer(again.bind(&context, &scene.sysfs())), ALREADY_BOUND);
}

fn the_first_of_two_open_files_to_bind_wins(scene: &Scene<'_>) {
    let context = scene.context();
    let file = scene.open_file(scene.first());
    let loser = scene.recognize(file.try_clone().expect("a copy"));
    let winner = scene.try_bind(scene.first(), &context).expect("the device can be bound");
    scene.expect("BIND of the other", bind_answer(loser.bind(&context, &scene.sysfs())), ALREADY_BOUND);
    drop(winner);
    let bound = scene.recognize(file).bind(&context, &scene.sysfs());
    scene.expect("BIND of the other afterwards", bind_answer(bound), OK);
}

fn a_bound_device_is_refused_to_another_context(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let device = scene.bind(scene.first(), &context);
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &other)), ALREADY_BOUND);
    drop(device);
    scene.expect("BIND afterwards", bind_answer(scene.try_bind(scene.first(), &other)), OK);
}

fn an_open_group_refuses_the_bind(scene: &Scene<'_>) {
    let context = scene.context();
    let _group = scene.host.open_group(scene.first().group).expect("the group");
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), refused("EBUSY GroupOpen"));
}

fn a_refused_bind_can_be_repeated(scene: &Scene<'_>) {
    let context = scene.context();
    let file = scene.open_file(scene.first());
    let group = scene.host.open_group(scene.first().group).expect("the group");
    let outcome = scene.recognize(file.try_clone().expect("a copy")).bind(&context, &scene.sysfs());
    scene.expect("BIND", bind_answer(outcome), refused("EBUSY GroupOpen"));
    drop(group);
    let bound = scene.recognize(file).bind(&context, &scene.sysfs());
    scene.expect("BIND of the same file afterwards", bind_answer(bound), OK);
}

fn a_refused_bind_leaves_no_owner(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let group = scene.host.open_group(scene.first().group).expect("the group");
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), refused("EBUSY GroupOpen"));
    drop(group);
    let bound = scene.try_bind(scene.first(), &other);
    scene.expect("BIND to another context", bind_answer(bound), OK);
}

fn a_context_outlives_its_last_descriptor(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    drop(context);
    scene.expect("DETACH", answer(device.detach()), OK);
    let other = scene.context();
    scene.expect(
        "BIND to another context",
        bind_answer(scene.try_bind(scene.first(), &other)),
        ALREADY_BOUND,
    );
}

fn an_unbound_file_does_not_hinder_the_bind_of_another(scene: &Scene<'_>) {
    let context = scene.context();
    let _open = [scene.open(scene.first()), scene.open(scene.first())];
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), OK);
}

fn a_sibling_of_the_group_is_refused_to_another_context(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let _device = scene.bind(scene.first(), &context);
    scene.expect("BIND", bind_answer(scene.try_bind(scene.second(), &other)), FOREIGN_OWNER);
}

fn a_group_is_free_when_its_last_device_is_closed(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let first = scene.bind(scene.first(), &context);
    let second = scene.bind(scene.second(), &context);
    drop(first);
    scene.expect(
        "BIND while one is bound",
        bind_answer(scene.try_bind(scene.first(), &other)),
        FOREIGN_OWNER,
    );
    drop(second);
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &other)), OK);
}

fn a_sibling_of_the_group_joins_the_same_context(scene: &Scene<'_>) {
    let context = scene.context();
    let first = scene.bind(scene.first(), &context);
    let second = scene.bind(scene.second(), &context);
    scene.expect("same id", first.id() == second.id(), false);
}

fn a_sibling_that_is_open_does_not_hinder_the_bind(scene: &Scene<'_>) {
    let context = scene.context();
    let _sibling = scene.open(scene.second());
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), OK);
}

fn a_sibling_without_driver_does_not_hinder_the_bind(scene: &Scene<'_>) {
    let _other = crate::drivers::OtherDriver::none(scene, scene.second());
    let context = scene.context();
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &context)), OK);
}

fn functions_of_separate_groups_bind_to_separate_contexts(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let _device = scene.bind(scene.first(), &context);
    scene.expect("BIND", bind_answer(scene.try_bind(scene.second(), &other)), OK);
}

fn without_interrupt_remapping_no_function_binds(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let outcome = scene.try_bind(function, &context);
        scene.expect(
            &format!("BIND of {}", function.address),
            bind_answer(outcome),
            refused("EPERM UnsafeInterrupts"),
        );
    }
}

fn a_bind_refused_for_interrupts_leaves_no_owner(scene: &Scene<'_>) {
    let context = scene.context();
    drop(scene.try_bind(scene.first(), &context));
    let group = scene.host.open_group(scene.first().group).map(drop);
    scene.expect("opening the group", answer(group), OK);
}
