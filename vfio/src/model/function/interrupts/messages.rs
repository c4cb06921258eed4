// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts by message, from the device's capability to the user's eventfds.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use crate::model::function::capability::Capability;
use crate::model::function::eventfd::Eventfd;
use crate::model::function::interrupts::change::Trigger;
use crate::model::function::registers::{Registers, capability_id, header};

/// A kind of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Msi,
    Msix,
}

impl Kind {
    const fn capability(self) -> u8 {
        match self {
            Self::Msi => capability_id::MSI,
            Self::Msix => capability_id::MSIX,
        }
    }

    const fn enable(self) -> u16 {
        match self {
            Self::Msi => Capability::MSI_ENABLE,
            Self::Msix => Capability::MSIX_ENABLE,
        }
    }

    /// Turns it on or off in the hardware.
    fn set(self, registers: &mut Registers, is_on: bool) {
        if let Some(start) = registers.capability(self.capability()) {
            registers.assign(start + Capability::MESSAGE_CONTROL, self.enable(), is_on);
        }
    }
}

/// The messages that are on.
#[derive(Debug)]
pub(crate) struct Messages {
    kind: Kind,
    /// How many there are, where the kernel cannot get more while they are on.
    limit: Option<u32>,
    vectors: BTreeMap<u32, Eventfd>,
    /// Those that somebody has listened to since messages were turned on.
    known: BTreeSet<u32>,
    /// Those that came while nobody listened, and wait: with MSI-X in the device, with MSI in the kernel, which forgets
    /// what comes after somebody has listened once.
    pending: BTreeSet<u32>,
}

impl Messages {
    /// Turns messages on, so many. While they are, the line is disabled.
    ///
    /// # Errors
    ///
    /// `ERANGE` for no vector at all; `EINVAL` the function sleeps. Which comes first depends.
    pub(crate) fn enable(
        kind: Kind,
        registers: &mut Registers,
        allocated: u32,
        has_fixed_vectors: bool,
    ) -> Result<Self, Errno> {
        match (kind, registers.is_asleep(), allocated != 0) {
            (Kind::Msix, _, false) | (Kind::Msi, false, false) => return Err(Errno::RANGE),
            (_, true, _) => return Err(Errno::INVAL),
            (_, false, true) => {}
        }
        kind.set(registers, true);
        registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, true);
        let limit = (has_fixed_vectors || kind == Kind::Msi).then_some(allocated);
        let (vectors, known, pending) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Ok(Self { kind, limit, vectors, known, pending })
    }

    /// Turns messages off.
    pub(crate) fn disable(&self, registers: &mut Registers) {
        self.kind.set(registers, false);
        registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, false);
        set_mask(registers, false);
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Sets vectors from `start` on. At the first that cannot be, all of them are taken away.
    pub(crate) fn set(
        &mut self,
        registers: &mut Registers,
        start: u32,
        triggers: Vec<Trigger>,
    ) -> Result<(), Errno> {
        let mut outcome = Ok(());
        for (vector, trigger) in (start..).zip(triggers) {
            self.vectors.remove(&vector);
            match self.eventfd(vector, trigger) {
                Ok(None) => {}
                Ok(Some(eventfd)) => {
                    if self.pending.remove(&vector) {
                        eventfd.signal();
                    }
                    self.vectors.insert(vector, eventfd);
                    self.known.insert(vector);
                }
                Err(errno) => {
                    self.vectors.retain(|present, _| !(start..vector).contains(present));
                    outcome = Err(errno);
                    break;
                }
            }
        }
        self.follow_mask(registers);
        outcome
    }

    /// What is to be told of a vector.
    ///
    /// # Errors
    ///
    /// `EINVAL` the kernel has no such vector; those of [`Trigger::eventfd`].
    fn eventfd(&self, vector: u32, trigger: Trigger) -> Result<Option<Eventfd>, Errno> {
        match trigger {
            Trigger::Nothing | Trigger::Negative => Ok(None),
            _ if self.limit.is_some_and(|limit| vector >= limit) => Err(Errno::INVAL),
            trigger => trigger.eventfd(),
        }
    }

    /// The user fires vectors from `start` on.
    pub(crate) fn fire(&self, start: u32, wanted: impl Iterator<Item = bool>) {
        let wanted = (start..).zip(wanted).filter(|(_, wanted)| *wanted);
        wanted.filter_map(|(vector, _)| self.vectors.get(&vector)).for_each(Eventfd::signal);
    }

    /// The device sends a message.
    pub(crate) fn send(&mut self, vector: u32) {
        match self.vectors.get(&vector) {
            Some(eventfd) => eventfd.signal(),
            None if self.kind == Kind::Msix || !self.known.contains(&vector) => {
                self.pending.insert(vector);
            }
            None => {}
        }
    }

    /// The hardware was reset: the kernel turns messages on again, also those that the user had turned off by the config
    /// space.
    pub(crate) fn restore(&mut self, registers: &mut Registers) {
        if self.kind == Kind::Msix {
            self.pending.clear();
        }
        self.kind.set(registers, true);
        self.follow_mask(registers);
    }

    /// Where MSI can be masked, the kernel masks it while nobody listens.
    fn follow_mask(&self, registers: &mut Registers) {
        set_mask(registers, self.kind == Kind::Msi && self.vectors.is_empty());
    }
}

/// Masks MSI in the hardware, if that is possible.
pub(crate) fn set_mask(registers: &mut Registers, is_masked: bool) {
    if let Some(start) = registers.capability(capability_id::MSI)
        && registers.half(start + Capability::MESSAGE_CONTROL) & Capability::MSI_MASKABLE != 0
    {
        registers.set(start + Capability::MSI_MASK, &[is_masked.into()]);
    }
}
