// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use vfio::topology::{Driver, Function};
use vfio::{GroupKind, OwnReset};

use super::*;

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn place(at: &str, above: Option<&str>, bus: Option<u8>, group: u32, driver: &str) -> Place {
    let driver = match driver {
        "vfio-pci" => Driver::Vfio { name: driver.into(), device: "vfio0".into() },
        _ => Driver::Kernel(driver.into()),
    };
    Place {
        function: Function {
            address: address(at),
            vendor: 0x8086,
            device: 0x10c9,
            class: 0x02_0000,
            header_type: u8::from(bus.is_some()),
            iommu_group: Some(group),
            driver,
            is_virtual: false,
        },
        bridge: above.map(address),
        secondary_bus: bus,
        slot: None,
        physical_function: None,
        own_resets: vec![OwnReset::FunctionLevel],
        has_node: false,
    }
}

/// A function beside a switch, whose group goes through it, and another slot.
fn machine(driver: &str) -> Hierarchy {
    let places = [
        place("0000:00:04.0", None, Some(1), 1, "pcieport"),
        place("0000:00:05.0", None, Some(9), 2, "pcieport"),
        place("0000:01:00.0", Some("0000:00:04.0"), Some(2), 5, "pcieport"),
        place("0000:01:00.1", Some("0000:00:04.0"), None, 5, driver),
        place("0000:02:00.0", Some("0000:01:00.0"), None, 5, "vfio-pci"),
        place("0000:02:00.1", Some("0000:01:00.0"), None, 6, "vfio-pci"),
        place("0000:09:00.0", Some("0000:00:05.0"), None, 7, "nvme"),
    ];
    let groups = [1, 2, 5, 6, 7].map(|group| (group, GroupKind::Isolated { firmware_mapping: false }));
    Hierarchy::new(places, groups.into(), true)
}

fn mark(function: PciAddress) -> Mark {
    let blocks = function == address("0000:01:00.0");
    Mark { text: if blocks { "blocks: bridge".into() } else { String::new() }, blocks }
}

#[test]
fn the_tree_shows_how_scopes_and_groups_overlap() {
    let drawing = Drawing::new(&machine("igb"), &[address("0000:01:00.1")], mark);
    let expected = "                                                                        reset  group
0000:00:04.0        bridge to bus 01   pcieport                                    1
├─ 0000:01:00.0     bridge to bus 02   pcieport         blocks: bridge    A        5 ┐
│  ├─ 0000:02:00.0  network 8086:10c9  vfio-pci  vfio0                  B ┤        5 ┤
│  └─ 0000:02:00.1  network 8086:10c9  vfio-pci  vfio0                  ┘ ┤        6 │
└─ 0000:01:00.1     network 8086:10c9  igb                                ┘        5 ┘

A: bus 0000:01 behind 0000:00:04.0 can never be reset as a whole
B: bus 0000:02 behind 0000:01:00.0 is reset as a whole
";
    assert_eq!(drawing.text(), expected, "nothing else has to do with it");
}

#[test]
fn columns_line_up() {
    let text = Drawing::new(&machine("igb"), &[], mark).text();
    let lines: Vec<_> = text.lines().map(|line| line.chars().collect::<Vec<_>>()).collect();
    let place = |line: &Vec<char>, driver: &str| {
        let line: String = line.iter().collect();
        line.find(driver).map(|at| line[..at].chars().count())
    };
    let drivers = lines.iter().filter_map(|line| place(line, "pcieport").or(place(line, "vfio-pci")));
    let places: BTreeSet<_> = drivers.collect();
    assert_eq!(places.len(), 1, "{text}");
}

#[test]
fn the_whole_machine_is_drawn_without_a_focus() {
    let drawing = Drawing::new(&machine("igb"), &[], mark);
    assert_eq!(drawing.rows.len(), 7);
    assert_eq!(drawing.scopes.iter().map(|scope| scope.name.as_str()).collect::<Vec<_>>(), ["A", "B", "C"]);
}

#[test]
fn spans_that_overlap_are_in_different_lanes() {
    let drawing = Drawing::new(&machine("igb"), &[], mark);
    for one in &drawing.scopes {
        for other in &drawing.scopes {
            let is_clear = one.name == other.name || !one.span.overlaps(&other.span);
            assert!(is_clear || one.span.lane != other.span.lane, "{one:?} {other:?}");
        }
    }
}

#[test]
fn letters_go_on_after_the_last() {
    assert_eq!([0, 25, 26, 51, 52].map(letters), ["A", "Z", "AA", "AZ", "BA"]);
}

/// Panics unless every element is closed, in order, and every ampersand begins an entity.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap();
        assert!(!text.contains('>'), "{part}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "{part}"),
            (false, true) => {}
            (false, false) => open.push(name),
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{part}");
    }
    assert!(open.is_empty(), "{open:?}");
    for entity in svg.split('&').skip(1) {
        assert!(["amp;", "lt;", "gt;", "quot;", "apos;"].iter().any(|known| entity.starts_with(known)));
    }
}

#[test]
fn the_picture_is_well_formed_whatever_a_driver_is_called() {
    let svg = Drawing::new(&machine("<&\"'>\u{1b}"), &[], mark).svg();
    assert_well_formed(&svg);
    assert!(svg.contains("&lt;&amp;&quot;&apos;&gt; "), "{svg}");
    assert!(svg.starts_with("<svg xmlns="));
}

#[test]
fn the_picture_has_a_box_for_each_scope_and_a_line_for_each_shared_group() {
    let svg = Drawing::new(&machine("igb"), &[], mark).svg();
    assert_eq!(svg.matches("class=\"scope\"").count(), 2, "{svg}");
    assert_eq!(svg.matches("class=\"never\"").count(), 1, "{svg}");
    assert_eq!(svg.matches("<title>IOMMU group 5</title>").count(), 1, "{svg}");
    assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
    assert!(svg.contains("class=\"blocks\">blocks: bridge<"), "{svg}");
}

#[test]
fn nothing_is_drawn_of_nothing() {
    let drawing = Drawing::new(&Hierarchy::default(), &[address("0000:09:00.0")], mark);
    assert_well_formed(&drawing.svg());
    assert!(drawing.rows.is_empty());
}
