// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio network device (Virtio 1.3, 5.1) that receives what it sends.

use crate::model::function::virtio::split_ring::{self, Broken, Chain, SplitRing};
use crate::model::memory_map::MemoryMap;

/// `CTRL_GUEST_OFFLOADS`, `MAC`, `MRG_RXBUF`, `STATUS`, `CTRL_VQ`, `CTRL_RX`, `CTRL_VLAN`, `CTRL_RX_EXTRA`,
/// `GUEST_ANNOUNCE` and `CTRL_MAC_ADDR`.
pub(crate) const FEATURES: u64 = 0x00bf_8024;
/// A packet may be spread over several buffers.
const MERGEABLE: u64 = 1 << 15;
/// Address, and that the link is up.
pub(crate) const CONFIG: [u8; 8] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 1, 0];
/// Before each packet; its last two bytes count the buffers.
const HEADER: usize = 12;
const LONGEST_PACKET: u64 = HEADER as u64 + 0x1_0000;

/// Reads a packet that the driver sends, without its header.
pub(crate) fn take(memory: &MemoryMap, chain: &Chain) -> Result<Vec<u8>, Broken> {
    let length = split_ring::length(&chain.readable).min(LONGEST_PACKET);
    let mut packet = vec![0; usize::try_from(length).map_err(|_| Broken)?];
    split_ring::gather(memory, &chain.readable, &mut packet)?;
    packet.drain(..HEADER.min(packet.len()));
    Ok(packet)
}

/// Puts a packet into the driver's buffers. Without enough of them it is lost.
pub(crate) fn receive(
    memory: &MemoryMap,
    ring: &mut SplitRing,
    features: u64,
    packet: &[u8],
) -> Result<(), Broken> {
    let mut data = vec![0; HEADER];
    data.extend(packet);
    let before = ring.clone();
    let mut buffers = Vec::new();
    let mut room = 0;
    while room < data.len() as u64 {
        let Some(chain) = ring.pop(memory)? else { break };
        room += split_ring::length(&chain.writable);
        buffers.push(chain);
        if features & MERGEABLE == 0 {
            break;
        }
    }
    if room < data.len() as u64 {
        *ring = before;
        return Ok(());
    }
    let count = u16::try_from(buffers.len()).map_err(|_| Broken)?;
    data.splice(HEADER - 2..HEADER, count.to_le_bytes());
    let mut done = 0;
    for chain in &buffers {
        let rest = data.get(done..).unwrap_or_default();
        let written = split_ring::scatter(memory, &chain.writable, rest)?;
        ring.push(memory, chain, u32::try_from(written).map_err(|_| Broken)?)?;
        done += written;
    }
    Ok(())
}

/// Agrees with a command of a kind that there is: nothing here is changed by it.
pub(crate) fn command(memory: &MemoryMap, chain: &Chain) -> Result<u32, Broken> {
    const MULTIQUEUE: u8 = 4;
    const LAST_CLASS: u8 = 5;
    let mut class = [u8::MAX];
    split_ring::gather(memory, &chain.readable, &mut class)?;
    let [class] = class;
    let is_refused = class == MULTIQUEUE || class > LAST_CLASS;
    let written = split_ring::scatter(memory, &chain.writable, &[is_refused.into()])?;
    u32::try_from(written).map_err(|_| Broken)
}
