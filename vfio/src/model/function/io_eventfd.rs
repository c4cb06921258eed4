// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Eventfds that write to a BAR when they are signalled (`VFIO_DEVICE_IOEVENTFD`).

use rustix::io::Errno;

use crate::model::function::eventfd::Eventfd;

/// Most that one device may have.
const MOST: usize = 1000;

/// A write to a BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BarWrite {
    /// Which BAR.
    pub(crate) bar: usize,
    /// Where in it.
    pub(crate) offset: u64,
    /// What; as long as the write is.
    pub(crate) data: Vec<u8>,
}

/// All of a device.
#[derive(Debug, Default)]
pub(crate) struct IoEventfds(Vec<(BarWrite, Eventfd)>);

impl IoEventfds {
    /// Adds one.
    ///
    /// # Errors
    ///
    /// `EEXIST` there is one for this write; `ENOSPC` there are too many.
    pub(crate) fn add(&mut self, write: BarWrite, eventfd: Eventfd) -> Result<(), Errno> {
        if self.position(&write).is_some() {
            return Err(Errno::EXIST);
        }
        if self.0.len() >= MOST {
            return Err(Errno::NOSPC);
        }
        self.0.push((write, eventfd));
        Ok(())
    }

    /// Whether there is one for this write.
    pub(crate) fn contains(&self, write: &BarWrite) -> bool {
        self.position(write).is_some()
    }

    /// Takes one away.
    ///
    /// # Errors
    ///
    /// `ENODEV` there is none for this write.
    pub(crate) fn remove(&mut self, write: &BarWrite) -> Result<(), Errno> {
        self.position(write).map(|position| drop(self.0.swap_remove(position))).ok_or(Errno::NODEV)
    }

    fn position(&self, write: &BarWrite) -> Option<usize> {
        self.0.iter().position(|(present, _)| present == write)
    }

    /// The eventfds.
    pub(crate) fn eventfds(&self) -> impl Iterator<Item = &Eventfd> {
        self.0.iter().map(|(_, eventfd)| eventfd)
    }

    /// The writes whose eventfds were signalled since this was asked last.
    pub(crate) fn take(&self) -> Vec<BarWrite> {
        let signalled = self.0.iter().filter(|(_, eventfd)| eventfd.take());
        signalled.map(|(write, _)| write.clone()).collect()
    }
}
