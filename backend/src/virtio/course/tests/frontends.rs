// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What stock frontends say, in their order.

use super::*;

/// QEMU, whose device has `rings`, of which the guest uses `used`: up to `DRIVER_OK`.
fn qemu_starts(scene: &mut Scene, rings: u64, used: &[u64], bases: &[Base]) -> Result<(), Failure> {
    scene.course.set_features(PLAIN)?;
    scene.tell(DeviceStatus::FEATURES_OK)?;
    (0..rings).for_each(|ring| scene.call(ring));
    scene.course.set_features(PLAIN)?;
    for (ring, base) in used.iter().zip(bases) {
        scene.describe(*ring, *base);
        scene.kick(*ring)?;
    }
    (0..rings).try_for_each(|ring| scene.enable(ring, true))?;
    scene.tell(READY)
}

fn qemu_stops(scene: &mut Scene, rings: u64, used: &[u64]) -> Vec<Base> {
    (0..rings).for_each(|ring| scene.enable(ring, false).unwrap());
    let bases = used.iter().map(|ring| scene.stop(*ring)).collect();
    scene.tell(NOTHING).unwrap();
    bases
}

/// Cloud Hypervisor and crosvm: the one enables rings after it has described all, the other each when it has.
fn starts_without_status(scene: &mut Scene, rings: u64, base: Base, is_crosvm: bool) -> Result<(), Failure> {
    scene.course.set_features(PLAIN)?;
    for ring in 0..rings {
        scene.describe(ring, base);
        scene.call(ring);
        scene.kick(ring)?;
        if is_crosvm {
            scene.enable(ring, true)?;
        }
    }
    (0..rings).try_for_each(|ring| scene.enable(ring, true))
}

fn of_two_in_use() -> Scene {
    let mut scene = Scene::with_status(3);
    qemu_starts(&mut scene, 3, &[0, 1], &[Base(0); 2]).unwrap();
    scene
}

#[test]
fn a_device_begins_with_the_drivers_word_and_all_its_rings() {
    let scene = of_two_in_use();
    assert!(scene.course.is_running());
    assert_eq!(scene.device.notified, indexes(&[0, 1]));
    assert_eq!((scene.device.resets, scene.device.features), (1, Some(VERSION_1)));
    assert_eq!(scene.device.calls, indexes(&[0, 1]));
}

#[test]
fn rings_that_were_never_described_may_be_enabled() {
    let mut scene = Scene::with_rings(3);
    scene.course.set_features(PLAIN).unwrap();
    (0..3).for_each(|ring| scene.enable(ring, true).unwrap());
    assert!(!scene.course.is_running());
}

#[test]
fn a_paused_machine_goes_on_with_what_its_rings_were_stopped_with() {
    let mut scene = of_two_in_use();
    for _ in 0..3 {
        let bases = qemu_stops(&mut scene, 3, &[0, 1]);
        assert!(!scene.course.is_running() && !scene.device.is_running);
        qemu_starts(&mut scene, 3, &[0, 1], &bases).unwrap();
        assert!(scene.course.is_running());
    }
    assert_eq!(scene.device.resets, 1);
}

#[test]
fn a_guest_that_was_reset_begins_anew() {
    let mut scene = of_two_in_use();
    qemu_stops(&mut scene, 3, &[0, 1]);
    scene.reset();
    qemu_starts(&mut scene, 3, &[0], &[Base(0)]).unwrap();
    assert_eq!(scene.device.rings.len(), 1);
    assert!(scene.course.is_running());
}

#[test]
fn a_frontend_that_tells_of_no_reset_begins_anew_with_base_0() {
    let mut scene = of_two_in_use();
    qemu_stops(&mut scene, 3, &[0, 1]);
    qemu_starts(&mut scene, 3, &[1], &[Base(0)]).unwrap();
    assert_eq!((scene.device.resets, scene.device.rings.len()), (2, 1));
}

#[test]
fn what_came_from_elsewhere_is_refused_when_it_is_enabled() {
    let mut scene = Scene::with_status(1);
    let refused = qemu_starts(&mut scene, 1, &[0], &[Base(17)]);
    assert_eq!(refused.unwrap_err().id(), "ring-not-resumable");
    assert!(!scene.course.is_running());
}

#[test]
fn an_old_stop_is_no_way_back() {
    let mut scene = of_two_in_use();
    let old = qemu_stops(&mut scene, 3, &[0, 1]);
    qemu_starts(&mut scene, 3, &[0, 1], &old).unwrap();
    qemu_stops(&mut scene, 3, &[0, 1]);
    assert_eq!(qemu_starts(&mut scene, 3, &[0, 1], &old).unwrap_err().id(), "ring-not-resumable");
}

