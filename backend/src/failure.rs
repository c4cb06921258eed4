// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes wrong, told to a person: a stable id, what happened, why, and what to do.
//!
//! Each failure is built by one function here, so that its texts stand side by side. docs/operations.md explains every
//! id; a test compares the two.

use protocol::extension::Failure as Sentences;
use protocol::vfio_user::RequestError;
use protocol::{ControlReply, RequestNumber};
use rustix::io::Errno;
use vfio::device::{BindError, BindRefusal};
use vfio::{CallError, Iova, PciAddress};

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentences}")]
pub struct Failure {
    /// For a peer that wants no more than a number.
    pub errno: Errno,
    /// For everybody else.
    pub sentences: Sentences,
}

impl Failure {
    /// Stable, for programs and for the index of docs/operations.md.
    pub fn id(&self) -> &str {
        self.sentences.id()
    }
}

impl From<Failure> for ControlReply {
    fn from(Failure { errno, sentences }: Failure) -> Self {
        Self::Refused { errno, failure: sentences }
    }
}

fn failure(
    id: &str,
    errno: Errno,
    what: impl AsRef<str>,
    why: impl AsRef<str>,
    fix: impl AsRef<str>,
) -> Failure {
    let sentences =
        Sentences::new(id, sentence(what.as_ref()), sentence(why.as_ref()), sentence(fix.as_ref()));
    Failure { errno, sentences }
}

/// A clause with a capital letter and a full stop.
fn sentence(clause: &str) -> String {
    let mut characters = clause.chars();
    let capital = characters.next().into_iter().flat_map(char::to_uppercase);
    capital.chain(characters).chain(['.']).collect()
}

/// A failed call and its errno in words.
fn in_words(error: CallError) -> String {
    let CallError { call, object, errno } = error;
    format!("{call} on {object} failed: {}", std::io::Error::from(errno))
}

/// Messages.
impl Failure {
    /// An extension request before the negotiation.
    pub fn not_negotiated(request: RequestNumber) -> Self {
        failure(
            "not-negotiated",
            Errno::PROTO,
            format!("{request} was refused"),
            "the VFIO extension has not been negotiated on this connection",
            "acknowledge protocol feature bit 62, then send VERSION first",
        )
    }

    /// A feature bit that was not offered.
    pub fn feature_not_offered(bits: u64) -> Self {
        failure(
            "feature-not-offered",
            Errno::INVAL,
            format!("feature bits {bits:#x} were refused"),
            "they have not been offered",
            "acknowledge only bits that the server offers",
        )
    }
}

/// The iommufd and the address space.
impl Failure {
    /// The descriptor is something else.
    pub fn not_an_iommufd() -> Self {
        failure(
            "not-an-iommufd",
            Errno::INVAL,
            "the descriptor was refused",
            "it is not an open /dev/iommu",
            "Open /dev/iommu and hand that descriptor over",
        )
    }

    /// There is one already.
    pub fn iommufd_already_set() -> Self {
        failure(
            "iommufd-already-set",
            Errno::EXIST,
            "the iommufd was refused",
            "this server has one, and a VM has one only",
            "Start another server for another VM",
        )
    }

    /// Something that needs the iommufd came first.
    pub fn iommufd_missing() -> Self {
        failure(
            "iommufd-missing",
            Errno::NXIO,
            "the request was refused",
            "no iommufd has been handed over",
            "Send SET_IOMMUFD first, or start the server with --iommufd-fd",
        )
    }

    /// The kernel gave no address space.
    pub fn no_address_space(error: CallError) -> Self {
        failure(
            "no-address-space",
            error.errno,
            "the I/O address space could not be set up",
            in_words(error),
            "With an adopted IOAS, check its id; otherwise see the kernel's log",
        )
    }
}

/// Devices.
impl Failure {
    /// The descriptor is something else.
    pub fn not_a_vfio_device() -> Self {
        failure(
            "not-a-vfio-device",
            Errno::NODEV,
            "the descriptor was refused",
            "it is not the VFIO character device of a PCI function",
            "Open /dev/vfio/devices/vfioN of a function bound to vfio-pci and hand that descriptor over",
        )
    }

    /// The frontend used the name before.
    pub fn cookie_in_use(cookie: u64) -> Self {
        failure(
            "cookie-in-use",
            Errno::EXIST,
            format!("device {cookie:#x} was refused"),
            "another device has that cookie",
            "Give each device a cookie of its own",
        )
    }

    /// No device has that name.
    pub fn unknown_device(cookie: u64) -> Self {
        failure(
            "unknown-device",
            Errno::NOENT,
            format!("there is no device {cookie:#x}"),
            "no device was handed over with that cookie, or it has been removed",
            "Ask with the cookie of ADD_DEVICE",
        )
    }

    /// One device too many.
    pub fn too_many_devices(limit: usize) -> Self {
        failure(
            "too-many-devices",
            Errno::NOSPC,
            "the device was refused",
            format!("this server has {limit} devices already"),
            "Start another server",
        )
    }

