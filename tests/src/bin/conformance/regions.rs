// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Regions: what there is, and which accesses are answered.

use vfio::config_space::command;
use vfio::{Device, RegionIndex};

use crate::answer::{Answer, EINVAL, OK, answer, ok, refused};
use crate::check::checks;
use crate::machine::{EACH_PART, EVERYWHERE, Function};
use crate::registers::{enable, read, read_config_word, set_command, set_power_state};
use crate::scene::Scene;

checks! {
    EVERYWHERE => each_region_has_its_flags_and_size, each_region_has_its_place_in_the_file,
        no_region_has_sparse_areas, there_are_nine_regions;
    EACH_PART => memory_is_reached_only_while_it_is_decoded, a_region_ends_at_its_size,
        the_config_space_ends_at_its_size, a_region_that_is_not_there_cannot_be_accessed,
        the_vga_region_is_not_there, an_access_of_nothing_succeeds, a_region_is_read_in_any_piece;
    &["igb-pair", "virtio-pair", "nvme", "e1000e"] => the_interrupt_table_cannot_be_read,
        the_interrupt_table_cannot_be_written;
    &["igb-pair", "e1000e"] => a_sleeping_device_is_not_reached;
    &["edu-pair", "rciep"] => edu_says_what_it_is, a_register_keeps_what_is_written;
}

const BAR0: RegionIndex = RegionIndex(0);

fn first_device(scene: &Scene<'_>) -> Device {
    scene.bind(scene.first(), &scene.context())
}

/// The lowest BAR that is memory and does not begin with the interrupt table, and its size.
fn memory_bar(function: &Function) -> (RegionIndex, u64) {
    let part = function.part;
    let is_memory =
        |(number, (flags, _)): &(u32, &(u32, u64))| flags & 4 != 0 && part.msix_table != Some((*number, 0));
    let (number, (_, size)) = (0..6).zip(&part.regions).find(is_memory).expect("a memory BAR");
    (RegionIndex(number), *size)
}

fn each_region_has_its_flags_and_size(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let regions = (0..9).map(|index| device.region(RegionIndex(index)).expect("one of nine"));
        let seen: Vec<_> = regions.map(|region| (region.flags, region.size)).collect();
        scene.expect(&format!("{} flags and size", function.address), seen, function.part.regions);
    }
}

fn each_region_has_its_place_in_the_file(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let regions = (0..9).map(|index| (index, device.region(RegionIndex(index)).expect("one of nine")));
        // One that is not there has none.
        let misplaced =
            regions.filter(|(index, region)| region.size > 0 && region.offset != u64::from(*index) << 40);
        let misplaced: Vec<_> = misplaced.map(|(index, _)| index).collect();
        scene.expect(&format!("{} misplaced", function.address), misplaced, Vec::<u32>::new());
    }
}

fn no_region_has_sparse_areas(scene: &Scene<'_>) {
    let context = scene.context();
    for function in scene.functions() {
        let device = scene.bind(function, &context);
        let regions = (0..9).filter_map(|index| device.region(RegionIndex(index)));
        let areas: usize = regions.map(|region| region.sparse_areas.len()).sum();
        scene.expect(&format!("{} sparse areas", function.address), areas, 0);
    }
}

fn there_are_nine_regions(scene: &Scene<'_>) {
    let device = first_device(scene);
    scene.expect("region 9", device.region(RegionIndex(9)), None::<()>);
    scene.expect("reading region 9", read::<4>(&device, RegionIndex(9), 0), EINVAL);
    scene.expect("region 4294967295", device.region(RegionIndex(u32::MAX)), None::<()>);
}

fn memory_is_reached_only_while_it_is_decoded(scene: &Scene<'_>) {
    let device = first_device(scene);
    let (bar, _) = memory_bar(scene.first());
    let accesses = |what: &str, expected: Answer<()>| {
        scene.expect(&format!("reading while {what}"), read::<4>(&device, bar, 0).map(drop), expected);
    };
    set_command(&device, 0);
    accesses("off", Err("EIO"));
    scene.expect("writing while off", answer(device.write_region(bar, 0, &[0; 4])), refused("EIO"));
    set_command(&device, command::MEMORY);
    accesses("on", Ok(()));
    set_command(&device, command::IO | command::BUS_MASTER);
    accesses("off again", Err("EIO"));
}

fn a_region_ends_at_its_size(scene: &Scene<'_>) {
    let device = first_device(scene);
    let (bar, size) = memory_bar(scene.first());
    enable(&device);
    scene.expect("across the end", read::<8>(&device, bar, size - 4), EINVAL);
    scene.expect("at the end", read::<4>(&device, bar, size), EINVAL);
    scene.expect("far beyond", read::<4>(&device, bar, 1 << 39), EINVAL);
    scene.expect("where offsets wrap", read::<4>(&device, bar, u64::MAX - 3), EINVAL);
    let written = device.write_region(bar, size - 4, &[0; 8]);
    scene.expect("writing across the end", answer(written), EINVAL);
}

