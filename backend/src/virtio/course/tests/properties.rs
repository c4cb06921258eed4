// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What holds whatever a frontend says.

use proptest::prelude::*;

use super::*;

const RINGS: u64 = 3;

#[derive(Clone, Debug)]
enum Said {
    Features(u64),
    Size(u64, u32),
    Areas(u64, u64),
    Base(u64, u32),
    /// What the last stop of the ring was answered with.
    SameBase(u64),
    Kick(u64, bool),
    Call(u64, bool),
    Enable(u64, bool),
    Stop(u64),
    Status(u8),
    Reset,
    Lost,
}

fn said() -> impl Strategy<Value = Said> {
    let ring = 0..RINGS;
    let features = prop_oneof![Just(PLAIN), Just(PLAIN | RING_RESET), Just(VERSION_1), any::<u64>()];
    let size = prop_oneof![Just(128_u32), Just(64), any::<u32>()];
    prop_oneof![
        1 => features.prop_map(Said::Features),
        2 => (ring.clone(), size).prop_map(|(ring, size)| Said::Size(ring, size)),
        3 => (ring.clone(), 0..4_u64).prop_map(|(ring, place)| Said::Areas(ring, place)),
        2 => (ring.clone(), prop_oneof![4 => Just(0_u32), 1 => 0..9_u32])
            .prop_map(|(ring, base)| Said::Base(ring, base)),
        2 => ring.clone().prop_map(Said::SameBase),
        4 => (ring.clone(), prop::bool::weighted(0.95)).prop_map(|(ring, has)| Said::Kick(ring, has)),
        1 => (ring.clone(), any::<bool>()).prop_map(|(ring, has)| Said::Call(ring, has)),
        4 => (ring.clone(), prop::bool::weighted(0.8)).prop_map(|(ring, is_on)| Said::Enable(ring, is_on)),
        2 => ring.prop_map(Said::Stop),
        2 => prop_oneof![Just(0), Just(15), any::<u8>()].prop_map(Said::Status),
        1 => Just(Said::Reset),
        1 => Just(Said::Lost),
    ]
}

/// A device in use, so that most of what follows is said of one that runs.
fn in_use(tells_status: bool) -> Scene {
    let mut scene = Scene::with_rings(usize::try_from(RINGS).unwrap());
    scene.course.tell_status(tells_status);
    scene.course.set_features(PLAIN | RING_RESET).unwrap();
    for ring in 0..2 {
        scene.describe(ring, Base(0));
        scene.kick(ring).unwrap();
    }
    (0..2).for_each(|ring| scene.enable(ring, true).unwrap());
    scene.tell(READY).unwrap();
    assert!(scene.device.is_running);
    scene
}

/// What is refused is refused; the witness holds that what is to be done is possible.
fn say(scene: &mut Scene, last: &mut BTreeMap<u64, Base>, said: &Said) {
    let eventfd = |has: bool| has.then(|| Eventfd::new().unwrap());
    let _ = match *said {
        Said::Features(features) => scene.course.set_features(features),
        Said::Size(ring, size) => scene.course.set_size(ring, size),
        Said::Areas(ring, place) => scene.course.set_areas(ring, areas(place)),
        Said::Base(ring, base) => scene.course.set_base(ring, Base(base)),
        Said::SameBase(ring) => scene.course.set_base(ring, last.get(&ring).copied().unwrap_or_default()),
        Said::Kick(ring, has) => {
            let actions = scene.course.set_kick(ring, eventfd(has));
            scene.done(actions)
        }
        Said::Call(ring, has) => {
            let actions = scene.course.set_call(ring, eventfd(has));
            scene.done(actions)
        }
        Said::Enable(ring, is_enabled) => scene.enable(ring, is_enabled),
        Said::Stop(ring) => {
            last.insert(ring, scene.stop(ring));
            Ok(())
        }
        Said::Status(status) => scene.tell(DeviceStatus(status)),
        Said::Reset => {
            scene.reset();
            Ok(())
        }
        Said::Lost => {
            scene.course.lose(Failure::features_are_in_use());
            scene.device = Witness { resets: scene.device.resets, ..Witness::default() };
            Ok(())
        }
    };
}

fn statements() -> impl Strategy<Value = Vec<Said>> {
    proptest::collection::vec(said(), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_device_runs_only_as_the_rule_says(tells_status: bool, statements in statements()) {
        let mut scene = in_use(tells_status);
        let mut last = BTreeMap::new();
        for statement in &statements {
            say(&mut scene, &mut last, statement);
            let Scene { course, device } = &scene;
            prop_assert_eq!(course.is_running(), device.is_running, "{:?}", statement);
            if device.is_running {
                let mut had = device.rings.keys().map(|index| &course.rings[index]);
                prop_assert!(had.clone().all(Ring::is_started), "{:?}", statement);
                prop_assert!(had.any(|ring| ring.is_enabled), "{:?}", statement);
                prop_assert!(!tells_status || course.status != Some(DeviceStatus(0)));
                let served = device.rings.keys().filter(|index| course.rings[index].is_served());
                prop_assert_eq!(&served.copied().collect::<Vec<_>>(), &device.kicks, "{:?}", statement);
            }
        }
    }

    /// So that nobody takes the one for the other.
    #[test]
    fn a_ring_that_the_device_has_is_never_stopped_at_a_beginning(statements in statements()) {
        let mut scene = in_use(false);
        let mut last = BTreeMap::new();
        for statement in &statements {
            let had = scene.device.rings.clone();
            say(&mut scene, &mut last, statement);
            if let Said::Stop(ring) = statement
                && had.keys().any(|index| u64::from(index.0) == *ring)
            {
                let base = last[ring];
                prop_assert!(!base.is_beginning(false) && !base.is_beginning(true), "{:?}", base);
            }
        }
    }

    #[test]
    fn a_ring_is_where_the_frontend_says_and_stays_there(statements in statements()) {
        let mut scene = in_use(false);
        let mut last = BTreeMap::new();
        for statement in &statements {
            say(&mut scene, &mut last, statement);
            if scene.device.is_running {
                for (index, placement) in &scene.device.rings {
                    let ring = &scene.course.rings[index];
                    prop_assert_eq!((ring.size, ring.areas), (Some(placement.size), Some(placement.areas)));
                }
            }
        }
    }

    /// The guest resets its device: whatever was before, it can be used again.
    #[test]
    fn after_a_reset_everything_can_begin(tells_status: bool, statements in statements()) {
        let mut scene = in_use(tells_status);
        let mut last = BTreeMap::new();
        for statement in &statements {
            say(&mut scene, &mut last, statement);
        }
        scene.reset();
        prop_assert!(!scene.device.is_running);
        scene.course.set_features(PLAIN).unwrap();
        scene.describe(0, Base(0));
        scene.kick(0).unwrap();
        scene.enable(0, true).unwrap();
        scene.tell(READY).unwrap();
        prop_assert!(scene.device.is_running);
    }

    #[test]
    fn a_token_survives_as_an_index_of_either_kind_of_ring(stop: u64) {
        let Base(token) = Base::token(stop);
        prop_assert!((1..=0x7fff).contains(&token));
    }
}
