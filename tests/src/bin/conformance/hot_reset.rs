// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VFIO_DEVICE_PCI_HOT_RESET`: when it is done, what it does, and what is as before.

use vfio::config_space::command;
use vfio::{Device, HotReset, IrqIndex};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::legacy_group::{LegacyGroup, LegacyUser};

use crate::answer::{Answer, EINVAL, OK, answer, ok, value};
use crate::check::checks;
use crate::dma::{copy_arrives, memory};
use crate::drivers::OtherDriver;
use crate::ioas::{DEVICE_ADDRESSES, addresses, map};
use crate::irqs::{armed, fire};
use crate::machine::{EVERYWHERE, IGB_SECOND, SEPARATE_GROUPS};
use crate::registers::{
    BAR0, CACHE_LINE_SIZE, IGB_VET_DEFAULT, command, enable, igb_vet, power_state, raises_interrupt,
    read_config_double_word, read_config_word, set_command, set_power_state, soil_igb, write_config,
};
use crate::scene::{Scene, allocate};

checks! {
    EVERYWHERE => the_hot_reset_of_each_function_alone, the_hot_reset_of_each_function_with_all_others;
    SEPARATE_GROUPS => a_function_of_another_context_blocks, a_function_that_is_closed_again_blocks;
    &["edu-igb"] => a_function_without_driver_blocks, a_function_of_a_legacy_user_blocks,
        a_function_whose_group_is_open_blocks, a_function_opened_through_our_context_does_not_block;
    &["edu-pair"] => a_sibling_of_the_group_without_driver_blocks, a_sibling_of_the_group_that_is_open_does_not_block,
        a_sibling_that_nobody_has_open_is_reset, a_hot_reset_can_be_repeated;
    &["edu-pair", "edu-igb", "bridge"] => a_raised_line_is_lowered, attachments_survive, maps_survive;
    IGB_SECOND => registers_are_back_at_their_defaults, the_config_space_survives, armed_interrupts_survive,
        a_sleeping_device_is_woken, a_device_that_decodes_nothing_is_reset;
    &["igb-pair"] => every_function_of_the_set_is_reset, a_refused_hot_reset_resets_nothing;
    &["gen4"] => a_hot_reset_whose_link_is_not_confirmed_is_done;
    &["rciep", "switch"] => a_hot_reset_that_is_impossible_resets_nothing;
    &["virtio-trio"] => a_function_with_a_kernel_driver_blocks;
}

const DONE: Answer<HotReset> = Ok(HotReset::Done);

/// The first two functions in one context.
fn pair(scene: &Scene<'_>) -> (Device, Device) {
    let context = scene.context();
    (scene.bind(scene.first(), &context), scene.bind(scene.second(), &context))
}

fn the_hot_reset_of_each_function_alone(scene: &Scene<'_>) {
    for function in scene.functions() {
        let device = scene.bind(function, &scene.context());
        let outcome = value(device.hot_reset());
        scene.expect(&format!("HOT_RESET by {}", function.address), outcome, function.set.outcome_alone);
    }
}

fn the_hot_reset_of_each_function_with_all_others(scene: &Scene<'_>) {
    let context = scene.context();
    let devices = scene.bind_all(&context);
    for (function, device) in scene.functions().iter().zip(&devices) {
        let outcome = value(device.hot_reset());
        scene.expect(&format!("HOT_RESET by {}", function.address), outcome, function.set.outcome_with_all);
    }
}

fn a_function_of_another_context_blocks(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let mut devices: Vec<_> =
        scene.functions().iter().skip(1).map(|function| scene.bind(function, &context)).collect();
    let foreign = scene.bind(scene.first(), &other);
    scene.expect("HOT_RESET by us", value(devices[0].hot_reset()), EINVAL);
    scene.expect("HOT_RESET by the other", value(foreign.hot_reset()), EINVAL);
    drop(foreign);
    devices.push(scene.bind(scene.first(), &context));
    scene.expect("HOT_RESET when it is ours", value(devices[0].hot_reset()), DONE);
}

fn a_function_that_is_closed_again_blocks(scene: &Scene<'_>) {
    let context = scene.context();
    let mut devices = scene.bind_all(&context);
    scene.expect("HOT_RESET", value(devices[0].hot_reset()), DONE);
    drop(devices.pop());
    scene.expect("HOT_RESET when one is closed", value(devices[0].hot_reset()), EINVAL);
}