    /// What was handed over on another connection is not this one's to take away.
    pub fn not_yours(what: &str) -> Self {
        failure(
            "not-yours",
            Errno::PERM,
            format!("{what} was refused"),
            "it was handed over on another connection",
            "Use the connection that handed it over",
        )
    }

    /// The bind failed; sysfs says more than the errno.
    pub fn bind(error: BindError) -> Self {
        let what = format!("device {} cannot be bound", error.device);
        let errno = error.call.errno;
        let device = error.device;
        match error.refusal {
            BindRefusal::AlreadyBound => failure(
                "device-already-bound",
                errno,
                what,
                "this open file or another one of the device is bound to an iommufd (EINVAL)",
                "Close every other descriptor of the device; `fuser -v /dev/vfio/devices/*` shows who has one",
            ),
            BindRefusal::GroupOpen => failure(
                "group-open",
                errno,
                what,
                "its legacy group is open (EBUSY)",
                "Stop the program that opened /dev/vfio/GROUP, or move it to iommufd; `fuser -v /dev/vfio/*` shows it",
            ),
            BindRefusal::UnsafeInterrupts => failure(
                "no-interrupt-remapping",
                errno,
                what,
                "the platform does not remap interrupts, so a device could forge them (EPERM)",
                "Enable interrupt remapping in the firmware and the kernel command line; only on a trusted machine, \
                 set the module parameter iommufd.allow_unsafe_interrupts=1",
            ),
            BindRefusal::SiblingDriver { sibling, driver } => failure(
                "sibling-has-driver",
                errno,
                what,
                format!("{sibling} of the same IOMMU group is driven by {driver} (EPERM)"),
                format!("Unbind it: echo {sibling} > /sys/bus/pci/devices/{sibling}/driver/unbind"),
            ),
            BindRefusal::ForeignOwner => failure(
                "foreign-owner",
                errno,
                what,
                "another iommufd or container owns its IOMMU group (EPERM)",
                "Bind every function of the group to the same iommufd, or stop the program that owns it",
            ),
            BindRefusal::DeviceLocked => failure(
                "device-locked",
                errno,
                what,
                "somebody holds its lock, as an unbind does while it waits (EAGAIN)",
                format!("Let the operation on {device} end, and try again"),
            ),
            BindRefusal::Other => failure(
                "bind-failed",
                errno,
                what,
                in_words(error.call),
                format!("See the kernel's log for {device}"),
            ),
        }
    }

    /// A bound device could not be attached to the address space.
    pub fn attach(error: CallError) -> Self {
        let why = match error.errno {
            Errno::ADDRINUSE => {
                "mapped memory lies in a range the device's IOMMU reserves (EADDRINUSE)".into()
            }
            _ => in_words(error),
        };
        failure(
            "attach-failed",
            error.errno,
            format!("{} cannot be attached", error.object),
            why,
            "Keep guest memory out of /sys/kernel/iommu_groups/GROUP/reserved_regions",
        )
    }

    /// A question or order to a bound device failed.
    pub fn device_call(error: CallError) -> Self {
        failure(
            "device-call-failed",
            error.errno,
            format!("{} did not do what was asked", error.object),
            in_words(error),
            "Check the request against the device's regions and interrupts; see the kernel's log",
        )
    }
}

/// Guest memory.
impl Failure {
    fn region(id: &str, errno: Errno, address: u64, why: impl AsRef<str>, fix: &str) -> Self {
        failure(id, errno, format!("the memory region at {address:#x} was refused"), why, fix)
    }

    /// Not a file that stays where it is.
    pub fn region_not_memory(address: u64) -> Self {
        let why = "its descriptor is not a memfd, shmem or hugetlbfs file";
        Self::region("region-not-memory", Errno::INVAL, address, why, "Use memory-backend-memfd,share=on")
    }

    /// Opened read-only.
    pub fn region_not_writable(address: u64) -> Self {
        let why = "its descriptor is not open for reading and writing";
        Self::region("region-not-writable", Errno::ACCESS, address, why, "Open the file with O_RDWR")
    }

    /// The file could shrink below the mapping.
    pub fn region_not_sealed(address: u64) -> Self {
        let why = "its file may shrink, and the device would go on using pages that nobody sees any more";
        Self::region("region-not-sealed", Errno::PERM, address, why, "Seal the memfd with F_SEAL_SHRINK")
    }

    /// Offset and size reach past the file's end.
    pub fn region_beyond_file(address: u64, file_size: u64) -> Self {
        let why = format!("it ends behind the end of its file, which has {file_size:#x} bytes");
        Self::region(
            "region-beyond-file",
            Errno::INVAL,
            address,
            why,
            "Make the file larger or the region smaller",
        )
    }

    /// Empty, unaligned, or wrapping around.
    pub fn region_unaligned(address: u64, alignment: u64) -> Self {
        let why =
            format!("address, size and file offset must be multiples of {alignment:#x}, and the size not 0");
        Self::region("region-unaligned", Errno::INVAL, address, why, "Align the region")
    }

    /// Two regions at one address.
    pub fn region_overlaps(address: u64, other: u64) -> Self {
        let why = format!("it overlaps the region at {other:#x}");
        Self::region("region-overlaps", Errno::EXIST, address, why, "Remove the other region first")
    }

