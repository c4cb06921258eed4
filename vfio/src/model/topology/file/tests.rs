// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::model::topology::FunctionReset;

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn bridge(address: &str, kind: &str, bus: u8, more: &str) -> String {
    format!("[[bridge]]\naddress = \"{address}\"\nkind = \"{kind}\"\nbus = {bus}\n{more}\n")
}

/// A port that leads to bus 1; its `address` is on line 2.
fn port(more: &str) -> String {
    bridge("0000:00:04.0", "root-port", 1, more)
}

fn function(address: &str, more: &str) -> String {
    format!("[[function]]\naddress = \"{address}\"\npart = \"edu\"\n{more}\n")
}

/// What is said against a file, and the line it is said of.
fn refusal(parts: &[String]) -> (String, Problem) {
    let error = Topology::parse(&parts.concat()).unwrap_err();
    (error.text, error.problem)
}

/// What is said against a file that is no good in itself.
fn message(text: &str) -> String {
    Topology::parse(text).unwrap_err().to_string()
}

fn at(address: &str) -> String {
    format!("address = \"{address}\"")
}

#[test]
fn a_short_file_leaves_the_rest_to_defaults() {
    let text = [port(""), function("0000:01:00.0", "")].concat();
    let expected = Topology {
        kernel: KernelVersion::Linux7_3,
        interrupt_remapping: true,
        dynamic_msix: true,
        bridges: vec![Bridge {
            address: address("0000:00:04.0"),
            kind: BridgeKind::RootPort,
            bus: 1,
            slot_reset: false,
            no_bus_reset: false,
            link: Link::Trains,
            iommu_group: None,
        }],
        functions: vec![Endpoint {
            address: address("0000:01:00.0"),
            part: Part::Edu,
            reset: FunctionReset::Missing,
            iommu_group: None,
            driver: Driver::Missing,
            physical_function: None,
            firmware_mapping: false,
        }],
    };
    assert_eq!(Topology::parse(&text), Ok(expected));
}

#[test]
fn a_file_can_say_everything() {
    let text = r#"
description = "all there is"
kernel = "6.12"
interrupt-remapping = false
dynamic-msix = false

[[bridge]]
address = "0002:00:04.0"
kind = "root-port"
bus = 0x10
group = 1
slot-reset = true
no-bus-reset = true
link = "unconfirmed"

[[function]]
address = "0002:10:00.0"
part = "igb"
group = 5
driver = "igb"
reset = "pm"

[[function]]
address = "0002:10:10.0"
part = "igb"
group = 6
driver = "vfio-pci"
virtual-function-of = "0002:10:00.0"
firmware-mapping = true
"#;
    let expected = Topology {
        kernel: KernelVersion::Linux6_12,
        interrupt_remapping: false,
        dynamic_msix: false,
        bridges: vec![Bridge {
            address: address("0002:00:04.0"),
            kind: BridgeKind::RootPort,
            bus: 16,
            slot_reset: true,
            no_bus_reset: true,
            link: Link::Unconfirmed,
            iommu_group: Some(1),
        }],
        functions: vec![
            Endpoint {
                address: address("0002:10:00.0"),
                part: Part::Igb,
                reset: FunctionReset::PowerManagement,
                iommu_group: Some(5),
                driver: Driver::Kernel("igb".into()),
                physical_function: None,
                firmware_mapping: false,
            },
            Endpoint {
                address: address("0002:10:10.0"),
                part: Part::Igb,
                reset: FunctionReset::FunctionLevel,
                iommu_group: Some(6),
                driver: Driver::Vfio("vfio-pci".into()),
                physical_function: Some(address("0002:10:00.0")),
                firmware_mapping: true,
            },
        ],
    };
    assert_eq!(Topology::parse(text), Ok(expected));
}

#[test]
fn functions_are_in_the_order_in_which_the_kernel_finds_them() {
    let text = [
        port(""),
        function("0000:01:00.1", "virtual-function-of = \"0000:01:00.0\""),
        function("0000:01:00.2", ""),
        function("0000:01:00.0", ""),
    ];
    let topology = Topology::parse(&text.concat()).unwrap();
    let found: Vec<_> = topology.functions.iter().map(|function| function.address.to_string()).collect();
    assert_eq!(found, ["0000:01:00.0", "0000:01:00.2", "0000:01:00.1"]);
}

