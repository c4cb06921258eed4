// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Doorbells: what is written to for the device to look at a ring.

use std::os::fd::AsFd;
use std::sync::Arc;

use vfio::{CallError, Device, PciAddress, RegionIndex};

use super::capability::Structure;
use super::eventfd::Eventfd;
use super::rings::RingIndex;
use super::transport::{position, write};

/// A page of a BAR, with a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellPage {
    /// Which BAR.
    pub region: RegionIndex,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// In bytes.
    pub size: u64,
}

/// Where a ring's doorbell is. What is written to it is the ring's number, 16 bits.
#[derive(Clone, Debug)]
pub struct Doorbell {
    device: Arc<Device>,
    notify: Structure,
    /// In the structure.
    offset: u64,
    ring: RingIndex,
}

impl Doorbell {
    /// That of a ring, at `offset` in the structure.
    pub(super) const fn new(device: Arc<Device>, notify: Structure, offset: u64, ring: RingIndex) -> Self {
        Self { device, notify, offset, ring }
    }

    /// Rings it.
    pub fn ring(&self) -> Result<(), CallError> {
        write(&self.device, &self.notify, self.offset, &self.ring.0.to_le_bytes())
    }

    /// Has the kernel ring it whenever this eventfd is written to; nobody any more with `None`.
    pub fn ring_on(&self, kick: Option<&Eventfd>) -> Result<(), CallError> {
        let offset = position(&self.notify, self.offset, 2);
        let kick = kick.map(AsFd::as_fd);
        self.device.write_on_eventfd(self.notify.region, offset, self.ring.0, kick)
    }

    /// The page that it is in.
    pub fn page(&self) -> DoorbellPage {
        let position = position(&self.notify, self.offset, 2);
        let page = page_size();
        DoorbellPage { region: self.notify.region, offset: position - position % page, size: page }
    }

    /// Whose it is.
    pub fn device(&self) -> PciAddress {
        self.device.address()
    }
}

/// In bytes. It is the kernel's that maps, not the device's.
pub(super) fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX)
}
