// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the device is, and how it comes to begin, to go on, and to be silent: what follows from all that was said.

use std::collections::BTreeMap;

use super::{Action, Course, Wire};
use crate::failure::Failure;
use crate::virtio::device_status::DeviceStatus;
use crate::virtio::features::{NET_CONTROL_RING, PROTOCOL_FEATURES, RING_RESET};
use crate::virtio::queue_pairs::QueuePairs;
use crate::virtio::rings::{Placement, Ring, RingIndex};

/// What the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Driven {
    pub(super) features: u64,
    pub(super) rings: BTreeMap<RingIndex, Placement>,
    /// How many queue pairs it uses, as far as that is set here.
    pub(super) pairs: u16,
}

/// How the device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hardware {
    /// It has nothing.
    Reset,
    /// It runs.
    Running(Driven),
    /// It was stopped, and can go on.
    Silent(Driven),
}

/// What a ring would do if the device began or went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Go on.
    GoesOn,
    /// Begin.
    Begins,
}

impl Course {
    /// Has the device begin, go on or take another ring, if it is time.
    pub(super) fn advance(&mut self) -> Result<Vec<Action>, Failure> {
        let is_wanted = !self.is_down() && self.rings.values().any(Ring::is_served);
        let Some(features) = self.features.filter(|_| is_wanted) else { return Ok(Vec::new()) };
        let done = match &self.hardware {
            Hardware::Running(driven) => self.add_late_rings(driven.clone()),
            Hardware::Silent(driven) if !self.all_begin() => self.go_on(driven.clone(), features),
            Hardware::Silent(_) | Hardware::Reset => self.begin(features & !PROTOCOL_FEATURES),
        };
        done.map_err(|failure| self.fail_with(failure))
    }

    /// A device that was reset gets all rings that are started.
    fn begin(&mut self, features: u64) -> Result<Vec<Action>, Failure> {
        // A device that was reset uses one pair (Virtio 1.3, 5.1.5).
        let mut driven = Driven { features, rings: BTreeMap::new(), pairs: 1 };
        for (index, ring) in self.started() {
            if !ring.base.is_beginning(self.is_packed()) {
                return Err(Failure::ring_not_resumable(index, ring.base));
            }
            driven.rings.insert(index, self.placement(index)?);
        }
        self.rings.values_mut().for_each(|ring| ring.stopped = None);
        let control = self.control_ring(features);
        let ours = if control.is_some() { NET_CONTROL_RING } else { 0 };
        let mut actions = vec![Action::Reset, Action::Negotiate(features | ours)];
        actions.extend(driven.rings.iter().map(|(ring, placement)| Action::SetUp(*ring, *placement)));
        actions.extend(control.map(Action::SetUpControl));
        self.run(driven, &mut actions);
        Ok(actions)
    }

    /// A device that was silenced gets back what it had, and what has come since.
    fn go_on(&mut self, mut driven: Driven, features: u64) -> Result<Vec<Action>, Failure> {
        if self.unfinished().is_some() {
            return Ok(Vec::new());
        }
        if driven.features != features & !PROTOCOL_FEATURES {
            return Err(Failure::features_are_in_use());
        }
        let mut kept = BTreeMap::new();
        let mut new = Vec::new();
        let mut replaced = Vec::new();
        for (index, _) in self.started() {
            match (self.entry(index)?, driven.rings.get(&index)) {
                (Entry::GoesOn, Some(placement)) => {
                    kept.insert(index, *placement);
                }
                (_, had) => {
                    replaced.extend(had.map(|_| Action::ResetRing(index)));
                    new.push((index, self.placement(index)?));
                }
            }
        }
        self.rings.values_mut().for_each(|ring| ring.stopped = None);
        let mut actions = vec![Action::Verify(kept)];
        actions.extend(replaced);
        actions.extend(new.iter().map(|(ring, placement)| Action::SetUp(*ring, *placement)));
        driven.rings.extend(new);
        self.run(driven, &mut actions);
        // What the device had to tell while it was silent is lost.
        actions.push(Action::Interrupt);
        Ok(actions)
    }

    /// A device that runs gets rings that were started since. Those before `DRIVER_OK` would have been better.
    fn add_late_rings(&mut self, mut driven: Driven) -> Result<Vec<Action>, Failure> {
        let mut actions = Vec::new();
        let mut late = BTreeMap::new();
        for (index, ring) in self.started().filter(|(index, _)| !driven.rings.contains_key(index)) {
            if self.tells_status || ring.is_enabled {
                self.entry(index)?;
                late.insert(index, self.placement(index)?);
            }
        }
        if late.is_empty() {
            return Ok(actions);
        }
        actions.extend(late.iter().map(|(ring, placement)| Action::SetUp(*ring, *placement)));
        let served = late.keys().filter(|index| self.rings.get(index).is_some_and(Ring::is_served));
        let notified: Vec<_> = served.map(|ring| Action::Notify(*ring)).collect();
        driven.rings.extend(late);
        actions.push(Action::Wire(self.wires(&driven)));
        actions.extend(self.change_pairs(&mut driven));
        actions.extend(notified);
        self.hardware = Hardware::Running(driven);
        Ok(actions)
    }

    /// The device runs, with all eventfds, and looks at every ring: what was kicked before counts.
    fn run(&mut self, mut driven: Driven, actions: &mut Vec<Action>) {
        let wires = self.wires(&driven);
        let notified: Vec<_> =
            wires.iter().filter(|wire| wire.kick.is_some()).map(|wire| wire.ring).collect();
        actions.push(Action::Start(wires));
        actions.extend(self.change_pairs(&mut driven));
        actions.extend(notified.into_iter().map(Action::Notify));
        self.hardware = Hardware::Running(driven);
        self.fault = None;
    }

