// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Groups and containers, the way before cdevs: what such users see, and what stands between them and us.

use std::os::fd::AsFd;

use vfio::PciAddress;
use vhost_device_vfio_tests::legacy_group::{
    Container, GroupStatus, LegacyDevice, LegacyGroup, LegacyHotResetInfo, LegacyUser,
};

use crate::answer::{Answer, EBUSY, EINVAL, OK, answer, bind_answer, ok, refused, value};
use crate::check::checks;
use crate::drivers::OtherDriver;
use crate::machine::{Function, SEPARATE_GROUPS, SHARED_GROUP};
use crate::scene::{Scene, allocate};

const PAIRS: &[&str] = &["edu-pair", "igb-pair"];

checks! {
    PAIRS => a_group_is_open_once, a_group_of_a_bound_device_cannot_be_opened,
        a_group_of_an_open_device_can_be_opened, a_group_says_what_it_is, a_group_needs_a_container,
        a_group_has_the_devices_it_has, a_container_needs_a_group, a_legacy_user_keeps_us_out,
        a_legacy_device_alone_keeps_us_out, a_legacy_user_that_left_lets_us_in, a_legacy_device_is_no_cdev,
        a_legacy_reset_needs_group_descriptors;
    SHARED_GROUP => a_legacy_user_keeps_us_out_of_its_whole_group;
    SEPARATE_GROUPS => a_legacy_user_of_another_group_is_no_hindrance, a_legacy_user_sees_groups_instead_of_owners,
        a_legacy_reset_needs_every_group;
    &["edu-pair"] => a_legacy_reset_of_one_group, a_legacy_user_may_name_a_group_only_as_often_as_there_are_functions,
        a_cdev_is_no_proof_of_ownership, our_devices_keep_a_legacy_user_out_of_the_group;
    &["igb-pair"] => a_legacy_function_reset_needs_no_group, an_open_group_is_proof_of_ownership;
    &["virtio-pair"] => a_group_with_a_kernel_driver_is_not_viable;
    &["edu-igb"] => a_group_in_our_context_keeps_us_out_of_it, an_iommufd_stands_for_a_container;
    &["edu-noremap"] => without_interrupt_remapping_no_container_works;
}

fn open(scene: &Scene<'_>, function: &Function) -> LegacyUser {
    LegacyUser::open(scene.host, function.group, function.address)
}

fn status(group: &LegacyGroup) -> Answer<(bool, bool)> {
    value(group.status()).map(|GroupStatus { is_viable, has_container }| (is_viable, has_container))
}

fn a_group_is_open_once(scene: &Scene<'_>) {
    let group = scene.first().group;
    let first = LegacyGroup::open(scene.host, group).expect("the group");
    scene.expect("opening it again", answer(LegacyGroup::open(scene.host, group)), EBUSY);
    drop(first);
    scene.expect("opening it when closed", answer(LegacyGroup::open(scene.host, group)), OK);
}

fn a_group_of_a_bound_device_cannot_be_opened(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    scene.expect("opening it", answer(LegacyGroup::open(scene.host, scene.first().group)), EBUSY);
    drop(device);
    scene.expect("opening it when closed", answer(LegacyGroup::open(scene.host, scene.first().group)), OK);
}

fn a_group_of_an_open_device_can_be_opened(scene: &Scene<'_>) {
    let device = scene.open(scene.first());
    let group = LegacyGroup::open(scene.host, scene.first().group);
    scene.expect("it can be opened", group.is_ok(), true);
    let bound = device.bind(&scene.context(), &scene.sysfs());
    scene.expect("BIND of the open file", bind_answer(bound), refused("EBUSY GroupOpen"));
}

fn a_group_says_what_it_is(scene: &Scene<'_>) {
    let group = LegacyGroup::open(scene.host, scene.first().group).expect("the group");
    scene.expect("viable, in a container", status(&group), ok((true, false)));
    let container = Container::open(scene.host).expect("a container");
    group.set_container(&container).expect("the group is viable");
    scene.expect("viable, in a container, when it is in one", status(&group), ok((true, true)));
    scene.expect("UNSET_CONTAINER", answer(group.unset_container()), OK);
    scene.expect("viable, in a container, when it left", status(&group), ok((true, false)));
}

