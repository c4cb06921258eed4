// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What sysfs says about functions, their groups and their device files.

use std::os::fd::AsFd;

use vfio::topology::Driver;
use vfio::{PciAddress, Sysfs};

use crate::answer::{ENOENT, ok, value};
use crate::check::checks;
use crate::machine::EVERYWHERE;
use crate::scene::{Scene, address};

checks! {
    EVERYWHERE => interrupts_are_remapped, each_function_is_what_it_is, each_function_is_in_its_group,
        each_device_file_leads_to_its_function, the_firmware_demands_no_mapping;
    &["edu-noremap"] => interrupts_are_not_remapped, a_function_that_cannot_be_bound_looks_like_any_other;
    &["bridge"] => a_bridge_is_in_the_group_of_what_is_behind_it;
    &["switch"] => ports_of_a_switch_are_in_the_group_of_what_is_below;
    &["edu-pair", "rciep"] => a_function_that_is_not_there_is_unknown, an_iommufd_has_a_number_of_its_own,
        a_plain_file_has_no_number;
    &["edu-pair"] => a_root_port_is_a_bridge_with_its_own_driver;
}

fn interrupts_are_remapped(scene: &Scene<'_>) {
    scene.expect("remapping", scene.sysfs().has_interrupt_remapping(), true);
}

fn interrupts_are_not_remapped(scene: &Scene<'_>) {
    scene.expect("remapping", scene.sysfs().has_interrupt_remapping(), false);
}

fn each_function_is_what_it_is(scene: &Scene<'_>) {
    for function in scene.functions() {
        let found = scene.sysfs().function(address(function)).expect("it is there");
        let part = function.part;
        let ids = format!("{:04x}:{:04x} {:06x}", found.vendor, found.device, found.class);
        scene.expect(
            &format!("{} ids and class", function.address),
            ids,
            format!("{:04x}:{:04x} {:06x}", part.vendor, part.device, part.class),
        );
        scene.expect(&format!("{} header type", function.address), found.header_type, 0);
        scene.expect(&format!("{} virtual", function.address), found.is_virtual, false);
        let driver = match found.driver {
            Driver::Vfio { name, .. } => name,
            other => format!("{other:?}"),
        };
        scene.expect(&format!("{} driver", function.address), driver, "vfio-pci");
    }
}

fn each_function_is_in_its_group(scene: &Scene<'_>) {
    let sysfs = scene.sysfs();
    for function in scene.functions() {
        let found = sysfs.function(address(function)).expect("it is there");
        scene.expect(&format!("{} group", function.address), found.iommu_group, Some(function.group));
        let siblings = sysfs.group_siblings(address(function)).expect("it has a group");
        let siblings: Vec<_> = siblings.iter().map(PciAddress::to_string).collect();
        scene.expect(&format!("{} siblings", function.address), siblings, function.group_siblings);
    }
}

fn each_device_file_leads_to_its_function(scene: &Scene<'_>) {
    for function in scene.functions() {
        let device = scene.open(function);
        scene.expect("function behind the device file", device.address().to_string(), function.address);
    }
}

fn the_firmware_demands_no_mapping(scene: &Scene<'_>) {
    for function in scene.functions() {
        let has_mapping = scene.sysfs().has_firmware_mapping(address(function));
        scene.expect(&format!("{} firmware mapping", function.address), has_mapping, false);
    }
}

fn a_function_that_cannot_be_bound_looks_like_any_other(scene: &Scene<'_>) {
    each_function_is_in_its_group(scene);
    each_device_file_leads_to_its_function(scene);
}

/// What kind of function it is, who drives it and in which group.
fn neighbour(scene: &Scene<'_>, name: &str) -> (u8, String, Option<u32>) {
    let found = scene.sysfs().function(name.parse().expect("an address")).expect("it is there");
    let driver = match found.driver {
        Driver::None => "none".into(),
        Driver::Vfio { name, .. } | Driver::Kernel(name) => name,
    };
    (found.header_type, driver, found.iommu_group)
}

fn a_bridge_is_in_the_group_of_what_is_behind_it(scene: &Scene<'_>) {
    scene.expect("0000:01:00.0", neighbour(scene, "0000:01:00.0"), (1, "none", Some(5)));
}

fn ports_of_a_switch_are_in_the_group_of_what_is_below(scene: &Scene<'_>) {
    for port in ["0000:01:00.0", "0000:02:00.0", "0000:02:01.0"] {
        scene.expect(port, neighbour(scene, port), (1, "pcieport", Some(5)));
    }
}

fn a_root_port_is_a_bridge_with_its_own_driver(scene: &Scene<'_>) {
    scene.expect("0000:00:04.0", neighbour(scene, "0000:00:04.0"), (1, "pcieport", Some(1)));
}

fn a_function_that_is_not_there_is_unknown(scene: &Scene<'_>) {
    let absent = "0000:7f:1f.7".parse().expect("an address");
    scene.expect("function", value(scene.sysfs().function(absent)), ENOENT);
    scene.expect("siblings", value(scene.sysfs().group_siblings(absent)), ENOENT);
}

fn an_iommufd_has_a_number_of_its_own(scene: &Scene<'_>) {
    let sysfs = scene.sysfs();
    let is_iommufd = |file: &std::os::fd::OwnedFd| {
        let number = Sysfs::character_device(file.as_fd()).expect("fstat").expect("a device file");
        (sysfs.is_iommufd(number), sysfs.function_of_cdev(number).is_ok())
    };
    let iommufd = scene.host.open_iommufd().expect("the iommufd").into();
    scene.expect("the iommufd is one, and no cdev", is_iommufd(&iommufd), (true, false));
    let cdev = scene.open_file(scene.first());
    scene.expect("the cdev is one, and no iommufd", is_iommufd(&cdev), (false, true));
}

fn a_plain_file_has_no_number(scene: &Scene<'_>) {
    let file = tempfile::tempfile().expect("a file");
    scene.expect("number", Sysfs::character_device(file.as_fd()), ok(None::<()>));
}
