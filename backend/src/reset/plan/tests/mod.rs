// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod kernel;
mod machine;
mod properties;

use vfio::OwnReset;

use self::machine::{Builder, address};
use super::*;

/// What VM `a` is to have.
fn assignment(functions: &[&str]) -> Assignment {
    named("a", functions)
}

fn named(vm: &str, functions: &[&str]) -> Assignment {
    Assignment { vm: vm.into(), functions: functions.iter().copied().map(address).collect() }
}

/// The plan for one VM.
fn plan(hierarchy: &Hierarchy, functions: &[&str]) -> VmPlan {
    Plan::new(hierarchy, &[assignment(functions)], None).vms.remove(0)
}

/// The names of what stays in the way of the first device.
fn obstacles(plan: &VmPlan) -> Vec<&'static str> {
    plan.devices[0].obstacles.iter().map(|obstacle| obstacle.reason.id()).collect()
}

fn changes(plan: &VmPlan) -> Vec<(&'static str, String)> {
    plan.changes.iter().map(|change| (change.id(), change.function().to_string())).collect()
}

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";
const THIRD: &str = "0000:01:00.2";

/// One slot: a function that cannot be reset alone, and beside it one that can, each in a group of its own.
fn card() -> Builder {
    Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", &[]).function(
        SECOND,
        6,
        "vfio-pci",
        &[OwnReset::FunctionLevel],
    )
}

#[test]
fn a_function_that_can_be_reset_alone_needs_nobody() {
    let plan = plan(&card().build(), &[SECOND]);
    assert_eq!(plan.verdict(), Verdict::Works);
    assert_eq!(plan.devices[0].reset, Some(WorkingReset::Function(OwnReset::FunctionLevel)));
    assert_eq!(plan.changes, []);
}

#[test]
fn a_sibling_of_another_group_has_to_be_handed_over_too() {
    let plan = plan(&card().build(), &[FIRST]);
    assert_eq!(plan.verdict(), Verdict::WorksWithChanges);
    assert_eq!(changes(&plan), [("hand-over", SECOND.to_owned())]);
    assert_eq!(plan.additional().collect::<Vec<_>>(), [address(SECOND)]);
    assert_eq!(plan.devices[0].reset, Some(WorkingReset::Hot));
}

#[test]
fn a_sibling_of_the_same_group_is_owned_by_implication() {
    let pair = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", &[]).function(
        SECOND,
        5,
        "vfio-pci",
        &[],
    );
    let plan = plan(&pair.build(), &[FIRST]);
    assert_eq!(plan.verdict(), Verdict::Works);
    assert_eq!(plan.functions[1].owned, Owned::Implied);
}

#[test]
fn a_sibling_without_a_driver_has_to_be_bound() {
    let pair = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", &[]).function(
        SECOND,
        5,
        "",
        &[],
    );
    let plan = plan(&pair.build(), &[FIRST]);
    assert_eq!(plan.verdict(), Verdict::WorksWithChanges);
    assert_eq!(changes(&plan), [("bind", SECOND.to_owned())], "and need not be handed over");
}

#[test]
fn a_host_driver_has_to_let_go_first() {
    let card = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", &[]).function(
        SECOND,
        6,
        "igb",
        &[OwnReset::FunctionLevel],
    );
    let plan = plan(&card.build(), &[FIRST]);
    let expected = ["unbind", "bind", "hand-over"].map(|change| (change, SECOND.to_owned()));
    assert_eq!(changes(&plan), expected);
    assert_eq!(obstacles(&plan), ["kernel-driver", "not-handed-over"]);
}

#[test]
fn a_host_driver_in_the_group_is_in_the_way_of_binding_and_need_not_be_replaced() {
    let two_slots = Builder::new()
        .port("0000:00:04.0", 1)
        .port("0000:00:05.0", 2)
        .function(FIRST, 5, "vfio-pci", &[OwnReset::FunctionLevel])
        .function("0000:02:00.0", 5, "nvme", &[OwnReset::FunctionLevel]);
    let plan = plan(&two_slots.build(), &[FIRST]);
    assert_eq!(obstacles(&plan), ["sibling-has-driver"]);
    assert_eq!(changes(&plan), [("unbind", "0000:02:00.0".to_owned())]);
}

#[test]
fn a_stub_in_the_group_is_not_in_the_way_of_binding() {
    let card = Builder::new()
        .port("0000:00:04.0", 1)
        .function(FIRST, 5, "vfio-pci", &[OwnReset::FunctionLevel])
        .function(SECOND, 5, "pci-stub", &[]);
    assert_eq!(plan(&card.build(), &[FIRST]).verdict(), Verdict::Works);
}

