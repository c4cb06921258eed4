// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example(name: &str) -> Topology {
    Topology::load(&in_repository(&format!("topologies/{name}.toml"))).unwrap()
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn addresses(texts: &[&str]) -> Vec<PciAddress> {
    texts.iter().map(|text| address(text)).collect()
}

fn bus(number: u8) -> Bus {
    Bus { segment: 0, number }
}

/// The scope of a bus that the first root port leads to.
fn bus_scope(affected: &[&str]) -> ResetScope {
    ResetScope::Bus { bridge: address("0000:00:04.0"), affected: addresses(affected) }
}

#[test]
fn every_example_loads_and_says_what_it_shows() {
    let mut count = 0;
    for entry in fs::read_dir(in_repository("topologies")).unwrap() {
        let path = entry.unwrap().path();
        Topology::load(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("# "), "{}", path.display());
        count += 1;
    }
    assert!(count >= 25, "only {count}");
}

/// A function as the files of the test machine name it: address, device, IOMMU group.
type Named = (PciAddress, &'static str, Option<u32>);

const DEVICES: [&str; 11] = [
    "edu",
    "igb",
    "e1000e",
    "i82559er",
    "nvme",
    "virtio-blk",
    "virtio-net",
    "virtio-rng",
    "pci-bridge",
    "x3130-upstream",
    "xio3130-downstream",
];

fn named_function(line: &str) -> Option<Named> {
    let (place, rest) = line.strip_prefix("# ")?.split_once(' ')?;
    let (device, _) = rest.split_once(',')?;
    let (_, group) = rest.rsplit_once("group ")?;
    let device = DEVICES.into_iter().find(|known| *known == device).expect(device);
    Some((place.parse().ok()?, device, group.parse().ok()))
}

fn device_name(part: Part) -> &'static str {
    match part {
        Part::Edu => "edu",
        Part::Igb => "igb",
        Part::E1000e => "e1000e",
        Part::I82559er => "i82559er",
        Part::Nvme => "nvme",
        Part::VirtioBlock => "virtio-blk",
        Part::VirtioNet | Part::VirtioQueues(_) => "virtio-net",
        Part::VirtioEntropy => "virtio-rng",
    }
}

/// Root ports are not named.
fn bridge_name(kind: BridgeKind) -> Option<&'static str> {
    match kind {
        BridgeKind::Pci => Some("pci-bridge"),
        BridgeKind::UpstreamPort => Some("x3130-upstream"),
        BridgeKind::DownstreamPort => Some("xio3130-downstream"),
        BridgeKind::RootPort | BridgeKind::ExpressToPci => None,
    }
}

fn names(topology: &Topology) -> Vec<Named> {
    let name = |function: &Endpoint| (function.address, device_name(function.part), function.iommu_group);
    let mut names: Vec<_> = topology.functions.iter().map(name).collect();
    for bridge in &topology.bridges {
        names.extend(bridge_name(bridge.kind).map(|name| (bridge.address, name, bridge.iommu_group)));
    }
    names.sort_unstable();
    names
}

#[test]
fn every_topology_of_the_test_machine_is_an_example() {
    for entry in fs::read_dir(in_repository("../contrib/qemu/testvm/topologies")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let topology = example(&name);
        let mut expected: Vec<_> = text.lines().filter_map(named_function).collect();
        expected.sort_unstable();
        assert_eq!(names(&topology), expected, "{name}");
        let bound = text.lines().find_map(|line| line.strip_prefix("bind ")).unwrap();
        let vfio = |function: &&Endpoint| function.driver == Driver::Vfio("vfio-pci".into());
        let found: Vec<_> = topology.functions.iter().filter(vfio).map(|function| function.address).collect();
        assert_eq!(found, addresses(&bound.split(' ').collect::<Vec<_>>()), "{name}");
    }
}

#[test]
fn what_is_below_a_bridge_comes_right_after_it() {
    let topology = example("switch");
    // The order in which Linux 7.3 answered VFIO_DEVICE_GET_PCI_HOT_RESET_INFO for 0000:01:00.1 in the test machine.
    let expected = addresses(&[
        "0000:01:00.0",
        "0000:02:00.0",
        "0000:03:00.0",
        "0000:02:01.0",
        "0000:04:00.0",
        "0000:01:00.1",
    ]);
    assert_eq!(topology.below(bus(1)), expected);
    assert_eq!(topology.below(bus(0)).len(), 7, "the port, too");
    assert_eq!(topology.below(bus(9)), []);
}

#[test]
fn what_is_added_later_is_found_later() {
    let mut topology = example("virtio-trio");
    let again = topology.functions.remove(0);
    topology.functions.push(again);
    assert_eq!(topology.below(bus(1)), addresses(&["0000:01:00.1", "0000:01:00.2", "0000:01:00.0"]));
}

#[test]
fn segments_have_nothing_in_common() {
    let topology = example("two-segments");
    let second = Bus { segment: 1, number: 1 };
    assert_eq!(topology.below(second), addresses(&["0001:01:00.0", "0001:01:00.1"]));
    assert_eq!(topology.parent_bridge(address("0001:01:00.0")).unwrap().address, address("0001:00:00.0"));
}