fn a_group_needs_a_container(scene: &Scene<'_>) {
    let group = LegacyGroup::open(scene.host, scene.first().group).expect("the group");
    scene.expect("GET_DEVICE_FD", answer(group.device(scene.first().address)), EINVAL);
    let container = Container::open(scene.host).expect("a container");
    scene.expect("SET_CONTAINER", answer(group.set_container(&container)), OK);
    scene.expect("SET_CONTAINER again", answer(group.set_container(&container)), EINVAL);
    scene.expect("GET_DEVICE_FD without SET_IOMMU", answer(group.device(scene.first().address)), EINVAL);
    scene.expect("SET_IOMMU", answer(container.set_iommu()), OK);
    scene.expect("GET_DEVICE_FD", answer(group.device(scene.first().address)), OK);
}

fn a_group_has_the_devices_it_has(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let absent = answer(user.group.device("0000:7f:1f.7"));
    scene.expect("GET_DEVICE_FD of a function elsewhere", absent, refused("ENODEV"));
    let again = answer(user.group.device(scene.first().address));
    scene.expect("GET_DEVICE_FD of the function again", again, OK);
}

fn a_container_needs_a_group(scene: &Scene<'_>) {
    let container = Container::open(scene.host).expect("a container");
    scene.expect("SET_IOMMU", answer(container.set_iommu()), EINVAL);
}

fn a_legacy_user_keeps_us_out(scene: &Scene<'_>) {
    let _user = open(scene, scene.first());
    let bound = scene.try_bind(scene.first(), &scene.context());
    scene.expect("BIND", bind_answer(bound), refused("EBUSY GroupOpen"));
}

fn a_legacy_device_alone_keeps_us_out(scene: &Scene<'_>) {
    let LegacyUser { device, group, container } = open(scene, scene.first());
    drop((group, container));
    let bound = scene.try_bind(scene.first(), &scene.context());
    scene.expect("BIND", bind_answer(bound), refused("EBUSY GroupOpen"));
    drop(device);
    let bound = scene.try_bind(scene.first(), &scene.context());
    scene.expect("BIND when it is closed", bind_answer(bound), OK);
}

fn a_legacy_user_that_left_lets_us_in(scene: &Scene<'_>) {
    drop(open(scene, scene.first()));
    scene.expect("BIND", bind_answer(scene.try_bind(scene.first(), &scene.context())), OK);
}

fn a_legacy_device_is_no_cdev(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let iommufd = scene.host.open_iommufd().expect("the iommufd");
    scene.expect("BIND", answer(user.device.bind(&iommufd)), EINVAL);
    scene.expect("ATTACH", answer(user.device.attach(1)), refused("ENOTTY"));
}

fn a_legacy_reset_needs_group_descriptors(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    scene.expect("HOT_RESET without any", answer(user.device.hot_reset(&[])), EINVAL);
}

fn a_legacy_user_keeps_us_out_of_its_whole_group(scene: &Scene<'_>) {
    let _user = open(scene, scene.first());
    let bound = scene.try_bind(scene.second(), &scene.context());
    scene.expect("BIND of the sibling", bind_answer(bound), refused("EBUSY GroupOpen"));
}

fn a_legacy_user_of_another_group_is_no_hindrance(scene: &Scene<'_>) {
    let _user = open(scene, scene.first());
    let context = scene.context();
    let ioas = allocate(&context);
    let device = scene.bind(scene.second(), &context);
    scene.expect("ATTACH", answer(device.attach_ioas(&ioas)), OK);
}

/// The answer in the transcript's words.
pub(crate) fn legacy_rows(device: &LegacyDevice) -> Answer<String> {
    let LegacyHotResetInfo { flags, functions } = value(device.hot_reset_info())?;
    let row = |(address, group): &(PciAddress, u32)| format!("{address} group {group}");
    Ok(format!("flags {flags}: {}", functions.iter().map(row).collect::<Vec<_>>().join(", ")))
}

fn a_legacy_user_sees_groups_instead_of_owners(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let row = |function: &Function| format!("{} group {}", function.address, function.group);
    let rows: Vec<_> = scene.functions().iter().map(row).collect();
    scene.expect("rows", legacy_rows(&user.device), ok(format!("flags 0: {}", rows.join(", "))));
}

