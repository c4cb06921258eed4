// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::{create_dir_all, write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use super::*;

/// A tree with two functions of one group: one on vfio-pci, one without a driver.
fn tree() -> (tempfile::TempDir, Sysfs) {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for function in ["0000:01:00.0", "0000:01:00.1"] {
        let directory = path(&format!("bus/pci/devices/{function}"));
        create_dir_all(&directory).unwrap();
        for (name, value) in [("vendor", "0x1234\n"), ("device", "0x11e8\n"), ("class", "0x00ff00\n")] {
            write(directory.join(name), value).unwrap();
        }
        let mut config = [0; 64];
        config[0x0e] = 0x80;
        write(directory.join("config"), config).unwrap();
        symlink("../../../../kernel/iommu_groups/5", directory.join("iommu_group")).unwrap();
        create_dir_all(path(&format!("kernel/iommu_groups/5/devices/{function}"))).unwrap();
    }
    let first = path("bus/pci/devices/0000:01:00.0");
    symlink("../../drivers/vfio-pci", first.join("driver")).unwrap();
    create_dir_all(first.join("vfio-dev/vfio3")).unwrap();
    create_dir_all(path("dev/char/511:3")).unwrap();
    symlink("../../../class/vfio-dev", path("dev/char/511:3/subsystem")).unwrap();
    symlink("../../0000:01:00.0", path("dev/char/511:3/device")).unwrap();
    create_dir_all(path("class/vfio-dev")).unwrap();
    symlink("../../dev/char/511:3", path("class/vfio-dev/vfio3")).unwrap();
    write(path("dev/char/511:3/dev"), "511:3\n").unwrap();
    create_dir_all(path("class/misc/iommu")).unwrap();
    write(path("class/misc/iommu/dev"), "10:123\n").unwrap();
    let sysfs = Sysfs::open_at(root.path()).unwrap();
    (root, sysfs)
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

#[test]
fn a_cdev_leads_to_its_function() {
    let (_root, sysfs) = tree();
    let found = sysfs.function_of_cdev(DeviceNumber { major: 511, minor: 3 });
    assert_eq!(found, Ok(address("0000:01:00.0")));
}

#[test]
fn an_unknown_device_number_is_no_cdev() {
    let (_root, sysfs) = tree();
    assert_eq!(sysfs.function_of_cdev(DeviceNumber { major: 1, minor: 3 }), Err(Errno::NOENT));
}

#[test]
fn the_iommufd_is_known_by_its_number() {
    let (_root, sysfs) = tree();
    assert!(sysfs.is_iommufd(DeviceNumber { major: 10, minor: 123 }));
    assert!(!sysfs.is_iommufd(DeviceNumber { major: 10, minor: 232 }));
}

#[test]
fn a_function_is_described_with_group_and_driver() {
    let (_root, sysfs) = tree();
    let function = sysfs.function(address("0000:01:00.0")).unwrap();
    let expected = Function {
        address: address("0000:01:00.0"),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        header_type: 0,
        iommu_group: Some(5),
        driver: Driver::Vfio { name: "vfio-pci".into(), device: "vfio3".into() },
        is_virtual: false,
    };
    assert_eq!(function, expected);
    assert_eq!(sysfs.function(address("0000:01:00.1")).unwrap().driver, Driver::None);
}

#[test]
fn siblings_are_the_rest_of_the_group() {
    let (_root, sysfs) = tree();
    assert_eq!(sysfs.group_siblings(address("0000:01:00.0")), Ok(vec![address("0000:01:00.1")]));
}

#[test]
fn interrupt_remapping_shows_in_a_controllers_name() {
    let (root, sysfs) = tree();
    assert!(!sysfs.has_interrupt_remapping());
    create_dir_all(root.path().join("kernel/irq/24")).unwrap();
    write(root.path().join("kernel/irq/24/chip_name"), "IR-PCI-MSI-0000:00:1f.2\n").unwrap();
    assert!(sysfs.has_interrupt_remapping());
}

#[test]
fn only_a_character_device_has_a_number() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let expected = DeviceNumber { major: 1, minor: 3 };
    assert_eq!(Sysfs::character_device(null.as_fd()), Ok(Some(expected)));
    let file = tempfile::tempfile().unwrap();
    assert_eq!(Sysfs::character_device(file.as_fd()), Ok(None));
}

#[test]
fn a_snapshot_knows_the_functions_that_had_a_cdev_and_opens_nothing() {
    let (root, sysfs) = tree();
    let function = sysfs.function(address("0000:01:00.0"));
    let snapshot = sysfs.snapshot().unwrap();
    drop(root);
    assert_eq!(snapshot.function_of_cdev(DeviceNumber { major: 511, minor: 3 }), Ok(address("0000:01:00.0")));
    assert_eq!(snapshot.function(address("0000:01:00.0")), function);
    assert!(snapshot.is_iommufd(DeviceNumber { major: 10, minor: 123 }));
}

#[test]
fn a_snapshot_knows_nothing_else() {
    let (_root, sysfs) = tree();
    let snapshot = sysfs.snapshot().unwrap();
    assert_eq!(snapshot.function(address("0000:01:00.1")), Err(Errno::NOENT), "it had no cdev");
    assert_eq!(snapshot.function_of_cdev(DeviceNumber { major: 1, minor: 3 }), Err(Errno::NOENT));
    assert_eq!(snapshot.group_siblings(address("0000:01:00.0")), Err(Errno::NOENT));
    assert_eq!(snapshot.is_enabled(address("0000:01:00.0")), Err(Errno::NOENT));
    assert!(!snapshot.is_iommufd(DeviceNumber { major: 10, minor: 232 }));
}