#[test]
fn a_ring_goes_on_only_where_it_was() {
    let mut scene = of_two_in_use();
    let bases = qemu_stops(&mut scene, 3, &[0, 1]);
    scene.course.set_base(0, bases[0]).unwrap();
    scene.course.set_areas(0, areas(7)).unwrap();
    scene.kick(0).unwrap();
    assert_eq!(scene.enable(0, true).unwrap_err().id(), "ring-not-resumable");
}

#[test]
fn a_device_does_not_go_on_with_half_its_rings() {
    let mut scene = of_two_in_use();
    let bases = qemu_stops(&mut scene, 3, &[0, 1]);
    let half = qemu_starts(&mut scene, 3, &[0], &bases);
    assert_eq!(half.unwrap_err().id(), "ring-not-resumable");
    assert!(scene.course.status().has(DeviceStatus::NEEDS_RESET));
}

#[test]
fn a_device_does_not_go_on_with_other_features() {
    let mut scene = of_two_in_use();
    let bases = qemu_stops(&mut scene, 3, &[0, 1]);
    for (ring, base) in [0, 1].into_iter().zip(bases) {
        scene.describe(ring, base);
        scene.kick(ring).unwrap();
        scene.enable(ring, true).unwrap();
    }
    scene.course.set_features(PLAIN | 0x40).unwrap();
    assert_eq!(scene.tell(READY).unwrap_err().id(), "features-in-use");
}

#[test]
fn cloud_hypervisor_has_all_rings_described_before_the_first_is_enabled() {
    let mut scene = Scene::with_rings(2);
    starts_without_status(&mut scene, 2, Base(0), false).unwrap();
    assert_eq!((scene.device.resets, scene.device.rings.len()), (1, 2));
    assert_eq!(scene.device.kicks, indexes(&[0, 1]));
}

#[test]
fn cloud_hypervisor_pauses_by_disabling_all_rings() {
    let mut scene = Scene::with_rings(2);
    starts_without_status(&mut scene, 2, Base(0), false).unwrap();
    scene.enable(0, false).unwrap();
    assert!(scene.course.is_running());
    assert_eq!(scene.device.kicks, indexes(&[1]));
    scene.enable(1, false).unwrap();
    assert!(!scene.course.is_running());
    scene.enable(0, true).unwrap();
    scene.enable(1, true).unwrap();
    assert!(scene.course.is_running());
    assert_eq!((scene.device.resets, &scene.device.kicks), (1, &indexes(&[0, 1])));
}

#[test]
fn crosvm_describes_further_rings_after_it_has_enabled_the_first() {
    let mut scene = Scene::with_rings(3);
    starts_without_status(&mut scene, 3, Base(0), true).unwrap();
    assert_eq!((scene.device.resets, scene.device.rings.len()), (1, 3));
    assert_eq!(scene.device.notified, indexes(&[0, 1, 2]));
}

#[test]
fn crosvm_sleeps_and_wakes() {
    let mut scene = Scene::with_rings(2);
    starts_without_status(&mut scene, 2, Base(0), true).unwrap();
    let mut bases = Vec::new();
    for ring in 0..2 {
        scene.enable(ring, false).unwrap();
        bases.push(scene.stop(ring));
    }
    assert!(!scene.device.is_running);
    for (ring, base) in (0..2).zip(bases) {
        scene.describe(ring, base);
        scene.kick(ring).unwrap();
        scene.enable(ring, true).unwrap();
    }
    assert_eq!((scene.device.resets, scene.device.is_running), (1, true));
}

#[test]
fn crosvm_resets_without_saying_so() {
    let mut scene = Scene::with_rings(2);
    starts_without_status(&mut scene, 2, Base(0), true).unwrap();
    for ring in 0..2 {
        scene.enable(ring, false).unwrap();
        scene.stop(ring);
    }
    // The firmware uses one ring only.
    starts_without_status(&mut scene, 1, Base(0), true).unwrap();
    assert_eq!((scene.device.resets, scene.device.rings.len()), (2, 1));
}

#[test]
fn an_old_frontend_that_does_not_know_of_disabled_rings_starts_them_by_kick() {
    let mut scene = Scene::with_rings(2);
    scene.course.set_features(VERSION_1).unwrap();
    scene.describe(0, Base(0));
    scene.kick(0).unwrap();
    assert!(scene.course.is_running());
}

