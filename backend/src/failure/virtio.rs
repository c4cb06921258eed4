// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failures of a virtio function whose rings the hardware runs.

use rustix::io::Errno;
use vfio::PciAddress;

use super::{Failure, failure};
use crate::virtio::rings::{Base, RingIndex};

/// The function.
impl Failure {
    /// Some other PCI function.
    pub fn not_virtio(device: PciAddress, vendor: u16, id: u16) -> Self {
        failure(
            "not-virtio",
            Errno::NODEV,
            format!("device {device} cannot be served over vhost-user"),
            format!("it is {vendor:04x}:{id:04x}, which is no virtio device"),
            "serve it over vfio-user",
        )
    }

    /// A device without what Virtio 1.0 demands.
    pub fn not_modern_virtio(device: PciAddress, why: impl AsRef<str>) -> Self {
        failure(
            "not-modern-virtio",
            Errno::NODEV,
            format!("device {device} cannot be served over vhost-user"),
            why,
            "serve it over vfio-user, or have its maker's firmware offer Virtio 1.0",
        )
    }

    /// There is no way for interrupts.
    pub fn no_interrupt_vector(device: PciAddress) -> Self {
        failure(
            "no-interrupt-vector",
            Errno::NOSPC,
            format!("device {device} cannot be served over vhost-user"),
            "it has no MSI-X vector, or takes none for a ring",
            "serve it over vfio-user, or give the function more vectors",
        )
    }

    /// It does not become what the driver makes of it.
    pub fn virtio_handshake(device: PciAddress, step: &str, status: u8) -> Self {
        failure(
            "virtio-handshake-failed",
            Errno::IO,
            format!("device {device} could not be started"),
            format!("it did not {step}: its status is {status:#04x}"),
            "reset the device; see whether its firmware is in order",
        )
    }

    /// It went wrong while it ran.
    pub fn virtio_needs_reset(device: PciAddress) -> Self {
        failure(
            "virtio-needs-reset",
            Errno::IO,
            format!("device {device} has stopped"),
            "it demands a reset (DEVICE_NEEDS_RESET), as it does for a ring that it cannot make sense of",
            "reset the virtual machine's device, or the virtual machine",
        )
    }

    /// Somebody reset it.
    pub fn virtio_was_reset(device: PciAddress) -> Self {
        failure(
            "virtio-was-reset",
            Errno::IO,
            format!("device {device} has stopped"),
            "it was reset, and lost its rings",
            "reset the virtual machine's device, or the virtual machine",
        )
    }

    /// Not in the device's configuration.
    pub fn config_beyond_end(offset: u64, size: usize, length: u32) -> Self {
        failure(
            "config-beyond-end",
            Errno::INVAL,
            format!("an access to {size} bytes at {offset:#x} of the device's configuration was refused"),
            format!("it has {length} bytes"),
            "ask for no more than the device has",
        )
    }

    /// It changes faster than it can be read.
    pub fn config_unstable(device: PciAddress) -> Self {
        failure(
            "config-unstable",
            Errno::AGAIN,
            format!("the configuration of device {device} could not be read"),
            "it changed each time while it was being read",
            "try again",
        )
    }
}

/// Rings.
impl Failure {
    /// More than the device has.
    pub fn no_such_ring(ring: u64, count: u16) -> Self {
        failure(
            "no-such-ring",
            Errno::INVAL,
            format!("a message about ring {ring} was refused"),
            format!("the device has {count}, from 0"),
            "ask for the number with GET_QUEUE_NUM",
        )
    }

    /// Not for this device.
    pub fn ring_size(ring: RingIndex, size: u32, largest: u16) -> Self {
        failure(
            "ring-size",
            Errno::INVAL,
            format!("{ring} was refused"),
            format!("{size} entries are none of the sizes that the device has, which end at {largest}"),
            "give the virtual machine's device rings that are no larger (QEMU: queue-size)",
        )
    }

    /// Addresses that no driver would use.
    pub fn ring_unaligned(ring: RingIndex) -> Self {
        failure(
            "ring-unaligned",
            Errno::INVAL,
            format!("{ring} was refused"),
            "a part of it is not aligned as virtio demands",
            "report this to whoever makes the frontend",
        )
    }

    /// It would have to be stopped first.
    pub fn ring_is_running(ring: RingIndex) -> Self {
        failure(
            "ring-is-running",
            Errno::BUSY,
            format!("a change of {ring} was refused"),
            "the device has it",
            "stop the ring first with GET_VRING_BASE",
        )
    }