#[test]
fn a_refusal_names_line_field_and_what_is_allowed() {
    let refusals = [
        (
            "[[bridge]]\naddress = \"0000:00:04.0\"\nkind = \"rootport\"\nbus = 1\n",
            "line 3, `kind = \"rootport\"`: invalid value: string \"rootport\", expected one of \"root-port\", \
             \"upstream-port\", \"downstream-port\", \"express-to-pci\", \"pci\"",
        ),
        (
            "[[bridge]]\nbus = 300\n",
            "line 2, `bus = 300`: invalid value: integer `300`, expected the number of a bus, 1 to 255",
        ),
        (
            "[[bridge]]\nbus = 0\n",
            "line 2, `bus = 0`: invalid value: integer `0`, expected the number of a bus, 1 to 255",
        ),
        (
            "[[bridge]]\nslot-reset = \"no\"\n",
            "line 2, `slot-reset = \"no\"`: invalid type: string \"no\", expected a boolean",
        ),
        (
            "[[bridge]]\nlink = \"up\"\n",
            "line 2, `link = \"up\"`: invalid value: string \"up\", expected one of \"trains\", \"unconfirmed\"",
        ),
        (
            "kernel = 7.3\n",
            "line 1, `kernel = 7.3`: invalid type: floating point `7.3`, expected one of \"7.3\", \"6.12\"",
        ),
        (
            "[[function]]\naddress = \"01:00.0\"\n",
            "line 2, `address = \"01:00.0\"`: invalid value: string \"01:00.0\", expected an address like \"0000:01:00.0\"",
        ),
        (
            "[[function]]\npart = \"gpu\"\n",
            "line 2, `part = \"gpu\"`: invalid value: string \"gpu\", expected one of \"edu\", \"igb\", \"e1000e\", \
             \"i82559er\", \"nvme\", \"virtio-blk\", \"virtio-net\", \"virtio-net-mq\", \
             \"virtio-net-mq-refusing\", \"virtio-net-mq-silent\", \"virtio-rng\"",
        ),
        (
            "[[function]]\ngroup = -1\n",
            "line 2, `group = -1`: invalid value: integer `-1`, expected the number of an IOMMU group, 0 to 2147483647",
        ),
        (
            "[[function]]\nreset = \"bus\"\n",
            "line 2, `reset = \"bus\"`: invalid value: string \"bus\", expected one of \"flr\", \"pm\", \"none\"",
        ),
        (
            "[[function]]\nhotplug = true\n",
            "line 2, `hotplug = true`: unknown field `hotplug`, expected one of `address`, `part`, `group`, `driver`, \
             `reset`, `virtual-function-of`, `firmware-mapping`",
        ),
        ("\n\n[[function]]\npart = \"edu\"\n", "line 3, `[[function]]`: missing field `address`"),
        (
            "[bridges]\n",
            "line 1, `[bridges]`: unknown field `bridges`, expected one of `kernel`, `interrupt-remapping`, `dynamic-msix`, \
             `bridge`, `function`, `description`",
        ),
        ("kernel = \"7.3\"\n[[bridge\n", "line 2, `[[bridge`: unclosed array table, expected `]]`"),
    ];
    for (text, expected) in refusals {
        assert_eq!(message(text), expected);
    }
}

#[test]
fn what_is_no_name_of_a_driver_is_refused() {
    for name in ["", "none", "vfio pci", "../vfio-pci", "-"] {
        let found = message(&format!("[[function]]\ndriver = \"{name}\"\n"));
        assert!(found.contains("expected the name of a driver"), "{found}");
    }
}

#[test]
fn two_things_at_one_address_are_refused() {
    let (one, other) = (port(""), function("0000:00:04.0", ""));
    assert_eq!(refusal(&[one, other]), (at("0000:00:04.0"), Problem::AddressTaken(2)));
}