    /// Whether the frontend has said that there is no driver.
    fn is_down(&self) -> bool {
        self.tells_status && self.status == Some(DeviceStatus::default())
    }

    /// Silences a device that runs although it must not.
    pub(super) fn silence_unless_wanted(&mut self) -> Vec<Action> {
        let Hardware::Running(driven) = &self.hardware else { return Vec::new() };
        let mut had = driven.rings.keys().filter_map(|index| self.rings.get(index));
        let is_wanted =
            had.clone().all(Ring::is_started) && had.any(|ring| ring.is_enabled) && !self.is_down();
        if is_wanted {
            return Vec::new();
        }
        self.hardware = Hardware::Silent(driven.clone());
        vec![Action::Silence]
    }

    /// The eventfds of the rings that the device has.
    fn wires(&self, driven: &Driven) -> Vec<Wire> {
        let wire = |index: &RingIndex| {
            let ring = self.rings.get(index)?;
            let kick = ring.kick.clone().filter(|_| ring.is_served());
            Some(Wire { ring: *index, kick, call: ring.call.clone() })
        };
        driven.rings.keys().filter_map(wire).collect()
    }

    pub(super) fn rewire(&mut self, notified: Option<RingIndex>) -> Vec<Action> {
        let Hardware::Running(driven) = &self.hardware else { return Vec::new() };
        let mut driven = driven.clone();
        let mut actions = vec![Action::Wire(self.wires(&driven))];
        let notified = notified.filter(|index| self.rings.get(index).is_some_and(Ring::is_served));
        actions.extend(self.change_pairs(&mut driven));
        actions.extend(notified.map(Action::Notify));
        self.hardware = Hardware::Running(driven);
        actions
    }

    /// Has a device that runs use the pairs that are enabled, if that is told it here and it does not yet.
    fn change_pairs(&self, driven: &mut Driven) -> Option<Action> {
        let queue_pairs = self.queue_pairs.filter(|_| QueuePairs::are_set_here(driven.features))?;
        let has = |index| driven.rings.contains_key(&index);
        let pairs =
            queue_pairs.in_use(|index| has(index) && self.rings.get(&index).is_some_and(Ring::is_served));
        let before = std::mem::replace(&mut driven.pairs, pairs);
        (pairs != before).then_some(Action::UsePairs(pairs))
    }

    /// What a ring that is started would do. Only a ring that was not stopped, or that has the place and the token of its
    /// stop, goes on; only one that the device does not have, or could be rid of, begins.
    pub(super) fn entry(&self, index: RingIndex) -> Result<Entry, Failure> {
        let Some(ring) = self.rings.get(&index) else { return Ok(Entry::Begins) };
        let placement = self.placement(index)?;
        let had = self.driven().and_then(|driven| driven.rings.get(&index));
        match (had, ring.stopped) {
            (Some(_), None) => Ok(Entry::GoesOn),
            (Some(had), Some(token)) if ring.base == token && *had == placement => Ok(Entry::GoesOn),
            _ if ring.base.is_beginning(self.is_packed()) && self.can_begin(index) => Ok(Entry::Begins),
            _ => Err(Failure::ring_not_resumable(index, ring.base)),
        }
    }

    /// Whether a ring can begin: the device does not have it, gives it back alone, or will be reset as all rings begin.
    fn can_begin(&self, index: RingIndex) -> bool {
        let Some(driven) = self.driven() else { return true };
        let others_go_on = driven.rings.keys().any(|other| {
            let ring = self.rings.get(other);
            ring.is_some_and(|ring| {
                ring.stopped.is_none() || Some(ring.base) == ring.stopped && ring.is_started()
            })
        });
        !driven.rings.contains_key(&index) || !others_go_on || driven.features & RING_RESET != 0
    }

    /// Whether every ring that is started begins, as after a reset of the guest.
    pub(super) fn all_begin(&self) -> bool {
        let is_packed = self.is_packed();
        let had = |index| self.driven().is_some_and(|driven| driven.rings.contains_key(&index));
        let mut started = self.started();
        started
            .all(|(index, ring)| ring.base.is_beginning(is_packed) && (ring.stopped.is_some() || !had(index)))
    }

    /// A ring that the device has and the frontend has not started again.
    pub(super) fn unfinished(&self) -> Option<RingIndex> {
        let had = self.driven().into_iter().flat_map(|driven| driven.rings.keys());
        had.copied().find(|index| !self.rings.get(index).is_some_and(Ring::is_started))
    }

    fn started(&self) -> impl Iterator<Item = (RingIndex, &Ring)> {
        self.rings.iter().filter(|(_, ring)| ring.is_started()).map(|(index, ring)| (*index, ring))
    }

    fn placement(&self, index: RingIndex) -> Result<Placement, Failure> {
        let ring = self.rings.get(&index);
        if let Some(fault) = ring.and_then(|ring| ring.fault.clone()) {
            return Err(fault);
        }
        let described = ring.and_then(|ring| Some((ring.size?, ring.areas?)));
        let (size, areas) = described.ok_or_else(|| Failure::ring_size(index, 0, self.largest(index)))?;
        Placement::new(index, size, areas, self.largest(index), self.is_packed())
    }
}
