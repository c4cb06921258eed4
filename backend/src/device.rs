// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device as the server holds it: bound, attached, with what its frontend armed.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use vfio::irq::{IrqData, IrqSet};
use vfio::{CallError, ConfigSpace, Device, Function, IrqAction, IrqIndex, Object, PciAddress, RegionIndex};

use crate::notice::Notice;
use crate::owner::Owner;
use crate::reset::engine::{Usage, Vm, touch};

/// Which interrupts of its own a device has armed: one kind at a time.
#[derive(Clone, Debug, Default)]
pub enum Interrupts {
    /// None.
    #[default]
    Off,
    /// `INTx`. What was armed is kept: a client that has not asked for a reset does not arm it again after one.
    Pin {
        /// Told when the pin is asserted.
        trigger: Arc<OwnedFd>,
        /// Written to when the client has served the interrupt, if it said so.
        unmask: Option<Arc<OwnedFd>>,
    },
    /// MSI or MSI-X. A driver arms them again after a reset, as it finds them off.
    Messages(IrqIndex),
}

impl Interrupts {
    const fn index(&self) -> Option<IrqIndex> {
        match self {
            Self::Off => None,
            Self::Pin { .. } => Some(IrqIndex::Intx),
            Self::Messages(index) => Some(*index),
        }
    }

