// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What holds of every plan on every machine.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use vfio::{GroupKind, OwnReset};

use super::kernel::Kernel;
use super::machine::{Builder, address};
use crate::reset::plan::*;

/// Where functions can be: on a card with a switch, in a slot, beside both.
const PLACES: [&str; 7] = [
    "0000:01:00.0",
    "0000:01:00.1",
    "0000:01:00.2",
    "0000:02:00.0",
    "0000:03:00.0",
    "0000:03:00.1",
    "0000:00:05.0",
];
const VIRTUAL: &str = "0000:01:10.0";
const SWITCH: &str = "0000:01:00.4";

/// What is at one of the places.
#[derive(Clone, Debug)]
struct Occupant {
    at: &'static str,
    group: u32,
    driver: &'static str,
    own_resets: Vec<OwnReset>,
    isolation: Isolation,
}

#[derive(Clone, Copy, Debug)]
enum Isolation {
    Group,
    NoIommu,
    NoIommuGroup { has_node: bool },
}

fn occupant(at: &'static str) -> impl Strategy<Value = Option<Occupant>> {
    let own_resets = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![OwnReset::Bus]),
        1 => Just(vec![OwnReset::PowerManagement, OwnReset::Bus]),
        1 => Just(vec![OwnReset::FunctionLevel, OwnReset::PowerManagement]),
    ];
    let isolation = prop_oneof![
        12 => Just(Isolation::Group),
        1 => Just(Isolation::NoIommu),
        2 => any::<bool>().prop_map(|has_node| Isolation::NoIommuGroup { has_node }),
    ];
    let driver = select(vec!["vfio-pci", "vfio-pci", "vfio-pci", "", "igb", "pci-stub"]);
    let occupant =
        (1_u32..5, driver, own_resets, isolation).prop_map(move |(group, driver, own_resets, isolation)| {
            Occupant { at, group, driver, own_resets, isolation }
        });
    prop::option::weighted(0.7, occupant)
}

fn machine() -> impl Strategy<Value = Hierarchy> {
    let occupants: Vec<_> = PLACES.into_iter().map(occupant).collect();
    let rarely = || prop::bool::weighted(0.1);
    let mapped = prop::option::weighted(0.1, 1_u32..5);
    (occupants, any::<bool>(), prop::bool::weighted(0.3), rarely(), rarely(), mapped).prop_map(
        |(occupants, has_slot, has_switch, has_virtual, has_unsafe_interrupts, mapped)| {
            let port = if has_slot { Builder::slot } else { Builder::port };
            let mut machine = port(Builder::new(), "0000:00:04.0", 1).port("0000:00:06.0", 3);
            if has_switch {
                machine = machine.bridge(SWITCH, 2);
            }
            let occupants: Vec<_> = occupants.into_iter().flatten().collect();
            for occupant in &occupants {
                // Without the switch there is no bus 2.
                if occupant.at.starts_with("0000:02") && !has_switch {
                    continue;
                }
                let Occupant { at, group, driver, own_resets, isolation } = occupant;
                machine = machine.function(at, *group, driver, own_resets);
                machine = match isolation {
                    Isolation::Group => machine,
                    Isolation::NoIommu => machine.without_iommu(at),
                    Isolation::NoIommuGroup { has_node: true } => machine.no_iommu_group(at),
                    Isolation::NoIommuGroup { has_node: false } => {
                        machine.no_iommu_group(at).without_node(at)
                    }
                };
            }
            if has_virtual && occupants.iter().any(|occupant| occupant.at == PLACES[0]) {
                machine = machine.virtual_function(VIRTUAL, PLACES[0], 9);
            }
            if has_unsafe_interrupts {
                machine = machine.unsafe_interrupts();
            }
            mapped.into_iter().fold(machine, Builder::firmware_mapping).build()
        },
    )
}

