// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A split virtqueue in guest memory, as the device has it (Virtio 1.3, 2.7).

use crate::ioas::Iova;
use crate::model::memory_map::{DmaFault, MemoryMap};

const DESCRIPTOR: u64 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// Before the rings of both sides: flags and index.
const RING: u64 = 4;
const AVAILABLE_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;
/// Descriptors of a chain, those behind an indirect one included.
const LONGEST_CHAIN: usize = 1024;

/// The driver broke the rules, or its memory is not there. The device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl From<DmaFault> for Broken {
    fn from(_: DmaFault) -> Self {
        Self
    }
}

/// A piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: Iova,
    pub(crate) length: u32,
}

/// A buffer that the driver made available: what the device reads, and behind it what it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    head: u16,
    pub(crate) readable: Vec<Segment>,
    pub(crate) writable: Vec<Segment>,
}

/// Where the parts of a queue are, and how far the device is.
#[derive(Clone, Debug)]
pub(crate) struct SplitRing {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    /// Whether each side says up to where the other need not tell it of progress.
    pub(crate) has_event_index: bool,
    next_available: u16,
    next_used: u16,
    /// The driver was told of everything before this.
    told: u16,
}

impl SplitRing {
    /// A queue that nothing has happened in yet.
    pub(crate) const fn new(
        size: u16,
        descriptors: u64,
        available: u64,
        used: u64,
        has_event_index: bool,
    ) -> Self {
        Self { size, descriptors, available, used, has_event_index, next_available: 0, next_used: 0, told: 0 }
    }

    /// The next buffer; `None` when there is none.
    pub(crate) fn pop(&mut self, memory: &MemoryMap) -> Result<Option<Chain>, Broken> {
        if self.has_event_index {
            // Before looking, so that no buffer that comes after it goes unannounced.
            let end = offset(self.used, RING + u64::from(self.size) * USED_ENTRY)?;
            memory.write(end, &self.next_available.to_le_bytes())?;
        }
        let waiting = half(memory, self.available, 2)?.wrapping_sub(self.next_available);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.size {
            return Err(Broken);
        }
        let slot = u64::from(self.next_available.checked_rem(self.size).ok_or(Broken)?);
        let head = half(memory, self.available, RING + slot * AVAILABLE_ENTRY)?;
        let chain = self.chain(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    fn chain(&self, memory: &MemoryMap, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let (mut table, mut length, mut index) = (self.descriptors, u32::from(self.size), head);
        for _ in 0..LONGEST_CHAIN {
            if u32::from(index) >= length {
                return Err(Broken);
            }
            let descriptor = Descriptor::read(memory, table, index)?;
            if descriptor.flags & INDIRECT != 0 {
                if table != self.descriptors || descriptor.flags & NEXT != 0 {
                    return Err(Broken);
                }
                (table, length, index) = (descriptor.address, descriptor.length / 16, 0);
                continue;
            }
            let segment = Segment { address: Iova(descriptor.address), length: descriptor.length };
            match (descriptor.flags & WRITE != 0, chain.writable.is_empty()) {
                (true, _) => chain.writable.push(segment),
                (false, true) => chain.readable.push(segment),
                (false, false) => return Err(Broken),
            }
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(Broken)
    }

    /// Gives a buffer back, of which the device wrote the first `written` bytes.
    pub(crate) fn push(&mut self, memory: &MemoryMap, chain: &Chain, written: u32) -> Result<(), Broken> {
        let slot = u64::from(self.next_used.checked_rem(self.size).ok_or(Broken)?);
        let entry = [u32::from(chain.head).to_le_bytes(), written.to_le_bytes()].concat();
        memory.write(offset(self.used, RING + slot * USED_ENTRY)?, &entry)?;
        self.next_used = self.next_used.wrapping_add(1);
        memory.write(offset(self.used, 2)?, &self.next_used.to_le_bytes())?;
        Ok(())
    }

    /// Whether the driver wants to be told of what was given back since it was told last.
    pub(crate) fn is_interrupt_due(&mut self, memory: &MemoryMap) -> Result<bool, Broken> {
        let news = self.next_used.wrapping_sub(self.told);
        if news == 0 {
            return Ok(false);
        }
        self.told = self.next_used;
        if !self.has_event_index {
            return Ok(half(memory, self.available, 0)? & NO_INTERRUPT == 0);
        }
        let event = half(memory, self.available, RING + u64::from(self.size) * AVAILABLE_ENTRY)?;
        Ok(self.next_used.wrapping_sub(event).wrapping_sub(1) < news)
    }
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &MemoryMap, table: u64, index: u16) -> Result<Self, Broken> {
        let mut bytes = [0; 16];
        memory.read(offset(table, u64::from(index) * DESCRIPTOR)?, &mut bytes)?;
        let [address @ .., _, _, _, _, _, _, _, _] = bytes;
        let [.., l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Ok(Self {
            address: u64::from_le_bytes(address),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

fn half(memory: &MemoryMap, base: u64, at: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    memory.read(offset(base, at)?, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

fn offset(base: u64, at: u64) -> Result<Iova, Broken> {
    base.checked_add(at).map(Iova).ok_or(Broken)
}

/// Bytes in all.
pub(crate) fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

/// A part of what the segments are together.
pub(crate) fn part(segments: &[Segment], start: u64, length: u64) -> Vec<Segment> {
    let (mut skip, mut take) = (start, length);
    let mut parts = Vec::new();
    for segment in segments {
        let skipped = skip.min(segment.length.into());
        let taken = take.min(u64::from(segment.length) - skipped);
        if let (Ok(length @ 1..), Some(address)) =
            (u32::try_from(taken), segment.address.0.checked_add(skipped))
        {
            parts.push(Segment { address: Iova(address), length });
        }
        (skip, take) = (skip - skipped, take - taken);
    }
    parts
}

/// Reads from segments until `data` is full. How much there was.
pub(crate) fn gather(memory: &MemoryMap, segments: &[Segment], data: &mut [u8]) -> Result<usize, Broken> {
    let mut done = 0;
    for segment in segments {
        let rest = data.get_mut(done..).unwrap_or_default();
        let length = usize::try_from(segment.length).map_err(|_| Broken)?.min(rest.len());
        memory.read(segment.address, rest.get_mut(..length).unwrap_or_default())?;
        done += length;
    }
    Ok(done)
}

/// Writes `data` to segments as far as there is room. How much there was.
pub(crate) fn scatter(memory: &MemoryMap, segments: &[Segment], data: &[u8]) -> Result<usize, Broken> {
    let mut done = 0;
    for segment in segments {
        let rest = data.get(done..).unwrap_or_default();
        let length = usize::try_from(segment.length).map_err(|_| Broken)?.min(rest.len());
        memory.write(segment.address, rest.get(..length).unwrap_or_default())?;
        done += length;
    }
    Ok(done)
}
