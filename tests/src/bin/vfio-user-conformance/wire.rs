// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vfio-user's bytes (QEMU's docs/interop/vfio-user.rst), in host byte order. Nothing here knows the server's own codec: a fault of
//! it cannot hide behind the same fault here.

use crate::case::{Judgement, require};

/// Numbers of the commands.
pub(crate) mod command {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const DMA_MAP: u16 = 2;
    pub(crate) const DMA_UNMAP: u16 = 3;
    pub(crate) const DEVICE_GET_INFO: u16 = 4;
    pub(crate) const DEVICE_GET_REGION_INFO: u16 = 5;
    pub(crate) const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    pub(crate) const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub(crate) const DEVICE_SET_IRQS: u16 = 8;
    pub(crate) const REGION_READ: u16 = 9;
    pub(crate) const REGION_WRITE: u16 = 10;
    pub(crate) const DMA_READ: u16 = 11;
    pub(crate) const DMA_WRITE: u16 = 12;
    pub(crate) const DEVICE_RESET: u16 = 13;
    pub(crate) const DIRTY_PAGES: u16 = 14;
    pub(crate) const REGION_WRITE_MULTI: u16 = 15;
    pub(crate) const DEVICE_FEATURE: u16 = 16;
    pub(crate) const MIG_DATA_READ: u16 = 17;
    pub(crate) const MIG_DATA_WRITE: u16 = 18;
}

/// Size of every message's header in bytes.
pub(crate) const HEADER: usize = 16;
/// Header flags: type 0, a command.
pub(crate) const COMMAND: u32 = 0;
/// Header flags: type 1, a reply.
pub(crate) const REPLY: u32 = 1;
/// Header flags: no reply is wanted.
pub(crate) const NO_REPLY: u32 = 1 << 4;
/// Header flags: the reply is an error.
pub(crate) const ERROR: u32 = 1 << 5;

/// A payload that grows field by field.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payload(pub(crate) Vec<u8>);

impl Payload {
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// A payload of fields with 32 bits each.
pub(crate) fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.map(u32::to_ne_bytes).concat()
}

/// A header, whatever it says.
pub(crate) fn header(id: u16, command: u16, size: u32, flags: u32) -> Vec<u8> {
    Payload::default().u16(id).u16(command).u32(size).u32(flags).u32(0).0
}

/// A whole message.
pub(crate) fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + payload.len()).expect("a message of a test");
    [header(id, command, size, flags).as_slice(), payload].concat()
}

/// Body of a `VERSION` command: the versions, and JSON ended by NUL.
pub(crate) fn version(minor: u16, json: &str) -> Vec<u8> {
    Payload::default().u16(0).u16(minor).bytes(json.as_bytes()).bytes(&[0]).0
}

/// Payload of `DEVICE_GET_INFO`.
pub(crate) fn device_info(argsz: u32) -> Vec<u8> {
    words([argsz, 0, 0, 0])
}

/// Payload of `DEVICE_GET_REGION_INFO`.
pub(crate) fn region_info(argsz: u32, index: u32) -> Vec<u8> {
    words([argsz, 0, index, 0, 0, 0, 0, 0])
}

/// Payload of `DEVICE_GET_IRQ_INFO`, and of `DEVICE_GET_REGION_IO_FDS`.
pub(crate) fn irq_info(argsz: u32, index: u32) -> Vec<u8> {
    words([argsz, 0, index, 0])
}

/// Payload of `REGION_READ`, and what that of `REGION_WRITE` begins with.
pub(crate) fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    Payload::default().u64(offset).u32(region).u32(count).0
}

/// Payload of `REGION_WRITE`.
pub(crate) fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let count = u32::try_from(data.len()).expect("data of a test");
    [access(region, offset, count).as_slice(), data].concat()
}

/// Payload of `DEVICE_SET_IRQS`, without data.
pub(crate) fn irq_set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words([20, flags, index, start, count])
}

/// Payload of `DMA_MAP`.
pub(crate) fn map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    Payload::default().u32(32).u32(flags).u64(offset).u64(address).u64(size).0
}

/// Payload of `DMA_UNMAP`.
pub(crate) fn unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    Payload::default().u32(24).u32(flags).u64(address).u64(size).0
}

/// The bytes from `offset` on, as many as `N`.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Judgement<[u8; N]> {
    let found = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    require!(found.is_some(), "a payload of {} bytes ends before its field at {offset}", bytes.len());
    Ok(*found.expect("it is there"))
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Judgement<u16> {
    field(bytes, offset).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Judgement<u32> {
    field(bytes, offset).map(u32::from_ne_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Judgement<u64> {
    field(bytes, offset).map(u64::from_ne_bytes)
}