#[test]
fn the_device_itself_is_bound_too() {
    let card = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "nvme", &[OwnReset::FunctionLevel]);
    let plan = plan(&card.build(), &[FIRST]);
    assert_eq!(changes(&plan), [("unbind", FIRST.to_owned()), ("bind", FIRST.to_owned())]);
}

#[test]
fn a_bridge_in_the_scope_stays() {
    let switch = Builder::new()
        .port("0000:00:04.0", 1)
        .bridge(FIRST, 2)
        .function(SECOND, 5, "vfio-pci", &[])
        .function("0000:02:00.0", 6, "vfio-pci", &[]);
    let plan = plan(&switch.build(), &[SECOND]);
    assert_eq!(plan.verdict(), Verdict::Cannot);
    assert_eq!(obstacles(&plan), ["bridge", "other-scope"]);
    assert_eq!(plan.changes, [], "nothing is asked for in vain");
}

#[test]
fn a_function_on_the_root_bus_cannot_be_reset_with_others() {
    let machine = Builder::new().function("0000:00:05.0", 1, "vfio-pci", &[]).build();
    assert_eq!(obstacles(&plan(&machine, &["0000:00:05.0"])), ["no-slot-or-bus-reset"]);
}

#[test]
fn a_virtual_function_resets_alone_and_keeps_its_neighbours_from_being_reset() {
    let machine = card().virtual_function("0000:01:10.0", SECOND, 7).build();
    assert_eq!(plan(&machine, &["0000:01:10.0"]).verdict(), Verdict::Works);
    assert_eq!(obstacles(&plan(&machine, &[FIRST, SECOND])), ["virtual-function"]);
    let hot = Plan::new(&machine, &[assignment(&["0000:01:10.0"])], Some(ResetMethod::Hot));
    assert_eq!(hot.verdict(), Verdict::Cannot);
}

#[test]
fn a_function_with_virtual_ones_is_not_taken_from_the_host() {
    let machine = Builder::new()
        .port("0000:00:04.0", 1)
        .function(FIRST, 5, "igb", &[OwnReset::FunctionLevel])
        .virtual_function("0000:02:10.0", FIRST, 6)
        .build();
    assert_eq!(obstacles(&plan(&machine, &[FIRST])), ["has-virtual-functions"]);
}

#[test]
fn what_cannot_be_is_said() {
    let machine = card().build();
    assert_eq!(obstacles(&plan(&machine, &["0000:09:00.0"])), ["no-such-function"]);
    assert_eq!(obstacles(&plan(&machine, &["0000:00:04.0"])), ["bridge-handed-over"]);
    let function = Plan::new(&machine, &[assignment(&[FIRST])], Some(ResetMethod::Function));
    assert_eq!(obstacles(&function.vms[0]), ["no-function-reset"]);
}

#[test]
fn what_keeps_the_whole_machine_or_group_from_being_bound_is_said() {
    let flr = &[OwnReset::FunctionLevel];
    let one = || Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", flr);
    assert_eq!(obstacles(&plan(&one().firmware_mapping(5).build(), &[FIRST])), ["firmware-mapping"]);
    assert_eq!(obstacles(&plan(&one().unsafe_interrupts().build(), &[FIRST])), ["no-interrupt-remapping"]);
    assert_eq!(obstacles(&plan(&one().without_iommu(FIRST).build(), &[FIRST])), ["no-iommu"]);
    assert_eq!(obstacles(&plan(&one().without_node(FIRST).build(), &[FIRST])), ["no-cdev"]);
}

#[test]
fn without_an_iommu_nothing_is_owned_by_implication() {
    let pair = card().no_iommu_group(FIRST).no_iommu_group(SECOND).unsafe_interrupts();
    let plan = plan(&pair.build(), &[FIRST]);
    assert_eq!(changes(&plan), [("hand-over", SECOND.to_owned())]);
}

#[test]
fn one_function_of_each_group_is_enough() {
    let card = card().function(THIRD, 6, "vfio-pci", &[]).function("0000:01:00.3", 7, "vfio-pci", &[]);
    let plan = plan(&card.build(), &[FIRST]);
    assert_eq!(plan.additional().collect::<Vec<_>>(), [address(SECOND), address("0000:01:00.3")]);
}