    /// In a range that the IOMMU keeps for itself.
    pub fn region_reserved(address: u64, hole: &str) -> Self {
        let why = format!("the IOMMU cannot map {hole}, as it does not the window for interrupt messages");
        let fix = "Lay guest memory out around /sys/kernel/iommu_groups/GROUP/reserved_regions";
        Self::region("region-reserved", Errno::INVAL, address, why, fix)
    }

    /// One region too many.
    pub fn too_many_regions(address: u64, limit: usize) -> Self {
        let why = format!("the table has {limit} regions already");
        Self::region("too-many-regions", Errno::NOSPC, address, why, "Use fewer, larger regions")
    }

    /// Nothing of that address and size is in the table.
    pub fn region_unknown(address: u64) -> Self {
        let why = "the table has no region with this address and size";
        Self::region("region-unknown", Errno::NOENT, address, why, "Remove exactly what was added")
    }

    /// The kernel would not map.
    pub fn map(iova: Iova, size: u64, error: CallError) -> Self {
        let what = format!("{size:#x} bytes of guest memory cannot be mapped at {iova}");
        if error.errno == Errno::NOMEM {
            let fix = "Raise the limit by at least the guest's memory: LimitMEMLOCK= (systemd), \
                       <memtune><hard_limit> (libvirt), ulimit -l";
            return failure("memory-lock-limit", error.errno, what, in_words(error), fix);
        }
        failure("map-failed", error.errno, what, in_words(error), "See the kernel's log")
    }

    /// The kernel would not unmap.
    pub fn unmap(iova: Iova, error: CallError) -> Self {
        let what = format!("guest memory at {iova} cannot be unmapped");
        failure("unmap-failed", error.errno, what, in_words(error), "See the kernel's log")
    }

    /// Another process maps the adopted address space.
    pub fn memory_is_adopted() -> Self {
        failure(
            "memory-is-adopted",
            Errno::PERM,
            "the memory table was refused",
            "the address space was adopted, and whoever allocated it maps it",
            "Send the memory table there",
        )
    }
}

/// Data faces.
impl Failure {
    /// Not a socket a face can speak on.
    pub fn not_a_unix_stream() -> Self {
        failure(
            "not-a-unix-stream",
            Errno::NOTSOCK,
            "the descriptor was refused",
            "it is not a unix stream socket, listening or connected",
            "Hand over a socket of socketpair(), listen() or connect()",
        )
    }

    /// A face this version does not have.
    pub fn no_vhost_user_face() -> Self {
        failure(
            "no-vhost-user-face",
            Errno::OPNOTSUPP,
            "the vhost-user face was refused",
            "this version serves a device over vfio-user only",
            "ask for face 1",
        )
    }

    /// The loop cannot watch the socket.
    pub fn face_not_set_up(error: &std::io::Error) -> Self {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        failure(
            "face-not-set-up",
            errno,
            "the data face could not be set up",
            error.to_string(),
            "raise the limit of open files, or see the kernel's log",
        )
    }

    /// One data face at a time.
    pub fn already_served(device: PciAddress) -> Self {
        failure(
            "already-served",
            Errno::BUSY,
            format!("a second data face for device {device} was refused"),
            "a device has one at a time",
            "Close the other one first",
        )
    }
}

/// vfio-user requests.
impl Failure {
    /// `VERSION` is the first message, and comes once.
    pub fn version_comes_first() -> Self {
        failure(
            "version-comes-first",
            Errno::PROTO,
            "the vfio-user request was refused",
            "VERSION must be the first message, and come once",
            "connect again and begin with VERSION",
        )
    }

    /// A malformed or unknown vfio-user message.
    pub fn vfio_user(error: &RequestError) -> Self {
        failure(
            "vfio-user-request",
            error.errno(),
            error.to_string(),
            "the message is not one of those that docs/protocol.md lists for this face",
            "use a client for vfio-user 0.1",
        )
    }

    /// Outside the device's regions.
    pub fn no_such_region(index: u32) -> Self {
        failure(
            "no-such-region",
            Errno::INVAL,
            format!("an access to region {index} was refused"),
            "the device has no such region, or it is smaller than that",
            "ask for the region's size with DEVICE_GET_REGION_INFO",
        )
    }

    /// Not an interrupt index of PCI.
    pub fn no_such_irq(index: u32) -> Self {
        failure(
            "no-such-irq",
            Errno::INVAL,
            format!("interrupt index {index} was refused"),
            "a PCI device has the indexes 0 to 4",
            "ask for the number of indexes with DEVICE_GET_INFO",
        )
    }
}

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

    /// A device of the set could not be stopped before the reset.
    pub fn not_quiesced(device: PciAddress, error: CallError) -> Self {
        Self::reset("not-quiesced", error.errno, device, in_words(error), "See the kernel's log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clauses_become_sentences() {
        let failure = Failure::not_an_iommufd();
        assert_eq!(
            failure.to_string(),
            "The descriptor was refused. It is not an open /dev/iommu. \
             Open /dev/iommu and hand that descriptor over. (not-an-iommufd)"
        );
    }
}
