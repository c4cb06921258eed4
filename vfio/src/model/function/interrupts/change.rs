// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One `VFIO_DEVICE_SET_IRQS`, taken apart.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::irq::{IrqAction, IrqIndex};
use crate::model::function::eventfd::Eventfd;

/// What the user gives for a vector in place of an eventfd, or with it.
#[derive(Debug)]
pub(crate) enum Trigger {
    /// -1: none.
    Nothing,
    /// Any other negative number.
    Negative,
    /// A descriptor.
    Descriptor(OwnedFd),
    /// A number without a descriptor.
    Missing,
}

impl Trigger {
    /// What a number in a structure stands for, given the descriptor that came for it.
    pub(crate) fn new(number: u32, fd: Option<OwnedFd>) -> Self {
        match (number.cast_signed(), fd) {
            (-1, _) => Self::Nothing,
            (..-1, _) => Self::Negative,
            (0.., Some(fd)) => Self::Descriptor(fd),
            (0.., None) => Self::Missing,
        }
    }

    /// The eventfd, if there is to be one.
    ///
    /// # Errors
    ///
    /// `EBADF` there is no such descriptor; `EINVAL` it is something else.
    pub(crate) fn eventfd(self) -> Result<Option<Eventfd>, Errno> {
        match self {
            Self::Nothing | Self::Negative => Ok(None),
            Self::Descriptor(fd) => Eventfd::new(fd).map(Some),
            Self::Missing => Err(Errno::BADF),
        }
    }
}

/// What comes for each vector.
#[derive(Debug)]
pub(crate) enum Data {
    /// Nothing, for this many.
    None(u32),
    Bool(Vec<bool>),
    Eventfd(Vec<Trigger>),
}

impl Data {
    /// How many vectors it is for.
    pub(crate) fn count(&self) -> u32 {
        let length = match self {
            Self::None(count) => return *count,
            Self::Bool(bools) => bools.len(),
            Self::Eventfd(triggers) => triggers.len(),
        };
        u32::try_from(length).unwrap_or(u32::MAX)
    }
}

/// A change of vectors that the function has.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) index: IrqIndex,
    pub(crate) action: IrqAction,
    pub(crate) start: u32,
    pub(crate) data: Data,
}
