// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio entropy device (Virtio 1.3, 5.4): it fills buffers with random bytes.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::model::function::virtio::split_ring::{self, Broken, Chain};
use crate::model::memory_map::MemoryMap;

/// What a buffer gets at most, which may be less than it has room for.
const MOST: u64 = 0x1_0000;

/// Fills a buffer. How many bytes it got.
pub(crate) fn fill(memory: &MemoryMap, chain: &Chain) -> Result<u32, Broken> {
    let length = split_ring::length(&chain.writable).min(MOST);
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| Broken)?];
    // Once there is any entropy at all, so few bytes come at once or not at all.
    let count = getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|_| Broken)?;
    let written = split_ring::scatter(memory, &chain.writable, bytes.get(..count).ok_or(Broken)?)?;
    u32::try_from(written).map_err(|_| Broken)
}