#[test]
fn two_bridges_to_one_bus_are_refused() {
    let other = bridge("0000:00:05.0", "root-port", 1, "");
    assert_eq!(refusal(&[port(""), other]), ("bus = 1".into(), Problem::BusTaken(4)));
}

#[test]
fn a_bus_number_belongs_to_its_segment() {
    let text = [port(""), bridge("0001:00:04.0", "root-port", 1, "")].concat();
    Topology::parse(&text).unwrap();
}

#[test]
fn a_bridge_back_towards_the_root_is_refused() {
    let backwards = bridge("0000:02:00.0", "pci", 1, "");
    assert_eq!(refusal(&[backwards]), ("bus = 1".into(), Problem::BusNotGreater(2)));
}

#[test]
fn a_bus_that_no_bridge_leads_to_is_refused() {
    let expected = Problem::BusMissing { segment: 0, number: 2 };
    let found = refusal(&[port(""), function("0000:02:00.0", "")]);
    assert_eq!(found, (at("0000:02:00.0"), expected.clone()));
    let found = refusal(&[port(""), bridge("0000:02:00.0", "pci", 3, "")]);
    assert_eq!(found, (at("0000:02:00.0"), expected));
    let found = refusal(&[port(""), function("0001:01:00.0", "")]);
    assert_eq!(found, (at("0001:01:00.0"), Problem::BusMissing { segment: 1, number: 1 }));
}

#[test]
fn every_segment_has_a_root_bus() {
    Topology::parse(&function("0001:00:05.0", "")).unwrap();
}

#[test]
fn a_bridge_where_there_can_be_none_of_its_kind_is_refused() {
    let upstream = bridge("0000:01:00.0", "upstream-port", 2, "");
    let downstream = bridge("0000:02:00.0", "downstream-port", 3, "");
    let conventional = bridge("0000:01:00.0", "pci", 2, "");
    let misplaced = [
        (vec![], bridge("0000:01:00.0", "root-port", 2, "")),
        (vec![], bridge("0000:01:00.0", "downstream-port", 2, "")),
        (vec![], bridge("0000:00:05.0", "upstream-port", 2, "")),
        (vec![upstream.clone()], bridge("0000:02:00.0", "pci", 3, "")),
        (vec![upstream.clone()], bridge("0000:02:00.0", "upstream-port", 3, "")),
        (vec![upstream, downstream], bridge("0000:03:00.0", "downstream-port", 4, "")),
        (vec![conventional], bridge("0000:02:00.0", "express-to-pci", 3, "")),
    ];
    for (above, bridge) in misplaced {
        let (text, problem) = refusal(&[vec![port("")], above, vec![bridge]].concat());
        assert!(text.starts_with("kind = "), "{text}");
        assert!(matches!(problem, Problem::BridgeOutOfPlace(_)), "{problem}");
    }
}

#[test]
fn a_function_among_the_ports_of_a_switch_is_refused() {
    let switch = bridge("0000:01:00.0", "upstream-port", 2, "");
    let found = refusal(&[port(""), switch, function("0000:02:00.0", "")]);
    assert_eq!(found, (at("0000:02:00.0"), Problem::InsideSwitch));
}

#[test]
fn a_second_device_behind_an_express_port_is_refused() {
    let first = function("0000:01:00.0", "");
    let found = refusal(&[port(""), first.clone(), function("0000:01:01.0", "")]);
    assert_eq!(found, (at("0000:01:01.0"), Problem::SecondDevice));
    let found = refusal(&[port(""), first, bridge("0000:01:01.0", "pci", 2, "")]);
    assert_eq!(found, (at("0000:01:01.0"), Problem::SecondDevice));
}

#[test]
fn with_ari_a_device_has_more_functions() {
    let text = [port("ari = true"), function("0000:01:00.0", ""), function("0000:01:03.1", "")].concat();
    Topology::parse(&text).unwrap();
}