    /// The device would go on using memory that the guest has no more.
    pub fn ring_in_use(ring: RingIndex) -> Self {
        failure(
            "ring-in-use",
            Errno::BUSY,
            "a change of guest memory was refused",
            format!("the device runs with {ring}, a part of which lies in memory that would go"),
            "stop the ring first with GET_VRING_BASE",
        )
    }

    /// There is no memory where it should be.
    pub fn ring_outside_memory(ring: RingIndex, address: u64) -> Self {
        failure(
            "ring-outside-memory",
            Errno::FAULT,
            format!("{ring} was refused"),
            format!("at {address:#x} there is no memory for all of it"),
            "describe the memory first, with SET_MEM_TABLE or ADD_MEM_REG",
        )
    }

    /// Hardware begins at the beginning.
    pub fn ring_not_resumable(ring: RingIndex, base: Base) -> Self {
        failure(
            "ring-not-resumable",
            Errno::STALE,
            format!("{ring} cannot begin at {:#x}", base.0),
            "the device begins at 0, or goes on with what it was left with, which this is not: \
             a device's state cannot be brought from elsewhere, nor back after a reset",
            "reset the virtual machine's device, or the virtual machine",
        )
    }

    /// Hardware does not look by itself.
    pub fn ring_without_kick(ring: RingIndex) -> Self {
        failure(
            "ring-without-kick",
            Errno::OPNOTSUPP,
            format!("{ring} was refused"),
            "it shall be polled, and the device waits to be told",
            "hand over an eventfd with SET_VRING_KICK",
        )
    }

    /// It does not answer as it should.
    pub fn ring_not_taken(device: PciAddress, ring: RingIndex, what: &str) -> Self {
        failure(
            "ring-not-taken",
            Errno::IO,
            format!("device {device} did not take {ring}"),
            format!("its {what} is not what was written"),
            "reset the device; see whether its firmware is in order",
        )
    }

    /// The frontend left it to the server.
    pub fn ring_is_ours(ring: RingIndex) -> Self {
        failure(
            "ring-is-the-servers",
            Errno::PERM,
            format!("a message about {ring} was refused"),
            "it is the control ring, which the server drives for a frontend that acknowledges VIRTIO_NET_F_MQ and not \
             VIRTIO_NET_F_CTRL_VQ",
            "acknowledge both, or leave the ring alone",
        )
    }

    /// There is nowhere to put a control ring.
    pub fn control_memory(why: impl AsRef<str>) -> Self {
        failure(
            "control-memory-missing",
            Errno::NOSPC,
            "a network device cannot use several queue pairs",
            format!("there is no memory for its control ring: {}", why.as_ref()),
            "give the virtual machine's device one queue pair (QEMU: queues=1)",
        )
    }

    /// The device does not want to.
    pub fn control_refused(device: PciAddress, pairs: u16, answer: u8) -> Self {
        failure(
            "control-command-refused",
            Errno::IO,
            format!("device {device} cannot use {pairs} queue pairs"),
            format!("it answered the command with {answer:#04x}, and 0 is good"),
            "give the virtual machine's device one queue pair (QEMU: queues=1); see whether the device's firmware is in order",
        )
    }

    /// The device does not say.
    pub fn control_unanswered(device: PciAddress, pairs: u16) -> Self {
        failure(
            "control-command-unanswered",
            Errno::TIMEDOUT,
            format!("device {device} cannot use {pairs} queue pairs"),
            "it did not answer the command within 2 s",
            "reset the device; see whether its firmware is in order",
        )
    }

    /// The features changed in the middle.
    pub fn features_are_in_use() -> Self {
        failure(
            "features-in-use",
            Errno::BUSY,
            "a change of features was refused",
            "the device runs with others",
            "stop all rings first",
        )
    }

    /// The descriptor is something else.
    pub fn not_an_eventfd() -> Self {
        failure(
            "not-an-eventfd",
            Errno::INVAL,
            "the descriptor was refused",
            "it is not an eventfd",
            "hand an eventfd over",
        )
    }

    /// A kick or a shared interrupt cannot be passed on.
    pub fn relay(errno: Errno) -> Self {
        failure(
            "eventfd-not-watched",
            errno,
            "an eventfd could not be taken into use",
            std::io::Error::from(errno).to_string(),
            "raise the limit of open files, or see the kernel's log",
        )
    }
}
