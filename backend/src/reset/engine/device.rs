// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device as the engine knows it: who uses it, what it went through, and whether it may be accessed now.

use protocol::extension::{Cookie, PciAddress, ResetReport};
use rustix::io::Errno;
use thiserror::Error;

use super::ladder::Rung;
use crate::device::FunctionReset;

/// Who uses devices and asks as one. The integrator says who is who; a number that is shared means that a request for one
/// device speaks for all that its VM uses, a number of its own that each device speaks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vm(pub u64);

/// How a device is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Nobody is connected to it.
    Free,
    /// Somebody is, and it can neither reach memory nor raise an interrupt: no bus mastering, no MSI, no MSI-X.
    Still(Vm),
    /// Somebody is, and it can.
    Active(Vm),
}

impl Usage {
    pub(super) const fn vm(self) -> Option<Vm> {
        match self {
            Self::Free => None,
            Self::Still(vm) | Self::Active(vm) => Some(vm),
        }
    }

    pub(super) const fn is_active(self) -> bool {
        matches!(self, Self::Active(_))
    }

    /// The same with the device cleared.
    const fn stilled(self) -> Self {
        match self {
            Self::Free => Self::Free,
            Self::Still(vm) | Self::Active(vm) => Self::Still(vm),
        }
    }
}

/// Who agrees to lose the state of a device, of those who have asked for a reset that would hit it since it was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Consent {
    /// Nobody.
    Nobody,
    /// The host.
    Host,
    /// The VM that uses it.
    Vm,
}

/// How a reset cleaned a device, for those who ask later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaning {
    /// By which means.
    pub rung: Rung,
    /// What the reset was.
    pub reset: ResetReport,
    /// Whether it was [put back](Restoration::PutBack) for its client then. Whoever wants it clean gets it cleared first.
    pub is_put_back: bool,
}

/// How a device is put in order after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restoration {
    /// As after power-on: command register off, base addresses 0, no messages armed. So for whoever has asked for a clean
    /// device, and where nobody uses it.
    Cleared,
    /// As its client has set it up, who has not asked and goes on: command register, base addresses and interrupts as before.
    PutBack,
}

/// What state a device was left in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It was used, or nobody knows.
    Dirty,
    /// Untouched since that reset.
    Clean(Cleaning),
    /// Not in order: no access until a reset has put it in order.
    Lost(Loss),
}

/// A device that could not be quiesced or restored.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{address} {how}")]
pub struct Loss {
    /// Our name for it.
    pub device: Cookie,
    /// Where it is.
    pub address: PciAddress,
    /// How it came to that.
    pub how: HowLost,
}

/// How a device was lost.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HowLost {
    /// It could not be stopped before the reset.
    #[error("could not be quiesced ({0})")]
    NotQuiesced(Errno),
    /// It could not be put in order after the reset.
    #[error("could not be restored ({0})")]
    NotRestored(Errno),
    /// It was taken away during the reset.
    #[error("was removed during the reset")]
    Removed,
}

/// What becomes of an access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is carried out.
    Open,
    /// It waits: the device is being reset.
    HeldOff,
    /// It is answered with EBUSY: the device is being reset, and whoever waits would give up soon.
    Busy,
    /// It is answered with EIO: the device is lost.
    Lost,
}

/// A device of this process.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) address: PciAddress,
    pub(super) function_reset: FunctionReset,
    pub(super) usage: Usage,
    pub(super) consent: Consent,
    pub(super) condition: Condition,
    /// Whether nobody has touched it since the reset under way began.
    pub(super) is_untouched: bool,
    pub(super) access: Access,
}

impl Device {
    /// A device that was just handed over. What state it is in, nobody knows.
    pub(super) const fn new(address: PciAddress, function_reset: FunctionReset) -> Self {
        Self {
            address,
            function_reset,
            usage: Usage::Free,
            consent: Consent::Nobody,
            condition: Condition::Dirty,
            is_untouched: false,
            access: Access::Open,
        }
    }

    /// Somebody has done something to it: a reset would find something to clean, and would destroy something.
    pub(super) fn touch(&mut self) {
        self.consent = Consent::Nobody;
        self.is_untouched = false;
        if let Condition::Clean(_) = self.condition {
            self.condition = Condition::Dirty;
        }
    }

    /// Takes note of how it is used. One that begins to be active is touched.
    pub(super) fn note_usage(&mut self, usage: Usage) {
        if usage.is_active() && !self.usage.is_active() {
            self.touch();
        }
        self.usage = usage;
    }

    /// Takes note that it is cleared: whoever uses it has to set it up anew.
    pub(super) const fn note_cleared(&mut self) {
        self.usage = self.usage.stilled();
    }
}
