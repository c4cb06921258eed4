// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control ring of a network device (Virtio 1.3, 5.1.6.5), for a frontend that keeps its own for itself. One command at a
//! time, and no interrupt: whoever gives it waits for the answer.
//!
//! A command is a chain of three descriptors as drivers have it: what it is, with what, and where the answer goes. It lies in a
//! page that the device reaches besides the guest's memory.

use std::thread;
use std::time::{Duration, Instant};

use vfio::Iova;

use super::rings::{Placement, RingAreas, RingIndex};
use super::transport::VirtioFunction;
use crate::control_memory::ControlPage;
use crate::failure::Failure;

/// Where what is in the page. A ring of the most entries fits in between, of either kind.
const DRIVER_AREA: u16 = 0x400;
const DEVICE_AREA: u16 = 0x800;
const COMMAND: u16 = 0xc00;
const ARGUMENT: u16 = 0xc10;
const ANSWER: u16 = 0xc20;
/// Most entries, for which a page has room.
const MAX_SIZE: u16 = 64;
/// Descriptors of a command.
const CHAIN: u16 = 3;
const DESCRIPTOR: usize = 16;

/// `VIRTQ_DESC_F_NEXT` and `VIRTQ_DESC_F_WRITE`.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Of packed descriptors: made available, and used.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `RING_EVENT_FLAGS_DISABLE`.
const NO_INTERRUPT: u16 = 1;

/// `VIRTIO_NET_CTRL_MQ` and `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const SET_QUEUE_PAIRS: [u8; 2] = [4, 0];
const DONE: u8 = 0;
/// What an answer is before there is one.
const NO_ANSWER: u8 = 0xff;

/// A device in hardware may take its time.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// How far the ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// So many commands, modulo 2^16.
    Split(u16),
    /// Where the next begins, and the wrap counter there.
    Packed(u16, bool),
}

/// A control ring that the device has.
#[derive(Debug)]
pub struct ControlRing {
    ring: RingIndex,
    page: ControlPage,
    address: Iova,
    placement: Placement,
    progress: Progress,
}

impl ControlRing {
    /// An empty ring in a page, which the device sees at `address`; `largest` is the most entries that the device takes.
    ///
    /// # Errors
    ///
    /// No command fits into a ring so small.
    pub fn new(
        ring: RingIndex,
        largest: u16,
        is_packed: bool,
        page: ControlPage,
        address: Iova,
    ) -> Result<Self, Failure> {
        let most = largest.min(MAX_SIZE);
        let size = if is_packed { most } else { most.checked_ilog2().map_or(0, |bits| 1 << bits) };
        if size < CHAIN {
            return Err(Failure::ring_size(ring, CHAIN.into(), largest));
        }
        let at = |offset: u16| Iova(address.0.saturating_add(offset.into()));
        let areas = RingAreas { descriptors: address, driver: at(DRIVER_AREA), device: at(DEVICE_AREA) };
        let placement = Placement::new(ring, size, areas, largest, is_packed)?;
        page.clear();
        let flags = if is_packed { DRIVER_AREA + 2 } else { DRIVER_AREA };
        page.publish(flags.into(), NO_INTERRUPT);
        let progress = if is_packed { Progress::Packed(0, true) } else { Progress::Split(0) };
        Ok(Self { ring, page, address, placement, progress })
    }

    /// Which ring it is.
    pub const fn index(&self) -> RingIndex {
        self.ring
    }

    /// As the device gets it.
    pub const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Has the device use so many queue pairs, and waits for up to 2 s until it does.
    ///
    /// # Errors
    ///
    /// It refuses, or does not answer.
    pub fn set_queue_pairs(&mut self, function: &VirtioFunction, pairs: u16) -> Result<(), Failure> {
        let before = self.offer(SET_QUEUE_PAIRS, pairs.to_le_bytes());
        function.doorbell(self.ring)?.ring().map_err(Failure::device_call)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_answered(before) {
            if Instant::now() >= deadline {
                return Err(Failure::control_unanswered(function.address(), pairs));
            }
            thread::park_timeout(PAUSE);
        }
        match self.page.byte(ANSWER.into()) {
            Some(DONE) => Ok(()),
            answer => Err(Failure::control_refused(function.address(), pairs, answer.unwrap_or(NO_ANSWER))),
        }
    }

    /// Writes a command and makes it available. Where it stands in the ring.
    fn offer(&mut self, command: [u8; 2], argument: [u8; 2]) -> Progress {
        self.page.write(COMMAND.into(), &command);
        self.page.write(ARGUMENT.into(), &argument);
        self.page.write(ANSWER.into(), &[NO_ANSWER]);
        let parts = [(COMMAND, 2, NEXT), (ARGUMENT, 2, NEXT), (ANSWER, 1, WRITE)];
        let before = self.progress;
        match before {
            Progress::Split(count) => self.offer_split(count, parts),
            Progress::Packed(place, wrap) => self.offer_packed(place, wrap, parts),
        }
        before
    }

    fn offer_split(&mut self, count: u16, parts: [(u16, u32, u16); 3]) {
        for (index, (place, length, flags)) in (0_u16..).zip(parts) {
            let next = if flags & NEXT == 0 { 0 } else { index + 1 };
            self.describe(index, place, length, [flags, next]);
        }
        let entry = count % self.placement.size;
        // The chain begins with descriptor 0.
        self.page.publish(usize::from(DRIVER_AREA + 4 + 2 * entry), 0);
        let count = count.wrapping_add(1);
        self.page.publish(usize::from(DRIVER_AREA + 2), count);
        self.progress = Progress::Split(count);
    }

    /// The first descriptor comes last: by its flags the device sees that there is something.
    fn offer_packed(&mut self, mut place: u16, mut wrap: bool, parts: [(u16, u32, u16); 3]) {
        let first = place;
        let mut first_flags = 0;
        for (part, length, flags) in parts {
            let flags = flags | if wrap { AVAILABLE } else { USED };
            // Of a chain the last descriptor has the buffer's id, which is 0 always.
            if place == first {
                first_flags = flags;
                self.describe(place, part, length, [0, self.flags(place)]);
            } else {
                self.describe(place, part, length, [0, flags]);
            }
            place += 1;
            if place == self.placement.size {
                (place, wrap) = (0, !wrap);
            }
        }
        self.page.publish(usize::from(first) * DESCRIPTOR + 14, first_flags);
        self.progress = Progress::Packed(place, wrap);
    }

    /// Writes a descriptor, with flags and next of a split one or id and flags of a packed one at its end.
    fn describe(&self, index: u16, part: u16, length: u32, end: [u16; 2]) {
        let mut descriptor = self.address.0.saturating_add(part.into()).to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(end.into_iter().flat_map(u16::to_le_bytes));
        self.page.write(usize::from(index) * DESCRIPTOR, &descriptor);
    }

    /// Whether the device has given back what was offered at `before`.
    fn is_answered(&self, before: Progress) -> bool {
        match before {
            Progress::Split(count) => {
                self.page.look(usize::from(DEVICE_AREA + 2)) == Some(count.wrapping_add(1))
            }
            Progress::Packed(place, wrap) => {
                let used = if wrap { AVAILABLE | USED } else { 0 };
                self.flags(place) & (AVAILABLE | USED) == used
            }
        }
    }

    fn flags(&self, place: u16) -> u16 {
        self.page.look(usize::from(place) * DESCRIPTOR + 14).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
