// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device as the server holds it: bound, attached, with what its frontend armed.

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use vfio::irq::{IrqData, IrqSet};
use vfio::{CallError, ConfigSpace, Device, Function, IrqAction, IrqIndex, PciAddress, RegionIndex};

use crate::owner::Owner;

/// Which interrupts are armed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// The device's own: one kind at a time.
    active: Option<IrqIndex>,
}

impl Interrupts {
    /// Takes note of a `SET_IRQS` that the kernel accepted.
    fn note(&mut self, set: &IrqSet<'_>) {
        if !set.index.is_device_interrupt() || set.action != IrqAction::Trigger {
            return;
        }
        match set.data {
            IrqData::None(0) => self.active = None,
            IrqData::Eventfd(_) => self.active = Some(set.index),
            IrqData::None(_) | IrqData::Bool(_) => {}
        }
    }
}

/// How the device can be reset alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionReset {
    /// Not at all.
    None,
    /// Only by sending it to sleep and waking it, which leaves more behind than a reset of its slot or bus.
    PowerManagement,
    /// By a function level reset, or another way that the kernel found good.
    Full,
}

impl FunctionReset {
    fn of(device: &Device) -> Result<Self, CallError> {
        let config_space = ConfigSpace::new(device);
        Ok(if !device.info().has_function_reset {
            Self::None
        } else if !config_space.has_function_level_reset()? && config_space.has_power_management_reset()? {
            Self::PowerManagement
        } else {
            Self::Full
        })
    }
}

/// A handed-over device.
#[derive(Debug)]
pub struct HeldDevice {
    /// The kernel's device.
    pub device: Arc<Device>,
    /// Who handed it over, and may take it away.
    pub owner: Owner,
    /// What sysfs said about it when it was bound.
    pub function: Function,
    /// How it can be reset alone.
    pub function_reset: FunctionReset,
    /// Whether it has a data face, and whether somebody is connected to it.
    pub face: DataFace,
    /// Registers of the config space that take time to write.
    slow_registers: Vec<Range<u64>>,
    interrupts: Interrupts,
}

/// The state of a device's data face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFace {
    /// There is none.
    None,
    /// It waits for a client.
    Listening,
    /// A client has come to the listening socket, which waits for the next.
    Connected,
    /// The socket was handed over with its client.
    ConnectedForOnce,
}

impl DataFace {
    /// Whether a client is there.
    pub const fn is_connected(self) -> bool {
        matches!(self, Self::Connected | Self::ConnectedForOnce)
    }

    /// What is left when the client has gone.
    #[must_use]
    pub const fn without_client(self) -> Self {
        match self {
            Self::None | Self::ConnectedForOnce => Self::None,
            Self::Listening | Self::Connected => Self::Listening,
        }
    }
}

impl HeldDevice {
    /// A device that has just been bound and attached.
    pub fn new(device: Device, owner: Owner, function: Function) -> Result<Self, CallError> {
        Ok(Self {
            function_reset: FunctionReset::of(&device)?,
            slow_registers: ConfigSpace::new(&device).slow_registers()?,
            device: Arc::new(device),
            owner,
            function,
            face: DataFace::None,
            interrupts: Interrupts::default(),
        })
    }

    /// Passes a `SET_IRQS` on and remembers what is armed.
    pub fn set_irqs(&mut self, set: &IrqSet<'_>) -> Result<(), CallError> {
        self.device.set_irqs(set)?;
        self.interrupts.note(set);
        Ok(())
    }

    /// Whether writing here takes time, because the kernel resets the function or changes its power state.
    pub fn is_slow_to_write(&self, region: RegionIndex, offset: u64, length: usize) -> bool {
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        region == RegionIndex::CONFIG
            && self.slow_registers.iter().any(|register| offset < register.end && register.start < end)
    }

    /// What it takes to stop the device, from any thread.
    pub fn quiescer(&self) -> Quiescer {
        Quiescer { device: Arc::clone(&self.device), interrupts: self.interrupts }
    }

    /// Stops the device because its client is gone.
    pub fn leave_quiet(&mut self) {
        if self.quiescer().leave_quiet() {
            self.note_disarmed();
        }
    }

    /// Takes note that the device's interrupts were taken down.
    pub fn note_disarmed(&mut self) {
        self.interrupts = Interrupts::default();
    }
}

