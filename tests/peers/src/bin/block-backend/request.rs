// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver asks of a disk (Virtio 1.3, 5.2.6): a header, data, and a place for the status.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryError, GuestMemoryMmap};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::buffer::Buffer;
use crate::image::{AccessError, Image};

/// The disk's serial number, padded with zeros.
const ID: [u8; 20] = *b"block-backend\0\0\0\0\0\0\0";

/// How a request begins.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    header: Header,
    /// What the device reads.
    source: Buffer,
    /// What the device writes.
    target: Buffer,
    status: Buffer,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It was done, and so many bytes of its target written.
    Done(u64),
    Failed,
    Unsupported,
}

impl Request {
    /// The request of a chain of descriptors; nothing where there is no whole header or no place for the status.
    pub(crate) fn parse(memory: &GuestMemoryMmap, chain: impl Iterator<Item = Descriptor>) -> Option<Self> {
        let (mut readable, mut writable) = (Buffer::default(), Buffer::default());
        for descriptor in chain {
            let buffer = if descriptor.is_write_only() { &mut writable } else { &mut readable };
            buffer.push(descriptor.addr(), descriptor.len());
        }
        let mut header = Header::new_zeroed();
        let (start, source) = readable.split(size_of::<Header>() as u64)?;
        start.drain(memory, &mut header.as_mut_bytes()).ok()?;
        let data = writable.length().checked_sub(1)?;
        let (target, status) = writable.split(data)?;
        Some(Self { header, source, target, status })
    }

    /// Does what is asked and writes the status. Gives how many bytes were written to guest memory at least.
    pub(crate) fn carry_out(
        self,
        memory: &GuestMemoryMmap,
        image: &mut Image,
    ) -> Result<u32, GuestMemoryError> {
        let Self { header, source, target, status } = self;
        let outcome = execute(header, &source, target, memory, image).unwrap_or_else(|error| {
            eprintln!("block-backend: request of kind {} failed: {error}", header.kind);
            Outcome::Failed
        });
        let (byte, written) = match outcome {
            Outcome::Done(written) => (VIRTIO_BLK_S_OK, written),
            Outcome::Failed => (VIRTIO_BLK_S_IOERR, 0),
            Outcome::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        status.fill(memory, &mut byte.to_le_bytes().as_slice())?;
        // A chain is shorter than 4 GiB (Virtio 1.3, 2.7.5.2).
        Ok(u32::try_from(written + status.length()).unwrap_or(u32::MAX))
    }
}

fn execute(
    header: Header,
    source: &Buffer,
    target: Buffer,
    memory: &GuestMemoryMmap,
    image: &mut Image,
) -> Result<Outcome, AccessError> {
    let sector = header.sector.get();
    match header.kind.get() {
        VIRTIO_BLK_T_IN => {
            image.read(sector, &target, memory)?;
            Ok(Outcome::Done(target.length()))
        }
        VIRTIO_BLK_T_OUT => {
            image.write(sector, source, memory)?;
            Ok(Outcome::Done(0))
        }
        VIRTIO_BLK_T_FLUSH => {
            image.flush()?;
            Ok(Outcome::Done(0))
        }
        VIRTIO_BLK_T_GET_ID => {
            let length = ID.len() as u64;
            let Some((place, _)) = target.split(length) else { return Ok(Outcome::Failed) };
            place.fill(memory, &mut ID.as_slice())?;
            Ok(Outcome::Done(length))
        }
        _ => Ok(Outcome::Unsupported),
    }
}
