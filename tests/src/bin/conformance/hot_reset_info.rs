// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`: whose each function of the reset set is.

use vfio::Device;
use vhost_device_vfio_tests::legacy_group::{LegacyGroup, LegacyUser};

use crate::answer::{Answer, rows};
use crate::check::checks;
use crate::drivers::OtherDriver;
use crate::machine::{EVERYWHERE, SEPARATE_GROUPS};
use crate::scene::{Scene, allocate};

checks! {
    EVERYWHERE => the_rows_of_each_function_alone, the_rows_of_each_function_with_all_others,
        rows_are_the_same_when_asked_again;
    &["edu-pair"] => a_sibling_of_the_group_that_is_open_is_implied, a_sibling_of_the_group_without_driver_is_not_owned,
        a_sibling_of_the_group_is_implied_again_when_closed;
    &["edu-igb"] => a_function_of_another_context_is_not_owned, a_function_that_is_open_is_not_owned,
        a_function_without_driver_is_not_owned, a_function_is_not_owned_any_more_when_closed,
        a_function_of_a_legacy_user_is_not_owned, a_function_whose_group_is_open_is_not_owned,
        a_function_whose_group_is_in_our_context_is_not_owned, a_function_opened_through_our_context_is_bound,
        attaching_does_not_change_the_rows;
    SEPARATE_GROUPS => two_contexts_see_each_other;
    &["virtio-trio"] => a_function_with_a_kernel_driver_is_not_owned, ids_of_closed_devices_are_used_again;
}

fn expect_rows(scene: &Scene<'_>, what: &str, ours: &[&Device], expected: Answer<&str>) {
    scene.expect(what, rows(ours[0].hot_reset_info(), ours), expected);
}

fn the_rows_of_each_function_alone(scene: &Scene<'_>) {
    for function in scene.functions() {
        let device = scene.bind(function, &scene.context());
        expect_rows(scene, &format!("as {} sees it", function.address), &[&device], function.rows_alone);
    }
}

fn the_rows_of_each_function_with_all_others(scene: &Scene<'_>) {
    let context = scene.context();
    let devices = scene.bind_all(&context);
    let ours: Vec<&Device> = devices.iter().collect();
    for (function, device) in scene.functions().iter().zip(&devices) {
        let seen = rows(device.hot_reset_info(), &ours);
        scene.expect(&format!("as {} sees it", function.address), seen, function.set.rows_with_all);
    }
}

fn rows_are_the_same_when_asked_again(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    let answers: Vec<_> = (0..3).map(|_| rows(device.hot_reset_info(), &[&device])).collect();
    scene.expect("answers", answers, [scene.first().rows_alone; 3]);
}

fn a_sibling_of_the_group_that_is_open_is_implied(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    let _sibling = scene.open(scene.second());
    expect_rows(scene, "rows", &[&device], Ok("available: 0000:01:00.0 bound, 0000:01:00.1 implied"));
}

fn a_sibling_of_the_group_without_driver_is_not_owned(scene: &Scene<'_>) {
    let _other = OtherDriver::none(scene, scene.second());
    let device = scene.bind(scene.first(), &scene.context());
    expect_rows(scene, "rows", &[&device], Ok("blocked: 0000:01:00.0 bound, 0000:01:00.1 not owned"));
}

fn a_sibling_of_the_group_is_implied_again_when_closed(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    let sibling = scene.bind(scene.second(), &context);
    let bound = Ok("available: 0000:01:00.0 bound, 0000:01:00.1 bound");
    expect_rows(scene, "rows", &[&device, &sibling], bound);
    drop(sibling);
    expect_rows(
        scene,
        "rows when closed",
        &[&device],
        Ok("available: 0000:01:00.0 bound, 0000:01:00.1 implied"),
    );
}

const SECOND_NOT_OWNED: Answer<&str> = Ok("blocked: 0000:01:00.0 bound, 0000:01:00.1 not owned");
const BOTH_BOUND: Answer<&str> = Ok("available: 0000:01:00.0 bound, 0000:01:00.1 bound");

fn a_function_of_another_context_is_not_owned(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    let _other = scene.bind(scene.second(), &scene.context());
    expect_rows(scene, "rows", &[&device], SECOND_NOT_OWNED);
}

fn a_function_that_is_open_is_not_owned(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    let _other = scene.open(scene.second());
    expect_rows(scene, "rows", &[&device], SECOND_NOT_OWNED);
}

