// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device as the server holds it: bound, attached, with what its frontend armed.

use std::sync::Arc;

use vfio::irq::{IrqData, IrqSet};
use vfio::{CallError, ConfigSpace, Device, Function, IrqAction, IrqIndex, PciAddress};

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

/// A handed-over device.
#[derive(Debug)]
pub struct HeldDevice {
    /// The kernel's device.
    pub device: Arc<Device>,
    /// Who handed it over, and may take it away.
    pub owner: Owner,
    /// What sysfs said about it when it was bound.
    pub function: Function,
    /// Whether it has a data face, and whether somebody is connected to it.
    pub face: DataFace,
    interrupts: Interrupts,
}

/// The state of a device's data face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFace {
    /// There is none.
    None,
    /// It waits for a client.
    Listening,
    /// A client is connected.
    Connected,
}

impl HeldDevice {
    /// A device that has just been bound and attached.
    pub fn new(device: Arc<Device>, owner: Owner, function: Function) -> Self {
        Self { device, owner, function, face: DataFace::None, interrupts: Interrupts::default() }
    }

    /// Passes a `SET_IRQS` on and remembers what is armed.
    pub fn set_irqs(&mut self, set: &IrqSet<'_>) -> Result<(), CallError> {
        self.device.set_irqs(set)?;
        self.interrupts.note(set);
        Ok(())
    }

    /// What it takes to stop the device, from any thread.
    pub fn quiescer(&self) -> Quiescer {
        Quiescer { device: Arc::clone(&self.device), interrupts: self.interrupts }
    }

    /// Takes note that the device was stopped.
    pub fn note_quiesced(&mut self) {
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

    /// Interrupts off, decoding and bus mastering off, power state D0.
    ///
    /// The PCI core saves the command register before a reset and restores it after: what is off now stays off.
    pub fn quiesce(&self) -> Result<(), CallError> {
        if let Some(index) = self.interrupts.active {
            self.device.set_irqs(&IrqSet::disable(index))?;
        }
        let config_space = ConfigSpace::new(&self.device);
        config_space.disable_command()?;
        config_space.power_on()
    }

    /// Puts the virtual registers, which a reset does not reach, where the device's own are now.
    pub fn restore(&self) -> Result<(), CallError> {
        ConfigSpace::new(&self.device).clear_bars()
    }

    /// Stops the device for good: no interrupt, no access to memory, whoever still holds a copy of its descriptor.
    pub fn retire(&self) {
        let stopped = self.quiesce().and(self.device.detach());
        if let Err(error) = stopped {
            log::warn!(
                "event=retire-failed device={} call={} errno={}",
                self.device.address(),
                error.call,
                error.errno.raw_os_error()
            );
        }
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
    fn the_error_interrupt_is_not_the_devices_own() {
        let mut interrupts = Interrupts::default();
        interrupts.note(&set(IrqIndex::Err, IrqAction::Trigger, IrqData::Eventfd(&[None])));
        assert_eq!(interrupts.active, None);
    }
}