fn a_function_without_driver_blocks(scene: &Scene<'_>) {
    let other = OtherDriver::none(scene, scene.second());
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    scene.expect("HOT_RESET", value(device.hot_reset()), EINVAL);
    drop(other);
    let _second = scene.bind(scene.second(), &context);
    scene.expect("HOT_RESET when it is ours", value(device.hot_reset()), DONE);
}

fn a_function_of_a_legacy_user_blocks(scene: &Scene<'_>) {
    let other = scene.second();
    let _user = LegacyUser::open(scene.host, other.group, other.address);
    let device = scene.bind(scene.first(), &scene.context());
    scene.expect("HOT_RESET", value(device.hot_reset()), EINVAL);
}

fn a_function_whose_group_is_open_blocks(scene: &Scene<'_>) {
    let _group = LegacyGroup::open(scene.host, scene.second().group).expect("the group");
    let device = scene.bind(scene.first(), &scene.context());
    scene.expect("HOT_RESET", value(device.hot_reset()), EINVAL);
}

fn a_function_opened_through_our_context_does_not_block(scene: &Scene<'_>) {
    let other = scene.second();
    let file = scene.host.open_iommufd().expect("the iommufd");
    let group = LegacyGroup::open(scene.host, other.group).expect("the group");
    group.set_container(&file).expect("an iommufd stands for a container");
    let legacy = group.device(other.address).expect("the device");
    let context = vfio::Iommufd::from_fd(file.into(), &scene.sysfs()).expect("an iommufd");
    let device = scene.bind(scene.first(), &context);
    scene.expect("HOT_RESET", value(device.hot_reset()), DONE);
    drop((legacy, group));
}

fn a_sibling_of_the_group_without_driver_blocks(scene: &Scene<'_>) {
    let _other = OtherDriver::none(scene, scene.second());
    let device = scene.bind(scene.first(), &scene.context());
    scene.expect("HOT_RESET", value(device.hot_reset()), EINVAL);
}

fn a_sibling_of_the_group_that_is_open_does_not_block(scene: &Scene<'_>) {
    let _sibling = scene.open(scene.second());
    let device = scene.bind(scene.first(), &scene.context());
    scene.expect("HOT_RESET", value(device.hot_reset()), DONE);
}

/// edu's registers are not reset with its bus, but its interrupt line is.
fn a_sibling_that_nobody_has_open_is_reset(scene: &Scene<'_>) {
    let context = scene.context();
    let (device, sibling) = (scene.bind(scene.first(), &context), scene.bind(scene.second(), &context));
    enable(&sibling);
    Edu::new(&sibling).raise_interrupt();
    drop(sibling);
    scene.expect("HOT_RESET", value(device.hot_reset()), DONE);
    let sibling = scene.bind(scene.second(), &context);
    scene.expect("raised", raises_interrupt(&sibling), false);
    enable(&sibling);
    Edu::new(&sibling).acknowledge_interrupt();
}

fn a_hot_reset_can_be_repeated(scene: &Scene<'_>) {
    let (first, second) = pair(scene);
    for round in 0..3 {
        scene.expect(&format!("HOT_RESET by the first, round {round}"), value(first.hot_reset()), DONE);
        scene.expect(&format!("HOT_RESET by the second, round {round}"), value(second.hot_reset()), DONE);
    }
}

fn a_raised_line_is_lowered(scene: &Scene<'_>) {
    let context = scene.context();
    let devices = scene.bind_all(&context);
    enable(&devices[0]);
    Edu::new(&devices[0]).raise_interrupt();
    scene.expect("raised", raises_interrupt(&devices[0]), true);
    scene.expect("HOT_RESET", value(devices[0].hot_reset()), DONE);
    scene.expect("raised afterwards", raises_interrupt(&devices[0]), false);
    Edu::new(&devices[0]).acknowledge_interrupt();
}

fn attachments_survive(scene: &Scene<'_>) {
    let context = scene.context();
    let ioas = allocate(&context);
    let devices = scene.bind_all(&context);
    devices[0].attach_ioas(&ioas).expect("the device can be attached");
    scene.expect("HOT_RESET", value(devices[0].hot_reset()), DONE);
    scene.expect("addresses", addresses(&ioas), DEVICE_ADDRESSES);
    scene.expect("DETACH", answer(devices[0].detach()), OK);
}

