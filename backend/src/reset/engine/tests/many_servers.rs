// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several servers and their broker, and anything that can happen to them in any order.

use proptest::prelude::*;

use super::house::House;
use super::*;

#[derive(Clone, Copy, Debug)]
enum Deed {
    Ask { device: u64, policy: ResetPolicy, deadline: u64 },
    Move { which: usize, errno: Option<Errno> },
    Touch(u64),
    Use(u64, bool),
    Kill(u64),
    Hang(u64),
    KillBroker,
    ConnectBroker,
    Wait(u64),
}

/// Who has the device, if they live and are well.
fn holder(house: &House, device: u64) -> Option<u64> {
    let mut holders = house.servers.iter().filter(|(_, server)| !server.is_hung);
    holders.find(|(_, server)| server.devices.contains(&device)).map(|(number, _)| *number)
}

fn is_well(house: &House, server: u64) -> bool {
    house.servers.get(&server).is_some_and(|server| !server.is_hung)
}

fn do_deed(house: &mut House, asked: &mut Vec<(u64, RequestId)>, deed: Deed) {
    match deed {
        Deed::Ask { device, policy, deadline } => {
            if let Some(server) = holder(house, device) {
                let request = house.ask_with(server, device, policy, Duration::from_millis(deadline));
                asked.push((server, request));
            }
        }
        Deed::Move { which, errno } => {
            let moves = house.moves();
            if !moves.is_empty() {
                house.make(moves[which % moves.len()], errno);
            }
        }
        Deed::Touch(device) => {
            if let Some(server) = holder(house, device) {
                house.tell(server, Event::Touched(Cookie(device)));
            }
        }
        Deed::Use(device, is_active) => {
            if let Some(server) = holder(house, device) {
                let vm = Vm(device);
                let usage = if is_active { Usage::Active(vm) } else { Usage::Still(vm) };
                house.tell(server, Event::Used(Cookie(device), usage));
            }
        }
        Deed::Kill(server) if house.servers.contains_key(&server) => house.kill(server),
        Deed::Hang(server) if is_well(house, server) => house.server(server).is_hung = true,
        Deed::KillBroker if house.broker.is_some() => house.kill_broker(),
        Deed::ConnectBroker if house.broker.is_none() => house.connect_broker(),
        Deed::Kill(_) | Deed::Hang(_) | Deed::KillBroker | Deed::ConnectBroker => {}
        Deed::Wait(milliseconds) => {
            let end = house.now + Duration::from_millis(milliseconds);
            while house.wakes_at().is_some_and(|at| at <= end) {
                house.wake();
            }
            house.now = end;
        }
    }
}

fn deed(devices: u64, servers: u64) -> impl Strategy<Value = Deed> {
    let device = 1..=devices;
    let policy = prop_oneof![4 => Just(ResetPolicy::Group), 1 => Just(ResetPolicy::Force)];
    let errno = prop_oneof![
        20 => Just(None),
        2 => Just(Some(Errno::BUSY)),
        1 => Just(Some(Errno::IO)),
    ];
    prop_oneof![
        12 => (device.clone(), policy, 0..100_000_u64).prop_map(|(device, policy, deadline)| Deed::Ask { device, policy, deadline }),
        60 => (any::<usize>(), errno).prop_map(|(which, errno)| Deed::Move { which, errno }),
        3 => device.clone().prop_map(Deed::Touch),
        3 => (device, any::<bool>()).prop_map(|(device, is_active)| Deed::Use(device, is_active)),
        1 => (1..=servers).prop_map(Deed::Kill),
        1 => (1..=servers).prop_map(Deed::Hang),
        1 => Just(Deed::KillBroker),
        2 => Just(Deed::ConnectBroker),
        6 => prop_oneof![0..30_u64, 0..6000_u64, 0..90_000_u64].prop_map(Deed::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_in_whatever_order_ends_well(deeds in prop::collection::vec(deed(5, 3), 0..200)) {
        let mut house = House::with(&[&[1, 2], &[3, 4], &[5]]);
        let mut asked = Vec::new();
        for deed in deeds {
            do_deed(&mut house, &mut asked, deed);
        }
        house.settle();
        house.assert_at_rest();
        for (server, request) in asked {
            if is_well(&house, server) {
                prop_assert!(house.servers[&server].answers.contains_key(&request), "{:?} is not answered", request);
            }
        }
    }

    #[test]
    fn requests_in_one_epoch_cause_one_reset(
        asks in prop::collection::vec((1..=5_u64, prop::collection::vec(any::<usize>(), 0..12)), 1..20),
    ) {
        let mut house = House::with(&[&[1, 2], &[3, 4], &[5]]);
        let mut requests = Vec::new();
        for (device, moves) in asks {
            let server = holder(&house, device).unwrap();
            requests.push(house.ask(server, device));
            for which in moves {
                do_deed(&mut house, &mut Vec::new(), Deed::Move { which, errno: None });
            }
        }
        house.run();
        house.assert_at_rest();
        prop_assert_eq!(house.attempts.len(), 1);
        for request in requests {
            prop_assert!(house.answer(request).is_ok(), "{}", house.reason(request));
        }
    }
}