#[test]
fn a_call_that_is_replaced_leaves_the_device_as_it_is() {
    let mut scene = of_two_in_use();
    let before = scene.device.notified.clone();
    let call = Eventfd::new().unwrap();
    let actions = scene.course.set_call(1, Some(call.clone())).unwrap();
    let [Action::Wire(wires)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(wires[1].call, Some(call));
    scene.device.take(actions);
    assert_eq!(scene.device.notified, before);
}

#[test]
fn a_kick_that_is_replaced_counts_as_one() {
    let mut scene = of_two_in_use();
    scene.device.notified.clear();
    scene.kick(1).unwrap();
    assert_eq!(scene.device.notified, indexes(&[1]));
}

#[test]
fn a_ring_that_runs_is_not_changed() {
    let mut scene = of_two_in_use();
    let refusals = [
        scene.course.set_size(0, 64).unwrap_err(),
        scene.course.set_areas(0, areas(5)).unwrap_err(),
        scene.course.set_base(0, Base(0)).unwrap_err(),
        scene.enable(0, true).unwrap_err(),
    ];
    assert!(refusals.iter().all(|refusal| refusal.id() == "ring-is-running"), "{refusals:?}");
    assert!(scene.course.status().has(DeviceStatus::NEEDS_RESET));
    assert!(scene.device.is_running);
    scene.stop(0);
    assert_eq!(scene.course.status(), READY);
}

#[test]
fn what_cannot_be_answered_when_it_is_said_is_answered_when_the_ring_is_enabled() {
    let mut scene = Scene::with_rings(2);
    scene.course.set_features(PLAIN).unwrap();
    assert!(scene.course.set_size(0, 512).is_err());
    assert_eq!(scene.enable(0, true).unwrap_err().id(), "ring-size");
    // No power of two, as the size of a split ring has to be.
    scene.course.set_size(1, 100).unwrap();
    scene.course.set_areas(1, areas(1)).unwrap();
    scene.kick(1).unwrap();
    assert_eq!(scene.enable(1, true).unwrap_err().id(), "ring-size");
}

#[test]
fn features_that_are_not_offered_keep_a_device_from_beginning() {
    let mut scene = Scene::with_rings(1);
    assert_eq!(scene.course.set_features(PLAIN | ACCESS_PLATFORM).unwrap_err().id(), "feature-not-offered");
    assert_eq!(scene.enable(0, true).unwrap_err().id(), "feature-not-offered");
}

#[test]
fn a_ring_that_is_to_be_polled_is_refused() {
    let mut scene = Scene::with_rings(1);
    assert_eq!(scene.course.set_kick(0, None).unwrap_err().id(), "ring-without-kick");
}

#[test]
fn one_ring_is_reset_where_the_guest_may_do_so() {
    for (features, resets) in [(PLAIN | RING_RESET, true), (PLAIN, false)] {
        let mut scene = Scene::with_rings(2);
        scene.course.set_features(features).unwrap();
        for ring in 0..2 {
            scene.describe(ring, Base(0));
            scene.kick(ring).unwrap();
        }
        (0..2).for_each(|ring| scene.enable(ring, true).unwrap());
        scene.stop(1);
        assert!(!scene.device.is_running);
        scene.describe(1, Base(0));
        assert_eq!(scene.kick(1).is_ok(), resets);
        assert_eq!((scene.device.resets, scene.device.is_running), (1, resets));
    }
}

#[test]
fn a_packed_ring_begins_with_its_wrap_counters_set() {
    for (base, begins) in [(0x8000_8000, true), (0x8000, true), (0, false), (0x8001_8001, false)] {
        let mut scene = Scene::with_rings(1);
        scene.course.set_features(PLAIN | RING_PACKED).unwrap();
        scene.describe(0, Base(base));
        scene.kick(0).unwrap();
        assert_eq!(scene.enable(0, true).is_ok(), begins, "{base:#x}");
    }
}

#[test]
fn a_device_that_lost_its_rings_begins_when_they_are_described_again() {
    let mut scene = of_two_in_use();
    scene.course.lose(Failure::ring_without_kick(RingIndex(0)));
    scene.device = Witness::default();
    assert!(scene.course.status().has(DeviceStatus::NEEDS_RESET));
    // Whatever comes, what the guest still believes in does not begin.
    scene.kick(0).unwrap();
    scene.call(0);
    let bases = qemu_stops(&mut scene, 3, &[0, 1]);
    assert_eq!(qemu_starts(&mut scene, 3, &[0, 1], &bases).unwrap_err().id(), "ring-not-resumable");
    qemu_stops(&mut scene, 3, &[0, 1]);
    qemu_starts(&mut scene, 3, &[0, 1], &[Base(0); 2]).unwrap();
    assert!(scene.device.is_running);
}

#[test]
fn a_stop_is_answered_whatever_there_is_to_stop() {
    let mut scene = Scene::with_rings(2);
    assert_eq!(scene.stop(0), Base(0));
    scene.course.set_base(1, Base(9)).unwrap();
    assert_eq!(scene.stop(1), Base(9));
    assert_eq!(scene.course.stop(2).unwrap_err().id(), "no-such-ring");
    assert_eq!(scene.course.stop(u64::MAX).unwrap_err().id(), "no-such-ring");
}
