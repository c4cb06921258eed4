// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The config space: what it says at first, what can be changed, and what quieting a device comes to.

use vfio::config_space::command;
use vfio::{ConfigSpace, Device, RegionIndex};

use crate::answer::{OK, answer, ok, value};
use crate::check::checks;
use crate::machine::{EACH_PART, EVERYWHERE};
use crate::registers::{
    BAR0, CACHE_LINE_SIZE, INTERRUPT_LINE, capabilities, command, enable, power_state, read,
    read_config_double_word, read_config_word, set_command, set_power_state, write_config,
};
use crate::scene::Scene;

checks! {
    EVERYWHERE => the_ids_are_those_of_sysfs, the_command_register_of_a_fresh_device,
        the_capabilities_are_in_their_order, the_ways_to_reset_are_told, slow_registers_are_told;
    EACH_PART => a_quiet_device_decodes_nothing, the_command_register_keeps_what_is_written,
        ids_cannot_be_written, a_base_address_tells_its_size, base_addresses_can_be_cleared,
        scratch_registers_keep_what_is_written, a_device_that_is_awake_stays_so,
        a_reopened_device_has_its_first_config_space;
    &["igb-pair", "e1000e"] => a_sleeping_device_is_woken;
    &["bridge"] => a_device_that_cannot_sleep_stays_awake;
}

const FIRST_BARS: u64 = 6;

fn first_device(scene: &Scene<'_>) -> Device {
    scene.bind(scene.first(), &scene.context())
}

fn the_ids_are_those_of_sysfs(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let ids = (read_config_word(&device, 0), read_config_word(&device, 2));
        scene.expect(&format!("{} ids", function.address), ids, (function.part.vendor, function.part.device));
    }
}

fn the_command_register_of_a_fresh_device(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let value = value(ConfigSpace::new(&device).command());
        scene.expect(&format!("{} command", function.address), value, ok(function.part.command));
    }
}

fn the_capabilities_are_in_their_order(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let ids: Vec<u8> = capabilities(&device).iter().map(|(id, _)| *id).collect();
        scene.expect(&format!("{} capabilities", function.address), ids, function.part.capabilities);
    }
}

fn the_ways_to_reset_are_told(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let config = ConfigSpace::new(&device);
        let part = function.part;
        scene.expect(
            &format!("{} function level reset", function.address),
            value(config.has_function_level_reset()),
            ok(part.has_function_level_reset),
        );
        scene.expect(
            &format!("{} power management reset", function.address),
            value(config.has_power_management_reset()),
            ok(part.has_power_management_reset),
        );
    }
}

fn slow_registers_are_told(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let registers = value(ConfigSpace::new(&device).slow_registers());
        let registers = registers.map(|all| all.iter().map(|one| (one.start, one.end)).collect::<Vec<_>>());
        let expected = ok(function.part.slow_registers);
        scene.expect(&format!("{} registers", function.address), registers, expected);
    }
}

fn a_quiet_device_decodes_nothing(scene: &Scene<'_>) {
    let device = first_device(scene);
    set_command(&device, command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE);
    let quieted = answer(ConfigSpace::new(&device).disable_command());
    scene.expect("quieting", quieted, OK);
    scene.expect("command", command(&device), 0);
}

fn the_command_register_keeps_what_is_written(scene: &Scene<'_>) {
    let device = first_device(scene);
    for value in [command::MEMORY, command::BUS_MASTER, command::INTX_DISABLE, 0] {
        set_command(&device, value);
        scene.expect(&format!("command after {value:#x}"), command(&device), value);
    }
}

fn ids_cannot_be_written(scene: &Scene<'_>) {
    let device = first_device(scene);
    write_config(&device, 0, &[0; 4]);
    scene.expect("vendor id", read_config_word(&device, 0), scene.first().part.vendor);
    write_config(&device, 8, &[0xff; 4]);
    scene.expect("class", read_config_double_word(&device, 8) >> 8, scene.first().part.class);
}

/// A BAR that is all ones tells its size, less the bits below 16, which tell its kind.
fn a_base_address_tells_its_size(scene: &Scene<'_>) {
    let device = first_device(scene);
    for (number, (_, size)) in (0..FIRST_BARS).zip(&scene.first().part.regions) {
        let register = BAR0 + 4 * number;
        let before = read_config_double_word(&device, register);
        write_config(&device, register, &u32::MAX.to_le_bytes());
        let mask = read_config_double_word(&device, register) & !0xf;
        write_config(&device, register, &before.to_le_bytes());
        if *size != 0 {
            let size = u32::try_from(*size).expect("a small BAR");
            scene.expect(&format!("BAR {number}"), mask, size.max(16).wrapping_neg());
        }
        scene.expect(
            &format!("BAR {number} is back"),
            read_config_double_word(&device, register) == before,
            true,
        );
    }
}

fn base_addresses_can_be_cleared(scene: &Scene<'_>) {
    let device = first_device(scene);
    scene.expect("clearing", answer(ConfigSpace::new(&device).clear_bars()), OK);
    let bars = (0..FIRST_BARS).map(|number| read_config_double_word(&device, BAR0 + 4 * number) & !0xf);
    scene.expect("addresses", bars.collect::<Vec<_>>(), [0; 6]);
}

fn scratch_registers_keep_what_is_written(scene: &Scene<'_>) {
    let device = first_device(scene);
    for register in [CACHE_LINE_SIZE, INTERRUPT_LINE] {
        write_config(&device, register, &[0x10]);
        scene.expect(
            &format!("register {register:#x}"),
            read::<1>(&device, RegionIndex::CONFIG, register),
            ok([0x10]),
        );
    }
}

fn a_device_that_is_awake_stays_so(scene: &Scene<'_>) {
    let device = first_device(scene);
    scene.expect("waking", answer(ConfigSpace::new(&device).power_on()), OK);
}

fn a_reopened_device_has_its_first_config_space(scene: &Scene<'_>) {
    let context = scene.context();
    let device = scene.bind(scene.first(), &context);
    let before: [u8; 64] = read(&device, RegionIndex::CONFIG, 0).expect("the header");
    set_command(&device, command::MEMORY | command::BUS_MASTER);
    write_config(&device, BAR0, &0xc000_0000_u32.to_le_bytes());
    drop(device);
    let device = scene.bind(scene.first(), &context);
    let after: [u8; 64] = read(&device, RegionIndex::CONFIG, 0).expect("the header");
    scene.expect("same header", after == before, true);
}

fn a_sleeping_device_is_woken(scene: &Scene<'_>) {
    let function = scene.functions().last().expect("a function");
    let device = scene.bind(function, &scene.context());
    let config = ConfigSpace::new(&device);
    scene.expect("power state", power_state(&device), 0);
    set_power_state(&device, 3);
    scene.expect("power state when sent to sleep", power_state(&device), 3);
    scene.expect("waking", answer(config.power_on()), OK);
    scene.expect("power state when woken", power_state(&device), 0);
}

/// The i82559er has the capability, but its power state cannot be changed.
fn a_device_that_cannot_sleep_stays_awake(scene: &Scene<'_>) {
    let device = scene.bind(&scene.functions()[2], &scene.context());
    enable(&device);
    set_power_state(&device, 3);
    scene.expect("power state when sent to sleep", power_state(&device), 0);
    scene.expect("reading", read::<4>(&device, RegionIndex(0), 0).map(drop), OK);
}
