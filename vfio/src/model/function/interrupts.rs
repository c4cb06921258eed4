// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a function's interrupts reach whoever opened it: the line, messages, and what the host has to say.

pub(crate) mod change;
mod messages;
#[cfg(test)]
mod tests;

use rustix::io::Errno;

use crate::irq::{IrqAction, IrqIndex};
use crate::model::function::eventfd::Eventfd;
use crate::model::function::interrupts::change::{Change, Data, Trigger};
use crate::model::function::interrupts::messages::{Kind, Messages};
use crate::model::function::registers::{Registers, header};

/// Which of the function's own interrupts are on.
#[derive(Debug, Default)]
enum Mode {
    #[default]
    Off,
    Line(Line),
    Messages(Messages),
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
    /// Whether MSI-X, too, has only the vectors that it was turned on with.
    pub(crate) has_fixed_vectors: bool,
}

impl Interrupts {
    /// The device raises its line or takes it back. A line that rises is masked until the user has dealt with it.
    pub(crate) fn set_line(&mut self, registers: &mut Registers, is_raised: bool) {
        let rises = is_raised && !self.is_raised;
        self.is_raised = is_raised;
        registers.assign(header::STATUS, header::STATUS_INTERRUPT, is_raised);
        if let Mode::Line(line) = &self.mode
            && rises
            && !line.is_masked
        {
            self.mask_line(registers);
            self.fire_line();
        }
    }

    fn fire_line(&self) {
        if let Mode::Line(Line { trigger: Some(trigger), .. }) = &self.mode
            && !self.is_disabled
        {
            trigger.signal();
        }
    }

    /// The device sends a message. Whether it is able to is for the caller to know.
    pub(crate) fn send_message(&mut self, vector: u32) {
        if let Mode::Messages(messages) = &mut self.mode {
            messages.send(vector);
        }
    }

