// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A split virtqueue in guest memory, as a guest's driver has it (Virtio 1.3, 2.7), and requests of a virtio block device.

use crate::guest_memory::GuestMemory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const DESCRIPTOR: u64 = 16;
/// Where the parts of a ring are in its place: there is room for 64 entries.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// What a ring and, in its second half, its buffers take.
pub const RING_SPACE: u64 = 0x2000;
/// Buffers behind the ring: a request's header, its status, its data.
const HEADER: u64 = 0x1000;
const STATUS: u64 = 0x1010;
const DATA: u64 = 0x1200;
/// A sector of a disk, in bytes.
pub const SECTOR: usize = 512;

/// A buffer: address, length, and whether the device writes there.
type Buffer = (u64, u32, bool);

/// A ring and its buffers.
#[derive(Debug)]
pub struct DriverRing<'a> {
    memory: &'a GuestMemory,
    address: u64,
    size: u16,
    available: u16,
}

impl<'a> DriverRing<'a> {
    /// An empty ring of up to 64 entries, at an address with [`RING_SPACE`] bytes.
    pub fn new(memory: &'a GuestMemory, address: u64, size: u16) -> Self {
        memory.write(address, &[0; 0x1000]);
        Self { memory, address, size, available: 0 }
    }

    /// Number of entries.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Where it is.
    pub const fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// Addresses of the descriptors, the available and the used ring.
    pub const fn areas(&self) -> [u64; 3] {
        [self.address, self.address + AVAILABLE, self.address + USED]
    }

    /// Makes a chain of buffers available, of which the first descriptor is that of the entry.
    pub fn offer(&mut self, buffers: &[Buffer]) {
        for (index, (address, length, is_written)) in buffers.iter().enumerate() {
            let index = u16::try_from(index).expect("a short chain");
            let is_last = usize::from(index) + 1 == buffers.len();
            let flags = if is_last { 0 } else { NEXT } | if *is_written { WRITE } else { 0 };
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend(length.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend((index + 1).to_le_bytes());
            self.memory.write(self.address + DESCRIPTOR * u64::from(index), &descriptor);
        }
        let entry = self.address + AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write(entry, &0_u16.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.memory.write(self.address + AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Asks a disk for a sector.
    pub fn offer_read(&mut self, sector: u64) {
        self.offer_request(0, sector, true);
    }

    /// Has a disk write a sector.
    pub fn offer_write(&mut self, sector: u64, data: &[u8; SECTOR]) {
        self.memory.write(self.address + DATA, data);
        self.offer_request(1, sector, false);
    }

    fn offer_request(&mut self, kind: u32, sector: u64, is_read: bool) {
        let header = [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write(self.address + HEADER, &header);
        self.memory.write(self.address + STATUS, &[0xff]);
        let (header, status) = ((self.address + HEADER, 16, false), (self.address + STATUS, 1, true));
        self.offer(&[header, (self.address + DATA, 512, is_read), status]);
    }

    /// Whether the device has given everything back.
    pub fn is_done(&self) -> bool {
        self.memory.read(self.address + USED + 2, 2) == self.available.to_le_bytes()
    }

    /// The status of the last request of a disk, and its data.
    pub fn outcome(&self) -> (u8, Vec<u8>) {
        let status = self.memory.read(self.address + STATUS, 1);
        (status[0], self.memory.read(self.address + DATA, SECTOR))
    }
}
