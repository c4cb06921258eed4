// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One reset, carried out on the worker: quiesce every affected device, one ioctl, restore every one of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::extension::{Cookie, ResetMethod, ResetOutcome};
use rustix::io::Errno;
use vfio::{CallError, Device, HotReset};

use crate::device::Quiescer;
use crate::failure::Failure;

/// How long to wait before asking a busy kernel again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A reset that was decided on.
#[derive(Debug)]
pub struct ResetOrder {
    /// The device that the reset was asked for.
    pub target: Arc<Device>,
    /// How.
    pub method: ResetMethod,
    /// Every device of ours that it hits, the target among them.
    pub affected: Vec<(Cookie, Quiescer)>,
    /// For how long a busy kernel is asked again. The reset itself can't be cut short.
    pub deadline: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct ResetResult {
    /// The devices that were quiesced, whatever became of the reset.
    pub affected: Vec<Cookie>,
    /// The reset itself.
    pub outcome: Result<ResetDone, Failure>,
}

/// A reset that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetDone {
    /// How.
    pub method: ResetMethod,
    /// How sure the kernel is.
    pub outcome: ResetOutcome,
    /// How often it was asked.
    pub attempts: u32,
    /// From the first quiesce to the last restore.
    pub duration: Duration,
}

impl ResetOrder {
    /// Carries the reset out. Blocks for as long as the kernel takes, up to a minute.
    pub fn carry_out(self) -> ResetResult {
        let started = Instant::now();
        let outcome = self.quiesce_all().and_then(|()| self.reset_until(started + self.deadline));
        // Restored whatever the kernel said: a failed reset may have reached the hardware.
        let restored = self.restore_all();
        let outcome = outcome.and_then(|(outcome, attempts)| {
            restored.map(|()| ResetDone {
                method: self.method,
                outcome,
                attempts,
                duration: started.elapsed(),
            })
        });
        ResetResult { affected: self.affected.iter().map(|(cookie, _)| *cookie).collect(), outcome }
    }

    fn quiesce_all(&self) -> Result<(), Failure> {
        self.affected.iter().try_for_each(|(_, device)| {
            device.quiesce().map_err(|error| Failure::not_quiesced(device.address(), error))
        })
    }

    /// Restores every device, whatever became of the one before, and reports the first failure.
    fn restore_all(&self) -> Result<(), Failure> {
        let restored: Vec<_> = self.affected.iter().map(|(_, device)| device.restore()).collect();
        restored.into_iter().collect::<Result<(), _>>().map_err(Failure::device_call)
    }

    fn reset_until(&self, deadline: Instant) -> Result<(ResetOutcome, u32), Failure> {
        let mut attempts = 1;
        loop {
            match self.reset_once() {
                Ok(outcome) => return Ok((outcome, attempts)),
                Err(error) if is_worth_another_try(error.errno) && Instant::now() < deadline => {
                    std::thread::sleep(RETRY_INTERVAL);
                    attempts += 1;
                }
                Err(error) => return Err(Failure::reset_refused(self.target.address(), attempts, error)),
            }
        }
    }

    fn reset_once(&self) -> Result<ResetOutcome, CallError> {
        match self.method {
            ResetMethod::Function => self.target.reset().map(|()| ResetOutcome::Done),
            ResetMethod::Hot => self.target.hot_reset().map(|reset| match reset {
                HotReset::Done => ResetOutcome::Done,
                HotReset::DoneLinkUnconfirmed => ResetOutcome::LinkUnconfirmed,
            }),
        }
    }
}

/// `EBUSY`: somebody is in a BAR access. `EAGAIN`: somebody holds a device's lock. Both pass, and nothing was reset.
fn is_worth_another_try(errno: Errno) -> bool {
    matches!(errno, Errno::BUSY | Errno::AGAIN)
}
