// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One server, and anything that can happen to it in any order.

use proptest::prelude::*;

use super::world::{DEVICES, Deed, Slot, Surroundings, World};
use super::*;

fn slot() -> impl Strategy<Value = Slot> {
    let function_reset = prop_oneof![
        3 => Just(FunctionReset::None),
        1 => Just(FunctionReset::PowerManagement),
        1 => Just(FunctionReset::Full),
    ];
    (function_reset, 0..2_usize).prop_map(|(function_reset, set)| Slot { function_reset, set })
}

fn surroundings() -> impl Strategy<Value = Surroundings> {
    prop_oneof![
        6 => Just(Surroundings::Nothing),
        1 => Just(Surroundings::ImpliedFunction),
        1 => Just(Surroundings::BlockingFunction),
        1 => Just(Surroundings::NoReset),
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let device = 1..=DEVICES;
    let method = prop_oneof![
        3 => Just(None),
        1 => Just(Some(ResetMethod::Function)),
        1 => Just(Some(ResetMethod::Hot)),
    ];
    let demand = prop_oneof![3 => Just(Demand::Clean), 1 => Just(Demand::Reset)];
    let policy = prop_oneof![Just(ResetPolicy::Function), Just(ResetPolicy::Group), Just(ResetPolicy::Force)];
    let usage = prop_oneof![
        Just(Usage::Free),
        (1..3_u64).prop_map(|vm| Usage::Still(Vm(vm))),
        (1..3_u64).prop_map(|vm| Usage::Active(Vm(vm))),
    ];
    let errno = prop_oneof![
        12 => Just(None),
        2 => Just(Some(Errno::BUSY)),
        1 => Just(Some(Errno::AGAIN)),
        1 => Just(Some(Errno::IO)),
    ];
    prop_oneof![
        6 => (device.clone(), method, demand, policy, 0..8000_u64, prop_oneof![Just(0), 0..5000_u64]).prop_map(
            |(device, method, demand, policy, patience, grace)| Deed::Ask { device, method, demand, policy, patience, grace }
        ),
        16 => (any::<usize>(), errno).prop_map(|(which, errno)| Deed::Kernel { which, errno }),
        2 => device.clone().prop_map(Deed::Touch),
        2 => (device.clone(), usage).prop_map(|(device, usage)| Deed::Use(device, usage)),
        1 => device.clone().prop_map(Deed::Remove),
        1 => device.prop_map(Deed::Add),
        3 => prop_oneof![0..30_u64, 0..6000_u64].prop_map(Deed::Wait),
    ]
}

fn world() -> impl Strategy<Value = (Vec<Slot>, Vec<Surroundings>)> {
    let slots = prop::collection::vec(slot(), usize::try_from(DEVICES).unwrap());
    (slots, prop::collection::vec(surroundings(), 2))
}

proptest! {
    #[test]
    fn whatever_happens_in_whatever_order_ends_well(
        (slots, surroundings) in world(),
        deeds in prop::collection::vec(deed(), 0..120),
        is_abandoned in any::<bool>(),
    ) {
        let mut world = World::new(slots, surroundings);
        for deed in deeds {
            world.do_deed(deed);
        }
        if is_abandoned {
            world.be_abandoned();
        }
        world.come_to_rest();
    }

    #[test]
    fn requests_in_one_epoch_cause_one_reset(
        asks in prop::collection::vec((1..=4_u64, 0..8_usize), 1..30),
    ) {
        let mut desk = Desk::with_group(4);
        let mut requests = Vec::new();
        for (device, steps) in asks {
            requests.push(desk.ask(device));
            for _ in 0..steps.min(desk.steps.len()) {
                desk.step();
            }
        }
        desk.run();
        prop_assert_eq!(desk.attempts.len(), 1);
        for request in requests {
            prop_assert_eq!(desk.report(request).reset.epoch, Epoch(1));
        }
    }
}
