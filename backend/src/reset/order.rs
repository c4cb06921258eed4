// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One reset, carried out on the worker: quiesce every affected device, one ioctl, restore every one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// The devices that it was about.
    pub affected: Vec<Cookie>,
    /// Those among them whose interrupts were taken down.
    pub disarmed: Vec<Cookie>,
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
    /// Carries the reset out. Blocks for as long as the kernel takes, up to a minute; once `stop` is set a busy kernel is
    /// not asked again.
    pub fn carry_out(self, stop: &AtomicBool) -> ResetResult {
        let started = Instant::now();
        let disarmed = self.quiesce_all();
        let outcome = self.reset_until(started + self.deadline, stop);
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
        ResetResult { affected: self.affected.iter().map(|(cookie, _)| *cookie).collect(), disarmed, outcome }
    }

    /// Stops every device, and tells whose interrupts are down. One that does not obey is no reason to leave it as it is:
    /// the reset is what may cure it.
    fn quiesce_all(&self) -> Vec<Cookie> {
        self.affected.iter().filter(|(_, device)| device.quiesce()).map(|(cookie, _)| *cookie).collect()
    }

    /// Restores every device, whatever became of the one before, and reports the first failure.
    fn restore_all(&self) -> Result<(), Failure> {
        let restore = |(_, device): &(Cookie, Quiescer)| {
            device.restore().map_err(|error| Failure::not_restored(device.address(), error))
        };
        let restored: Vec<_> = self.affected.iter().map(restore).collect();
        restored.into_iter().collect()
    }

    fn reset_until(&self, deadline: Instant, stop: &AtomicBool) -> Result<(ResetOutcome, u32), Failure> {
        let mut attempts = 1;
        loop {
            let may_go_on = || Instant::now() < deadline && !stop.load(Ordering::Relaxed);
            match self.reset_once() {
                Ok(outcome) => return Ok((outcome, attempts)),
                Err(error) if is_worth_another_try(error.errno) && may_go_on() => {
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
