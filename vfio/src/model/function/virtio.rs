// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio device behind PCI (Virtio 1.3, 4.1), as QEMU lays it out, with what that does where the standard leaves it open.

mod block;
mod entropy;
mod net;
mod split_ring;
#[cfg(test)]
mod tests;

use rustix::io::Errno;

use crate::model::function::bars::Signal;
use crate::model::function::virtio::block::Block;
use crate::model::function::virtio::net::Net;
use crate::model::function::virtio::split_ring::{Broken, SplitRing};
use crate::model::memory_map::MemoryMap;
use crate::model::topology::ControlQueue;

/// Fields of the common configuration.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    /// Descriptors, the driver's and the device's area, in two halves each.
    pub(super) const QUEUE_AREAS: u64 = 0x20;
    pub(super) const QUEUE_AREAS_END: u64 = 0x38;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}

/// Structures in the BAR.
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
/// Doorbells of these many bytes each, and of a page each so that they can be mapped one by one (QEMU's `page-per-vq`).
pub(crate) const DENSE_DOORBELLS: u32 = 4;
pub(crate) const PAGED_DOORBELLS: u32 = 0x1000;

const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
/// `INDIRECT_DESC`, `EVENT_IDX`, `VERSION_1`, `ACCESS_PLATFORM` and `RING_RESET`.
const TRANSPORT_FEATURES: u64 = (1 << 28) | EVENT_INDEX | VERSION_1 | ACCESS_PLATFORM | (1 << 40);
const NO_VECTOR: u16 = 0xffff;
const QUEUE_INTERRUPT: u8 = 1;
const CONFIG_INTERRUPT: u8 = 2;
/// A queue is served for so long at once.
const MOST_CHAINS: u32 = 1 << 16;

/// What the device is.
#[derive(Debug)]
enum Kind {
    Block(Block),
    Net(Net),
    Entropy,
}

#[derive(Debug)]
struct Queue {
    largest_size: u16,
    size: u16,
    vector: u16,
    /// As the driver wrote them.
    areas: [u64; 3],
    /// While it is enabled.
    ring: Option<SplitRing>,
}

impl Queue {
    const fn new(size: u16) -> Self {
        Self { largest_size: size, size, vector: NO_VECTOR, areas: [0; 3], ring: None }
    }

    /// Its vector, if its driver is to be told.
    fn interrupt(&mut self, memory: &MemoryMap) -> Result<Vec<u16>, Broken> {
        let Some(ring) = &mut self.ring else { return Ok(Vec::new()) };
        let is_due = ring.is_interrupt_due(memory)?;
        Ok(is_due.then_some(self.vector).into_iter().collect())
    }
}

/// The device.
#[derive(Debug)]
pub(crate) struct Virtio {
    kind: Kind,
    /// Of MSI-X.
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    /// As the driver wrote them.
    driver_features: [u32; 2],
    /// What was agreed on.
    features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    isr: u8,
    /// The driver broke the rules: nothing is done any more.
    is_broken: bool,
}

impl Virtio {
    /// A block device.
    ///
    /// # Errors
    ///
    /// That of making its disk.
    pub(crate) fn block() -> Result<Self, Errno> {
        Ok(Self::new(Kind::Block(Block::new()?), 3, vec![Queue::new(256), Queue::new(256)]))
    }

    /// A network device.
    pub(crate) fn net() -> Self {
        Self::network(Net::new(None), 4)
    }

    /// A network device with several queue pairs.
    pub(crate) fn queues(control: ControlQueue) -> Self {
        Self::network(Net::new(Some(control)), 6)
    }

    /// A source of random bytes.
    pub(crate) fn entropy() -> Self {
        Self::new(Kind::Entropy, 2, vec![Queue::new(8)])
    }

    fn network(net: Net, vectors: u16) -> Self {
        let queues = net.queue_sizes(0).into_iter().map(Queue::new).collect();
        Self::new(Kind::Net(net), vectors, queues)
    }