fn the_config_space_ends_at_its_size(scene: &Scene<'_>) {
    let device = first_device(scene);
    let size = device.region(RegionIndex::CONFIG).expect("the config space").size;
    scene.expect("the last bytes", read::<4>(&device, RegionIndex::CONFIG, size - 4).map(drop), OK);
    scene.expect("across the end", read::<4>(&device, RegionIndex::CONFIG, size - 2), EINVAL);
    let written = device.write_region(RegionIndex::CONFIG, size, &[0; 4]);
    scene.expect("writing at the end", answer(written), EINVAL);
}

fn a_region_that_is_not_there_cannot_be_accessed(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    for (index, (_, size)) in (0..).zip(&scene.first().part.regions) {
        if *size == 0 {
            let region = RegionIndex(index);
            scene.expect(&format!("reading region {index}"), read::<1>(&device, region, 0), EINVAL);
            let written = answer(device.write_region(region, 0, &[0]));
            scene.expect(&format!("writing region {index}"), written, EINVAL);
        }
    }
}

fn the_vga_region_is_not_there(scene: &Scene<'_>) {
    let device = first_device(scene);
    scene.expect("region 8", device.region(RegionIndex(8)), Some(vfio::Region::default()));
}

fn an_access_of_nothing_succeeds(scene: &Scene<'_>) {
    let device = first_device(scene);
    let (bar, size) = memory_bar(scene.first());
    enable(&device);
    scene.expect("reading", read::<0>(&device, bar, 0), ok([(); 0]));
    scene.expect("reading at the end", read::<0>(&device, bar, size), ok([(); 0]));
    scene.expect("writing", answer(device.write_region(bar, 0, &[])), OK);
}

fn a_region_is_read_in_any_piece(scene: &Scene<'_>) {
    let device = first_device(scene);
    let whole: [u8; 16] = read(&device, RegionIndex::CONFIG, 0).expect("the header");
    scene.expect("one byte", read::<1>(&device, RegionIndex::CONFIG, 3), ok([whole[3]]));
    scene.expect(
        "three bytes at an odd place",
        read::<3>(&device, RegionIndex::CONFIG, 9),
        ok([whole[9], whole[10], whole[11]]),
    );
    scene.expect("vendor id", read_config_word(&device, 0), scene.first().part.vendor);
}

fn the_interrupt_table_cannot_be_read(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    let (bar, offset) = scene.first().part.msix_table.expect("an MSI-X table");
    scene.expect("first entry", read::<16>(&device, RegionIndex(bar), offset), ok([0xff_u8; 16]));
    set_command(&device, 0);
    let entry = read::<16>(&device, RegionIndex(bar), offset);
    scene.expect("first entry while memory is off", entry, ok([0xff_u8; 16]));
}

fn the_interrupt_table_cannot_be_written(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    let (bar, offset) = scene.first().part.msix_table.expect("an MSI-X table");
    let written = device.write_region(RegionIndex(bar), offset, &[0x11; 16]);
    scene.expect("writing the first entry", answer(written), OK);
    scene.expect("first entry", read::<16>(&device, RegionIndex(bar), offset), ok([0xff_u8; 16]));
}

fn a_sleeping_device_is_not_reached(scene: &Scene<'_>) {
    let context = scene.context();
    let function = scene.functions().last().expect("a function");
    let device = scene.bind(function, &context);
    let (bar, _) = memory_bar(function);
    enable(&device);
    set_power_state(&device, 3);
    scene.expect("reading while asleep", read::<4>(&device, bar, 0).map(drop), refused("EIO"));
    set_power_state(&device, 0);
    enable(&device);
    scene.expect("reading when awake", read::<4>(&device, bar, 0).map(drop), OK);
}

fn edu_says_what_it_is(scene: &Scene<'_>) {
    let device = first_device(scene);
    enable(&device);
    scene.expect("identification", read::<4>(&device, BAR0, 0), ok([0xed, 0, 0, 1]));
}

fn a_register_keeps_what_is_written(scene: &Scene<'_>) {
    /// edu answers with the inverse of what is written here.
    const LIVENESS: u64 = 4;
    let device = first_device(scene);
    enable(&device);
    scene.expect("writing", answer(device.write_region(BAR0, LIVENESS, &[1, 2, 3, 4])), OK);
    scene.expect("reading", read::<4>(&device, BAR0, LIVENESS), ok([254, 253, 252, 251]));
}