#[test]
fn a_parent_bridge_leads_to_the_bus() {
    let topology = example("switch");
    let parent = |place| topology.parent_bridge(address(place)).map(|bridge| bridge.address);
    assert_eq!(parent("0000:04:00.0"), Some(address("0000:02:01.0")));
    assert_eq!(parent("0000:02:01.0"), Some(address("0000:01:00.0")));
    assert_eq!(parent("0000:00:04.0"), None, "a root bus");
    assert_eq!(example("virtual-function").parent_bridge(address("0000:02:10.0")), None, "a bus made up");
}

#[test]
fn a_reset_takes_the_bus() {
    let topology = example("five-devices");
    let all = ["0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:01:00.3", "0000:01:03.0"];
    for place in all {
        assert_eq!(topology.reset_scope(address(place)), bus_scope(&all));
        assert_eq!(topology.device_set(address(place)), DeviceSet::Bus(bus(1)));
    }
}

#[test]
fn a_reset_takes_what_is_behind_a_bridge_on_the_bus() {
    let topology = example("switch");
    assert_eq!(topology.reset_scope(address("0000:01:00.1")).affected().len(), 6);
    assert_eq!(topology.device_set(address("0000:01:00.1")), DeviceSet::Bus(bus(1)));
    assert_eq!(topology.reset_scope(address("0000:03:00.0")).affected(), addresses(&["0000:03:00.0"]));
    assert_eq!(topology.device_set(address("0000:03:00.0")), DeviceSet::Bus(bus(3)));
}

#[test]
fn a_slot_with_a_driver_that_resets_it_is_a_set() {
    let topology = example("hotplug-slot");
    let place = address("0000:01:00.0");
    let affected = addresses(&["0000:01:00.0", "0000:01:00.1"]);
    assert_eq!(topology.reset_scope(place), ResetScope::Slot { bridge: address("0000:00:04.0"), affected });
    assert_eq!(topology.device_set(place), DeviceSet::Slot(bus(1)));
}

#[test]
fn a_slot_holds_what_is_behind_a_bridge_in_it() {
    let mut topology = example("switch");
    topology.bridges[0].slot_reset = true;
    let affected = topology.below(bus(1));
    let expected = ResetScope::Slot { bridge: address("0000:00:04.0"), affected };
    assert_eq!(topology.reset_scope(address("0000:01:00.1")), expected);
}

#[test]
fn a_root_bus_has_no_reset_and_every_function_there_is_alone() {
    let topology = example("rciep");
    let place = address("0000:00:05.0");
    assert_eq!(topology.reset_scope(place), ResetScope::Missing);
    assert_eq!(topology.device_set(place), DeviceSet::Alone(place));
}

#[test]
fn a_virtual_function_is_alone_but_on_the_bus_of_others() {
    let topology = example("virtual-function");
    let (near, far) = (address("0000:01:10.0"), address("0000:02:10.0"));
    assert_eq!(topology.reset_scope(near), bus_scope(&["0000:01:00.0", "0000:01:10.0", "0000:01:10.2"]));
    assert_eq!(topology.device_set(near), DeviceSet::Alone(near));
    assert_eq!(topology.reset_scope(far), ResetScope::Missing);
    assert_eq!(topology.device_set(far), DeviceSet::Alone(far));
}

#[test]
fn a_slot_of_6_12_holds_device_0_only() {
    let mut topology = example("virtual-function");
    topology.bridges[0].slot_reset = true;
    let (physical, near) = (address("0000:01:00.0"), address("0000:01:10.0"));
    let is_slot = |scope| matches!(scope, ResetScope::Slot { .. });
    assert_eq!(topology.reset_scope(physical).affected().len(), 3);
    assert!(is_slot(topology.reset_scope(near)));
    topology.kernel = KernelVersion::Linux6_12;
    assert_eq!(topology.reset_scope(physical).affected(), [physical]);
    assert_eq!(topology.reset_scope(near).affected().len(), 3);
    assert!(!is_slot(topology.reset_scope(near)));
}

#[test]
fn what_does_not_survive_a_reset_is_not_reset_from_above_either() {
    let mut topology = example("group-spans-scopes");
    topology.bridges[2].no_bus_reset = true;
    assert_eq!(topology.bridges[2].address, address("0000:02:00.0"));
    assert_eq!(topology.reset_scope(address("0000:03:00.0")), ResetScope::Missing);
    assert_eq!(topology.reset_scope(address("0000:02:00.0")), ResetScope::Missing);
    assert_ne!(topology.reset_scope(address("0000:04:00.0")), ResetScope::Missing);
}

#[test]
fn what_cannot_be_reset_is_a_set_by_its_bus() {
    let mut topology = example("no-bus-reset");
    let place = address("0000:01:00.0");
    assert_eq!(topology.device_set(place), DeviceSet::Bus(bus(1)));
    topology.bridges[0].slot_reset = true;
    assert_eq!(topology.reset_scope(place), ResetScope::Missing);
    assert_eq!(topology.device_set(place), DeviceSet::Bus(bus(1)));
}

#[test]
fn a_variant_of_vfio_pci_is_known_by_its_name() {
    for name in ["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci"] {
        assert_eq!(Driver::from_name(name), Some(Driver::Vfio(name.into())));
    }
    for name in ["igb", "pci-stub", "vfio-platform"] {
        assert_eq!(Driver::from_name(name), Some(Driver::Kernel(name.into())));
    }
}
