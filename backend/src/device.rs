// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device as the server holds it: bound, attached, with what its frontend armed.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::extension::Cookie;
use rustix::io::Errno;
use vfio::config_space::command;
use vfio::irq::{IrqData, IrqSet};
use vfio::{
    CallError, ConfigSpace, Device, Function, IrqAction, IrqIndex, Msix, Object, PciAddress, RegionIndex,
};

use crate::failure::Failure;
use crate::interrupts::{Interrupts, IrqChange};
use crate::notice::Notice;
use crate::owner::Owner;
use crate::reset::engine::{Restoration, Usage, Vm};

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
    /// Whether its rings are driven for its client: what it was given is lost with a reset.
    pub is_driven: bool,
    /// Whether a client got the device's descriptor. It may have copies, and do to the device what it likes, unseen.
    pub is_exposed: bool,
    /// What the kernel tells of the device by itself.
    pub notices: Vec<Notice>,
    /// Registers of the config space that take time to write.
    slow_registers: Vec<Range<u64>>,
    msix: Option<Msix>,
    interrupts: Interrupts,
    /// The command register as the client has it.
    command: u16,
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
            msix: ConfigSpace::new(&device).msix()?,
            command: ConfigSpace::new(&device).command()?,
            notices: Notice::of(&device),
            device: Arc::new(device),
            owner,
            function,
            face: DataFace::None,
            client: None,
            is_left: false,
            is_driven: false,
            is_exposed: false,
            interrupts: Interrupts::default(),
        })
    }

    /// Passes a `SET_IRQS` on and remembers what is armed.
    ///
    /// # Errors
    ///
    /// As [`Interrupts::change`].
    pub fn set_irqs(&mut self, change: IrqChange) -> Result<(), CallError> {
        let index = change.index;
        self.interrupts.change(&self.device, change)?;
        if !self.interrupts.hears(index) {
            for notice in self.notices.iter().filter(|notice| notice.kind.index() == index) {
                notice.arm(&self.device);
            }
        }
        Ok(())
    }

    /// Takes note of a write to the config space that was done.
    pub fn note_config_write(&mut self, offset: u64, data: &[u8]) {
        self.command = command::after_write(self.command, offset, data);
    }

    /// Takes note of what was done to the device for a client that does not do it itself: whether it has MSI-X on, and may
    /// access memory since. Whoever did it keeps the eventfds.
    pub fn note_driven(&mut self, is_active: bool) {
        let (on, off) =
            (self.command | command::MEMORY | command::BUS_MASTER, self.command & !command::BUS_MASTER);
        self.command = if is_active { on } else { off };
        self.interrupts.note_driven(is_active);
    }

    /// How the device is used.
    pub fn usage(&self) -> Usage {
        let is_active = self.command & command::BUS_MASTER != 0 || self.interrupts.has_messages();
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

    /// What of a BAR a client may map. The pages of MSI-X are left out: it is the client that says what is in them, as it delivers
    /// the interrupts, and the kernel keeps the real table.
    pub fn mappable_areas(&self, region: RegionIndex) -> Vec<Range<u64>> {
        let Some(info) = self.device.region(region).filter(|_| region.is_bar()) else { return Vec::new() };
        let taken: Vec<_> = self.msix.iter().flat_map(|msix| msix.ranges_in(region)).collect();
        info.mappable_areas(rustix::param::page_size() as u64, &taken)
    }

    /// A copy of the device's file, for a client that maps something of it. Who has that can do more than we are told of.
    ///
    /// # Errors
    ///
    /// There is no room for one.
    pub fn expose(&mut self, cookie: Cookie) -> Result<OwnedFd, Failure> {
        let file = self.device.file().try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::MFILE);
            let object = Object::Device(self.device.address());
            Failure::device_call(CallError { call: "F_DUPFD_CLOEXEC", object, errno })
        })?;
        if !self.is_exposed {
            self.is_exposed = true;
            log::warn!("event=device-exposed device={} cookie={:#x}", self.function.address, cookie.0);
        }
        Ok(file)
    }

    /// What it takes to stop the device and to put it in order, from any thread.
    pub fn quiescer(&self) -> Quiescer {
        Quiescer {
            device: Arc::clone(&self.device),
            interrupts: self.interrupts.clone(),
            command: self.command,
        }
    }

    /// Stops the device because its client is gone.
    pub fn leave_quiet(&mut self) {
        self.quiescer().leave_quiet();
        self.interrupts = Interrupts::default();
        self.command = 0;
        self.is_left = false;
        for notice in &self.notices {
            notice.arm(&self.device);
        }
    }

    /// Whether a client that maps the device's BARs can do something to it that nobody here sees.
    pub const fn may_be_touched_unseen(&self) -> bool {
        self.is_exposed && self.command & command::MEMORY != 0
    }

    /// Takes note that what its client has to set up anew after a reset is off.
    pub fn note_cleared(&mut self) {
        self.command = 0;
        self.interrupts.forget_messages();
    }

    /// Tells the client by the error interrupt that the device has lost its state, if it hears that.
    pub fn raise_error(&self) {
        let is_heard = self.interrupts.hears(IrqIndex::Err) && !self.is_left;
        log::warn!("event=state-lost device={} told={is_heard}", self.device.address());
        if is_heard {
            let data = IrqData::None(1);
            let set = IrqSet { index: IrqIndex::Err, start: 0, action: IrqAction::Trigger, data };
            if let Err(error) = self.device.set_irqs(&set) {
                warn(&self.device, "error-not-raised", error);
            }
        }
    }
}

