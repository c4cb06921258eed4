// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_SET_IRQS`, typed.

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::command::Command;
use super::error::RequestError;

/// Most interrupts of one index: an MSI-X table cannot have more.
pub const MAX_IRQS: u32 = 2048;

/// `struct vfio_irq_set` without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqSet {
    /// Size of the structure and its data in bytes.
    pub argsz: u32,
    /// Bits 0-2: the data, none, booleans, eventfds. Bits 3-5: the action, mask, unmask, trigger.
    pub flags: u32,
    /// Which interrupt index.
    pub index: u32,
    /// The first interrupt.
    pub start: u32,
    /// Number of interrupts.
    pub count: u32,
}

impl IrqSet {
    const SIZE: usize = size_of::<Self>();

    const DATA_NONE: u32 = 1;
    const DATA_BOOL: u32 = 1 << 1;
    const DATA_EVENTFD: u32 = 1 << 2;
    const DATA: u32 = Self::DATA_NONE | Self::DATA_BOOL | Self::DATA_EVENTFD;

    const ACTION_MASK: u32 = 1 << 3;
    const ACTION_UNMASK: u32 = 1 << 4;
    const ACTION_TRIGGER: u32 = 1 << 5;
}

/// What is done to interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// They are masked.
    Mask,
    /// They are unmasked, or get an eventfd that unmasks them.
    Unmask,
    /// They are fired, or get an eventfd that they signal.
    Trigger,
}

/// To which of the interrupts it is done, and with what.
#[derive(Debug)]
pub enum IrqData {
    /// To all of them. A trigger of 0 interrupts disables the index.
    None,
    /// To those that are true; one for each interrupt.
    Bools(Vec<bool>),
    /// Each gets its eventfd. Without any eventfd each loses the one it has.
    Eventfds(Vec<OwnedFd>),
}

/// What `DEVICE_SET_IRQS` asks for. `start + count` is at most [`MAX_IRQS`].
#[derive(Debug)]
pub struct SetIrqs {
    /// Which interrupt index.
    pub index: u32,
    /// The first interrupt.
    pub start: u32,
    /// Number of interrupts; 0 only without data.
    pub count: u32,
    /// What is done.
    pub action: IrqAction,
    /// To which, and with what.
    pub data: IrqData,
}

impl SetIrqs {
    /// Reads the command's payload and takes the descriptors that came with it.
    pub(super) fn parse(body: &[u8], eventfds: Vec<OwnedFd>) -> Result<Self, RequestError> {
        let command = Command::DEVICE_SET_IRQS;
        let bad_size = |expected| RequestError::Size { command, expected, actual: body.len() };
        let (IrqSet { flags, index, start, count, .. }, bytes) =
            IrqSet::read_from_prefix(body).map_err(|_| bad_size(IrqSet::SIZE))?;
        let bad_flags = RequestError::Field { command, field: "flags", value: flags.into() };
        let action = match flags & !IrqSet::DATA {
            IrqSet::ACTION_MASK => IrqAction::Mask,
            IrqSet::ACTION_UNMASK => IrqAction::Unmask,
            IrqSet::ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(bad_flags),
        };
        let number = checked_count(start, count)?;
        let came = eventfds.len();
        let (data, size, descriptors) = match flags & IrqSet::DATA {
            IrqSet::DATA_NONE => (IrqData::None, 0, 0),
            IrqSet::DATA_BOOL => (IrqData::Bools(bytes.iter().map(|byte| *byte != 0).collect()), number, 0),
            IrqSet::DATA_EVENTFD => (IrqData::Eventfds(eventfds), 0, if came == 0 { 0 } else { number }),
            _ => return Err(bad_flags),
        };
        if number == 0 && !matches!(data, IrqData::None) {
            return Err(RequestError::Field { command, field: "count", value: 0 });
        }
        if bytes.len() != size {
            return Err(bad_size(IrqSet::SIZE + size));
        }
        if came != descriptors {
            return Err(RequestError::Descriptors { command, actual: came });
        }
        Ok(Self { index, start, count, action, data })
    }

    /// The command's payload. The eventfds travel beside it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (data, bools): (_, &[bool]) = match &self.data {
            IrqData::None => (IrqSet::DATA_NONE, &[]),
            IrqData::Bools(bools) => (IrqSet::DATA_BOOL, bools),
            IrqData::Eventfds(_) => (IrqSet::DATA_EVENTFD, &[]),
        };
        let action = match self.action {
            IrqAction::Mask => IrqSet::ACTION_MASK,
            IrqAction::Unmask => IrqSet::ACTION_UNMASK,
            IrqAction::Trigger => IrqSet::ACTION_TRIGGER,
        };
        let argsz = u32::try_from(IrqSet::SIZE + bools.len()).unwrap_or(u32::MAX);
        let Self { index, start, count, .. } = *self;
        let set = IrqSet { argsz, flags: data | action, index, start, count };
        [set.as_bytes(), bools.as_bytes()].concat()
    }
}

/// `count` if the interrupts from `start` on can all exist.
fn checked_count(start: u32, count: u32) -> Result<usize, RequestError> {
    let end = start.checked_add(count).filter(|end| *end <= MAX_IRQS);
    end.and_then(|_| usize::try_from(count).ok()).ok_or(RequestError::Field {
        command: Command::DEVICE_SET_IRQS,
        field: "count",
        value: count.into(),
    })
}