fn a_legacy_reset_needs_every_group(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let mut groups = vec![user.group.as_fd()];
    scene.expect("HOT_RESET with its own group", answer(user.device.hot_reset(&groups)), EINVAL);
    let others: Vec<_> = scene
        .functions()
        .iter()
        .skip(1)
        .map(|function| LegacyGroup::open(scene.host, function.group).expect("the group"))
        .collect();
    groups.extend(others.iter().map(AsFd::as_fd));
    scene.expect("HOT_RESET with every group", answer(user.device.hot_reset(&groups)), OK);
}

fn a_legacy_reset_of_one_group(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    scene.expect(
        "rows",
        legacy_rows(&user.device),
        ok("flags 0: 0000:01:00.0 group 5, 0000:01:00.1 group 5"),
    );
    scene.expect("HOT_RESET", answer(user.device.hot_reset(&[user.group.as_fd()])), OK);
}

fn a_legacy_user_may_name_a_group_only_as_often_as_there_are_functions(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let group = user.group.as_fd();
    scene.expect("HOT_RESET with two", answer(user.device.hot_reset(&[group, group])), OK);
    scene.expect("HOT_RESET with three", answer(user.device.hot_reset(&[group, group, group])), EINVAL);
}

fn a_cdev_is_no_proof_of_ownership(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let cdev = scene.open_file(scene.first());
    scene.expect("HOT_RESET", answer(user.device.hot_reset(&[cdev.as_fd()])), EINVAL);
}

fn our_devices_keep_a_legacy_user_out_of_the_group(scene: &Scene<'_>) {
    let context = scene.context();
    let first = scene.bind(scene.first(), &context);
    let second = scene.bind(scene.second(), &context);
    drop(first);
    scene.expect("opening the group", answer(LegacyGroup::open(scene.host, scene.first().group)), EBUSY);
    drop(second);
    scene.expect(
        "opening the group when all are closed",
        answer(LegacyGroup::open(scene.host, scene.first().group)),
        OK,
    );
}

fn a_legacy_function_reset_needs_no_group(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    scene.expect("RESET", answer(user.device.reset()), OK);
}

fn an_open_group_is_proof_of_ownership(scene: &Scene<'_>) {
    let user = open(scene, scene.first());
    let other = LegacyGroup::open(scene.host, scene.second().group).expect("the group");
    let groups = [other.as_fd(), user.group.as_fd()];
    scene.expect("HOT_RESET", answer(user.device.hot_reset(&groups)), OK);
    scene.expect("HOT_RESET with the other's only", answer(user.device.hot_reset(&groups[..1])), EINVAL);
}

fn a_group_with_a_kernel_driver_is_not_viable(scene: &Scene<'_>) {
    let _other = OtherDriver::some(scene, scene.second(), "virtio-pci");
    let group = LegacyGroup::open(scene.host, scene.first().group).expect("the group");
    scene.expect("viable, in a container", status(&group), ok((false, false)));
    let container = Container::open(scene.host).expect("a container");
    scene.expect("SET_CONTAINER", answer(group.set_container(&container)), refused("EPERM"));
}

fn an_iommufd_stands_for_a_container(scene: &Scene<'_>) {
    let iommufd = scene.host.open_iommufd().expect("the iommufd");
    let group = LegacyGroup::open(scene.host, scene.first().group).expect("the group");
    scene.expect("SET_CONTAINER", answer(group.set_container(&iommufd)), OK);
    scene.expect("viable, in a container", status(&group), ok((true, true)));
    scene.expect("GET_DEVICE_FD", answer(group.device(scene.first().address)), OK);
}

fn a_group_in_our_context_keeps_us_out_of_it(scene: &Scene<'_>) {
    let iommufd = scene.host.open_iommufd().expect("the iommufd");
    let group = LegacyGroup::open(scene.host, scene.first().group).expect("the group");
    group.set_container(&iommufd).expect("an iommufd stands for a container");
    let context = vfio::Iommufd::from_fd(iommufd.into(), &scene.sysfs()).expect("an iommufd");
    let bound = scene.try_bind(scene.first(), &context);
    scene.expect("BIND", bind_answer(bound), refused("EBUSY GroupOpen"));
}

fn without_interrupt_remapping_no_container_works(scene: &Scene<'_>) {
    let group = LegacyGroup::open(scene.host, scene.first().group).expect("the group");
    let container = Container::open(scene.host).expect("a container");
    scene.expect("SET_CONTAINER", answer(group.set_container(&container)), OK);
    scene.expect("SET_IOMMU", answer(container.set_iommu()), refused("EPERM"));
}