/// Stops a device, and puts it in order after a reset.
#[derive(Debug)]
pub struct Quiescer {
    device: Arc<Device>,
    interrupts: Interrupts,
    command: u16,
}

impl Quiescer {
    /// Where the device is.
    pub fn address(&self) -> PciAddress {
        self.device.address()
    }

    /// Interrupts down and the device silent, as far as it lets itself be stopped. Fails with the first step that did.
    pub fn quiesce(&self) -> Result<(), CallError> {
        let disarmed = self.interrupts.disarm(&self.device);
        let silenced = self.silence();
        for error in [disarmed.err(), silenced.err()].into_iter().flatten() {
            warn(&self.device, "quiesce-failed", error);
        }
        disarmed.and(silenced)
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

    /// Puts the device in order. One that cannot be is stopped.
    pub fn restore(&self, restoration: Restoration) -> Result<(), CallError> {
        let restored = match restoration {
            Restoration::Cleared => self.clear(),
            Restoration::PutBack => self.put_back(),
        };
        restored.inspect_err(|error| {
            warn(&self.device, "restore-failed", *error);
            let _ = self.quiesce();
        })
    }

    /// Puts the virtual registers, which a reset does not reach, where the device's own are now, makes sure that nothing is
    /// on, and arms `INTx` anew if it was armed. Each step is tried, whatever became of the one before.
    fn clear(&self) -> Result<(), CallError> {
        let config_space = ConfigSpace::new(&self.device);
        let disarmed = self.interrupts.disarm(&self.device);
        let cleared = config_space.clear_bars().and(config_space.disable_command());
        disarmed.and(cleared).and(self.interrupts.arm_pin(&self.device))
    }

    /// Puts back what the client has set up of what [`Self::quiesce`] has taken down. The base addresses it knows are in the
    /// virtual registers still. Last of all the device may use them.
    fn put_back(&self) -> Result<(), CallError> {
        self.interrupts.arm(&self.device)?;
        ConfigSpace::new(&self.device).set_command(self.command)
    }

    /// Quiesces the device because its client is gone: also what tells the client of errors and requests. Nothing is left of
    /// what the client has written to the virtual registers.
    pub fn leave_quiet(&self) {
        for index in [IrqIndex::Err, IrqIndex::Req] {
            let disarm =
                IrqSet { index, start: 0, action: IrqAction::Trigger, data: IrqData::Eventfd(&[None]) };
            // A device need not have them.
            let _ = self.device.set_irqs(&disarm);
        }
        // What fails is in the log, and there is nothing else to do about it.
        let _ = self.quiesce();
        let _ = ConfigSpace::new(&self.device).clear_bars();
    }

    /// Stops the device for good: no interrupt, no access to memory, whoever still holds a copy of its descriptor.
    pub fn retire(&self) {
        self.leave_quiet();
        if let Err(error) = self.device.detach() {
            warn(&self.device, "detach-failed", error);
        }
    }
}

fn warn(device: &Device, event: &str, error: CallError) {
    let CallError { call, errno, .. } = error;
    log::warn!("event={event} device={} call={call} errno={}", device.address(), errno.raw_os_error());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_face_that_listened_listens_again_without_its_client() {
        assert_eq!(DataFace::Connected.without_client(), DataFace::Listening);
        assert_eq!(DataFace::ConnectedForOnce.without_client(), DataFace::None);
    }
}
