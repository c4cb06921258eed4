// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network device with several queue pairs, and frontends that leave its control ring to the server.

use proptest::prelude::*;

use super::*;

const PAIRS: u16 = 3;
const CONTROL: u64 = 6;
const NETWORK: u64 = OFFERED | NET_QUEUE_PAIRS | NET_CONTROL_RING;
const LEFT: u64 = PLAIN | NET_QUEUE_PAIRS;

/// A frontend that has acknowledged these features, of a device with three pairs.
fn frontend(features: u64) -> Scene {
    let pairs = QueuePairs::new(NETWORK, PAIRS, 7);
    assert!(pairs.is_some());
    let mut scene = Scene { course: Course::new(NETWORK, vec![256; 7], pairs), device: Witness::default() };
    scene.course.tell_status(true);
    scene.course.set_features(features).unwrap();
    scene
}

impl Scene {
    /// What QEMU says to start all pairs, of which so many are enabled.
    fn start_pairs(&mut self, enabled: u64, bases: [Base; 6]) {
        for pair in 0..u64::from(PAIRS) {
            if pair < enabled {
                self.enable_pair(pair, true);
            }
            for ring in [2 * pair, 2 * pair + 1] {
                self.describe(ring, bases[usize::try_from(ring).unwrap()]);
                self.kick(ring).unwrap();
            }
        }
        self.tell(READY).unwrap();
    }

    fn enable_pair(&mut self, pair: u64, is_enabled: bool) {
        (2 * pair..2 * pair + 2).for_each(|ring| self.enable(ring, is_enabled).unwrap());
    }

    fn stop_pairs(&mut self) -> [Base; 6] {
        let bases = [0, 1, 2, 3, 4, 5].map(|ring| self.stop(ring));
        self.tell(NOTHING).unwrap();
        bases
    }

    fn pairs(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.device.pairs)
    }
}

#[test]
fn who_leaves_the_control_ring_has_it_set_up_and_the_device_agree_to_it() {
    let mut scene = frontend(LEFT);
    scene.start_pairs(1, [Base(0); 6]);
    assert_eq!(scene.device.control, Some(RingIndex(6)));
    assert_eq!(scene.device.features, Some(VERSION_1 | NET_QUEUE_PAIRS | NET_CONTROL_RING));
    assert!(scene.pairs().is_empty(), "a device begins with one");
}

#[test]
fn who_acknowledges_the_control_ring_drives_it() {
    let mut scene = frontend(LEFT | NET_CONTROL_RING);
    scene.describe(CONTROL, Base(0));
    scene.kick(CONTROL).unwrap();
    scene.enable(CONTROL, true).unwrap();
    scene.start_pairs(3, [Base(0); 6]);
    assert_eq!((scene.device.control, scene.pairs()), (None, vec![]));
    assert!(scene.device.kicks.contains(&RingIndex(6)));
}

#[test]
fn who_wants_one_pair_gets_no_control_ring() {
    let mut scene = frontend(PLAIN);
    scene.start_pairs(2, [Base(0); 6]);
    assert_eq!((scene.device.control, scene.pairs()), (None, vec![]));
}

#[test]
fn pairs_come_and_go_as_they_are_enabled() {
    let mut scene = frontend(LEFT);
    scene.start_pairs(2, [Base(0); 6]);
    assert_eq!(scene.pairs(), [2]);
    scene.enable_pair(2, true);
    assert_eq!(scene.pairs(), [3]);
    scene.enable(3, false).unwrap();
    assert_eq!(scene.pairs(), [1], "the third is behind a gap");
    scene.enable(2, false).unwrap();
    assert!(scene.pairs().is_empty());
    scene.enable_pair(1, true);
    assert_eq!(scene.pairs(), [3]);
}

#[test]
fn a_device_that_goes_on_is_told_only_of_a_change() {
    let mut scene = frontend(LEFT);
    scene.start_pairs(2, [Base(0); 6]);
    assert_eq!(scene.pairs(), [2]);
    let bases = scene.stop_pairs();
    scene.start_pairs(2, bases);
    assert_eq!(scene.device.resets, 1);
    assert_eq!(scene.device.pairs.last(), None);
    let bases = scene.stop_pairs();
    scene.enable_pair(1, false);
    scene.start_pairs(1, bases);
    assert_eq!(scene.pairs(), [1]);
}

#[test]
fn a_device_that_begins_anew_is_told_anew() {
    let mut scene = frontend(LEFT);
    scene.start_pairs(2, [Base(0); 6]);
    scene.stop_pairs();
    scene.reset();
    scene.start_pairs(2, [Base(0); 6]);
    assert_eq!((scene.device.control, scene.pairs()), (Some(RingIndex(6)), vec![2]));
}

#[test]
fn the_control_ring_is_refused_to_who_has_left_it() {
    let mut scene = frontend(LEFT);
    let eventfd = || Some(Eventfd::new().unwrap());
    let refusals = [
        scene.course.set_size(CONTROL, 64),
        scene.course.set_areas(CONTROL, areas(CONTROL)),
        scene.course.set_base(CONTROL, Base(0)),
        scene.course.set_kick(CONTROL, eventfd()).map(drop),
        scene.course.set_call(CONTROL, eventfd()).map(drop),
        scene.course.set_enabled(CONTROL, true).map(drop),
        scene.course.stop(CONTROL).map(drop),
    ];
    for refused in refusals {
        assert_eq!(refused.unwrap_err().id(), "ring-is-the-servers");
    }
    scene.start_pairs(2, [Base(0); 6]);
    assert_eq!(scene.pairs(), [2]);
}

#[test]
fn a_control_ring_that_was_started_before_cannot_be_left() {
    let mut scene = frontend(PLAIN);
    scene.describe(CONTROL, Base(0));
    scene.kick(CONTROL).unwrap();
    assert_eq!(scene.course.set_features(LEFT).unwrap_err().id(), "ring-is-the-servers");
    assert!(scene.course.set_features(LEFT | NET_CONTROL_RING).is_ok());
}

#[test]
fn a_device_without_several_pairs_is_told_nothing() {
    let mut scene = Scene { course: Course::new(NETWORK, vec![256; 7], None), device: Witness::default() };
    scene.course.set_features(LEFT).unwrap();
    scene.start_pairs(3, [Base(0); 6]);
    assert_eq!((scene.device.control, scene.pairs()), (None, vec![]));
}

proptest! {
    #[test]
    fn a_device_that_runs_uses_the_pairs_that_are_enabled(
        said in proptest::collection::vec((0..6_u64, prop::bool::weighted(0.7)), 0..40),
    ) {
        let mut scene = frontend(LEFT);
        scene.start_pairs(3, [Base(0); 6]);
        let mut enabled = [true; 6];
        for (ring, is_enabled) in said {
            scene.enable(ring, is_enabled).unwrap();
            enabled[usize::try_from(ring).unwrap()] = is_enabled;
            let pairs = enabled.chunks(2).take_while(|pair| **pair == [true; 2]).count().max(1);
            if scene.device.is_running {
                prop_assert_eq!(usize::from(*scene.device.pairs.last().unwrap()), pairs);
            }
        }
    }
}
