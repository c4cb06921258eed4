// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::path::Path;

use super::*;
use crate::model::Topology;
use crate::model::sysfs::{Cdev, Identity, SysfsTree};
use crate::model::topology::{self, KernelVersion};
use crate::reset_scope::ResetScope;
use crate::topology::DeviceNumber;

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn example(name: &str) -> Topology {
    let path = format!("{}/topologies/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Topology::load(Path::new(&path)).unwrap()
}

/// Every example that comes with the model.
fn examples() -> Vec<(String, Topology)> {
    let folder = format!("{}/topologies", env!("CARGO_MANIFEST_DIR"));
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.display().to_string(), Topology::load(&path).unwrap())).collect()
}

/// A machine's tree, with every function on the driver that the topology gives it.
fn read(topology: &Topology) -> Hierarchy {
    let folder = tempfile::tempdir().unwrap();
    let identity = |_| Identity { vendor: 0x1234, device: 0x11e8, class: 0xff00, config: vec![0; 64] };
    let mut tree = SysfsTree::create(folder.path(), topology, identity).unwrap();
    for (minor, function) in (0..).zip(&topology.functions) {
        let is_isolated = function.iommu_group.is_some();
        if !is_isolated && matches!(function.driver, topology::Driver::Vfio(_)) {
            tree.set_no_iommu_group(function.address, Some(100 + minor)).unwrap();
        }
        let has_node = is_isolated || topology.kernel != KernelVersion::Linux6_12;
        let number = has_node.then_some(DeviceNumber { major: 511, minor });
        let cdev = Cdev { name: format!("vfio{minor}"), number };
        let cdev = matches!(function.driver, topology::Driver::Vfio(_)).then_some(cdev);
        tree.set_driver(function.address, &function.driver, cdev).unwrap();
    }
    Hierarchy::read(&Sysfs::open_at(&folder.path().join("sys")).unwrap()).unwrap()
}

fn own_reset(topology: &str, function: &str) -> Option<OwnReset> {
    read(&example(topology)).own_reset(address(function))
}

#[test]
fn every_examples_scopes_are_what_the_modelled_kernel_computes() {
    for (name, topology) in examples() {
        let hierarchy = read(&topology);
        for function in &topology.functions {
            let scope = hierarchy.reset_scope(function.address);
            let place = format!("{name}: {}", function.address);
            match topology.reset_scope(function.address) {
                // That a bridge does not survive is what sysfs does not show.
                topology::ResetScope::Missing
                    if topology.bridges.iter().any(|bridge| bridge.no_bus_reset) => {}
                topology::ResetScope::Missing => assert_eq!(scope, ResetScope::Missing, "{place}"),
                topology::ResetScope::Slot { bridge, affected } => {
                    // The modelled kernel counts its slots.
                    let slots = topology.bridges.iter().filter(|bridge| bridge.slot_reset);
                    let number = slots.map(|slot| slot.address).position(|slot| slot == bridge).unwrap();
                    let name = number.to_string();
                    assert_eq!(scope, ResetScope::Slot { name, bridge, affected }, "{place}");
                }
                topology::ResetScope::Bus { bridge, affected } => {
                    assert_eq!(scope, ResetScope::Bus { bridge, affected }, "{place}");
                }
            }
        }
    }
}

#[test]
fn every_examples_sets_are_what_the_modelled_kernel_holds_together() {
    for (name, topology) in examples() {
        let hierarchy = read(&topology);
        for one in &topology.functions {
            for other in &topology.functions {
                let expected = topology.device_set(one.address) == topology.device_set(other.address);
                let place = format!("{name}: {} and {}", one.address, other.address);
                // On a bus that SR-IOV made up there are only virtual functions.
                assert_eq!(hierarchy.is_in_set_of(one.address, other.address), expected, "{place}");
            }
        }
    }
}

#[test]
fn what_is_behind_a_bridge_comes_right_after_it() {
    let hierarchy = read(&example("switch"));
    let scope = hierarchy.reset_scope(address("0000:01:00.1"));
    let expected =
        ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:02:01.0", "0000:04:00.0", "0000:01:00.1"];
    assert_eq!(scope.affected(), expected.map(address));
    assert_eq!(scope.bridge(), Some(address("0000:00:04.0")));
}

#[test]
fn a_function_on_the_root_bus_has_no_scope() {
    assert_eq!(read(&example("rciep")).reset_scope(address("0000:00:05.0")), ResetScope::Missing);
}

#[test]
fn no_bridge_leads_to_a_bus_that_sr_iov_made_up() {
    let hierarchy = read(&example("virtual-function"));
    assert_eq!(hierarchy.place(address("0000:01:10.0")).unwrap().bridge, Some(address("0000:00:04.0")));
    assert_eq!(hierarchy.place(address("0000:02:10.0")).unwrap().bridge, None);
    let expected = ["0000:01:10.0", "0000:01:10.2", "0000:02:10.0"].map(address);
    assert_eq!(hierarchy.virtual_functions(address("0000:01:00.0")).collect::<Vec<_>>(), expected);
}

#[test]
fn a_slot_is_known_by_the_driver_of_its_port() {
    let slot = |topology| read(&example(topology)).place(address("0000:00:04.0")).unwrap().slot.clone();
    assert_eq!(slot("hotplug-slot"), Some("0".into()));
    assert_eq!(slot("edu-igb"), None);
}

#[test]
fn a_bus_reset_counts_only_where_nothing_else_is() {
    assert_eq!(own_reset("edu-igb", "0000:01:00.0"), None, "it is listed all the same");
    assert_eq!(own_reset("edu-igb", "0000:01:00.1"), Some(OwnReset::FunctionLevel));
    assert_eq!(own_reset("group-spans-scopes", "0000:03:00.0"), Some(OwnReset::Bus));
    assert_eq!(own_reset("e1000e", "0000:01:00.0"), Some(OwnReset::PowerManagement));
    assert_eq!(own_reset("rciep", "0000:00:05.0"), None);
}

#[test]
fn a_group_tells_what_stands_behind_it() {
    let kind = |topology, function| {
        let hierarchy = read(&example(topology));
        let group = hierarchy.place(address(function)).unwrap().function.iommu_group;
        group.and_then(|group| hierarchy.group(group))
    };
    let isolated = |firmware_mapping| Some(GroupKind::Isolated { firmware_mapping });
    assert_eq!(kind("edu-igb", "0000:01:00.0"), isolated(false));
    assert_eq!(kind("firmware-mapping", "0000:01:00.0"), isolated(true));
    assert_eq!(kind("no-iommu", "0000:01:00.0"), Some(GroupKind::NoIommu));
    assert_eq!(kind("no-iommu", "0000:00:04.0"), None);
}

#[test]
fn a_cdev_without_a_node_cannot_be_opened() {
    let has_node = |topology| read(&example(topology)).place(address("0000:01:00.0")).unwrap().has_node;
    assert!(has_node("edu-igb"));
    assert!(has_node("no-iommu"));
    assert!(!has_node("no-iommu-6.12"));
}

#[test]
fn interrupts_that_are_not_remapped_keep_devices_from_being_bound() {
    assert!(read(&example("edu-pair")).interrupts_allow_binding());
    assert_eq!(read(&example("edu-noremap")).interrupts_allow_binding(), !cfg!(target_arch = "x86_64"));
}

#[test]
fn a_machine_without_pci_is_told() {
    let empty = tempfile::tempdir().unwrap();
    let sysfs = Sysfs::open_at(empty.path()).unwrap();
    assert_eq!(Hierarchy::read(&sysfs), Err(Errno::NOENT));
}
