// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a vhost-user frontend says, and what is to be done to the device for it. Pure: what comes out is done elsewhere, by
//! [`Drive`](super::drive::Drive).
//!
//! Frontends differ in the order in which they say things, and a device in hardware cannot do what a backend in software
//! can: it gets its rings before it begins, begins at the beginning, does not tell where it is, and is stopped as a whole.
//! So one rule decides: **the device runs while all the rings that it has are started, one of them at least is enabled, and
//! the status is not 0.** It is not waited for `DRIVER_OK`, which not every frontend says that tells a status. Otherwise it is silent: it keeps its rings, and reaches nothing. From
//! there it goes on if it is given the same rings with what they were stopped with, or begins anew.

mod hardware;

use std::collections::BTreeMap;

use self::hardware::{Driven, Hardware};
use super::device_status::DeviceStatus;
use super::eventfd::Eventfd;
use super::features::{PROTOCOL_FEATURES, RING_PACKED, for_guest};
use super::queue_pairs::QueuePairs;
use super::rings::{Base, Placement, Ring, RingAreas, RingIndex, ring_size};
use crate::failure::Failure;

/// The eventfds of a ring that the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Which ring.
    pub ring: RingIndex,
    /// Its kick, if kicks are passed on.
    pub kick: Option<Eventfd>,
    /// Its call, if there is any.
    pub call: Option<Eventfd>,
}

/// Something to be done to the device. What comes together is done in order; what fails ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop it and make it forget everything.
    Reset,
    /// Agree on features, of which these are the guest's.
    Negotiate(u64),
    /// Give it a ring.
    SetUp(RingIndex, Placement),
    /// Take a ring away.
    ResetRing(RingIndex),
    /// See that it still has these rings, which it was silenced with.
    Verify(BTreeMap<RingIndex, Placement>),
    /// Let it begin, or go on, with these eventfds.
    Start(Vec<Wire>),
    /// These are the eventfds in use from now on.
    Wire(Vec<Wire>),
    /// Give it its control ring, which is driven here.
    SetUpControl(RingIndex),
    /// Tell it to look at a ring.
    Notify(RingIndex),
    /// Have it use so many queue pairs, by its control ring.
    UsePairs(u16),
    /// Tell the driver to look at its rings.
    Interrupt,
    /// Stop it with everything that it has: no kick, no interrupt, no access to memory.
    Silence,
}

/// A frontend and a device, on their way.
#[derive(Debug)]
pub struct Course {
    offered: u64,
    largest_sizes: Vec<u16>,
    /// Of a network device that has several.
    queue_pairs: Option<QueuePairs>,
    /// As the frontend acknowledged them.
    features: Option<u64>,
    /// Whether the frontend tells the status of its driver.
    tells_status: bool,
    /// What it told last.
    status: Option<DeviceStatus>,
    rings: BTreeMap<RingIndex, Ring>,
    hardware: Hardware,
    /// How often a ring was stopped.
    stops: u64,
    /// Why the device does not run although it should.
    fault: Option<Failure>,
}

impl Course {
    /// With a device that was reset, which offers `features` and has rings of these sizes at most, and perhaps queue pairs.
    pub fn new(features: u64, largest_sizes: Vec<u16>, queue_pairs: Option<QueuePairs>) -> Self {
        Self {
            offered: for_guest(features),
            largest_sizes,
            queue_pairs,
            features: None,
            tells_status: false,
            status: None,
            rings: BTreeMap::new(),
            hardware: Hardware::Reset,
            stops: 0,
            fault: None,
        }
    }

    /// What the frontend is offered, without [`PROTOCOL_FEATURES`].
    pub const fn offered(&self) -> u64 {
        self.offered
    }

    /// How many rings there are.
    pub fn ring_count(&self) -> u16 {
        u16::try_from(self.largest_sizes.len()).unwrap_or(u16::MAX)
    }

    /// Whether the device runs.
    pub const fn is_running(&self) -> bool {
        matches!(self.hardware, Hardware::Running(_))
    }

