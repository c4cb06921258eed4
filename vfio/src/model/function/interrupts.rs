// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a function's interrupts reach whoever opened it: the line, messages, and what the host has to say.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::irq::{IrqAction, IrqIndex};
use crate::model::function::capability::Capability;
use crate::model::function::eventfd::Eventfd;
use crate::model::function::registers::{Registers, capability_id, header};

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
    fn eventfd(self) -> Result<Option<Eventfd>, Errno> {
        match self {
            Self::Nothing | Self::Negative => Ok(None),
            Self::Descriptor(fd) => Eventfd::new(fd).map(Some),
            Self::Missing => Err(Errno::BADF),
        }
    }
}

/// What comes with a `VFIO_DEVICE_SET_IRQS`, for each vector.
#[derive(Debug)]
pub(crate) enum Data {
    None(u32),
    Bool(Vec<bool>),
    Eventfd(Vec<Trigger>),
}

impl Data {
    fn count(&self) -> u32 {
        let length = match self {
            Self::None(count) => return *count,
            Self::Bool(bools) => bools.len(),
            Self::Eventfd(triggers) => triggers.len(),
        };
        u32::try_from(length).unwrap_or(u32::MAX)
    }
}

/// One `VFIO_DEVICE_SET_IRQS`, whose vectors the function has.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) index: IrqIndex,
    pub(crate) action: IrqAction,
    pub(crate) start: u32,
    pub(crate) data: Data,
}

/// Which of the function's own interrupts are on.
#[derive(Debug, Default)]
enum Mode {
    #[default]
    Off,
    Line(Line),
    /// MSI or MSI-X.
    Messages(Kind, BTreeMap<u32, Eventfd>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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
}

#[derive(Debug)]
struct Line {
    trigger: Option<Eventfd>,
    /// What lets the line through again when it is signalled.
    resample: Option<Eventfd>,
    is_masked: bool,
}

/// The interrupts of a function that is open.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    mode: Mode,
    error: Option<Eventfd>,
    request: Option<Eventfd>,
    /// The device wants the line.
    is_raised: bool,
    /// The user does not, in the command register.
    is_disabled: bool,
    /// MSI-X vectors that came while nobody listened.
    pending: BTreeSet<u32>,
}

