// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is behind a function's BARs.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::model::function::edu::{Edu, Interrupt};
use crate::model::function::part::{Bar, BarKind, Layout};
use crate::model::function::virtio::Virtio;
use crate::model::memory_map::MemoryMap;
use crate::model::topology::Part;

const PAGE: u64 = 0x1000;
/// Where the structures of a virtio device are.
pub(crate) const VIRTIO_BAR: usize = 4;

/// What a device says about its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It has something to say, with this message if it has several.
    Raise { vector: u16 },
    /// It has nothing more to say; for the line.
    Lower,
}

/// What acts behind the BARs.
#[derive(Debug)]
enum Device {
    Edu(Edu),
    Virtio(Box<Virtio>),
    /// Registers that remember what was written, and do nothing: enough to see what a reset does to them. The real ones of
    /// these parts drive a network or a disk.
    Plain(Part),
}

/// The BARs of a function. One file holds all of them, one after the other, for those who map them.
#[derive(Debug)]
pub(crate) struct Bars {
    device: Device,
    file: File,
    /// Where in the file each begins.
    starts: [u64; 6],
    length: u64,
}

impl Bars {
    /// # Errors
    ///
    /// That of making the file.
    pub(crate) fn new(part: Part, layout: &Layout) -> Result<Self, Errno> {
        let mut starts = [0; 6];
        let mut length = 0;
        for bar in &layout.bars {
            if let Some(start) = starts.get_mut(bar.index) {
                *start = length;
            }
            length += u64::from(bar.size).next_multiple_of(PAGE);
        }
        let file = memfd_create("bars", MemfdFlags::CLOEXEC)?;
        let device = match part {
            Part::Edu => Device::Edu(Edu::new()),
            Part::VirtioBlock => Device::Virtio(Box::new(Virtio::block()?)),
            Part::VirtioNet => Device::Virtio(Box::new(Virtio::net())),
            Part::VirtioEntropy => Device::Virtio(Box::new(Virtio::entropy())),
            Part::VirtioQueues(control) => Device::Virtio(Box::new(Virtio::queues(control))),
            Part::Igb | Part::E1000e | Part::I82559er | Part::Nvme => Device::Plain(part),
        };
        let mut bars = Self { device, file: file.into(), starts, length };
        bars.clear();
        Ok(bars)
    }

    /// The registers of devices that do nothing, as they are after power-on.
    fn clear(&mut self) {
        let registers: &[(u64, u32)] = match self.device {
            Device::Plain(Part::Igb) => {
                &[(0x00, 0x0010_0209), (0x08, 0x8008_0481), (0x10, 0x0000_1110), (0x38, 0x8100_8100)]
            }
            Device::Plain(Part::E1000e) => {
                &[(0x00, 0x0014_0241), (0x08, 0x0008_0283), (0x10, 0x300), (0x14, 2), (0x38, 0x8100)]
            }
            Device::Plain(Part::Nvme) => &[(0x00, 0x0f01_07ff), (0x04, 0x0040_0820), (0x08, 0x0001_0400)],
            Device::Plain(_) | Device::Virtio(_) => &[],
            // For those who map it, to see what it is.
            Device::Edu(_) => &[(0x00, 0x0100_00ed)],
        };
        // Without room for this the BARs stay as they were, and so a test that needs them fails.
        let _ = self.file.set_len(0).and_then(|()| self.file.set_len(self.length));
        for (offset, value) in registers {
            let _ = self.file.write_all_at(&value.to_le_bytes(), self.start(0) + offset);
        }
    }

    fn start(&self, bar: usize) -> u64 {
        self.starts.get(bar).copied().unwrap_or_default()
    }

    /// A read of 1, 2, 4 or 8 bytes at a multiple of as many.
    pub(crate) fn read(&mut self, bar: Bar, offset: u64, data: &mut [u8], signals: &mut Vec<Signal>) {
        match &mut self.device {
            Device::Edu(edu) => {
                let value = edu.read(offset, data.len()).to_le_bytes();
                data.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
            }
            Device::Virtio(virtio) if bar.index == VIRTIO_BAR => {
                for (offset, data) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
                    virtio.read(offset, data, signals);
                }
            }
            Device::Plain(_) | Device::Virtio(_) => {
                if self.file.read_exact_at(data, self.start(bar.index) + offset).is_err() {
                    data.fill(0xff);
                }
            }
        }
    }

    /// A write, as [`Self::read`]. `memory` is what the device reaches by DMA.
    pub(crate) fn write(
        &mut self,
        bar: Bar,
        offset: u64,
        data: &[u8],
        memory: Option<&MemoryMap>,
    ) -> Vec<Signal> {
        match &mut self.device {
            Device::Edu(edu) => {
                let mut value = [0; 8];
                value.iter_mut().zip(data).for_each(|(byte, data)| *byte = *data);
                match edu.write(offset, data.len(), u64::from_le_bytes(value), memory) {
                    Interrupt::Unchanged => vec![],
                    Interrupt::Raised => vec![Signal::Raise { vector: 0 }],
                    Interrupt::Lowered => vec![Signal::Lower],
                }
            }
            Device::Virtio(virtio) if bar.index == VIRTIO_BAR => {
                let parts = (offset..).step_by(4).zip(data.chunks(4));
                parts.flat_map(|(offset, data)| virtio.write(offset, data, memory)).collect()
            }
            Device::Plain(_) | Device::Virtio(_) => {
                // As above.
                let _ = self.file.write_all_at(data, self.start(bar.index) + offset);
                vec![]
            }
        }
    }

    /// The hardware was reset. Some of QEMU's devices do not care.
    pub(crate) fn reset(&mut self) {
        match &mut self.device {
            Device::Plain(Part::Igb | Part::E1000e) => self.clear(),
            Device::Virtio(virtio) => virtio.reset(),
            Device::Plain(_) | Device::Edu(_) => {}
        }
    }

    /// The function is no bus master any more.
    pub(crate) fn stop(&mut self) {
        if let Device::Virtio(virtio) = &mut self.device {
            virtio.stop();
        }
    }

    /// Where a range of a BAR is in the file.
    ///
    /// # Errors
    ///
    /// `EINVAL` not in memory space, not of whole pages, or not inside.
    pub(crate) fn map(&self, bar: &Bar, offset: u64, length: u64) -> Result<(BorrowedFd<'_>, u64), Errno> {
        let length =
            length.checked_next_multiple_of(PAGE).filter(|length| *length != 0).ok_or(Errno::INVAL)?;
        let end = offset.checked_add(length).ok_or(Errno::INVAL)?;
        if bar.kind == BarKind::Io
            || !offset.is_multiple_of(PAGE)
            || end > u64::from(bar.size).next_multiple_of(PAGE)
        {
            return Err(Errno::INVAL);
        }
        Ok((self.file.as_fd(), self.start(bar.index) + offset))
    }
}