    /// The frontend will tell the status of its driver (`VHOST_USER_PROTOCOL_F_STATUS`), or not.
    pub const fn tell_status(&mut self, tells: bool) {
        self.tells_status = tells;
    }

    /// `SET_FEATURES`.
    ///
    /// # Errors
    ///
    /// Some were not offered, the device runs with others, or the control ring would be both sides'.
    pub fn set_features(&mut self, features: u64) -> Result<(), Failure> {
        let excess = features & !(self.offered | PROTOCOL_FEATURES);
        let is_other = |driven: &Driven| driven.features != features & !PROTOCOL_FEATURES;
        let refusal = match &self.hardware {
            _ if excess != 0 => Some(Failure::feature_not_offered(excess)),
            Hardware::Running(driven) if is_other(driven) => Some(Failure::features_are_in_use()),
            _ => self.control_ring(features).filter(|ring| self.is_started(*ring)).map(Failure::ring_is_ours),
        };
        if let Some(failure) = refusal {
            self.fault = Some(failure.clone());
            return Err(failure);
        }
        if features & PROTOCOL_FEATURES == 0 {
            // Who does not know of disabled rings has enabled ones.
            self.rings.values_mut().for_each(|ring| ring.is_enabled = true);
        }
        self.features = Some(features);
        self.fault = None;
        Ok(())
    }

    /// `SET_VRING_NUM`.
    pub fn set_size(&mut self, ring: u64, size: u32) -> Result<(), Failure> {
        let index = self.find(ring)?;
        let largest = self.largest(index);
        self.describe(index, |ring| {
            ring.size = Some(ring_size(index, size, largest)?);
            Ok(())
        })
    }

    /// `SET_VRING_ADDR`, with addresses as the device sees them.
    pub fn set_areas(&mut self, ring: u64, areas: RingAreas) -> Result<(), Failure> {
        let index = self.find(ring)?;
        let is_packed = self.is_packed();
        self.describe(index, |ring| {
            if !areas.are_aligned(is_packed) {
                return Err(Failure::ring_unaligned(index));
            }
            ring.areas = Some(areas);
            Ok(())
        })
    }

    /// A ring whose description was refused before it reached this point, as with addresses in no memory.
    pub fn refuse(&mut self, ring: u64, failure: Failure) {
        if let Ok(index) = self.find(ring) {
            self.ring(index).fault = Some(failure);
        }
    }

    /// `SET_VRING_BASE`. Whether it can begin there shows when it shall.
    pub fn set_base(&mut self, ring: u64, base: Base) -> Result<(), Failure> {
        let index = self.find(ring)?;
        self.describe(index, |ring| {
            ring.base = base;
            Ok(())
        })
    }

    /// `SET_VRING_KICK`: the ring is started. `None` asks for polling.
    pub fn set_kick(&mut self, ring: u64, kick: Option<Eventfd>) -> Result<Vec<Action>, Failure> {
        let index = self.find(ring)?;
        let Some(kick) = kick else {
            let failure = Failure::ring_without_kick(index);
            self.ring(index).fault = Some(failure.clone());
            return Err(failure);
        };
        self.ring(index).kick = Some(kick);
        if self.has_running(index) { Ok(self.rewire(Some(index))) } else { self.advance() }
    }

    /// `SET_VRING_CALL`; `None` asks for no interrupt.
    pub fn set_call(&mut self, ring: u64, call: Option<Eventfd>) -> Result<Vec<Action>, Failure> {
        let index = self.find(ring)?;
        self.ring(index).call = call;
        Ok(if self.has_running(index) { self.rewire(None) } else { Vec::new() })
    }