impl Interrupts {
    /// The device raises its line or takes it back.
    pub(crate) fn set_line(&mut self, registers: &mut Registers, is_raised: bool) {
        let rises = is_raised && !self.is_raised;
        self.is_raised = is_raised;
        registers.assign(header::STATUS, header::STATUS_INTERRUPT, is_raised);
        if let Mode::Line(line) = &mut self.mode
            && rises
            && !line.is_masked
        {
            line.is_masked = true;
            registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, true);
            self.send_line();
        }
    }

    fn send_line(&self) {
        if let Mode::Line(Line { trigger: Some(trigger), .. }) = &self.mode
            && !self.is_disabled
        {
            trigger.signal();
        }
    }

    /// The device sends a message. Whether it is able to, that is, which kind is on, is for the caller to know.
    pub(crate) fn send_message(&mut self, vector: u32) {
        match &self.mode {
            Mode::Messages(kind, vectors) => match (vectors.get(&vector), kind) {
                (Some(eventfd), _) => eventfd.signal(),
                (None, Kind::Msix) => drop(self.pending.insert(vector)),
                (None, Kind::Msi) => {}
            },
            Mode::Off | Mode::Line(_) => {}
        }
    }

    /// Whether the user turned on MSI.
    pub(crate) const fn is_msi_on(&self) -> bool {
        matches!(self.mode, Mode::Messages(Kind::Msi, _))
    }

    /// The user wrote the command register.
    pub(crate) fn disable_line(&mut self, registers: &mut Registers, is_disabled: bool) {
        if is_disabled != self.is_disabled {
            self.is_disabled = is_disabled;
            if is_disabled {
                self.mask_line(registers);
            } else {
                self.unmask_line(registers);
            }
        }
    }

    fn mask_line(&mut self, registers: &mut Registers) {
        if let Mode::Line(line) = &mut self.mode {
            line.is_masked = true;
        }
        registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, true);
    }

    /// A line that is still raised stays masked, and fires at once.
    fn unmask_line(&mut self, registers: &mut Registers) {
        let Mode::Line(line) = &mut self.mode else {
            registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, false);
            return;
        };
        if !line.is_masked || self.is_disabled {
            return;
        }
        if self.is_raised {
            self.send_line();
        } else {
            line.is_masked = false;
            registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, false);
        }
    }

    /// `VFIO_DEVICE_SET_IRQS`.
    pub(crate) fn change(&mut self, registers: &mut Registers, change: Change) -> Result<u32, Errno> {
        let Change { index, action, start, data } = change;
        match (index, action) {
            (IrqIndex::Intx, IrqAction::Trigger) => self.trigger_line(registers, start, data),
            (IrqIndex::Intx, IrqAction::Mask) => self.change_mask(registers, start, data, true),
            (IrqIndex::Intx, IrqAction::Unmask) => self.change_mask(registers, start, data, false),
            (IrqIndex::Msi, IrqAction::Trigger) => self.trigger_messages(registers, Kind::Msi, start, data),
            (IrqIndex::Msix, IrqAction::Trigger) => self.trigger_messages(registers, Kind::Msix, start, data),
            (IrqIndex::Err, IrqAction::Trigger) => trigger_alone(&mut self.error, start, data),
            (IrqIndex::Req, IrqAction::Trigger) => trigger_alone(&mut self.request, start, data),
            (_, IrqAction::Mask | IrqAction::Unmask) => return Err(Errno::NOTTY),
        }
        .map(|()| 0)
    }

    fn trigger_line(&mut self, registers: &mut Registers, start: u32, data: Data) -> Result<(), Errno> {
        let is_on = match (&self.mode, &data) {
            (Mode::Line(_), Data::None(0)) => {
                self.mode = Mode::Off;
                return Ok(());
            }
            (Mode::Line(_), _) => true,
            (Mode::Off, _) => false,
            (Mode::Messages(..), _) => return Err(Errno::INVAL),
        };
        if start != 0 || data.count() != 1 {
            return Err(Errno::INVAL);
        }
        match data {
            Data::Eventfd(triggers) => {
                let trigger = triggers.into_iter().next().unwrap_or(Trigger::Nothing).eventfd()?;
                if let Mode::Line(line) = &mut self.mode {
                    line.trigger = trigger;
                } else {
                    // A line that is raised already does not rise again: the test machine's interrupt controller tells
                    // nobody of it.
                    let is_masked = self.is_disabled;
                    registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, is_masked);
                    self.mode = Mode::Line(Line { trigger, resample: None, is_masked });
                }
            }
            Data::None(_) | Data::Bool(_) if !is_on => return Err(Errno::INVAL),
            Data::Bool(bools) if bools == [false] => {}
            Data::None(_) | Data::Bool(_) => self.send_line(),
        }
        Ok(())
    }

    fn change_mask(
        &mut self,
        registers: &mut Registers,
        start: u32,
        data: Data,
        mask: bool,
    ) -> Result<(), Errno> {
        let Mode::Line(line) = &mut self.mode else { return Err(Errno::INVAL) };
        if start != 0 || data.count() != 1 {
            return Err(Errno::INVAL);
        }
        match data {
            Data::Eventfd(_) if mask => return Err(Errno::NOTTY),
            Data::Eventfd(triggers) => {
                let resample = triggers.into_iter().next().unwrap_or(Trigger::Nothing).eventfd()?;
                if resample.is_some() && line.resample.is_some() {
                    return Err(Errno::BUSY);
                }
                let is_due = resample.as_ref().is_some_and(Eventfd::has_event);
                line.resample = resample;
                if is_due {
                    // The kernel looks at what is there already, but leaves it there.
                    self.unmask_line(registers);
                }
            }
            Data::Bool(bools) if bools == [false] => {}
            Data::None(_) | Data::Bool(_) if mask => self.mask_line(registers),
            Data::None(_) | Data::Bool(_) => self.unmask_line(registers),
        }
        Ok(())
    }

    fn trigger_messages(
        &mut self,
        registers: &mut Registers,
        kind: Kind,
        start: u32,
        data: Data,
    ) -> Result<(), Errno> {
        let is_on = match &self.mode {
            Mode::Messages(on, _) if *on == kind => true,
            Mode::Off => false,
            Mode::Messages(..) | Mode::Line(_) => return Err(Errno::INVAL),
        };
        match data {
            Data::None(0) if is_on => {
                self.disable_messages(registers);
                Ok(())
            }
            // To turn messages on for no vector at all.
            Data::Eventfd(triggers) if !is_on && start == 0 && triggers.is_empty() => Err(Errno::RANGE),
            Data::Eventfd(triggers) => {
                if !is_on {
                    self.enable_messages(registers, kind)?;
                }
                self.set_vectors(start, triggers).inspect_err(|_| {
                    if !is_on {
                        self.disable_messages(registers);
                    }
                })
            }
            Data::None(_) | Data::Bool(_) if !is_on => Err(Errno::INVAL),
            Data::None(count) => {
                self.signal_vectors(start, (0..count).map(|_| true));
                Ok(())
            }
            Data::Bool(bools) => {
                self.signal_vectors(start, bools.into_iter());
                Ok(())
            }
        }
    }

    fn enable_messages(&mut self, registers: &mut Registers, kind: Kind) -> Result<(), Errno> {
        if registers.is_asleep() {
            return Err(Errno::INVAL);
        }
        let start = registers.capability(kind.capability()).ok_or(Errno::INVAL)?;
        self.mode = Mode::Messages(kind, BTreeMap::new());
        // One way of interrupting at a time: the line is let go of.
        self.set_line(registers, false);
        registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, true);
        registers.assign(start + Capability::MESSAGE_CONTROL, kind.enable(), true);
        Ok(())
    }

    fn disable_messages(&mut self, registers: &mut Registers) {
        if let Mode::Messages(kind, _) = self.mode {
            if let Some(start) = registers.capability(kind.capability()) {
                registers.assign(start + Capability::MESSAGE_CONTROL, kind.enable(), false);
            }
            registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, false);
            self.mode = Mode::Off;
            self.pending.clear();
        }
    }

    /// Sets vectors from `start` on. At the first that cannot be, all of them are taken away.
    fn set_vectors(&mut self, start: u32, triggers: Vec<Trigger>) -> Result<(), Errno> {
        let Mode::Messages(_, vectors) = &mut self.mode else { return Err(Errno::INVAL) };
        for (vector, trigger) in (start..).zip(triggers) {
            vectors.remove(&vector);
            match trigger.eventfd() {
                Ok(None) => {}
                Ok(Some(eventfd)) => {
                    if self.pending.remove(&vector) {
                        eventfd.signal();
                    }
                    vectors.insert(vector, eventfd);
                }
                Err(errno) => {
                    (start..vector).for_each(|vector| drop(vectors.remove(&vector)));
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    fn signal_vectors(&self, start: u32, wanted: impl Iterator<Item = bool>) {
        let Mode::Messages(_, vectors) = &self.mode else { return };
        for (vector, _) in (start..).zip(wanted).filter(|(_, wanted)| *wanted) {
            if let Some(eventfd) = vectors.get(&vector) {
                eventfd.signal();
            }
        }
    }

    /// The host fires an interrupt of its own. Whether anybody hears it.
    pub(crate) fn signal(&self, index: IrqIndex) -> bool {
        let eventfd = match index {
            IrqIndex::Err => &self.error,
            IrqIndex::Req => &self.request,
            IrqIndex::Intx | IrqIndex::Msi | IrqIndex::Msix => &None,
        };
        eventfd.as_ref().inspect(|eventfd| eventfd.signal()).is_some()
    }

    /// The eventfd that somebody signals to let the line through again.
    pub(crate) fn resample(&self) -> Option<&Eventfd> {
        match &self.mode {
            Mode::Line(line) => line.resample.as_ref(),
            Mode::Off | Mode::Messages(..) => None,
        }
    }

    /// It may have been signalled.
    pub(crate) fn hear(&mut self, registers: &mut Registers) {
        if self.resample().is_some_and(Eventfd::take) {
            self.unmask_line(registers);
        }
    }

    /// The hardware is reset, and lets go of its line.
    pub(crate) fn reset(&mut self, registers: &mut Registers) {
        self.pending.clear();
        self.set_line(registers, false);
    }

    /// Nobody listens any more. What the device wants stays.
    pub(crate) fn close(&mut self, registers: &mut Registers) {
        self.disable_messages(registers);
        *self = Self { is_raised: self.is_raised, ..Self::default() };
    }
}

/// Sets or fires the only vector of an index that has no hardware behind it.
fn trigger_alone(eventfd: &mut Option<Eventfd>, start: u32, data: Data) -> Result<(), Errno> {
    if start != 0 || data.count() > 1 {
        return Err(Errno::INVAL);
    }
    match data {
        Data::None(0) => eventfd.take().map(drop).ok_or(Errno::INVAL),
        Data::None(_) => eventfd.as_ref().map(Eventfd::signal).ok_or(Errno::INVAL),
        Data::Bool(bools) => match (bools.as_slice(), eventfd) {
            ([], _) => Err(Errno::INVAL),
            ([true, ..], Some(eventfd)) => {
                eventfd.signal();
                Ok(())
            }
            _ => Ok(()),
        },
        Data::Eventfd(triggers) => match triggers.into_iter().next() {
            None | Some(Trigger::Negative) => Err(Errno::INVAL),
            Some(trigger) => {
                *eventfd = trigger.eventfd()?;
                Ok(())
            }
        },
    }
}
