// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod frontends;
mod properties;
mod queue_pairs;

use std::collections::BTreeMap;

use vfio::Iova;

use super::*;
use crate::virtio::features::{ACCESS_PLATFORM, NET_CONTROL_RING, NET_QUEUE_PAIRS, RING_RESET, VERSION_1};

const OFFERED: u64 = VERSION_1 | ACCESS_PLATFORM | RING_PACKED | RING_RESET | 0x40;
const PLAIN: u64 = VERSION_1 | PROTOCOL_FEATURES;
const READY: DeviceStatus = DeviceStatus(0xf);
const NOTHING: DeviceStatus = DeviceStatus(0);

/// A device that only takes note of what is done to it, and of what must not be.
#[derive(Debug, Default)]
struct Witness {
    features: Option<u64>,
    rings: BTreeMap<RingIndex, Placement>,
    kicks: Vec<RingIndex>,
    calls: Vec<RingIndex>,
    is_running: bool,
    resets: usize,
    notified: Vec<RingIndex>,
    control: Option<RingIndex>,
    pairs: Vec<u16>,
}

impl Witness {
    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Reset => *self = Self { resets: self.resets + 1, ..Self::default() },
                Action::Negotiate(features) => {
                    assert_eq!(self.features.replace(features), None, "features are agreed on once");
                    assert_eq!(features & PROTOCOL_FEATURES, 0);
                }
                Action::SetUp(ring, placement) => {
                    assert!(self.features.is_some(), "features come first");
                    assert_eq!(self.rings.insert(ring, placement), None, "{ring} is there");
                }
                Action::ResetRing(ring) => {
                    assert!(self.rings.remove(&ring).is_some());
                    assert_ne!(self.features.unwrap() & RING_RESET, 0, "the device knows no such reset");
                }
                Action::Verify(rings) => {
                    assert!(!self.is_running && !rings.is_empty());
                    for (ring, placement) in rings {
                        assert_eq!(self.rings.get(&ring), Some(&placement), "{ring} is another");
                    }
                }
                Action::Start(wires) => {
                    assert!(!self.is_running && !self.rings.is_empty());
                    self.is_running = true;
                    self.wire(&wires);
                }
                Action::Wire(wires) => self.wire(&wires),
                Action::Notify(ring) => {
                    assert!(self.is_running && self.kicks.contains(&ring), "{ring} is not to be looked at");
                    self.notified.push(ring);
                }
                Action::SetUpControl(ring) => {
                    assert!(self.features.unwrap() & NET_CONTROL_RING != 0 && !self.is_running);
                    assert_eq!(self.control.replace(ring), None, "there is one control ring");
                }
                Action::UsePairs(pairs) => {
                    assert!(self.is_running && self.control.is_some());
                    let has = |ring| self.rings.contains_key(&RingIndex(ring));
                    assert!((0..2 * pairs).all(has), "{pairs} pairs are not there");
                    self.pairs.push(pairs);
                }
                Action::Interrupt => assert!(self.is_running),
                Action::Silence => {
                    assert!(self.is_running, "it is silent");
                    self.is_running = false;
                    self.kicks.clear();
                    self.calls.clear();
                }
            }
        }
    }

    fn wire(&mut self, wires: &[Wire]) {
        assert!(self.is_running);
        assert!(wires.iter().map(|wire| &wire.ring).eq(self.rings.keys()), "every ring is wired");
        let of =
            |has: fn(&Wire) -> bool| wires.iter().filter(|wire| has(wire)).map(|wire| wire.ring).collect();
        self.kicks = of(|wire| wire.kick.is_some());
        self.calls = of(|wire| wire.call.is_some());
    }
}

/// A frontend and such a device.
#[derive(Debug)]
struct Scene {
    course: Course,
    device: Witness,
}

fn areas(ring: u64) -> RingAreas {
    let at = |part: u64| Iova(0x10_0000 * (ring + 1) + 0x1000 * part);
    RingAreas { descriptors: at(0), driver: at(1), device: at(2) }
}

fn indexes(numbers: &[u16]) -> Vec<RingIndex> {
    numbers.iter().copied().map(RingIndex).collect()
}

impl Scene {
    /// A device with rings of up to 256 entries.
    fn with_rings(count: usize) -> Self {
        Self { course: Course::new(OFFERED, vec![256; count], None), device: Witness::default() }
    }

    /// The same, with a frontend that tells the status.
    fn with_status(count: usize) -> Self {
        let mut scene = Self::with_rings(count);
        scene.course.tell_status(true);
        scene
    }

    fn done(&mut self, actions: Result<Vec<Action>, Failure>) -> Result<(), Failure> {
        self.device.take(actions?);
        Ok(())
    }

    /// `NUM`, `BASE` and `ADDR`.
    fn describe(&mut self, ring: u64, base: Base) {
        self.course.set_size(ring, 128).unwrap();
        self.course.set_base(ring, base).unwrap();
        self.course.set_areas(ring, areas(ring)).unwrap();
    }

    fn kick(&mut self, ring: u64) -> Result<(), Failure> {
        let actions = self.course.set_kick(ring, Some(Eventfd::new().unwrap()));
        self.done(actions)
    }

    fn call(&mut self, ring: u64) {
        let actions = self.course.set_call(ring, Some(Eventfd::new().unwrap()));
        self.done(actions).unwrap();
    }

    fn enable(&mut self, ring: u64, is_enabled: bool) -> Result<(), Failure> {
        let actions = self.course.set_enabled(ring, is_enabled);
        self.done(actions)
    }

    fn stop(&mut self, ring: u64) -> Base {
        let (base, actions) = self.course.stop(ring).unwrap();
        self.device.take(actions);
        base
    }

    fn tell(&mut self, status: DeviceStatus) -> Result<(), Failure> {
        let actions = self.course.set_status(status);
        self.done(actions)
    }

    fn reset(&mut self) {
        let actions = self.course.reset();
        self.device.take(actions);
    }
}
