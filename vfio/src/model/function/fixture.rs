// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function that is open, with guest memory, for tests.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::ioas::Iova;
use crate::ioctl::{self, Ioctl};
use crate::irq::{IrqAction, IrqIndex};
use crate::model::argument::Argument;
use crate::model::function::registers::header;
use crate::model::function::{Function, REGION_SHIFT, Role};
use crate::model::memory_map::{Mapping, MemoryMap};
use crate::model::topology::{ControlQueue, FunctionReset, KernelVersion, Part};
use crate::region::Region;

/// Every part, with its own way to be reset.
pub(super) const PARTS: [(Part, FunctionReset); 11] = [
    (Part::Edu, FunctionReset::Missing),
    (Part::Igb, FunctionReset::FunctionLevel),
    (Part::E1000e, FunctionReset::PowerManagement),
    (Part::I82559er, FunctionReset::PowerManagement),
    (Part::Nvme, FunctionReset::FunctionLevel),
    (Part::VirtioBlock, FunctionReset::FunctionLevel),
    (Part::VirtioNet, FunctionReset::FunctionLevel),
    (Part::VirtioEntropy, FunctionReset::FunctionLevel),
    (Part::VirtioQueues(ControlQueue::Answers), FunctionReset::FunctionLevel),
    (Part::VirtioQueues(ControlQueue::Refuses), FunctionReset::FunctionLevel),
    (Part::VirtioQueues(ControlQueue::Silent), FunctionReset::FunctionLevel),
];

pub(super) const CONFIG: u64 = 7;
/// Where guest memory is for devices, 64 KiB of it.
pub(super) const MEMORY: u64 = 0x10_0000;
pub(super) const MEMORY_SIZE: u64 = 0x1_0000;

/// A function nobody has open.
pub(super) fn closed(part: Part) -> Function {
    let (_, reset) = PARTS.into_iter().find(|(candidate, _)| *candidate == part).unwrap();
    Function::new(part, reset, KernelVersion::Linux7_3, Role::Single).unwrap()
}

/// A function somebody has open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) function: Function,
    pub(super) memory: MemoryMap,
    pub(super) guest: Arc<File>,
}

/// Opens a function that decodes and is bus master.
pub(super) fn open(part: Part) -> Opened {
    let mut opened = open_as(closed(part), part != Part::Edu);
    opened.set_command(header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER);
    opened
}

/// Opens a function.
pub(super) fn open_as(mut function: Function, has_function_reset: bool) -> Opened {
    let guest = Arc::new(tempfile::tempfile().unwrap());
    guest.set_len(MEMORY_SIZE).unwrap();
    let mapping =
        Mapping { length: MEMORY_SIZE, file: Arc::clone(&guest), offset: 0, readable: true, writable: true };
    let mut memory = MemoryMap::default();
    memory.0.insert(Iova(MEMORY), mapping);
    function.open(has_function_reset);
    Opened { function, memory, guest }
}

impl Opened {
    pub(super) fn read(&mut self, region: u64, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut data = vec![0; length];
        let count = self.function.read((region << REGION_SHIFT) + offset, &mut data)?;
        data.truncate(count);
        Ok(data)
    }

    pub(super) fn write(&mut self, region: u64, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.function.write((region << REGION_SHIFT) + offset, data, Some(&self.memory))
    }

    /// 4 bytes of a region.
    pub(super) fn word(&mut self, region: u64, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(region, offset, 4).unwrap().try_into().unwrap())
    }

    pub(super) fn set_word(&mut self, region: u64, offset: u64, value: u32) {
        assert_eq!(self.write(region, offset, &value.to_le_bytes()), Ok(4));
    }

    pub(super) fn half(&mut self, region: u64, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(region, offset, 2).unwrap().try_into().unwrap())
    }

    pub(super) fn set_half(&mut self, region: u64, offset: u64, value: u16) {
        assert_eq!(self.write(region, offset, &value.to_le_bytes()), Ok(2));
    }

    pub(super) fn command(&mut self) -> u16 {
        self.half(CONFIG, header::COMMAND as u64)
    }

    pub(super) fn set_command(&mut self, value: u16) {
        self.set_half(CONFIG, header::COMMAND as u64, value);
    }

    /// Where the first capability with this id is.
    pub(super) fn capability(&self, id: u8) -> u64 {
        self.function.registers.capability(id).unwrap() as u64
    }

    pub(super) fn ioctl(&mut self, ioctl: Ioctl, argument: &mut [u8]) -> Result<u32, Errno> {
        self.function.ioctl(ioctl.number, &mut Argument(argument), Vec::new())
    }

    /// A region as the crate decodes it.
    pub(super) fn region(&mut self, index: u32) -> Result<Region, Errno> {
        let mut argument = [0; 64];
        argument[..4].copy_from_slice(&64_u32.to_ne_bytes());
        argument[8..12].copy_from_slice(&index.to_ne_bytes());
        self.ioctl(ioctl::DEVICE_GET_REGION_INFO, &mut argument)?;
        Ok(Region::decode(&argument).unwrap())
    }

    /// An interrupt index's flags and count.
    pub(super) fn irq(&mut self, index: IrqIndex) -> Result<(u32, u32), Errno> {
        let mut argument = words(&[16, 0, index.number(), 0]);
        self.ioctl(ioctl::DEVICE_GET_IRQ_INFO, &mut argument)?;
        Ok((word_of(&argument, 4), word_of(&argument, 12)))
    }

    /// Gives vectors their eventfds, or takes them.
    pub(super) fn arm(
        &mut self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<&OwnedFd>],
    ) -> Result<u32, Errno> {
        self.give(index, IrqAction::Trigger, start, eventfds)
    }

    pub(super) fn give(
        &mut self,
        index: IrqIndex,
        action: IrqAction,
        start: u32,
        eventfds: &[Option<&OwnedFd>],
    ) -> Result<u32, Errno> {
        let count = u32::try_from(eventfds.len()).unwrap();
        let mut argument = words(&[20 + 4 * count, flag(action) | 4, index.number(), start, count]);
        for eventfd in eventfds {
            argument.extend(eventfd.map_or(-1_i32, |_| 0).to_ne_bytes());
        }
        let eventfds = eventfds.iter().map(|fd| fd.map(|fd| fd.try_clone().unwrap())).collect();
        self.function.ioctl(ioctl::DEVICE_SET_IRQS.number, &mut Argument(&mut argument), eventfds)
    }

    /// Does something to vectors without saying more about it.
    pub(super) fn act(
        &mut self,
        index: IrqIndex,
        action: IrqAction,
        start: u32,
        count: u32,
    ) -> Result<u32, Errno> {
        let mut argument = words(&[20, flag(action) | 1, index.number(), start, count]);
        self.ioctl(ioctl::DEVICE_SET_IRQS, &mut argument)
    }

    /// Writes guest memory.
    pub(super) fn put(&self, address: u64, data: &[u8]) {
        self.guest.write_all_at(data, address - MEMORY).unwrap();
    }

    /// Reads guest memory.
    pub(super) fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.guest.read_exact_at(&mut data, address - MEMORY).unwrap();
        data
    }
}

const fn flag(action: IrqAction) -> u32 {
    match action {
        IrqAction::Mask => 0x08,
        IrqAction::Unmask => 0x10,
        IrqAction::Trigger => 0x20,
    }
}

/// Words as a structure has them.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn word_of(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

/// A fresh eventfd.
pub(super) fn interrupt() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// How often an eventfd was signalled since this was asked last.
pub(super) fn count(eventfd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(eventfd, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}