/// Two VMs with some of the functions each; seldom one function in both, or what is none.
fn assignments() -> impl Strategy<Value = Vec<Assignment>> {
    let all = [&PLACES[..], &[VIRTUAL, SWITCH]].concat();
    let shares =
        prop::collection::vec(prop_oneof![8 => Just(0), 4 => Just(1), 3 => Just(2), 1 => Just(3)], all.len());
    shares.prop_map(move |shares| {
        let share = |vm| {
            let of_it = all.iter().zip(&shares).filter(|(_, share)| **share & vm != 0);
            of_it.map(|(at, _)| address(at)).collect()
        };
        vec![
            Assignment { vm: "a".into(), functions: share(1) },
            Assignment { vm: "b".into(), functions: share(2) },
        ]
    })
}

fn wanted() -> impl Strategy<Value = Option<ResetMethod>> {
    select(vec![None, None, Some(ResetMethod::Hot), Some(ResetMethod::Function)])
}

/// The functions that are there, of those assigned.
fn existing(machine: &Hierarchy, assignments: Vec<Assignment>) -> Vec<Assignment> {
    let is_there = |function: &PciAddress| machine.place(*function).is_some();
    let keep = |assignment: Assignment| Assignment {
        functions: assignment.functions.into_iter().filter(is_there).collect(),
        ..assignment
    };
    assignments.into_iter().map(keep).collect()
}

/// What is after these changes, each for its VM.
fn after<'a>(
    machine: &Hierarchy,
    assignments: &[Assignment],
    changes: impl IntoIterator<Item = (usize, &'a Change)>,
) -> (Hierarchy, Vec<Assignment>) {
    let (mut machine, mut assignments) = (machine.clone(), assignments.to_vec());
    for (vm, change) in changes {
        match change {
            Change::Unbind { function, .. } => machine.set_driver(*function, Driver::None),
            Change::Bind { function } => machine.set_driver(*function, vfio_pci()),
            Change::HandOver { function } => assignments[vm].functions.push(*function),
        }
    }
    (machine, assignments)
}

fn vfio_pci() -> Driver {
    Driver::Vfio { name: "vfio-pci".into(), device: "vfio".into() }
}

fn all_changes(plan: &Plan) -> Vec<(usize, &Change)> {
    let vms = plan.vms.iter().enumerate();
    vms.flat_map(|(vm, plan)| plan.changes.iter().map(move |change| (vm, change))).collect()
}

/// The machine with VFIO wherever it can be: what is left is who is handed what.
fn ideal(machine: &Hierarchy) -> Hierarchy {
    let mut ideal = machine.clone();
    for place in machine.places().filter(|place| !place.is_bridge()) {
        let address = place.function.address;
        let is_bound = matches!(place.function.driver, Driver::Vfio { .. });
        let has_virtual_functions = machine.virtual_functions(address).next().is_some();
        match (is_bound, has_virtual_functions) {
            (true, _) => {}
            (false, true) => ideal.set_driver(address, Driver::None),
            (false, false) => ideal.set_driver(address, vfio_pci()),
        }
    }
    ideal
}

/// The least number of functions that have to be handed over in addition, by trying every choice; `None` if none works.
fn least_additional(
    machine: &Hierarchy,
    assignments: &[Assignment],
    wanted: Option<ResetMethod>,
) -> Option<usize> {
    let machine = ideal(machine);
    let endpoints = machine.places().filter(|place| !place.is_bridge()).map(|place| place.function.address);
    let is_free = |function: &PciAddress| !assignments.iter().any(|vm| vm.functions.contains(function));
    let free: Vec<_> = endpoints.filter(is_free).collect();
    let choices = assignments.len() + 1;
    let works = |choice: usize| {
        let (mut assignments, mut rest, mut count) = (assignments.to_vec(), choice, 0);
        for function in &free {
            if let Some(assignment) = assignments.get_mut(rest % choices) {
                assignment.functions.push(*function);
                count += 1;
            }
            rest /= choices;
        }
        let kernel = Kernel { machine: &machine, assignments: &assignments };
        kernel.all_work(wanted).then_some(count)
    };
    (0..choices.pow(u32::try_from(free.len()).unwrap())).filter_map(works).min()
}

