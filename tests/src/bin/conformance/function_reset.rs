// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VFIO_DEVICE_RESET`, and the function level reset that a guest asks for in the config space.

use vfio::config_space::command;
use vfio::{Device, IrqIndex};

use crate::answer::{OK, answer};
use crate::check::checks;
use crate::irqs::{armed, fire};
use crate::machine::{EVERYWHERE, IGB_SECOND};
use crate::registers::{
    BAR0, CACHE_LINE_SIZE, EXPRESS, IGB_VET_DEFAULT, capability, command, igb_vet, power_state,
    read_config_double_word, read_config_word, set_command, set_power_state, soil_igb, write_config,
};
use crate::scene::Scene;

checks! {
    EVERYWHERE => each_function_is_reset_or_is_not;
    IGB_SECOND => a_function_reset_brings_registers_back, a_function_reset_that_a_guest_asks_for_is_carried_out,
        the_config_space_survives_a_function_reset, armed_interrupts_survive_a_function_reset,
        a_function_reset_needs_no_sibling, a_function_reset_wakes_the_device;
    &["igb-pair"] => a_function_reset_leaves_the_sibling_alone, a_function_reset_leaves_another_context_alone;
}

/// Of the Express capability: device control, and the bit there that starts the reset.
const DEVICE_CONTROL: u64 = 8;
const START_FUNCTION_LEVEL_RESET: u16 = 1 << 15;

fn igb(scene: &Scene<'_>) -> Device {
    scene.bind(scene.second(), &scene.context())
}

fn each_function_is_reset_or_is_not(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let expected = if function.has_function_reset { Ok(()) } else { Err("EINVAL") };
        scene.expect(&format!("RESET of {}", function.address), answer(device.reset()), expected);
    }
}

fn a_function_reset_brings_registers_back(scene: &Scene<'_>) {
    let device = igb(scene);
    soil_igb(&device);
    scene.expect("RESET", answer(device.reset()), OK);
    scene.expect("register", igb_vet(&device), IGB_VET_DEFAULT);
}

fn a_function_reset_that_a_guest_asks_for_is_carried_out(scene: &Scene<'_>) {
    let device = igb(scene);
    soil_igb(&device);
    let control = capability(&device, EXPRESS) + DEVICE_CONTROL;
    let before = read_config_word(&device, control);
    write_config(&device, control, &(before | START_FUNCTION_LEVEL_RESET).to_le_bytes());
    scene.expect("register", igb_vet(&device), IGB_VET_DEFAULT);
    scene.expect("the control register is as before", read_config_word(&device, control) == before, true);
}

fn the_config_space_survives_a_function_reset(scene: &Scene<'_>) {
    let device = igb(scene);
    set_command(&device, command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE);
    write_config(&device, BAR0, &0xc000_0000_u32.to_le_bytes());
    write_config(&device, CACHE_LINE_SIZE, &[0x10]);
    scene.expect("RESET", answer(device.reset()), OK);
    scene.expect("command", command(&device), 0x406);
    scene.expect("BAR 0", read_config_double_word(&device, BAR0) & !0xf, 0xc000_0000_u32);
    scene.expect("cache line size", read_config_word(&device, CACHE_LINE_SIZE) & 0xff, 0x10);
}

fn armed_interrupts_survive_a_function_reset(scene: &Scene<'_>) {
    let device = igb(scene);
    let interrupt = armed(&device, IrqIndex::Msix);
    scene.expect("RESET", answer(device.reset()), OK);
    scene.expect("firing", answer(fire(&device, IrqIndex::Msix)), OK);
    scene.expect("it arrives", interrupt.fires(), true);
}

fn a_function_reset_needs_no_sibling(scene: &Scene<'_>) {
    let _other = crate::drivers::OtherDriver::none(scene, scene.first());
    scene.expect("RESET", answer(igb(scene).reset()), OK);
}

fn a_function_reset_wakes_the_device(scene: &Scene<'_>) {
    let device = igb(scene);
    set_power_state(&device, 3);
    scene.expect("RESET", answer(device.reset()), OK);
    scene.expect("power state", power_state(&device), 0);
}

fn a_function_reset_leaves_the_sibling_alone(scene: &Scene<'_>) {
    let context = scene.context();
    let (first, second) = (scene.bind(scene.first(), &context), scene.bind(scene.second(), &context));
    soil_igb(&first);
    soil_igb(&second);
    scene.expect("RESET", answer(second.reset()), OK);
    scene.expect("register", igb_vet(&second), IGB_VET_DEFAULT);
    scene.expect("the sibling's register", igb_vet(&first), 0x1234);
}

fn a_function_reset_leaves_another_context_alone(scene: &Scene<'_>) {
    let (context, other) = (scene.context(), scene.context());
    let (first, second) = (scene.bind(scene.first(), &context), scene.bind(scene.second(), &other));
    soil_igb(&first);
    scene.expect("RESET", answer(second.reset()), OK);
    scene.expect("the other context's register", igb_vet(&first), 0x1234);
}