    /// Takes note of a `SET_IRQS` that the kernel accepted.
    ///
    /// # Errors
    ///
    /// There is no room for a copy of an eventfd.
    fn note(&mut self, set: &IrqSet<'_>) -> io::Result<()> {
        let eventfd = |fds: &[Option<BorrowedFd<'_>>]| {
            fds.first().copied().flatten().map(|fd| fd.try_clone_to_owned().map(Arc::new)).transpose()
        };
        match (set.index, set.action, &set.data) {
            (index, IrqAction::Trigger, IrqData::None(0)) if index.is_device_interrupt() => *self = Self::Off,
            (IrqIndex::Intx, IrqAction::Trigger, IrqData::Eventfd(fds)) => {
                *self = eventfd(fds)?.map_or(Self::Off, |trigger| Self::Pin { trigger, unmask: None });
            }
            (IrqIndex::Intx, IrqAction::Unmask, IrqData::Eventfd(fds)) => {
                if let Self::Pin { unmask, .. } = self {
                    *unmask = eventfd(fds)?;
                }
            }
            (index @ (IrqIndex::Msi | IrqIndex::Msix), IrqAction::Trigger, IrqData::Eventfd(_)) => {
                *self = Self::Messages(index);
            }
            _ => {}
        }
        Ok(())
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
    /// Who is connected to the data face.
    pub client: Option<Vm>,
    /// Whether its client has gone while a reset or a job had the device, and left it as it was.
    pub is_left: bool,
    /// What the kernel tells of the device by itself.
    pub notices: Vec<Notice>,
    /// Registers of the config space that take time to write.
    slow_registers: Vec<Range<u64>>,
    interrupts: Interrupts,
    is_bus_master: bool,
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
            notices: Notice::of(&device),
            device: Arc::new(device),
            owner,
            function,
            face: DataFace::None,
            client: None,
            is_left: false,
            interrupts: Interrupts::default(),
            is_bus_master: false,
        })
    }

    /// Passes a `SET_IRQS` on and remembers what is armed.
    pub fn set_irqs(&mut self, set: &IrqSet<'_>) -> Result<(), CallError> {
        self.device.set_irqs(set)?;
        self.interrupts.note(set).map_err(|error| CallError {
            call: "F_DUPFD_CLOEXEC",
            object: Object::Device(self.device.address()),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::MFILE),
        })
    }

    /// Takes note of a write to the config space that was done.
    pub fn note_config_write(&mut self, offset: u64, data: &[u8]) {
        if let Some(is_on) = touch::bus_mastering_after(offset, data) {
            self.is_bus_master = is_on;
        }
    }

    /// Takes note that the device was driven in another way than by its client's accesses: whether it has interrupts and may
    /// access memory since.
    pub fn note_driven(&mut self, is_active: bool) {
        self.interrupts = if is_active { Interrupts::Messages(IrqIndex::Msix) } else { Interrupts::Off };
        self.is_bus_master = is_active;
    }

    /// How the device is used.
    pub fn usage(&self) -> Usage {
        let is_active = self.is_bus_master || matches!(self.interrupts, Interrupts::Messages(_));
        match self.client {
            None => Usage::Free,
            Some(vm) if is_active => Usage::Active(vm),
            Some(vm) => Usage::Still(vm),
        }
    }

    /// Whether writing here takes time, because the kernel resets the function or changes its power state.
    pub fn is_slow_to_write(&self, region: RegionIndex, offset: u64, length: usize) -> bool {
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        region == RegionIndex::CONFIG
            && self.slow_registers.iter().any(|register| offset < register.end && register.start < end)
    }

    /// What it takes to stop the device, from any thread.
    pub fn quiescer(&self) -> Quiescer {
        Quiescer { device: Arc::clone(&self.device), interrupts: self.interrupts.clone() }
    }

    /// Stops the device because its client is gone.
    pub fn leave_quiet(&mut self) {
        self.quiescer().leave_quiet();
        self.interrupts = Interrupts::Off;
        self.is_bus_master = false;
        self.is_left = false;
        for notice in &self.notices {
            notice.arm(&self.device);
        }
    }

    /// Takes note that the device was quiesced for a reset: what its client has to set up anew is down.
    pub fn note_quiesced(&mut self) {
        self.is_bus_master = false;
        if let Interrupts::Messages(_) = self.interrupts {
            self.interrupts = Interrupts::Off;
        }
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

    /// Interrupts down and the device silent, as far as it lets itself be stopped. Fails with the first step that did.
    pub fn quiesce(&self) -> Result<(), CallError> {
        let disarmed = self.disarm();
        let silenced = self.silence();
        for error in [disarmed.err(), silenced.err()].into_iter().flatten() {
            self.warn("quiesce-failed", error);
        }
        disarmed.and(silenced)
    }

    /// Takes the device's own interrupts down.
    fn disarm(&self) -> Result<(), CallError> {
        let Some(index) = self.interrupts.index() else { return Ok(()) };
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

    /// Puts the virtual registers, which a reset does not reach, where the device's own are now, makes sure that the
    /// reset has brought nothing back, and arms `INTx` again if it was armed.
    pub fn restore(&self) -> Result<(), CallError> {
        let config_space = ConfigSpace::new(&self.device);
        let restored = config_space.clear_bars().and(config_space.disable_command()).and(self.rearm_pin());
        restored.inspect_err(|error| self.warn("restore-failed", *error))
    }

    fn rearm_pin(&self) -> Result<(), CallError> {
        let Interrupts::Pin { trigger, unmask } = &self.interrupts else { return Ok(()) };
        let arm = |action, eventfd: &Arc<OwnedFd>| {
            let data = [Some(eventfd.as_fd())];
            let set = IrqSet { index: IrqIndex::Intx, start: 0, action, data: IrqData::Eventfd(&data) };
            self.device.set_irqs(&set)
        };
        arm(IrqAction::Trigger, trigger)?;
        unmask.as_ref().map_or(Ok(()), |unmask| arm(IrqAction::Unmask, unmask))
    }

    /// Quiesces the device because its client is gone: also what tells the client of errors and requests.
    pub fn leave_quiet(&self) {
        for index in [IrqIndex::Err, IrqIndex::Req] {
            let disarm =
                IrqSet { index, start: 0, action: IrqAction::Trigger, data: IrqData::Eventfd(&[None]) };
            // A device need not have them.
            let _ = self.device.set_irqs(&disarm);
        }
        // What fails is in the log, and there is nothing else to do about it.
        let _ = self.quiesce();
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
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// What is armed after these calls.
    fn after(sets: &[IrqSet<'_>]) -> Option<IrqIndex> {
        let mut interrupts = Interrupts::default();
        for set in sets {
            interrupts.note(set).unwrap();
        }
        interrupts.index()
    }

    fn set(index: IrqIndex, action: IrqAction, data: IrqData<'_>) -> IrqSet<'_> {
        IrqSet { index, start: 0, action, data }
    }

    #[test]
    fn an_armed_index_is_armed_until_it_is_disabled() {
        let armed = set(IrqIndex::Msi, IrqAction::Trigger, IrqData::Eventfd(&[None]));
        let triggered = set(IrqIndex::Msi, IrqAction::Trigger, IrqData::None(1));
        let disabled = IrqSet::disable(IrqIndex::Msi);
        assert_eq!(after(&[armed.clone(), triggered.clone()]), Some(IrqIndex::Msi));
        assert_eq!(after(&[armed, triggered, disabled]), None);
    }

    #[test]
    fn a_pin_is_kept_with_what_unmasks_it() {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let fds = [Some(eventfd.as_fd())];
        let mut interrupts = Interrupts::default();
        interrupts.note(&set(IrqIndex::Intx, IrqAction::Trigger, IrqData::Eventfd(&fds))).unwrap();
        assert!(matches!(interrupts, Interrupts::Pin { unmask: None, .. }));
        interrupts.note(&set(IrqIndex::Intx, IrqAction::Unmask, IrqData::Eventfd(&fds))).unwrap();
        assert!(matches!(interrupts, Interrupts::Pin { unmask: Some(_), .. }));
        interrupts.note(&set(IrqIndex::Intx, IrqAction::Trigger, IrqData::Eventfd(&[None]))).unwrap();
        assert_eq!(interrupts.index(), None);
    }

    #[test]
    fn unmasking_by_eventfd_arms_nothing() {
        assert_eq!(after(&[set(IrqIndex::Intx, IrqAction::Unmask, IrqData::Eventfd(&[None]))]), None);
    }

    #[test]
    fn the_error_interrupt_is_not_the_devices_own() {
        assert_eq!(after(&[set(IrqIndex::Err, IrqAction::Trigger, IrqData::Eventfd(&[None]))]), None);
    }

    #[test]
    fn a_face_that_listened_listens_again_without_its_client() {
        assert_eq!(DataFace::Connected.without_client(), DataFace::Listening);
        assert_eq!(DataFace::ConnectedForOnce.without_client(), DataFace::None);
    }
}
