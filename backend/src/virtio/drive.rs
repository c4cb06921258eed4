// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Does to the device what the course of a frontend wants: its registers, its interrupts, its kicks.
//!
//! It can be moved to another thread, as a job does with what it works on: a reset of the device takes its time.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vfio::irq::{IrqData, IrqSet};
use vfio::{Device, Iova, IrqAction, IrqIndex};

use super::control_ring::ControlRing;
use super::course::{Action, Wire};
use super::doorbell::DoorbellPage;
use super::eventfd::Eventfd;
use super::features::RING_PACKED;
use super::interrupts::{SharedVectors, Vectors};
use super::kick::{Kick, Relay};
use super::rings::{Placement, RingIndex};
use super::transport::{NO_VECTOR, VirtioFunction};
use crate::control_memory::ControlPage;
use crate::failure::Failure;
use crate::memory::MemoryView;

/// How long a device has to finish before it is silenced.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(1);

/// A virtio function that is driven for a frontend.
#[derive(Debug)]
pub struct Drive {
    function: VirtioFunction,
    relay: Arc<Relay>,
    vectors: Vectors,
    /// Written to when the device's configuration changes.
    config_change: Eventfd,
    /// What each vector is armed with, from 0; none while the device has no interrupts.
    armed: Vec<Option<Eventfd>>,
    kicks: BTreeMap<RingIndex, Kick>,
    /// What the device was given since its last reset.
    rings: BTreeMap<RingIndex, Placement>,
    is_packed: bool,
    /// For a control ring that is driven here, and where the device sees it.
    control_page: Option<(ControlPage, Iova)>,
    control_ring: Option<ControlRing>,
    /// Where the rings are.
    memory: MemoryView,
    shared: SharedVectors,
}

impl Drive {
    /// Takes a bound and attached device: it is reset, and nothing is armed. May take some time.
    pub fn new(device: Arc<Device>, relay: Arc<Relay>) -> Result<Self, Failure> {
        let function = VirtioFunction::open(device)?;
        let info = function.device().irq_info(IrqIndex::Msix).map_err(Failure::device_call)?;
        let rings = u16::try_from(function.largest_sizes().len()).unwrap_or(u16::MAX);
        let vectors = Vectors::new(info.count, rings)
            .ok_or_else(|| Failure::no_interrupt_vector(function.address()))?;
        if vectors.are_short() {
            log::warn!(
                "event=interrupts-shared device={} vectors={} rings={rings} config-changes-told={}",
                function.address(),
                vectors.count(),
                vectors.config().is_some()
            );
        }
        let config_change = Eventfd::new().map_err(Failure::relay)?;
        Ok(Self {
            function,
            relay,
            vectors,
            config_change,
            armed: Vec::new(),
            kicks: BTreeMap::new(),
            rings: BTreeMap::new(),
            is_packed: false,
            control_page: None,
            control_ring: None,
            memory: MemoryView::default(),
            shared: SharedVectors::default(),
        })
    }

    /// The device's registers.
    pub const fn function(&self) -> &VirtioFunction {
        &self.function
    }

    /// Readable when the device's configuration has changed.
    pub const fn config_change(&self) -> &Eventfd {
        &self.config_change
    }

    /// Where the rings are, from now on: of them, it is only looked at whether they are empty before they are stopped.
    pub fn set_memory(&mut self, memory: MemoryView) {
        self.memory = memory;
    }

    /// The device reaches this page for its control ring, there; or reaches it no more.
    pub fn set_control_page(&mut self, page: Option<(ControlPage, Iova)>) {
        self.control_ring = None;
        self.control_page = page;
    }

    /// Whether there is a page for the control ring.
    pub const fn has_control_page(&self) -> bool {
        self.control_page.is_some()
    }

    /// Whether the device has its interrupts, and may access memory.
    pub const fn is_active(&self) -> bool {
        !self.armed.is_empty()
    }

    /// Where the doorbells of the rings are whose kicks are passed on.
    pub fn doorbells(&self) -> impl Iterator<Item = (RingIndex, DoorbellPage)> {
        self.kicks.iter().map(|(ring, kick)| (*ring, kick.doorbell().page()))
    }