    /// `SET_VRING_ENABLE`. A ring that was never described can be enabled, which says nothing yet.
    ///
    /// # Errors
    ///
    /// What was wrong with what was said of the ring before; why it cannot begin, or the device does not go on.
    pub fn set_enabled(&mut self, ring: u64, is_enabled: bool) -> Result<Vec<Action>, Failure> {
        let index = self.find(ring)?;
        let was_enabled = std::mem::replace(&mut self.ring(index).is_enabled, is_enabled);
        if is_enabled {
            return self
                .enable(index, was_enabled)
                .inspect_err(|_| self.ring(index).is_enabled = was_enabled);
        }
        let silenced = self.silence_unless_wanted();
        let stays = silenced.is_empty() && was_enabled && self.has_running(index);
        Ok(if stays { self.rewire(None) } else { silenced })
    }

    fn enable(&mut self, index: RingIndex, was_enabled: bool) -> Result<Vec<Action>, Failure> {
        if let Some(fault) = self.ring(index).fault.clone() {
            return Err(fault);
        }
        if self.ring(index).is_started() {
            self.entry(index)?;
        }
        if self.has_running(index) {
            return Ok(if was_enabled { Vec::new() } else { self.rewire(Some(index)) });
        }
        let actions = self.advance()?;
        match &self.fault {
            Some(fault) if actions.is_empty() => Err(fault.clone()),
            _ => Ok(actions),
        }
    }

    /// `GET_VRING_BASE`: stops a ring, and with it the device. What to answer: where the ring shall begin if the device
    /// does not have it, and otherwise a token by which it goes on.
    pub fn stop(&mut self, ring: u64) -> Result<(Base, Vec<Action>), Failure> {
        let index = self.find(ring)?;
        self.stops += 1;
        let token = Base::token(self.stops);
        let is_driven = self.driven().is_some_and(|driven| driven.rings.contains_key(&index));
        let ring = self.ring(index);
        ring.kick = None;
        ring.fault = None;
        if is_driven {
            ring.stopped = Some(token);
            ring.base = token;
        }
        let base = ring.base;
        Ok((base, self.silence_unless_wanted()))
    }

    /// `SET_STATUS`. 0 stops the device and resets nothing: QEMU sends it when the virtual machine is paused as well.
    pub fn set_status(&mut self, status: DeviceStatus) -> Result<Vec<Action>, Failure> {
        let was_ready = self.status.is_some_and(|before| before.has(DeviceStatus::DRIVER_OK));
        let begins = status.has(DeviceStatus::DRIVER_OK) && !was_ready;
        // What was answered comes back with what is added.
        self.status = Some(status.without(DeviceStatus::NEEDS_RESET));
        if !self.tells_status {
            return Ok(Vec::new());
        }
        if !begins {
            return Ok(self.silence_unless_wanted());
        }
        let missing = self.unfinished();
        match missing {
            Some(ring) if self.rings.values().any(Ring::is_started) && !self.all_begin() => {
                let base = self.ring(ring).base;
                Err(self.fail_with(Failure::ring_not_resumable(ring, base)))
            }
            _ => self.advance(),
        }
    }

    /// `GET_STATUS`. What went wrong shows as `DEVICE_NEEDS_RESET`.
    pub fn status(&self) -> DeviceStatus {
        let is_faulty = self.fault.is_some() || self.rings.values().any(|ring| ring.fault.is_some());
        let status = self.status.unwrap_or_default();
        if is_faulty { status.with(DeviceStatus::NEEDS_RESET) } else { status }
    }

    /// What is wrong, for the log.
    pub fn fault(&self) -> Option<&Failure> {
        self.fault.as_ref().or_else(|| self.rings.values().find_map(|ring| ring.fault.as_ref()))
    }

    /// `RESET_DEVICE`, or the frontend has gone: everything is as in the beginning, but for the calls.
    pub fn reset(&mut self) -> Vec<Action> {
        let was_driven = self.driven().is_some();
        self.hardware = Hardware::Reset;
        self.status = None;
        self.fault = None;
        for (index, ring) in std::mem::take(&mut self.rings) {
            self.ring(index).call = ring.call;
        }
        if was_driven { vec![Action::Reset] } else { Vec::new() }
    }