/// Stops a device, and puts it in order after a reset.
#[derive(Debug)]
pub struct Quiescer {
    device: Arc<Device>,
    interrupts: Interrupts,
}

impl Quiescer {
    /// Where the device is.
    pub fn address(&self) -> PciAddress {
        self.device.address()
    }

    /// Interrupts down and the device silent, as far as it lets itself be stopped. True when no interrupt of its own is
    /// left armed.
    pub fn quiesce(&self) -> bool {
        let disarmed = self.disarm();
        let silenced = self.silence();
        for error in [disarmed.err(), silenced.err()].into_iter().flatten() {
            self.warn("quiesce-failed", error);
        }
        disarmed.is_ok()
    }

    /// Takes the device's own interrupts down.
    fn disarm(&self) -> Result<(), CallError> {
        let Some(index) = self.interrupts.active else { return Ok(()) };
        match self.device.set_irqs(&IrqSet::disable(index)) {
            // Whoever holds a copy of the descriptor was first.
            Err(error) if error.errno == Errno::INVAL => Ok(()),
            result => result,
        }
    }

    /// Decoding and bus mastering off, power state D0. Each step is tried, whatever became of the one before.
    ///
    /// The PCI core saves the command register before a reset and restores it after: what is off now stays off.
    fn silence(&self) -> Result<(), CallError> {
        let config_space = ConfigSpace::new(&self.device);
        let stopped = config_space.disable_command();
        let powered = config_space.power_on();
        // Waking up may have brought the old command register back.
        let stopped = stopped.and(config_space.disable_command());
        stopped.and(powered)
    }

    /// Puts the virtual registers, which a reset does not reach, where the device's own are now, and makes sure that the
    /// reset has brought nothing back.
    pub fn restore(&self) -> Result<(), CallError> {
        let config_space = ConfigSpace::new(&self.device);
        config_space.clear_bars().and(config_space.disable_command())
    }

    /// Quiesces the device because its client is gone: also what tells the client of errors and requests. True as for
    /// [`Self::quiesce`].
    pub fn leave_quiet(&self) -> bool {
        for index in [IrqIndex::Err, IrqIndex::Req] {
            let disarm =
                IrqSet { index, start: 0, action: IrqAction::Trigger, data: IrqData::Eventfd(&[None]) };
            // A device need not have them.
            let _ = self.device.set_irqs(&disarm);
        }
        self.quiesce()
    }

    /// Stops the device for good: no interrupt, no access to memory, whoever still holds a copy of its descriptor.
    pub fn retire(&self) {
        self.leave_quiet();
        if let Err(error) = self.device.detach() {
            self.warn("detach-failed", error);
        }
    }

    fn warn(&self, event: &str, error: CallError) {
        let CallError { call, errno, .. } = error;
        log::warn!(
            "event={event} device={} call={call} errno={}",
            self.device.address(),
            errno.raw_os_error()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(index: IrqIndex, action: IrqAction, data: IrqData<'static>) -> IrqSet<'static> {
        IrqSet { index, start: 0, action, data }
    }

    #[test]
    fn an_armed_index_is_active_until_it_is_disabled() {
        let mut interrupts = Interrupts::default();
        interrupts.note(&set(IrqIndex::Msi, IrqAction::Trigger, IrqData::Eventfd(&[None])));
        interrupts.note(&set(IrqIndex::Msi, IrqAction::Trigger, IrqData::None(1)));
        assert_eq!(interrupts.active, Some(IrqIndex::Msi));
        interrupts.note(&IrqSet::disable(IrqIndex::Msi));
        assert_eq!(interrupts.active, None);
    }

    #[test]
    fn unmasking_by_eventfd_arms_nothing() {
        let mut interrupts = Interrupts::default();
        interrupts.note(&set(IrqIndex::Intx, IrqAction::Unmask, IrqData::Eventfd(&[None])));
        assert_eq!(interrupts.active, None);
    }

    #[test]
    fn a_face_that_listened_listens_again_without_its_client() {
        assert_eq!(DataFace::Connected.without_client(), DataFace::Listening);
        assert_eq!(DataFace::ConnectedForOnce.without_client(), DataFace::None);
    }

    #[test]
    fn the_error_interrupt_is_not_the_devices_own() {
        let mut interrupts = Interrupts::default();
        interrupts.note(&set(IrqIndex::Err, IrqAction::Trigger, IrqData::Eventfd(&[None])));
        assert_eq!(interrupts.active, None);
    }
}
