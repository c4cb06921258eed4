// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads a disk, past the page cache, with so many reads at a time: what a guest measures with. Prints how many nanoseconds all
//! of it took.

#![allow(clippy::expect_used)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::OFlags;

/// What the kernel wants buffers to be aligned to.
const ALIGNMENT: usize = 4096;
const USAGE: &str = "usage: reader DISK sequential|random BLOCK-SIZE COUNT DEPTH SPAN";

/// What is read.
#[derive(Debug)]
struct Arguments {
    disk: String,
    pattern: Pattern,
    /// Bytes of each read, a multiple of 4096.
    block: usize,
    /// How many reads there are.
    count: u64,
    /// How many of them at a time.
    depth: usize,
    /// Of how many bytes from its beginning the disk is read.
    span: u64,
}

#[derive(Clone, Copy, Debug)]
enum Pattern {
    Sequential,
    Random,
}

impl Arguments {
    fn of_this_process() -> Option<Self> {
        let words: Vec<_> = std::env::args().skip(1).collect();
        let [disk, pattern, block, count, depth, span] = words.as_slice() else { return None };
        let pattern = match pattern.as_str() {
            "sequential" => Pattern::Sequential,
            "random" => Pattern::Random,
            _ => return None,
        };
        let (block, count) = (block.parse().ok()?, count.parse().ok()?);
        let (depth, span) = (depth.parse().ok()?, span.parse().ok()?);
        Some(Self { disk: disk.clone(), pattern, block, count, depth, span })
    }

    /// Where the read with this number begins.
    fn offset(&self, number: u64) -> u64 {
        let block = u64::try_from(self.block).expect("a size");
        let blocks = self.span / block;
        let place = match self.pattern {
            Pattern::Sequential => number,
            // Scattered, and the same each time.
            Pattern::Random => (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20,
        };
        place % blocks * block
    }

    fn read_all(&self, disk: &File, next: &AtomicU64) {
        let mut room = vec![0; self.block + ALIGNMENT];
        let start = room.as_ptr().align_offset(ALIGNMENT);
        let buffer = room.get_mut(start..start + self.block).expect("room for it");
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return;
            }
            disk.read_exact_at(buffer, self.offset(number)).expect("the disk can be read");
        }
    }
}

fn main() {
    let arguments = Arc::new(Arguments::of_this_process().expect(USAGE));
    let flags = OFlags::DIRECT.bits().cast_signed();
    let disk = OpenOptions::new().read(true).custom_flags(flags).open(&arguments.disk);
    let disk = Arc::new(disk.expect("the disk"));
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let readers: Vec<_> = (0..arguments.depth)
        .map(|_| {
            let (arguments, disk, next) = (Arc::clone(&arguments), Arc::clone(&disk), Arc::clone(&next));
            thread::spawn(move || arguments.read_all(&disk, &next))
        })
        .collect();
    for reader in readers {
        reader.join().expect("a reader");
    }
    println!("{}", start.elapsed().as_nanos());
}
