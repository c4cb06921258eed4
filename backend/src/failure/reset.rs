// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of resets.

use rustix::io::Errno;
use vfio::{CallError, PciAddress};

use super::{Failure, failure, in_words};

/// Resets.
impl Failure {
    fn reset(id: &str, errno: Errno, device: PciAddress, why: impl AsRef<str>, fix: impl AsRef<str>) -> Self {
        failure(id, errno, format!("device {device} was not reset"), why, fix)
    }

    /// The kernel has no reset of the function alone.
    pub fn no_function_reset(device: PciAddress) -> Self {
        let why = "it has no reset of its own";
        Self::reset(
            "no-function-reset",
            Errno::OPNOTSUPP,
            device,
            why,
            "Ask for a hot reset, or for any (auto)",
        )
    }

    /// Neither slot nor bus.
    pub fn no_hot_reset(device: PciAddress) -> Self {
        let why = "neither its slot nor its bus can be reset, as for a device on a root bus (ENODEV)";
        Self::reset("no-hot-reset", Errno::NODEV, device, why, "Use a function reset, or another slot")
    }

    /// A function of the set is not ours.
    pub fn reset_blocked(device: PciAddress, blockers: &str, remedy: String) -> Self {
        let why = format!("its reset would hit functions that are not ours: {blockers}");
        Self::reset("reset-blocked", Errno::PERM, device, why, remedy)
    }

    /// A function of the set is bound to our iommufd by another process.
    pub fn sibling_elsewhere(device: PciAddress, sibling: PciAddress) -> Self {
        let why = format!("its reset would hit {sibling}, which another process bound to the same iommufd");
        Self::reset(
            "sibling-elsewhere",
            Errno::BUSY,
            device,
            why,
            "Hand every function of the slot to one server",
        )
    }

    /// A guest's reset must not hit what another face is using.
    pub fn sibling_in_use(device: PciAddress, sibling: PciAddress) -> Self {
        let why = format!("its reset would hit {sibling}, which is in use");
        Self::reset("sibling-in-use", Errno::BUSY, device, why, "Ask for the reset over the control socket")
    }

    /// The ioctl said no until the end.
    pub fn reset_refused(device: PciAddress, attempts: u32, error: CallError) -> Self {
        let why = format!("{} ({attempts} attempts)", in_words(error));
        let fix = match error.errno {
            Errno::BUSY => {
                "Somebody keeps accessing a BAR of an affected device: stop that, or allow more time"
            }
            Errno::AGAIN => "Somebody holds an affected device's lock: let that end, or allow more time",
            _ => "Ask for the reset group, and see the kernel's log",
        };
        Self::reset("reset-failed", error.errno, device, why, fix)
    }

    /// A device of the set is not as it should be after the reset.
    pub fn not_restored(device: PciAddress, error: CallError) -> Self {
        failure(
            "not-restored",
            error.errno,
            format!("device {device} was reset and could not be put in order"),
            in_words(error),
            "reset it again, or remove it and see the kernel's log",
        )
    }
}