    const fn new(kind: Kind, vectors: u16, queues: Vec<Queue>) -> Self {
        Self {
            kind,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: [0; 2],
            features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues,
            isr: 0,
            is_broken: false,
        }
    }

    /// Back to the beginning. What features were selected stays so, and queues that came with a feature stay.
    pub(crate) fn reset(&mut self) {
        self.driver_features = [0; 2];
        self.features = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.isr = 0;
        self.is_broken = false;
        for queue in &mut self.queues {
            *queue = Queue::new(queue.largest_size);
        }
        if let Kind::Net(net) = &mut self.kind {
            net.pairs = 1;
        }
    }

    /// The function is no bus master any more, which to QEMU means that its driver is gone.
    pub(crate) const fn stop(&mut self) {
        self.status &= !DRIVER_OK;
    }

    const fn offered(&self) -> u64 {
        TRANSPORT_FEATURES
            | match &self.kind {
                Kind::Block(_) => block::FEATURES,
                Kind::Net(net) => net.features(),
                Kind::Entropy => 0,
            }
    }

    /// How far they are apart.
    const fn doorbells(&self) -> u32 {
        match self.kind {
            Kind::Block(_) => PAGED_DOORBELLS,
            Kind::Net(_) | Kind::Entropy => DENSE_DOORBELLS,
        }
    }

