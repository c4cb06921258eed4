// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest reads of its disk, and how long that takes.

use std::time::Duration;

use vhost_device_vfio_tests::guest::Guest;

/// Reads that are one lap. The program `reader` does them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pattern: &'static str,
    /// Bytes of each read.
    block: u32,
    /// How many reads there are.
    pub(crate) count: u32,
    /// How many of them at a time.
    depth: u32,
}

pub(crate) const LOADS: [Load; 4] = [
    Load { name: "sequential, 1", pattern: "sequential", block: 128 << 10, count: 128, depth: 1 },
    Load { name: "sequential, 32", pattern: "sequential", block: 128 << 10, count: 128, depth: 32 },
    Load { name: "random, 1", pattern: "random", block: 4 << 10, count: 512, depth: 1 },
    Load { name: "random, 32", pattern: "random", block: 4 << 10, count: 512, depth: 32 },
];
/// How many laps there are, and how many of them count.
pub(crate) const LAPS_AT_ALL: u32 = 1 + LAPS;
const LAPS: u32 = 7;
/// Of how many bytes from its beginning the disk is read.
const SPAN: u32 = 32 << 20;

impl Load {
    /// How long each lap takes that counts, with something done before each.
    pub(crate) fn laps(&self, guest: &mut Guest, disk: &str, mut before: impl FnMut()) -> Vec<Duration> {
        let mut lap = || {
            before();
            self.read(guest, disk)
        };
        // The first finds nothing in any cache.
        lap();
        (0..LAPS).map(|_| lap()).collect()
    }

    fn read(&self, guest: &mut Guest, disk: &str) -> Duration {
        let Self { pattern, block, count, depth, .. } = self;
        let command = format!("reader {disk} {pattern} {block} {count} {depth} {SPAN}");
        Duration::from_nanos(guest.run(&command).trim().parse().expect("nanoseconds"))
    }
}
