// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of handing over: the iommufd, devices, data faces.

use rustix::io::Errno;
use vfio::device::{BindError, BindRefusal};
use vfio::{CallError, PciAddress};

use super::{Failure, failure, in_words};
use crate::reset::remedy;

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

    /// It has come since sysfs was read for the last time.
    pub fn sysfs_off() -> Self {
        failure(
            "sysfs-off",
            Errno::NODEV,
            "the descriptor was refused",
            "it was not the VFIO character device of a PCI function when the server started, which does not read sysfs since",
            "Bind the function to vfio-pci before the server starts, or start the server with --sysfs on",
        )
    }

    /// The server was started for just what it has.
    pub fn devices_fixed(what: &str) -> Self {
        failure(
            "devices-fixed",
            Errno::PERM,
            format!("{what} was refused"),
            "the server was started with --fixed-devices and serves only what it inherited",
            "Start it with this one as well, by --iommufd-fd and --device-fd, or without --fixed-devices",
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
            BindRefusal::FirmwareMapping => failure(
                "firmware-mapping",
                errno,
                what,
                "the firmware demands a mapping of its own for the device (EINVAL)",
                remedy::firmware_mapping(device),
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
                remedy::INTERRUPT_REMAPPING,
            ),
            BindRefusal::SiblingDriver { sibling, driver } => failure(
                "sibling-has-driver",
                errno,
                what,
                format!("{sibling} of the same IOMMU group is driven by {driver} (EPERM)"),
                format!("Unbind it: {}", remedy::unbind(sibling)),
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
        let (why, fix) = match error.errno {
            Errno::ADDRINUSE => (
                "mapped memory lies in a range that the device's IOMMU reserves (EADDRINUSE)".into(),
                "keep guest memory out of /sys/kernel/iommu_groups/GROUP/reserved_regions",
            ),
            Errno::INVAL => (
                "its IOMMU group is attached to another address space, or this one does not suit its IOMMU (EINVAL)".into(),
                "hand every function of the IOMMU group to servers that use the same address space",
            ),
            _ => (in_words(error), "see the kernel's log"),
        };
        failure("attach-failed", error.errno, format!("{} cannot be attached", error.object), why, fix)
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

    /// One client at a time.
    pub fn second_client(cookie: u64) -> Self {
        failure(
            "second-client",
            Errno::BUSY,
            format!("another client of device {cookie:#x} was turned away"),
            "a data face has one at a time",
            "Connect again when the other one has gone",
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