    /// The device was reset by somebody: its rings are gone, and its interrupts down.
    pub fn forget(&mut self) {
        self.kicks.clear();
        self.rings.clear();
        self.control_ring = None;
        self.armed.clear();
        self.shared = SharedVectors::default();
    }

    /// Does one thing after the other.
    ///
    /// # Errors
    ///
    /// The first that failed; the others were not done. The device is silent then, as far as it lets itself be, and its
    /// rings are lost.
    pub fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), Failure> {
        actions.into_iter().try_for_each(|action| self.act(action)).inspect_err(|_| {
            // What fails here fails again where the device is reset for its next client, and is told there.
            let _ = self.silence();
        })
    }

    fn act(&mut self, action: Action) -> Result<(), Failure> {
        match action {
            Action::Reset => {
                self.silence()?;
                self.rings.clear();
                self.control_ring = None;
                self.function.reset()
            }
            Action::Negotiate(features) => {
                self.is_packed = features & RING_PACKED != 0;
                self.function.negotiate(features)
            }
            Action::SetUp(ring, placement) => {
                self.check(ring, &placement)?;
                self.rings.insert(ring, placement);
                self.function.set_up(ring, &placement, self.vectors.ring(ring))
            }
            Action::ResetRing(ring) => {
                self.rings.remove(&ring);
                self.function.reset_ring(ring)
            }
            Action::Verify(rings) => {
                let control = self.control_ring.as_ref().map(|ring| (ring.index(), *ring.placement()));
                rings.into_iter().chain(control).try_for_each(|(ring, placement)| {
                    match self.function.holds(ring, &placement)? {
                        None => Ok(()),
                        Some(_) => Err(Failure::virtio_was_reset(self.function.address())),
                    }
                })
            }
            Action::Start(wires) => {
                self.arm_calls(&wires)?;
                self.function.set_config_vector(self.vectors.config())?;
                self.function.enable_bus_mastering()?;
                self.function.start()?;
                self.listen(wires)
            }
            Action::Wire(wires) => {
                self.arm_calls(&wires)?;
                self.listen(wires)
            }
            Action::Notify(ring) => self.function.doorbell(ring)?.ring().map_err(Failure::device_call),
            Action::SetUpControl(ring) => self.set_up_control(ring),
            Action::UsePairs(pairs) => match &mut self.control_ring {
                Some(ring) => ring.set_queue_pairs(&self.function, pairs),
                None => Err(Failure::control_memory("the ring was not set up")),
            },
            Action::Interrupt => self.interrupt(),
            Action::Silence => {
                self.drain()?;
                self.silence()
            }
        }
    }

    /// Without a vector: whoever gives a command looks for its answer.
    fn set_up_control(&mut self, ring: RingIndex) -> Result<(), Failure> {
        let no_page = || Failure::control_memory("none is mapped");
        let (page, address) = self.control_page.clone().ok_or_else(no_page)?;
        let largest = self.function.largest_size(ring);
        let control = ControlRing::new(ring, largest, self.is_packed, page, address)?;
        self.function.set_up(ring, control.placement(), NO_VECTOR)?;
        self.control_ring = Some(control);
        Ok(())
    }

    /// All of a ring has to be in memory: an access beside it would be lost, and the device with it.
    fn check(&self, ring: RingIndex, placement: &Placement) -> Result<(), Failure> {
        let outside = placement.parts(self.is_packed).into_iter().find(|part| !self.memory.holds(*part));
        outside.map_or(Ok(()), |part| Err(Failure::ring_outside_memory(ring, part.address().0)))
    }

    /// Has the device finish what it was given, for up to half a second: what it would finish later is lost with some.
    ///
    /// A ring of buffers that wait for something, as packets, never ends.
    fn drain(&mut self) -> Result<(), Failure> {
        let kicked: Vec<_> = std::mem::take(&mut self.kicks).into_keys().collect();
        for ring in kicked {
            // A kick that came may not have been passed on.
            self.function.doorbell(ring)?.ring().map_err(Failure::device_call)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while let Some(ring) = self.busy_ring() {
            if Instant::now() >= deadline {
                log::info!("event=ring-not-drained device={} ring={}", self.function.address(), ring.0);
                break;
            }
            thread::park_timeout(PAUSE);
        }
        Ok(())
    }

    /// A ring that the device has not come to the end of. Of a packed one it does not show at a glance.
    fn busy_ring(&self) -> Option<RingIndex> {
        let mut busy = self.rings.iter().filter(|(_, placement)| !placement.is_drained(&self.memory));
        busy.next().filter(|_| !self.is_packed).map(|(ring, _)| *ring)
    }

    /// No kick, no access to memory, no interrupt. Each is tried, whatever became of the one before.
    fn silence(&mut self) -> Result<(), Failure> {
        self.kicks.clear();
        let stopped = self.function.disable_bus_mastering();
        let disarmed = self.disarm();
        stopped.and(disarmed)
    }

    /// Takes all interrupts down. Somebody may have been first: whoever resets the device, for one.
    fn disarm(&mut self) -> Result<(), Failure> {
        self.shared = SharedVectors::default();
        if std::mem::take(&mut self.armed).is_empty() {
            return Ok(());
        }
        match self.function.device().set_irqs(&IrqSet::disable(IrqIndex::Msix)) {
            Err(error) if error.errno != Errno::INVAL => Err(Failure::device_call(error)),
            _ => Ok(()),
        }
    }

    /// Has the vectors written to the calls. What stays as it is, is not touched.
    fn arm_calls(&mut self, wires: &[Wire]) -> Result<(), Failure> {
        let mut calls: BTreeMap<u16, Vec<Eventfd>> = BTreeMap::new();
        for Wire { ring, call, .. } in wires {
            calls.entry(self.vectors.ring(*ring)).or_default().extend(call.clone());
        }
        let mut routes = Vec::new();
        for vector in 0..self.vectors.count() {
            let route = if Some(vector) == self.vectors.config() {
                Some(self.config_change.clone())
            } else {
                let calls = calls.remove(&vector).unwrap_or_default();
                self.shared.route(&self.relay, vector, calls).map_err(Failure::relay)?
            };
            routes.push(route);
        }
        self.arm(routes)
    }

    fn arm(&mut self, routes: Vec<Option<Eventfd>>) -> Result<(), Failure> {
        let set = |start: usize, routes: &[Option<Eventfd>]| {
            let fds: Vec<_> = routes.iter().map(|route| route.as_ref().map(AsFd::as_fd)).collect();
            let start = u32::try_from(start).unwrap_or(u32::MAX);
            let data = IrqData::Eventfd(&fds);
            let set = IrqSet { index: IrqIndex::Msix, start, action: IrqAction::Trigger, data };
            self.function.device().set_irqs(&set).map_err(Failure::device_call)
        };
        if self.armed.is_empty() {
            set(0, &routes)?;
        } else {
            for (vector, route) in routes.iter().enumerate() {
                if self.armed.get(vector) != Some(route) {
                    set(vector, std::slice::from_ref(route))?;
                }
            }
        }
        self.armed = routes;
        Ok(())
    }

    /// As if every ring's vector had fired. The kernel writes to the eventfds, so that nobody can make this wait.
    fn interrupt(&self) -> Result<(), Failure> {
        let start = self.vectors.config().map_or(0, |config| u32::from(config) + 1);
        let data = IrqData::None(u32::from(self.vectors.count()).saturating_sub(start));
        let set = IrqSet { index: IrqIndex::Msix, start, action: IrqAction::Trigger, data };
        self.function.device().set_irqs(&set).map_err(Failure::device_call)
    }

    /// Has the kicks ring the doorbells. What stays as it is, is not touched.
    fn listen(&mut self, wires: Vec<Wire>) -> Result<(), Failure> {
        for Wire { ring, kick, .. } in wires {
            if self.kicks.get(&ring).map(Kick::source) == kick.as_ref() {
                continue;
            }
            // Before the next: it may be the same one, handed over again.
            self.kicks.remove(&ring);
            if let Some(kick) = kick {
                let doorbell = self.function.doorbell(ring)?;
                let kick = Kick::connect(kick, doorbell, &self.relay).map_err(Failure::relay)?;
                self.kicks.insert(ring, kick);
            }
        }
        Ok(())
    }
}
