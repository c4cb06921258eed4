// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads blocks of 4 KiB from a disk for some seconds, past the page cache, and prints how many were read in a second. For a
//! guest: `reader DISK THREADS sequential|random SECONDS`. Each thread has one read under way.

#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
/// How much of the disk is read.
const BLOCKS: u64 = (64 << 20) / BLOCK;
/// Knuth's, of MMIX.
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

/// How many blocks one thread of `threads` reads until the time is over.
fn read(disk: &File, thread: u64, threads: u64, is_random: bool, until: Instant) -> u64 {
    let size = usize::try_from(BLOCK).expect("a small block");
    let mut memory = vec![0_u8; 2 * size];
    let start = memory.as_ptr().align_offset(size);
    let block = &mut memory[start..start + size];
    let mut random = thread;
    let mut count = 0;
    while Instant::now() < until {
        random = random.wrapping_mul(MULTIPLIER).wrapping_add(1);
        let number = if is_random { random >> 32 } else { count * threads + thread };
        disk.read_exact_at(block, number % BLOCKS * BLOCK).expect("the disk is read");
        count += 1;
    }
    count
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [path, threads, pattern, seconds] = &arguments[..] else {
        panic!("usage: reader DISK THREADS sequential|random SECONDS")
    };
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("the disk opens");
    let threads: u64 = threads.parse().expect("a number");
    let seconds: u64 = seconds.parse().expect("a number");
    let until = Instant::now() + Duration::from_secs(seconds);
    let is_random = pattern == "random";
    let count: u64 = std::thread::scope(|scope| {
        let start = |thread| {
            let disk = &disk;
            scope.spawn(move || read(disk, thread, threads, is_random, until))
        };
        let readers: Vec<_> = (0..threads).map(start).collect();
        readers.into_iter().map(|reader| reader.join().expect("it reads to the end")).sum()
    });
    println!("{}", count / seconds);
}
