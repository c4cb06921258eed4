// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio network device (Virtio 1.3, 5.1) that receives what it sends.

use crate::model::function::virtio::split_ring::{self, Broken, Chain, SplitRing};
use crate::model::memory_map::MemoryMap;
use crate::model::topology::ControlQueue;

/// `CTRL_GUEST_OFFLOADS`, `MAC`, `MRG_RXBUF`, `STATUS`, `CTRL_VQ`, `CTRL_RX`, `CTRL_VLAN`, `CTRL_RX_EXTRA`,
/// `GUEST_ANNOUNCE` and `CTRL_MAC_ADDR`.
const FEATURES: u64 = 0x00bf_8024;
/// `MQ`: there are several queue pairs.
const QUEUE_PAIRS: u64 = 1 << 22;
/// A packet may be spread over several buffers.
const MERGEABLE: u64 = 1 << 15;
/// Address, that the link is up, and how many queue pairs there are, which only a device with several says.
const CONFIG: [u8; 10] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 1, 0, 2, 0];
const CONFIG_OF_ONE_PAIR: usize = 8;
/// Of a device with several.
const PAIRS: u16 = 2;
/// Entries of a data queue and of the control queue.
const DATA_QUEUE: u16 = 256;
const CONTROL_QUEUE: u16 = 64;
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

/// What a network device is besides its queues.
#[derive(Debug)]
pub(crate) struct Net {
    /// `None` of a device with one pair.
    control: Option<ControlQueue>,
    /// How many pairs are in use.
    pub(crate) pairs: u16,
}

impl Net {
    /// A device with one queue pair, or with several and such a control queue.
    pub(crate) const fn new(control: Option<ControlQueue>) -> Self {
        Self { control, pairs: 1 }
    }

    /// What it offers.
    pub(crate) const fn features(&self) -> u64 {
        if self.control.is_some() { FEATURES | QUEUE_PAIRS } else { FEATURES }
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Vec<u8> {
        let length = if self.control.is_some() { CONFIG.len() } else { CONFIG_OF_ONE_PAIR };
        CONFIG.into_iter().take(length).collect()
    }

    /// The sizes of the queues. There are those of the pairs that the driver has agreed to.
    pub(crate) fn queue_sizes(&self, features: u64) -> Vec<u16> {
        let pairs = if features & self.features() & QUEUE_PAIRS == 0 { 1 } else { PAIRS };
        let mut sizes = vec![DATA_QUEUE; usize::from(pairs) * 2];
        sizes.push(CONTROL_QUEUE);
        sizes
    }

    /// Whether commands are taken.
    pub(crate) fn listens(&self) -> bool {
        self.control != Some(ControlQueue::Silent)
    }

    /// Carries a command out. Of those that there are, only the number of queue pairs changes anything here.
    pub(crate) fn command(
        &mut self,
        memory: &MemoryMap,
        chain: &Chain,
        features: u64,
    ) -> Result<u32, Broken> {
        const MULTIQUEUE: u8 = 4;
        const LAST_CLASS: u8 = 5;
        let mut said = [u8::MAX; 4];
        split_ring::gather(memory, &chain.readable, &mut said)?;
        let [class, command, argument @ ..] = said;
        let is_done = if class == MULTIQUEUE {
            self.set_pairs(command, u16::from_le_bytes(argument), features)
        } else {
            class <= LAST_CLASS
        };
        let written = split_ring::scatter(memory, &chain.writable, &[(!is_done).into()])?;
        u32::try_from(written).map_err(|_| Broken)
    }

    fn set_pairs(&mut self, command: u8, pairs: u16, features: u64) -> bool {
        const SET: u8 = 0;
        let is_possible = features & QUEUE_PAIRS != 0 && command == SET && (1..=PAIRS).contains(&pairs);
        if self.control != Some(ControlQueue::Answers) || !is_possible {
            return false;
        }
        self.pairs = pairs;
        true
    }
}