    fn config(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Block(block) => block.config(),
            Kind::Net(net) => net.config(),
            Kind::Entropy => Vec::new(),
        }
    }

    /// A read of up to 4 bytes.
    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8], signals: &mut Vec<Signal>) {
        if offset < ISR {
            let value = self.read_common(offset).to_le_bytes();
            data.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
            return;
        }
        data.fill(0);
        if (DEVICE..NOTIFY).contains(&offset) {
            let config = self.config();
            let start = usize::try_from(offset - DEVICE).unwrap_or(usize::MAX);
            data.fill(0xff);
            data.iter_mut().zip(config.iter().skip(start)).for_each(|(byte, value)| *byte = *value);
        } else if offset < DEVICE
            && let Some(first) = data.first_mut()
        {
            *first = std::mem::take(&mut self.isr);
            signals.push(Signal::Lower);
        }
    }

    fn read_common(&self, offset: u64) -> u32 {
        let queue = self.queues.get(usize::from(self.queue_select));
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select,
            common::DEVICE_FEATURE => half_of(self.offered(), self.device_feature_select),
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select,
            common::DRIVER_FEATURE => {
                let selected = usize::try_from(self.driver_feature_select).ok();
                selected.and_then(|selected| self.driver_features.get(selected).copied()).unwrap_or_default()
            }
            common::CONFIG_VECTOR => self.config_vector.into(),
            common::QUEUES => u32::try_from(self.queues.len()).unwrap_or_default(),
            common::STATUS => self.status.into(),
            common::QUEUE_SELECT | common::QUEUE_NOTIFY_OFFSET => self.queue_select.into(),
            common::QUEUE_SIZE => queue.map_or(0, |queue| queue.size).into(),
            common::QUEUE_VECTOR => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            common::QUEUE_ENABLE => queue.is_some_and(|queue| queue.ring.is_some()).into(),
            common::QUEUE_AREAS..common::QUEUE_AREAS_END if offset.is_multiple_of(4) => {
                let area = usize::try_from((offset - common::QUEUE_AREAS) / 8).unwrap_or_default();
                let area = queue.and_then(|queue| queue.areas.get(area)).copied().unwrap_or_default();
                half_of(area, (!offset.is_multiple_of(8)).into())
            }
            _ => 0,
        }
    }

    /// A write of up to 4 bytes. `memory` is what the device reaches by DMA.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], memory: Option<&MemoryMap>) -> Vec<Signal> {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(byte, data)| *byte = *data);
        let mut signals = Vec::new();
        if offset < ISR {
            self.write_common(offset, u32::from_le_bytes(value), memory, &mut signals);
        } else if (DEVICE..NOTIFY).contains(&offset) {
            if let (Kind::Block(block), Ok(start)) = (&mut self.kind, usize::try_from(offset - DEVICE)) {
                block.write_config(start, data);
            }
        } else if offset >= NOTIFY
            && let Ok(queue) = usize::try_from((offset - NOTIFY) / u64::from(self.doorbells()))
        {
            self.notify(queue, memory, &mut signals);
        }
        signals
    }

    fn write_common(
        &mut self,
        offset: u64,
        value: u32,
        memory: Option<&MemoryMap>,
        signals: &mut Vec<Signal>,
    ) {
        let [low, high, ..] = value.to_le_bytes();
        let half = u16::from_le_bytes([low, high]);
        let vector = if half < self.vectors { half } else { NO_VECTOR };
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            common::DRIVER_FEATURE => self.accept(value),
            common::CONFIG_VECTOR => self.config_vector = vector,
            common::STATUS => self.set_status(low, memory, signals),
            common::QUEUE_SELECT => self.queue_select = half,
            _ => self.write_queue(offset, value, half, vector, signals),
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32, half: u16, vector: u16, signals: &mut Vec<Signal>) {
        let has_event_index = self.features & EVENT_INDEX != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        match offset {
            common::QUEUE_SIZE if (1..=queue.largest_size).contains(&half) => queue.size = half,
            common::QUEUE_VECTOR => queue.vector = vector,
            common::QUEUE_ENABLE if half == 1 => {
                let [descriptors, available, used] = queue.areas;
                let ring = SplitRing::new(queue.size, descriptors, available, used, has_event_index);
                queue.ring.get_or_insert(ring);
            }
            common::QUEUE_ENABLE => self.fail(signals),
            common::QUEUE_RESET if half == 1 => {
                queue.size = queue.largest_size;
                queue.ring = None;
            }
            common::QUEUE_AREAS..common::QUEUE_AREAS_END if offset.is_multiple_of(4) => {
                let area = usize::try_from((offset - common::QUEUE_AREAS) / 8).unwrap_or_default();
                if let Some(area) = queue.areas.get_mut(area) {
                    let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
                    *area = (*area & !(u64::from(u32::MAX) << shift)) | (u64::from(value) << shift);
                }
            }
            _ => {}
        }
    }

    /// What the driver writes can be read back, but means nothing once features are agreed on.
    fn accept(&mut self, value: u32) {
        let selected = usize::try_from(self.driver_feature_select).ok();
        let Some(word) = selected.and_then(|selected| self.driver_features.get_mut(selected)) else { return };
        *word = value;
        if self.status & FEATURES_OK == 0 {
            let [low, high] = self.driver_features;
            self.features = (u64::from(low) | (u64::from(high) << 32)) & self.offered();
            self.change_queues();
        }
    }

    /// The queues are those that the driver has agreed to.
    fn change_queues(&mut self) {
        let Kind::Net(net) = &self.kind else { return };
        let sizes = net.queue_sizes(self.features);
        if sizes.len() != self.queues.len() {
            self.queues = sizes.into_iter().map(Queue::new).collect();
        }
    }

    fn set_status(&mut self, status: u8, memory: Option<&MemoryMap>, signals: &mut Vec<Signal>) {
        let agrees = status & !self.status & FEATURES_OK != 0;
        if agrees && self.features & (VERSION_1 | ACCESS_PLATFORM) == VERSION_1 {
            return;
        }
        let starts = status & !self.status & DRIVER_OK != 0;
        self.status = status;
        if status == 0 {
            self.reset();
        } else if starts {
            (0..self.queues.len()).for_each(|queue| self.notify(queue, memory, signals));
        }
    }

    /// The device cannot go on.
    fn fail(&mut self, signals: &mut Vec<Signal>) {
        self.is_broken = true;
        if self.features & VERSION_1 != 0 {
            self.status |= NEEDS_RESET;
            self.isr |= QUEUE_INTERRUPT | CONFIG_INTERRUPT;
            signals.push(Signal::Raise { vector: self.config_vector });
        }
    }

    /// A doorbell rang. QEMU does not wait for the driver to say that it is ready.
    fn notify(&mut self, queue: usize, memory: Option<&MemoryMap>, signals: &mut Vec<Signal>) {
        if self.is_broken || self.queues.get(queue).is_none_or(|queue| queue.ring.is_none()) {
            return;
        }
        let served = memory.ok_or(Broken).and_then(|memory| self.serve(queue, memory));
        let Ok(interrupting) = served else {
            self.fail(signals);
            return;
        };
        for vector in interrupting {
            self.isr |= QUEUE_INTERRUPT;
            signals.push(Signal::Raise { vector });
        }
    }

    /// Serves a queue until it is empty. The vectors of the queues whose driver is to be told.
    fn serve(&mut self, queue: usize, memory: &MemoryMap) -> Result<Vec<u16>, Broken> {
        let control = self.queues.len().saturating_sub(1);
        match &self.kind {
            Kind::Block(_) | Kind::Entropy => self.answer(queue, memory),
            Kind::Net(net) if queue == control => {
                if net.listens() {
                    self.obey(queue, memory)
                } else {
                    Ok(Vec::new())
                }
            }
            // Buffers wait there for packets.
            Kind::Net(_) if queue.is_multiple_of(2) => Ok(Vec::new()),
            Kind::Net(net) if queue / 2 < usize::from(net.pairs) => self.send(queue, memory),
            Kind::Net(_) => Ok(Vec::new()),
        }
    }

    /// Does what the requests ask for, each by itself.
    fn answer(&mut self, queue: usize, memory: &MemoryMap) -> Result<Vec<u16>, Broken> {
        let queue = self.queues.get_mut(queue).ok_or(Broken)?;
        let ring = queue.ring.as_mut().ok_or(Broken)?;
        for _ in 0..MOST_CHAINS {
            let Some(chain) = ring.pop(memory)? else { break };
            let written = match &self.kind {
                Kind::Block(block) => block.serve(memory, &chain)?,
                Kind::Entropy => entropy::fill(memory, &chain)?,
                Kind::Net(_) => 0,
            };
            ring.push(memory, &chain, written)?;
        }
        queue.interrupt(memory)
    }

    /// What is sent is received by the other queue of the pair.
    fn send(&mut self, queue: usize, memory: &MemoryMap) -> Result<Vec<u16>, Broken> {
        let features = self.features;
        let Some([receiving, sending]) = self.queues.get_mut(queue - 1..=queue) else { return Err(Broken) };
        let ring = sending.ring.as_mut().ok_or(Broken)?;
        for _ in 0..MOST_CHAINS {
            let Some(chain) = ring.pop(memory)? else { break };
            let packet = net::take(memory, &chain)?;
            if let Some(ring) = &mut receiving.ring {
                net::receive(memory, ring, features, &packet)?;
            }
            ring.push(memory, &chain, 0)?;
        }
        Ok([sending.interrupt(memory)?, receiving.interrupt(memory)?].concat())
    }

    /// Carries commands out. What waits in the queues that come into use is sent.
    fn obey(&mut self, queue: usize, memory: &MemoryMap) -> Result<Vec<u16>, Broken> {
        let Kind::Net(net) = &mut self.kind else { return Ok(Vec::new()) };
        let before = net.pairs;
        let queue = self.queues.get_mut(queue).ok_or(Broken)?;
        let ring = queue.ring.as_mut().ok_or(Broken)?;
        for _ in 0..MOST_CHAINS {
            let Some(chain) = ring.pop(memory)? else { break };
            let written = net.command(memory, &chain, self.features)?;
            ring.push(memory, &chain, written)?;
        }
        let mut interrupting = queue.interrupt(memory)?;
        for pair in before..net.pairs {
            let sending = usize::from(pair) * 2 + 1;
            if self.queues.get(sending).is_some_and(|queue| queue.ring.is_some()) {
                interrupting.extend(self.send(sending, memory)?);
            }
        }
        Ok(interrupting)
    }
}

/// One of the two halves of a 64-bit value; there are no more.
fn half_of(value: u64, half: u32) -> u32 {
    let shifted = value.checked_shr(half.saturating_mul(32)).unwrap_or_default();
    u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or_default()
}