#[test]
fn two_vms_that_share_a_scope_are_both_named() {
    let hierarchy = Builder::new()
        .port("0000:00:04.0", 1)
        .function(FIRST, 5, "vfio-pci", &[])
        .function(SECOND, 6, "vfio-pci", &[])
        .build();
    let plan = Plan::new(&hierarchy, &[named("a", &[FIRST]), named("b", &[SECOND])], None);
    for (vm, other, its) in [(0, "b", SECOND), (1, "a", FIRST)] {
        let reason = Reason::OtherVm { vm: other.into(), has: address(its) };
        assert_eq!(plan.vms[vm].devices[0].obstacles, [Obstacle { function: address(its), reason }]);
        assert_eq!(plan.vms[vm].verdict(), Verdict::Cannot);
    }
}

#[test]
fn two_vms_that_share_a_group_cannot_even_bind() {
    let flr = &[OwnReset::FunctionLevel];
    let hierarchy = Builder::new()
        .port("0000:00:04.0", 1)
        .port("0000:00:05.0", 2)
        .function(FIRST, 5, "vfio-pci", flr)
        .function("0000:02:00.0", 5, "vfio-pci", flr)
        .build();
    let plan = Plan::new(&hierarchy, &[named("a", &[FIRST]), named("b", &["0000:02:00.0"])], None);
    assert_eq!(plan.verdict(), Verdict::Cannot);
    assert_eq!(obstacles(&plan.vms[0]), ["other-vm"]);
}

#[test]
fn two_vms_with_a_slot_between_them_still_reset_function_by_function() {
    let flr = &[OwnReset::FunctionLevel];
    let hierarchy = Builder::new()
        .port("0000:00:04.0", 1)
        .function(FIRST, 5, "vfio-pci", flr)
        .function(SECOND, 6, "vfio-pci", flr)
        .build();
    let plan = Plan::new(&hierarchy, &[named("a", &[FIRST]), named("b", &[SECOND])], None);
    assert_eq!(plan.verdict(), Verdict::Works);
    assert_eq!(plan.vms[0].devices[0].hot_reset_obstacles[0].reason.id(), "other-vm");
}

#[test]
fn a_power_management_reset_comes_last() {
    let pm = &[OwnReset::PowerManagement];
    let alone = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", pm);
    assert_eq!(plan(&alone.clone().build(), &[FIRST]).devices[0].reset, Some(WorkingReset::Hot));
    let blocked = alone.function(SECOND, 6, "vfio-pci", pm).build();
    let plan = plan(&blocked, &[FIRST]);
    assert_eq!(plan.devices[0].reset, Some(WorkingReset::Function(OwnReset::PowerManagement)));
    assert_eq!(plan.verdict(), Verdict::Works);
}

#[test]
fn a_hot_reset_can_be_insisted_on() {
    let plan = Plan::new(&card().build(), &[assignment(&[SECOND])], Some(ResetMethod::Hot));
    assert_eq!(changes(&plan.vms[0]), [("hand-over", FIRST.to_owned())]);
}

#[test]
fn the_table_tells_of_every_function_whose_it_is_and_what_to_do() {
    let card = card().function(THIRD, 7, "igb", &[]).build();
    let assignments = [named("a", &[FIRST]), named("b", &[SECOND])];
    let plan = Plan::new(&card, &assignments, None);
    let rows: Vec<_> = plan.vms[0].functions.iter().map(|row| (&row.owned, row.reasons.len())).collect();
    assert_eq!(rows, [(&Owned::HandedOver(1), 0), (&Owned::OtherVm("b".into()), 1), (&Owned::No, 2)]);
    assert!(plan.vms[0].functions[1].advice.contains("one VM"), "{:?}", plan.vms[0].functions[1]);
}

#[test]
fn what_the_kernel_does_not_list_is_doubted() {
    let hidden = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", &[]);
    assert_eq!(plan(&hidden.build(), &[FIRST]).devices[0].doubts, [Doubt::BusResetNotListed]);
    let listed = Builder::new().port("0000:00:04.0", 1).function(FIRST, 5, "vfio-pci", &[OwnReset::Bus]);
    assert_eq!(plan(&listed.build(), &[FIRST]).devices[0].doubts, []);
}

#[test]
fn a_slot_with_more_than_one_device_number_is_doubted() {
    let slot = Builder::new()
        .slot("0000:00:04.0", 1)
        .function(FIRST, 5, "vfio-pci", &[OwnReset::Bus])
        .function("0000:01:03.0", 5, "vfio-pci", &[]);
    assert_eq!(plan(&slot.build(), &[FIRST]).devices[0].doubts, [Doubt::BeyondDeviceZero]);
}
