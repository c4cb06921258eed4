// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio block device (Virtio 1.3, 5.2) with a disk of 64 MiB in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::io::Errno;

use crate::model::function::virtio::split_ring::{self, Broken, Chain, Segment};
use crate::model::memory_map::MemoryMap;

/// `SEG_MAX`, `GEOMETRY`, `BLK_SIZE`, `FLUSH`, `TOPOLOGY`, `CONFIG_WCE`, `MQ`, `DISCARD` and `WRITE_ZEROES`.
pub(crate) const FEATURES: u64 = 0x7e54;

const SECTOR: u64 = 512;
const SECTORS: u64 = 0x2_0000;
/// Where the configuration says whether writes are cached, which the driver may change.
const WRITE_CACHE: usize = 32;
/// Type, a reserved word and the first sector.
const HEADER: usize = 16;
/// Sector, count and flags of a range to discard or to fill with zeros.
const RANGE: usize = 16;
const STATUS: u64 = 1;
/// The end of a name that is empty.
const IDENTIFICATION: [u8; 1] = [0];
const CHUNK: u64 = 0x1_0000;

mod request {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Done,
    Failed,
    Unsupported,
}

/// The device.
#[derive(Debug)]
pub(crate) struct Block {
    disk: File,
    has_write_cache: bool,
}

impl Block {
    /// # Errors
    ///
    /// That of making the disk.
    pub(crate) fn new() -> Result<Self, Errno> {
        let disk = File::from(memfd_create("disk", MemfdFlags::CLOEXEC)?);
        ftruncate(&disk, SECTORS * SECTOR)?;
        Ok(Self { disk, has_write_cache: true })
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Vec<u8> {
        let mut config = SECTORS.to_le_bytes().to_vec();
        // The longest segment, the most of them, cylinders, heads and sectors, the block's size, how blocks lie.
        for word in [0_u32, 254, 0x3f10_0082, 512, 0, 0] {
            config.extend(word.to_le_bytes());
        }
        config.extend([self.has_write_cache.into(), 0, 2, 0]);
        // What can be discarded at once, sectors, ranges and their alignment, and what can be filled.
        for word in [0x003f_ffff_u32, 1, 1, 0x003f_ffff, 1] {
            config.extend(word.to_le_bytes());
        }
        config
    }

    /// The driver writes to the configuration.
    pub(crate) fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (WRITE_CACHE, Some(value)) = (offset, data.first()) {
            self.has_write_cache = *value != 0;
        }
    }

    /// Does what a request asks for. How many bytes it has to be written to.
    pub(crate) fn serve(&self, memory: &MemoryMap, chain: &Chain) -> Result<u32, Broken> {
        let mut header = [0; HEADER];
        let room = split_ring::length(&chain.writable).checked_sub(STATUS).ok_or(Broken)?;
        if split_ring::gather(memory, &chain.readable, &mut header)? < HEADER {
            return Err(Broken);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let sent = split_ring::length(&chain.readable) - HEADER as u64;
        let output = split_ring::part(&chain.readable, HEADER as u64, sent);
        let input = split_ring::part(&chain.writable, 0, room);
        let outcome = match u32::from_le_bytes([t0, t1, t2, t3]) {
            request::IN => self.read(memory, sector, &input)?,
            request::OUT => self.write(memory, sector, &output)?,
            // What is in memory is as safe as it will be.
            request::FLUSH => Outcome::Done,
            request::GET_ID => {
                split_ring::scatter(memory, &input, &IDENTIFICATION)?;
                Outcome::Done
            }
            request::DISCARD | request::WRITE_ZEROES => self.clear(memory, &output)?,
            _ => Outcome::Unsupported,
        };
        let status = match outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Unsupported => 2,
        };
        split_ring::scatter(memory, &split_ring::part(&chain.writable, room, STATUS), &[status])?;
        u32::try_from(room + STATUS).map_err(|_| Broken)
    }

    fn read(&self, memory: &MemoryMap, sector: u64, segments: &[Segment]) -> Result<Outcome, Broken> {
        let Some(start) = place(sector, split_ring::length(segments)) else { return Ok(Outcome::Failed) };
        for (offset, part) in chunks(segments) {
            let mut data = buffer(&part)?;
            if self.disk.read_exact_at(&mut data, start + offset).is_err() {
                return Ok(Outcome::Failed);
            }
            split_ring::scatter(memory, &part, &data)?;
        }
        Ok(Outcome::Done)
    }

    fn write(&self, memory: &MemoryMap, sector: u64, segments: &[Segment]) -> Result<Outcome, Broken> {
        let Some(start) = place(sector, split_ring::length(segments)) else { return Ok(Outcome::Failed) };
        for (offset, part) in chunks(segments) {
            let mut data = buffer(&part)?;
            split_ring::gather(memory, &part, &mut data)?;
            if self.disk.write_all_at(&data, start + offset).is_err() {
                return Ok(Outcome::Failed);
            }
        }
        Ok(Outcome::Done)
    }

    /// Discarded sectors read as zeros, too.
    fn clear(&self, memory: &MemoryMap, segments: &[Segment]) -> Result<Outcome, Broken> {
        let mut range = [0; RANGE];
        if split_ring::gather(memory, segments, &mut range)? < RANGE {
            return Ok(Outcome::Failed);
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let length = u64::from(u32::from_le_bytes([c0, c1, c2, c3])) * SECTOR;
        let Some(start) = place(sector, length) else { return Ok(Outcome::Failed) };
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let is_done = length == 0 || fallocate(&self.disk, how, start, length).is_ok();
        Ok(if is_done { Outcome::Done } else { Outcome::Failed })
    }
}

/// Where on the disk whole sectors are; `None` beyond its end.
fn place(sector: u64, length: u64) -> Option<u64> {
    let start = sector.checked_mul(SECTOR)?;
    let end = start.checked_add(length)?;
    (length.is_multiple_of(SECTOR) && end <= SECTORS * SECTOR).then_some(start)
}

/// Cuts segments into pieces that are held in memory one at a time, each with its offset.
fn chunks(segments: &[Segment]) -> impl Iterator<Item = (u64, Vec<Segment>)> {
    let length = split_ring::length(segments);
    (0..length)
        .step_by(0x1_0000)
        .map(move |start| (start, split_ring::part(segments, start, CHUNK.min(length - start))))
}

fn buffer(segments: &[Segment]) -> Result<Vec<u8>, Broken> {
    usize::try_from(split_ring::length(segments)).map(|length| vec![0; length]).map_err(|_| Broken)
}
