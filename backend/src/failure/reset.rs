// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of resets.

use protocol::extension::{self as wire, ResetMethod, ResetPolicy};
use rustix::io::Errno;
use vfio::{CallError, Object, PciAddress};

use super::{Failure, failure, in_words};
use crate::reset::engine::{HowLost, Loss, Reason, Refusal, Step};

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

    /// A function of the set is bound to our iommufd by another process, and nobody coordinates with that.
    pub fn sibling_elsewhere(device: PciAddress, sibling: wire::PciAddress) -> Self {
        let why = format!("its reset would hit {sibling}, which another process bound to the same iommufd");
        Self::reset(
            "sibling-elsewhere",
            Errno::BUSY,
            device,
            why,
            "Hand every function of the slot to one server, or have one broker coordinate all servers (vfio-devctl run)",
        )
    }

    /// A sibling is in use, and policy spares it.
    pub fn sibling_in_use(device: PciAddress, sibling: wire::PciAddress, policy: ResetPolicy) -> Self {
        let (why, fix) = match policy {
            ResetPolicy::Function => (
                format!("its reset would hit {sibling}, and the policy is to reset functions alone"),
                "Ask for it with the policy group",
            ),
            ResetPolicy::Group | ResetPolicy::Force => (
                format!("its reset would hit {sibling}, which is in use"),
                "Have what uses that ask for a reset too, or ask with the policy force",
            ),
        };
        Self::reset("sibling-in-use", Errno::BUSY, device, why, fix)
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

    /// The broker did not bring the servers together.
    fn not_coordinated(device: PciAddress, reason: &Reason) -> Self {
        let fix = "See what became of the server or broker that is named, and ask again";
        Self::reset("not-coordinated", reason.errno(), device, reason.to_string(), fix)
    }

    /// A means of resetting that did not serve, as the decisive one of those that were passed over.
    pub fn reset_step(device: PciAddress, step: &Step) -> Self {
        let call = match step.rung.method() {
            ResetMethod::Function => "VFIO_DEVICE_RESET",
            ResetMethod::Hot => "VFIO_DEVICE_PCI_HOT_RESET",
        };
        let error = |call, errno| CallError { call, object: Object::Device(device), errno };
        match &step.reason {
            Reason::NoFunctionReset | Reason::OnlyPowerManagement => Self::no_function_reset(device),
            Reason::NoGroupReset => Self::no_hot_reset(device),
            Reason::Blocked(_) => Self::reset_blocked(device, "the kernel does not say which", String::new()),
            Reason::Protected { sibling, policy } => Self::sibling_in_use(device, *sibling, *policy),
            Reason::SiblingElsewhere(sibling) => Self::sibling_elsewhere(device, *sibling),
            Reason::SetUnknown(errno) => {
                Self::device_call(error("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", *errno))
            }
            Reason::Refused { errno, attempts } => {
                Self::reset_refused(device, *attempts, error(call, *errno))
            }
            Reason::Abandoned | Reason::NoDeviceLeft => Self::device_removed(device),
            Reason::Aborted(_) | Reason::BrokerLost | Reason::BrokerSilent => {
                Self::not_coordinated(device, &step.reason)
            }
        }
    }

    /// A request that ended otherwise than with all means passed over.
    pub fn reset_refusal(device: PciAddress, refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Lost(Loss {
                how: HowLost::NotQuiesced(errno) | HowLost::NotRestored(errno), ..
            }) => Self::not_restored(device, refusal.to_string(), *errno),
            Refusal::DeadlinePassed { .. } => Self::reset(
                "reset-too-late",
                Errno::TIMEDOUT,
                device,
                refusal.to_string(),
                "Ask again, with more time; a reset that is under way comes to its end meanwhile",
            ),
            Refusal::UnknownDevice | Refusal::Removed | Refusal::Lost(_) | Refusal::NoMeansLeft { .. } => {
                Self::device_removed(device)
            }
        }
    }

    /// It was taken away meanwhile.
    pub fn device_removed(device: PciAddress) -> Self {
        let why = "it was removed meanwhile";
        Self::reset("device-removed", Errno::NODEV, device, why, "Hand it over again, and ask again")
    }

    /// A device of the set is not as it should be after the reset.
    fn not_restored(device: PciAddress, why: String, errno: Errno) -> Self {
        failure(
            "not-restored",
            errno,
            format!("device {device} was reset and could not be put in order"),
            why,
            "reset it again, or remove it and see the kernel's log",
        )
    }
}

/// What follows from resets for those who use or serve a device.
impl Failure {
    /// Whoever waits longer would be taken for dead.
    pub fn being_reset(device: PciAddress) -> Self {
        failure(
            "being-reset",
            Errno::BUSY,
            format!("an access to device {device} was refused"),
            "it is being reset, and that takes long",
            "try again when the reset is over",
        )
    }

    /// It is not in order since a reset.
    pub fn device_lost(device: PciAddress) -> Self {
        failure(
            "device-lost",
            Errno::IO,
            format!("an access to device {device} was refused"),
            "it could not be quiesced or put in order at its last reset",
            "reset it again, or remove it and see the kernel's log",
        )
    }

    /// The server shall serve nothing that can't be reset.
    pub fn reset_required(device: PciAddress, refusal: &Self) -> Self {
        let why = format!(
            "it cannot be reset now, and the server was started with --require reset: {}",
            refusal.sentences.why()
        );
        failure(
            "reset-required",
            refusal.errno,
            format!("device {device} is not served"),
            why.trim_end_matches('.'),
            refusal.sentences.fix().trim_end_matches('.'),
        )
    }

    /// The server shall serve nothing that was not reset.
    pub fn not_sanitized(device: PciAddress, refusal: &Self) -> Self {
        let why = format!(
            "it could not be reset, and the server was started with --sanitize required: {}",
            refusal.sentences.why()
        );
        failure(
            "not-sanitized",
            refusal.errno,
            format!("device {device} is not served"),
            why.trim_end_matches('.'),
            refusal.sentences.fix().trim_end_matches('.'),
        )
    }
}