fn maps_survive(scene: &Scene<'_>) {
    let context = scene.context();
    let mut ioas = allocate(&context);
    let devices = scene.bind_all(&context);
    devices[0].attach_ioas(&ioas).expect("the device can be attached");
    let memory = memory();
    map(&mut ioas, &memory).expect("memory can be mapped");
    enable(&devices[0]);
    scene.expect("arrives", copy_arrives(&devices[0], &memory), true);
    scene.expect("HOT_RESET", value(devices[0].hot_reset()), DONE);
    scene.expect("arrives afterwards, without further ado", copy_arrives(&devices[0], &memory), true);
}

fn registers_are_back_at_their_defaults(scene: &Scene<'_>) {
    let (first, igb) = pair(scene);
    soil_igb(&igb);
    scene.expect("HOT_RESET", value(first.hot_reset()), DONE);
    scene.expect("register", igb_vet(&igb), IGB_VET_DEFAULT);
}

fn the_config_space_survives(scene: &Scene<'_>) {
    let (_first, igb) = pair(scene);
    set_command(&igb, command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE);
    write_config(&igb, BAR0, &0xc000_0000_u32.to_le_bytes());
    write_config(&igb, CACHE_LINE_SIZE, &[0x10]);
    scene.expect("HOT_RESET", value(igb.hot_reset()), DONE);
    scene.expect("command", command(&igb), 0x406);
    scene.expect("BAR 0", read_config_double_word(&igb, BAR0) & !0xf, 0xc000_0000_u32);
    scene.expect("cache line size", read_config_word(&igb, CACHE_LINE_SIZE) & 0xff, 0x10);
}

fn armed_interrupts_survive(scene: &Scene<'_>) {
    let (first, igb) = pair(scene);
    let interrupts = [armed(&first, IrqIndex::Msi), armed(&igb, IrqIndex::Msix)];
    scene.expect("HOT_RESET", value(first.hot_reset()), DONE);
    scene.expect("firing the first's", answer(fire(&first, IrqIndex::Msi)), OK);
    scene.expect("firing the second's", answer(fire(&igb, IrqIndex::Msix)), OK);
    scene.expect("they arrive", interrupts.map(|interrupt| interrupt.fires()), [true, true]);
}

fn a_sleeping_device_is_woken(scene: &Scene<'_>) {
    let (first, igb) = pair(scene);
    set_power_state(&igb, 3);
    scene.expect("HOT_RESET", value(first.hot_reset()), DONE);
    scene.expect("power state", power_state(&igb), 0);
}

fn a_device_that_decodes_nothing_is_reset(scene: &Scene<'_>) {
    let (first, igb) = pair(scene);
    soil_igb(&igb);
    set_command(&igb, 0);
    scene.expect("HOT_RESET", value(first.hot_reset()), DONE);
    scene.expect("command", command(&igb), 0);
    scene.expect("register", igb_vet(&igb), IGB_VET_DEFAULT);
}

fn every_function_of_the_set_is_reset(scene: &Scene<'_>) {
    let (first, second) = pair(scene);
    soil_igb(&first);
    soil_igb(&second);
    scene.expect("HOT_RESET", value(first.hot_reset()), DONE);
    scene.expect("registers", [igb_vet(&first), igb_vet(&second)], [IGB_VET_DEFAULT; 2]);
}

fn a_refused_hot_reset_resets_nothing(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    soil_igb(&device);
    scene.expect("HOT_RESET", value(device.hot_reset()), EINVAL);
    scene.expect("register", igb_vet(&device), 0x1234);
}

fn a_hot_reset_whose_link_is_not_confirmed_is_done(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    soil_igb(&device);
    scene.expect("HOT_RESET", value(device.hot_reset()), ok(HotReset::DoneLinkUnconfirmed));
    scene.expect("register", igb_vet(&device), IGB_VET_DEFAULT);
}

fn a_hot_reset_that_is_impossible_resets_nothing(scene: &Scene<'_>) {
    let device = scene.bind(scene.first(), &scene.context());
    enable(&device);
    Edu::new(&device).raise_interrupt();
    scene.expect("HOT_RESET", value(device.hot_reset()), scene.first().set.outcome_alone);
    scene.expect("raised", raises_interrupt(&device), true);
    Edu::new(&device).acknowledge_interrupt();
}

fn a_function_with_a_kernel_driver_blocks(scene: &Scene<'_>) {
    let _other = OtherDriver::some(scene, scene.first(), "virtio-pci");
    let context = scene.context();
    let devices = [1, 2].map(|number| scene.bind(&scene.functions()[number], &context));
    scene.expect("HOT_RESET", value(devices[0].hot_reset()), EINVAL);
}