fn a_function_without_driver_is_not_owned(scene: &Scene<'_>) {
    let _other = OtherDriver::none(scene, scene.second());
    let device = scene.bind(scene.first(), &scene.context());
    expect_rows(scene, "rows", &[&device], SECOND_NOT_OWNED);
}

fn a_function_is_not_owned_any_more_when_closed(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    let other = scene.bind(scene.second(), &context);
    expect_rows(scene, "rows", &[&device, &other], BOTH_BOUND);
    drop(other);
    expect_rows(scene, "rows when closed", &[&device], SECOND_NOT_OWNED);
}

fn a_function_of_a_legacy_user_is_not_owned(scene: &Scene<'_>) {
    let other = scene.second();
    let _user = LegacyUser::open(scene.host, other.group, other.address);
    let device = scene.bind(scene.first(), &scene.context());
    expect_rows(scene, "rows", &[&device], SECOND_NOT_OWNED);
}

fn a_function_whose_group_is_open_is_not_owned(scene: &Scene<'_>) {
    let _group = LegacyGroup::open(scene.host, scene.second().group).expect("the group");
    let device = scene.bind(scene.first(), &scene.context());
    expect_rows(scene, "rows", &[&device], SECOND_NOT_OWNED);
}

fn a_function_whose_group_is_in_our_context_is_not_owned(scene: &Scene<'_>) {
    let file = scene.host.open_iommufd().expect("the iommufd");
    let group = LegacyGroup::open(scene.host, scene.second().group).expect("the group");
    group.set_container(&file).expect("an iommufd stands for a container");
    let context = vfio::Iommufd::from_fd(file.into(), &scene.sysfs()).expect("an iommufd");
    let device = scene.bind(scene.first(), &context);
    expect_rows(scene, "rows", &[&device], SECOND_NOT_OWNED);
}

fn a_function_opened_through_our_context_is_bound(scene: &Scene<'_>) {
    let other = scene.second();
    let file = scene.host.open_iommufd().expect("the iommufd");
    let group = LegacyGroup::open(scene.host, other.group).expect("the group");
    group.set_container(&file).expect("an iommufd stands for a container");
    let _device = group.device(other.address).expect("the device");
    let context = vfio::Iommufd::from_fd(file.into(), &scene.sysfs()).expect("an iommufd");
    let device = scene.bind(scene.first(), &context);
    let expected = Ok("available: 0000:01:00.0 bound, 0000:01:00.1 bound by somebody");
    expect_rows(scene, "rows", &[&device], expected);
}

fn attaching_does_not_change_the_rows(scene: &Scene<'_>) {
    let context = scene.context();
    let (first, second) = (allocate(&context), allocate(&context));
    let device = scene.bind(scene.first(), &context);
    let other = scene.bind(scene.second(), &context);
    device.attach_ioas(&first).expect("the first can be attached");
    other.attach_ioas(&second).expect("the second can be attached");
    expect_rows(scene, "rows", &[&device, &other], BOTH_BOUND);
}

fn two_contexts_see_each_other(scene: &Scene<'_>) {
    let first = scene.bind(scene.first(), &scene.context());
    let second = scene.bind(scene.second(), &scene.context());
    expect_rows(scene, "as the first sees it", &[&first], scene.first().rows_alone);
    expect_rows(scene, "as the second sees it", &[&second], scene.second().rows_alone);
}

fn a_function_with_a_kernel_driver_is_not_owned(scene: &Scene<'_>) {
    let _other = OtherDriver::some(scene, scene.first(), "virtio-pci");
    let context = scene.context();
    let (second, third) = (scene.bind(scene.second(), &context), scene.bind(&scene.functions()[2], &context));
    expect_rows(
        scene,
        "rows",
        &[&second, &third],
        Ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 bound, 0000:01:00.2 bound"),
    );
}

fn ids_of_closed_devices_are_used_again(scene: &Scene<'_>) {
    let context = scene.context();
    let [first, second, third] = [0, 1, 2].map(|number| scene.bind(&scene.functions()[number], &context));
    let id = first.id();
    drop((first, second));
    let second = scene.bind(scene.second(), &context);
    scene.expect("the second has the id of the first", second.id() == id, true);
    expect_rows(
        scene,
        "rows",
        &[&third, &second],
        Ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 bound, 0000:01:00.2 bound"),
    );
}
