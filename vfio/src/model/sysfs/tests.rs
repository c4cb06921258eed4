// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs;

use super::group::INTERRUPT_WINDOW;
use super::*;
use crate::topology::{self, Sysfs};

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn example(name: &str) -> Topology {
    let path = format!("{}/topologies/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Topology::load(Path::new(&path)).unwrap()
}

/// An edu's.
fn identity(_: PciAddress) -> Identity {
    Identity { vendor: 0x1234, device: 0x11e8, class: 0x00_ff00, config: vec![0; 256] }
}

fn cdev(minor: u32) -> Cdev {
    Cdev { name: format!("vfio{minor}"), number: Some(number(minor)) }
}

fn number(minor: u32) -> DeviceNumber {
    DeviceNumber { major: 248, minor }
}

/// An example's tree, and the reader of the crate on it.
struct Fixture {
    folder: tempfile::TempDir,
    tree: SysfsTree,
    sysfs: Sysfs,
}

impl Fixture {
    fn new(topology: &Topology) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tree = SysfsTree::create(folder.path(), topology, identity).unwrap();
        let sysfs = Sysfs::open_at(&folder.path().join("sys")).unwrap();
        Self { folder, tree, sysfs }
    }

    /// With its first function on vfio-pci, as vfio0.
    fn on_vfio(topology: &Topology) -> Self {
        let mut fixture = Self::new(topology);
        fixture.set_vfio(topology.functions[0].address, 0);
        fixture
    }

    fn set_vfio(&mut self, address: PciAddress, minor: u32) {
        let driver = Driver::Vfio("vfio-pci".into());
        self.tree.set_driver(address, &driver, Some(cdev(minor))).unwrap();
    }

    fn driver(&self, place: &str) -> topology::Driver {
        self.sysfs.function(address(place)).unwrap().driver
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join("sys").join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Everything in the tree, links not followed.
    fn everything(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![self.path("")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                found.push(entry.path().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        found.sort_unstable();
        found
    }
}

#[test]
fn a_function_is_read_back_as_it_was_written() {
    let fixture = Fixture::on_vfio(&example("edu-pair"));
    let expected = topology::Function {
        address: address("0000:01:00.0"),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        header_type: 0,
        iommu_group: Some(5),
        driver: topology::Driver::Vfio { name: "vfio-pci".into(), device: "vfio0".into() },
        is_virtual: false,
    };
    assert_eq!(fixture.sysfs.function(address("0000:01:00.0")), Ok(expected));
    assert_eq!(fixture.driver("0000:01:00.1"), topology::Driver::None);
}

#[test]
fn a_bridge_is_a_function() {
    let fixture = Fixture::new(&example("switch"));
    let expected = topology::Function {
        address: address("0000:02:01.0"),
        vendor: 0x104c,
        device: 0x8233,
        class: 0x06_0400,
        header_type: 1,
        iommu_group: Some(5),
        driver: topology::Driver::Kernel("pcieport".into()),
        is_virtual: false,
    };
    assert_eq!(fixture.sysfs.function(address("0000:02:01.0")), Ok(expected));
    let config = fs::read(fixture.path("bus/pci/devices/0000:01:00.0/config")).unwrap();
    assert_eq!(config[0x18..0x1b], [1, 2, 4], "the buses before, right behind and last behind it");
    assert_eq!(fixture.text("bus/pci/devices/0000:01:00.0/secondary_bus_number"), "2\n");
}

#[test]
fn what_is_used_is_switched_on_and_names_its_driver() {
    let mut fixture = Fixture::on_vfio(&example("edu-pair"));
    let place = address("0000:01:00.0");
    let properties = "PCI_CLASS=FF00\nPCI_ID=1234:11E8\nPCI_SLOT_NAME=0000:01:00.0\n";
    assert_eq!(fixture.text("bus/pci/devices/0000:01:00.0/uevent"), properties);
    assert_eq!(fixture.sysfs.is_enabled(place), Ok(false));
    let shown = Use { driver: Some("vfio-pci".into()), is_enabled: true };
    fixture.tree.set_use(place, &shown).unwrap();
    let with_driver = format!("DRIVER=vfio-pci\n{properties}");
    assert_eq!(fixture.text("bus/pci/devices/0000:01:00.0/uevent"), with_driver);
    assert_eq!(fixture.sysfs.is_enabled(place), Ok(true));
    assert_eq!(fixture.sysfs.departing_driver(place), Ok(None), "it has not begun to leave");
    fixture.tree.set_driver(place, &Driver::Missing, None).unwrap();
    assert_eq!(fixture.sysfs.departing_driver(place), Ok(Some("vfio-pci".into())));
    assert_eq!(fixture.sysfs.is_enabled(address("0000:00:04.0")), Ok(true), "a port always is");
}

#[test]
fn a_conventional_bridge_has_no_driver() {
    let fixture = Fixture::new(&example("bridge"));
    assert_eq!(fixture.driver("0000:01:00.0"), topology::Driver::None);
}

#[test]
fn a_cdev_leads_to_its_function() {
    let fixture = Fixture::on_vfio(&example("edu-pair"));
    assert_eq!(fixture.sysfs.function_of_cdev(number(0)), Ok(address("0000:01:00.0")));
    assert_eq!(fixture.sysfs.function_of_cdev(number(1)), Err(Errno::NOENT));
    assert_eq!(fixture.text("bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev"), "248:0\n");
    assert_eq!(fixture.text("class/vfio-dev/vfio0/device/vendor"), "0x1234\n");
}

#[test]
fn the_iommufd_is_known_by_its_number() {
    let fixture = Fixture::new(&example("edu-pair"));
    assert!(fixture.sysfs.is_iommufd(IOMMU));
    assert!(!fixture.sysfs.is_iommufd(number(0)));
    assert_eq!(fixture.sysfs.function_of_cdev(IOMMU), Err(Errno::NODEV));
}

#[test]
fn siblings_are_the_rest_of_the_group() {
    let fixture = Fixture::new(&example("five-devices"));
    let siblings = |place| fixture.sysfs.group_siblings(address(place));
    assert_eq!(siblings("0000:01:00.0"), Ok(vec![address("0000:01:00.1")]));
    assert_eq!(siblings("0000:01:03.0"), Ok(vec![]));
}

#[test]
fn interrupt_remapping_shows() {
    assert!(Fixture::new(&example("edu-pair")).sysfs.has_interrupt_remapping());
    assert!(!Fixture::new(&example("edu-noremap")).sysfs.has_interrupt_remapping());
}

#[test]
fn a_firmware_mapping_shows_in_the_group() {
    let mapped = Fixture::new(&example("firmware-mapping"));
    assert!(mapped.sysfs.has_firmware_mapping(address("0000:01:00.0")));
    let plain = Fixture::new(&example("nvme"));
    assert!(!plain.sysfs.has_firmware_mapping(address("0000:01:00.0")));
    assert_eq!(plain.text("kernel/iommu_groups/5/reserved_regions"), INTERRUPT_WINDOW);
}

#[test]
fn a_firmware_mapping_goes_with_its_function() {
    let mut topology = example("edu-pair");
    topology.functions[1].firmware_mapping = true;
    let mut fixture = Fixture::new(&topology);
    assert!(fixture.sysfs.has_firmware_mapping(address("0000:01:00.0")), "it is the group's");
    fixture.tree.remove(address("0000:01:00.1")).unwrap();
    assert!(!fixture.sysfs.has_firmware_mapping(address("0000:01:00.0")));
}

#[test]
fn a_driver_takes_the_place_of_another() {
    let mut fixture = Fixture::on_vfio(&example("edu-pair"));
    let place = address("0000:01:00.0");
    fixture.tree.set_driver(place, &Driver::Kernel("pci-stub".into()), None).unwrap();
    assert_eq!(fixture.driver("0000:01:00.0"), topology::Driver::Kernel("pci-stub".into()));
    assert_eq!(fixture.sysfs.function_of_cdev(number(0)), Err(Errno::NOENT));
    assert!(!fixture.path("bus/pci/drivers/vfio-pci/0000:01:00.0").exists());
    fixture.set_vfio(place, 3);
    assert_eq!(fixture.sysfs.function_of_cdev(number(3)), Ok(place));
    assert_eq!(fixture.text("bus/pci/drivers/vfio-pci/0000:01:00.0/device"), "0x11e8\n");
    fixture.tree.set_driver(place, &Driver::Missing, None).unwrap();
    assert_eq!(fixture.driver("0000:01:00.0"), topology::Driver::None);
    assert_eq!(fixture.text("bus/pci/devices/0000:01:00.0/driver_override"), "vfio-pci\n", "that stays");
}

#[test]
fn what_comes_and_goes_leaves_nothing() {
    let topology = example("edu-igb");
    let mut fixture = Fixture::new(&topology);
    fixture.set_vfio(topology.functions[1].address, 0);
    fixture.tree.set_driver(topology.functions[1].address, &Driver::Missing, None).unwrap();
    let without = fixture.everything();
    fixture.set_vfio(topology.functions[1].address, 0);
    fixture.tree.remove(topology.functions[1].address).unwrap();
    assert_eq!(fixture.sysfs.function(topology.functions[1].address), Err(Errno::NOENT));
    assert!(!fixture.path("kernel/iommu_groups/6").exists(), "the group is gone with its last function");
    fixture.tree.add(&topology.functions[1], &identity(topology.functions[1].address)).unwrap();
    assert_eq!(fixture.everything(), without);
}

#[test]
fn an_address_is_taken_or_not() {
    let topology = example("edu-pair");
    let mut fixture = Fixture::new(&topology);
    let errno = |done: io::Result<()>| Errno::from_io_error(&done.unwrap_err());
    assert_eq!(errno(fixture.tree.remove(address("0000:01:00.7"))), Some(Errno::NODEV));
    let first = &topology.functions[0];
    assert_eq!(errno(fixture.tree.add(first, &identity(first.address))), Some(Errno::EXIST));
}

#[test]
fn the_directory_above_a_function_is_its_bridge() {
    let fixture = Fixture::new(&example("switch"));
    let real = fs::canonicalize(fixture.path("bus/pci/devices/0000:03:00.0")).unwrap();
    let expected = "sys/devices/pci0000:00/0000:00:04.0/0000:01:00.0/0000:02:00.0/0000:03:00.0";
    assert!(real.ends_with(expected), "{}", real.display());
}

#[test]
fn a_virtual_function_is_beside_its_physical_one_whatever_its_bus() {
    let fixture = Fixture::new(&example("virtual-function"));
    for place in ["0000:01:10.0", "0000:02:10.0"] {
        assert!(fixture.sysfs.function(address(place)).unwrap().is_virtual);
        let physical = fs::canonicalize(fixture.path(&format!("bus/pci/devices/{place}/physfn"))).unwrap();
        assert!(physical.ends_with("devices/pci0000:00/0000:00:04.0/0000:01:00.0"), "{}", physical.display());
    }
    let far = fs::canonicalize(fixture.path("bus/pci/devices/0000:02:10.0")).unwrap();
    assert!(far.ends_with("devices/pci0000:00/0000:00:04.0/0000:02:10.0"), "{}", far.display());
}

#[test]
fn segments_have_roots_of_their_own() {
    let fixture = Fixture::new(&example("two-segments"));
    let real = fs::canonicalize(fixture.path("bus/pci/devices/0001:01:00.1")).unwrap();
    assert!(real.ends_with("devices/pci0001:00/0001:00:00.0/0001:01:00.1"), "{}", real.display());
}

#[test]
fn ways_to_reset_are_as_linux_shows_them() {
    let expected = [
        ("edu-pair", "0000:01:00.0", Some("bus\n")),
        ("edu-pair", "0000:01:00.1", None),
        ("igb-pair", "0000:01:00.0", Some("flr pm bus\n")),
        ("igb-pair", "0000:01:00.1", Some("flr pm\n")),
        ("virtio-pair", "0000:01:00.1", Some("flr pm\n")),
        ("nvme", "0000:01:00.0", Some("flr bus\n")),
        ("e1000e", "0000:01:00.0", Some("pm bus\n")),
        ("bridge", "0000:02:01.0", Some("bus\n")),
        ("bridge", "0000:02:03.0", Some("pm\n")),
        ("switch", "0000:01:00.1", None),
        ("switch", "0000:03:00.0", Some("bus\n")),
        ("rciep", "0000:00:05.0", None),
    ];
    for (name, place, methods) in expected {
        let fixture = Fixture::new(&example(name));
        let path = fixture.path(&format!("bus/pci/devices/{place}/reset_method"));
        assert_eq!(fs::read_to_string(path).ok().as_deref(), methods, "{name}: {place}");
    }
}

#[test]
fn a_hotplug_slot_says_where_it_is() {
    let fixture = Fixture::new(&example("hotplug-slot"));
    assert_eq!(fixture.text("bus/pci/slots/0/address"), "0000:01:00\n");
}

#[test]
fn without_an_iommu_there_is_a_group_while_vfio_drives_a_function() {
    let mut fixture = Fixture::new(&example("no-iommu-6.12"));
    let place = address("0000:01:00.0");
    assert_eq!(fixture.sysfs.function(place).unwrap().iommu_group, None);
    fixture.tree.set_no_iommu_group(place, Some(0)).unwrap();
    let node = Cdev { name: "vfio0".into(), number: None };
    fixture.tree.set_driver(place, &Driver::Vfio("vfio-pci".into()), Some(node)).unwrap();
    assert_eq!(fixture.sysfs.function(place).unwrap().iommu_group, Some(0));
    assert_eq!(fixture.text("bus/pci/devices/0000:01:00.0/iommu_group/name"), "vfio-noiommu\n");
    assert!(!fixture.path("bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev").exists());
    fixture.tree.set_driver(place, &Driver::Missing, None).unwrap();
    fixture.tree.set_no_iommu_group(place, None).unwrap();
    assert_eq!(fixture.sysfs.function(place).unwrap().iommu_group, None);
    assert!(!fixture.path("kernel/iommu_groups/0").exists());
}