proptest! {
    #[test]
    fn what_works_as_it_is_works_by_the_kernels_rules_and_nothing_else_does(
        machine in machine(), assignments in assignments(), wanted in wanted()
    ) {
        let plan = Plan::new(&machine, &assignments, wanted);
        let kernel = Kernel { machine: &machine, assignments: &assignments };
        for (vm, plan) in plan.vms.iter().enumerate() {
            prop_assert_eq!(plan.verdict() == Verdict::Works, kernel.works(vm, wanted), "{:?}", plan);
        }
    }

    #[test]
    fn what_works_with_changes_works_after_them(
        machine in machine(), assignments in assignments(), wanted in wanted()
    ) {
        let plan = Plan::new(&machine, &assignments, wanted);
        let (machine, assignments) = after(&machine, &assignments, all_changes(&plan));
        let kernel = Kernel { machine: &machine, assignments: &assignments };
        let planned_again = Plan::new(&machine, &assignments, wanted);
        for (vm, plan) in plan.vms.iter().enumerate() {
            let works = plan.verdict() != Verdict::Cannot;
            prop_assert_eq!(kernel.works(vm, wanted), works, "{:?}", plan);
            prop_assert_eq!(planned_again.vms[vm].verdict() == Verdict::Works, works);
        }
        prop_assert_eq!(all_changes(&planned_again), vec![]);
    }

    #[test]
    fn no_change_can_be_left_out(machine in machine(), assignments in assignments(), wanted in wanted()) {
        let plan = Plan::new(&machine, &assignments, wanted);
        let changes = all_changes(&plan);
        for (left_out, (vm, change)) in changes.iter().enumerate() {
            // A function that is bound was taken from its driver before.
            let is_bound_later = changes[left_out + 1..].iter().any(|(_, later)| {
                matches!(later, Change::Bind { function } if *function == change.function())
            });
            if is_bound_later || plan.vms[*vm].verdict() == Verdict::Cannot {
                continue;
            }
            let others = changes.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, change)| *change);
            let (machine, assignments) = after(&machine, &assignments, others);
            let kernel = Kernel { machine: &machine, assignments: &assignments };
            prop_assert!(!kernel.works(*vm, wanted), "{:?} is needless", change);
        }
    }

    #[test]
    fn no_smaller_set_of_additional_functions_is_enough(
        machine in machine(), assignments in assignments(), wanted in wanted()
    ) {
        let assignments = existing(&machine, assignments);
        let plan = Plan::new(&machine, &assignments, wanted);
        let additional: usize = plan.vms.iter().map(|plan| plan.additional().count()).sum();
        let planned = (plan.verdict() != Verdict::Cannot).then_some(additional);
        prop_assert_eq!(planned, least_additional(&machine, &assignments, wanted), "{:?}", plan);
    }

    #[test]
    fn what_never_works_says_why(machine in machine(), assignments in assignments(), wanted in wanted()) {
        for vm in Plan::new(&machine, &assignments, wanted).vms {
            for device in vm.devices {
                let is_hopeless = device.verdict == Verdict::Cannot;
                prop_assert_eq!(is_hopeless, device.reset.is_none());
                prop_assert!(!is_hopeless || !device.obstacles.is_empty());
                for obstacle in &device.obstacles {
                    prop_assert!(!is_hopeless || obstacle.is_permanent() && !obstacle.advice().is_empty());
                    prop_assert!(obstacle.sentence().contains(&obstacle.function.to_string()));
                }
            }
        }
    }
}

#[test]
fn machines_without_an_iommu_are_among_those_tried() {
    // So that the properties above do not hold for want of cases.
    let mut runner = TestRunner::deterministic();
    let mut machines = (0..50).map(|_| machine().new_tree(&mut runner).unwrap().current());
    assert!(machines.any(|machine| {
        let mut groups = machine.places().filter_map(|place| machine.group(place.function.iommu_group?));
        groups.any(|kind| kind == GroupKind::NoIommu)
    }));
}