    /// Whether the user turned on MSI.
    pub(crate) fn is_msi_on(&self) -> bool {
        matches!(&self.mode, Mode::Messages(messages) if messages.kind() == Kind::Msi)
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
        if let Mode::Line(line) = &mut self.mode {
            if !line.is_masked || self.is_disabled {
                return;
            }
            if self.is_raised {
                self.fire_line();
                return;
            }
            line.is_masked = false;
        }
        registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, false);
    }

    /// `VFIO_DEVICE_SET_IRQS`.
    pub(crate) fn change(&mut self, registers: &mut Registers, change: Change) -> Result<(), Errno> {
        let Change { index, action, start, data } = change;
        match (index, action) {
            (IrqIndex::Intx, IrqAction::Trigger) => self.trigger_line(registers, start, data),
            (IrqIndex::Intx, IrqAction::Mask) => self.change_mask(registers, start, data, true),
            (IrqIndex::Intx, IrqAction::Unmask) => self.change_mask(registers, start, data, false),
            (IrqIndex::Msi, IrqAction::Trigger) => self.trigger_messages(registers, Kind::Msi, start, data),
            (IrqIndex::Msix, IrqAction::Trigger) => self.trigger_messages(registers, Kind::Msix, start, data),
            (IrqIndex::Err, IrqAction::Trigger) => trigger_alone(&mut self.error, start, data),
            (IrqIndex::Req, IrqAction::Trigger) => trigger_alone(&mut self.request, start, data),
            (_, IrqAction::Mask | IrqAction::Unmask) => Err(Errno::NOTTY),
        }
    }

    fn trigger_line(&mut self, registers: &mut Registers, start: u32, data: Data) -> Result<(), Errno> {
        match (&mut self.mode, data) {
            (Mode::Messages(_), _) => return Err(Errno::INVAL),
            (Mode::Line(_), Data::None(0)) => self.mode = Mode::Off,
            (_, data) if start != 0 || data.count() != 1 => return Err(Errno::INVAL),
            (Mode::Line(line), Data::Eventfd(triggers)) => line.trigger = only(triggers).eventfd()?,
            // A line that is raised already does not rise again: the interrupt controller of the test machine tells nobody
            // of it.
            (Mode::Off, Data::Eventfd(triggers)) => {
                let is_masked = self.is_disabled;
                self.mode =
                    Mode::Line(Line { trigger: only(triggers).eventfd()?, resample: None, is_masked });
                registers.assign(header::COMMAND, header::COMMAND_INTX_DISABLE, is_masked);
            }
            (Mode::Off, Data::None(_) | Data::Bool(_)) => return Err(Errno::INVAL),
            (Mode::Line(_), Data::Bool(bools)) if bools == [false] => {}
            (Mode::Line(_), Data::None(_) | Data::Bool(_)) => self.fire_line(),
        }
        Ok(())
    }

    fn change_mask(
        &mut self,
        registers: &mut Registers,
        start: u32,
        data: Data,
        is_masked: bool,
    ) -> Result<(), Errno> {
        let Mode::Line(line) = &mut self.mode else { return Err(Errno::INVAL) };
        if start != 0 || data.count() != 1 {
            return Err(Errno::INVAL);
        }
        match data {
            Data::Eventfd(_) if is_masked => return Err(Errno::NOTTY),
            Data::Eventfd(triggers) => {
                let resample = only(triggers).eventfd()?;
                if resample.is_some() && line.resample.is_some() {
                    return Err(Errno::BUSY);
                }
                let is_due = resample.as_ref().is_some_and(Eventfd::has_event);
                line.resample = resample;
                if is_due {
                    self.unmask_line(registers);
                }
            }
            Data::Bool(bools) if bools == [false] => {}
            Data::None(_) | Data::Bool(_) if is_masked => self.mask_line(registers),
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
        match (&mut self.mode, data) {
            (Mode::Messages(messages), _) if messages.kind() != kind => return Err(Errno::INVAL),
            (Mode::Messages(messages), Data::None(0)) => {
                messages.disable(registers);
                self.mode = Mode::Off;
            }
            (Mode::Messages(messages), Data::Eventfd(triggers)) => {
                messages.set(registers, start, triggers)?;
            }
            (Mode::Messages(messages), Data::None(count)) => messages.fire(start, (0..count).map(|_| true)),
            (Mode::Messages(messages), Data::Bool(bools)) => messages.fire(start, bools.into_iter()),
            (Mode::Off, Data::Eventfd(triggers)) => {
                let allocated = start + count(&triggers);
                let mut messages = Messages::enable(kind, registers, allocated, self.has_fixed_vectors)?;
                // A device has one way to interrupt at a time.
                self.set_line(registers, false);
                messages.set(registers, start, triggers).inspect_err(|_| messages.disable(registers))?;
                self.mode = Mode::Messages(messages);
            }
            (Mode::Off | Mode::Line(_), _) => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// The host fires an interrupt of its own. Whether anybody hears it.
    pub(crate) fn signal(&self, index: IrqIndex) -> bool {
        let eventfd = match index {
            IrqIndex::Err => self.error.as_ref(),
            IrqIndex::Req => self.request.as_ref(),
            IrqIndex::Intx | IrqIndex::Msi | IrqIndex::Msix => None,
        };
        eventfd.inspect(|eventfd| eventfd.signal()).is_some()
    }

    /// The eventfd that somebody signals to let the line through again.
    pub(crate) fn resample(&self) -> Option<&Eventfd> {
        match &self.mode {
            Mode::Line(line) => line.resample.as_ref(),
            Mode::Off | Mode::Messages(_) => None,
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
        self.set_line(registers, false);
        match &mut self.mode {
            Mode::Messages(messages) => messages.restore(registers),
            Mode::Off | Mode::Line(_) => messages::set_mask(registers, false),
        }
    }

    /// Nobody listens any more. What the device wants stays.
    pub(crate) fn close(&mut self, registers: &mut Registers) {
        if let Mode::Messages(messages) = &self.mode {
            messages.disable(registers);
        }
        let Self { is_raised, has_fixed_vectors, .. } = *self;
        *self = Self { is_raised, has_fixed_vectors, ..Self::default() };
    }
}

fn count(triggers: &[Trigger]) -> u32 {
    u32::try_from(triggers.len()).unwrap_or(u32::MAX)
}

/// What comes for the only vector.
fn only(triggers: Vec<Trigger>) -> Trigger {
    triggers.into_iter().next().unwrap_or(Trigger::Nothing)
}

/// Sets or fires the only vector of an index that has no hardware behind it.
fn trigger_alone(eventfd: &mut Option<Eventfd>, start: u32, data: Data) -> Result<(), Errno> {
    if start != 0 || data.count() > 1 {
        return Err(Errno::INVAL);
    }
    match (data, eventfd) {
        (Data::None(_), None) => return Err(Errno::INVAL),
        (Data::None(0), eventfd) => *eventfd = None,
        (Data::None(_), Some(eventfd)) => eventfd.signal(),
        (Data::Bool(bools), _) if bools.is_empty() => return Err(Errno::INVAL),
        (Data::Bool(bools), Some(eventfd)) if bools == [true] => eventfd.signal(),
        (Data::Bool(_), _) => {}
        (Data::Eventfd(triggers), eventfd) => match triggers.into_iter().next() {
            None | Some(Trigger::Negative) => return Err(Errno::INVAL),
            Some(trigger) => *eventfd = trigger.eventfd()?,
        },
    }
    Ok(())
}