    /// The device has lost its rings: it was reset by somebody, or an action failed. Nothing goes on by itself; rings that
    /// it had have to be described again. What is to be done is the caller's affair.
    pub fn lose(&mut self, failure: Failure) {
        self.stops += 1;
        let lost = Base::token(self.stops);
        if let Some(driven) = self.driven().cloned() {
            for index in driven.rings.keys() {
                self.ring(*index).forget(lost);
            }
        }
        self.hardware = Hardware::Reset;
        self.fault = Some(failure);
    }

    /// Memory goes, in which a ring lies if `is_in` says so. A device that is silent loses its rings with it.
    ///
    /// # Errors
    ///
    /// The device runs with such a ring.
    pub fn lose_memory(&mut self, is_in: impl Fn(&RingAreas) -> bool) -> Result<(), Failure> {
        let lies_in = |driven: &Driven| {
            driven
                .rings
                .iter()
                .find(|(_, ring)| is_in(&ring.areas))
                .map(|(index, _)| Failure::ring_in_use(*index))
        };
        match &self.hardware {
            Hardware::Running(driven) => lies_in(driven).map_or(Ok(()), Err),
            Hardware::Silent(driven) => {
                if let Some(failure) = lies_in(driven) {
                    self.lose(failure);
                }
                Ok(())
            }
            Hardware::Reset => Ok(()),
        }
    }

    /// `RESET_OWNER`: no ring is enabled.
    pub fn disable_all(&mut self) -> Vec<Action> {
        self.rings.values_mut().for_each(|ring| ring.is_enabled = false);
        self.silence_unless_wanted()
    }

    /// Changes what is said of a ring, if the device does not go by it.
    fn describe(
        &mut self,
        index: RingIndex,
        change: impl FnOnce(&mut Ring) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let is_driven = self.driven().is_some_and(|driven| driven.rings.contains_key(&index));
        let ring = self.ring(index);
        let changed = if is_driven && ring.stopped.is_none() {
            Err(Failure::ring_is_running(index))
        } else {
            change(ring)
        };
        changed.inspect_err(|failure| ring.fault = Some(failure.clone()))
    }

    fn fail_with(&mut self, failure: Failure) -> Failure {
        self.fault = Some(failure.clone());
        failure
    }

    const fn driven(&self) -> Option<&Driven> {
        match &self.hardware {
            Hardware::Running(driven) | Hardware::Silent(driven) => Some(driven),
            Hardware::Reset => None,
        }
    }

    fn has_running(&self, index: RingIndex) -> bool {
        matches!(&self.hardware, Hardware::Running(driven) if driven.rings.contains_key(&index))
    }

    fn is_packed(&self) -> bool {
        self.features.is_some_and(|features| features & RING_PACKED != 0)
    }

    fn largest(&self, index: RingIndex) -> u16 {
        self.largest_sizes.get(usize::from(index.0)).copied().unwrap_or_default()
    }

    fn find(&self, ring: u64) -> Result<RingIndex, Failure> {
        let count = self.ring_count();
        let index = u16::try_from(ring).ok().filter(|ring| *ring < count).map(RingIndex);
        match self.features.and_then(|features| self.control_ring(features)) {
            Some(control) if index == Some(control) => Err(Failure::ring_is_ours(control)),
            _ => index.ok_or_else(|| Failure::no_such_ring(ring, count)),
        }
    }

    /// The control ring, if it is driven here for a frontend that acknowledged these features.
    fn control_ring(&self, features: u64) -> Option<RingIndex> {
        self.queue_pairs.filter(|_| QueuePairs::are_set_here(features)).map(QueuePairs::control_ring)
    }

    fn is_started(&self, index: RingIndex) -> bool {
        self.rings.get(&index).is_some_and(Ring::is_started)
    }

    fn ring(&mut self, index: RingIndex) -> &mut Ring {
        let is_enabled = self.features.is_some_and(|features| features & PROTOCOL_FEATURES == 0);
        self.rings.entry(index).or_insert_with(|| Ring { is_enabled, ..Ring::default() })
    }
}

#[cfg(test)]
mod tests;
