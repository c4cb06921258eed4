// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel tells of a device by itself: an error that it does not recover from, and that the host wants it back.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use vfio::irq::{IrqData, IrqSet};
use vfio::{Device, IrqAction, IrqIndex};

/// What a device can have to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// An error that it does not recover from.
    Error,
    /// The host wants it back.
    Unplug,
}

impl NoticeKind {
    /// The interrupt by which the kernel tells of it.
    pub const fn index(self) -> IrqIndex {
        match self {
            Self::Error => IrqIndex::Err,
            Self::Unplug => IrqIndex::Req,
        }
    }
}

/// An eventfd that the kernel writes to when there is something to tell.
#[derive(Clone, Debug)]
pub struct Notice {
    /// What it is about.
    pub kind: NoticeKind,
    /// Readable then.
    pub eventfd: Arc<OwnedFd>,
}

impl Notice {
    /// Those that a device has, armed.
    ///
    /// The kernel has one eventfd for each. A client of the device that gives it its own hears of it instead, until it takes
    /// that back or goes.
    pub fn of(device: &Device) -> Vec<Self> {
        let notice = |kind| {
            let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
            let notice = Self { kind, eventfd: Arc::new(eventfd) };
            notice.arm(device).then_some(notice)
        };
        [NoticeKind::Error, NoticeKind::Unplug].into_iter().filter_map(notice).collect()
    }

    /// Has the kernel tell, if the device can have that to tell.
    pub fn arm(&self, device: &Device) -> bool {
        let data = [Some(self.eventfd.as_fd())];
        let set = IrqSet {
            index: self.kind.index(),
            start: 0,
            action: IrqAction::Trigger,
            data: IrqData::Eventfd(&data),
        };
        device.set_irqs(&set).is_ok()
    }
}