#[test]
fn a_device_without_its_function_0_is_refused() {
    let missing = |address| Problem::FunctionZeroMissing(address);
    let found = refusal(&[port(""), function("0000:01:00.1", "")]);
    assert_eq!(found, (at("0000:01:00.1"), missing(address("0000:01:00.0"))));
    let found = refusal(&[function("0000:00:05.1", "")]);
    assert_eq!(found, (at("0000:00:05.1"), missing(address("0000:00:05.0"))));
    let found = refusal(&[port("ari = true"), function("0000:01:03.0", "")]);
    assert_eq!(found, (at("0000:01:03.0"), missing(address("0000:01:00.0"))));
}

#[test]
fn what_only_an_express_port_has_is_refused_elsewhere() {
    for (field, name) in
        [("slot-reset = true", "slot-reset"), ("ari = true", "ari"), ("link = \"unconfirmed\"", "link")]
    {
        let found = refusal(&[bridge("0000:00:05.0", "express-to-pci", 1, field)]);
        assert_eq!(found, (field.into(), Problem::NoExpressPort(name)));
    }
}

#[test]
fn a_group_in_two_segments_is_refused() {
    let one = function("0000:00:05.0", "group = 5");
    let other = function("0001:00:05.0", "group = 5");
    let expected = Problem::GroupInTwoSegments { segment: 0, line: 4 };
    assert_eq!(refusal(&[one, other]), ("group = 5".into(), expected));
}

#[test]
fn another_group_than_the_bridges_is_refused_on_a_conventional_bus() {
    let bridge = bridge("0000:01:00.0", "express-to-pci", 2, "group = 5");
    let expected = Problem::GroupNotOfBridge(7);
    let found = refusal(&[port(""), bridge.clone(), function("0000:02:00.0", "group = 6")]);
    assert_eq!(found, ("group = 6".into(), expected.clone()));
    let found = refusal(&[port(""), bridge, function("0000:02:00.0", "")]);
    assert_eq!(found, (at("0000:02:00.0"), expected));
}

#[test]
fn a_virtual_function_of_nothing_is_refused() {
    let field = "virtual-function-of = \"0000:01:00.0\"";
    let found = refusal(&[port(""), function("0000:01:10.0", field)]);
    assert_eq!(found, (field.into(), Problem::PhysicalFunctionMissing(address("0000:01:00.0"))));
}

#[test]
fn a_virtual_function_of_a_virtual_one_is_refused() {
    let field = "virtual-function-of = \"0000:01:10.0\"";
    let found = refusal(&[
        port(""),
        function("0000:01:00.0", ""),
        function("0000:01:10.0", "virtual-function-of = \"0000:01:00.0\""),
        function("0000:01:10.1", field),
    ]);
    assert_eq!(found, (field.into(), Problem::PhysicalFunctionVirtual(address("0000:01:10.0"))));
}

#[test]
fn a_virtual_function_far_from_its_physical_one_is_refused() {
    let field = "virtual-function-of = \"0000:02:00.0\"";
    let ports =
        [port(""), bridge("0000:00:05.0", "root-port", 2, ""), bridge("0000:00:06.0", "root-port", 3, "")];
    for elsewhere in ["0000:00:10.0", "0000:01:10.0", "0000:03:10.0", "0001:02:10.0"] {
        let functions = [function("0000:02:00.0", ""), function(elsewhere, field)];
        let found = refusal(&[ports.as_slice(), &functions].concat());
        assert_eq!(found, (at(elsewhere), Problem::VirtualFunctionElsewhere));
    }
    let made_up = [function("0000:02:00.0", ""), function("0000:04:10.0", field)];
    Topology::parse(&[ports.as_slice(), &made_up].concat().concat()).unwrap();
}

#[test]
fn a_firmware_mapping_without_an_iommu_is_refused() {
    let found = refusal(&[port(""), function("0000:01:00.0", "firmware-mapping = true")]);
    assert_eq!(found, ("firmware-mapping = true".into(), Problem::FirmwareMappingWithoutGroup));
}

#[test]
fn a_file_that_does_not_load_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("machine.toml");
    assert!(matches!(Topology::load(&path), Err(LoadError::Unreadable { .. })));
    std::fs::write(&path, "[[function]]\npart = \"gpu\"\n").unwrap();
    let error = Topology::load(&path).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: line 2, `part = \"gpu\"`", path.display())), "{error}");
}
