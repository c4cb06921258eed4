// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio function's registers (Virtio 1.3, 4.1.4), each accessed with the width that it has.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vfio::config_space::command;
use vfio::{CallError, ConfigSpace, Device, Iova, PciAddress, RegionIndex};

use super::capability::{Structure, Structures};
use super::device_status::DeviceStatus;
use super::doorbell::{Doorbell, page_size};
use super::features;
use super::queue_pairs::QueuePairs;
use super::rings::{MAX_RINGS, Placement, RingAreas, RingIndex};
use crate::failure::Failure;

/// Fields of the common configuration.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    /// With [`features::RING_RESET`](super::features::RING_RESET) only, as is what it needs of the structure's length.
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}

/// No vector, and what a device answers that has none left.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// The id of a network device's function (Virtio 1.3, 4.1.2.1).
const NETWORK_DEVICE: u16 = 0x1041;
/// A device in hardware may take its time to reset.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// A virtio function whose structures are known.
pub struct VirtioFunction {
    device: Arc<Device>,
    structures: Structures,
    features: u64,
    largest_sizes: Vec<u16>,
    queue_pairs: Option<QueuePairs>,
}

impl fmt::Debug for VirtioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioFunction").field("device", &self.device).finish_non_exhaustive()
    }
}

impl VirtioFunction {
    /// Finds the structures of a function, resets it and learns what it offers. It can be accessed from then on, and does
    /// nothing. May take [some time](Self::reset).
    pub fn open(device: Arc<Device>) -> Result<Self, Failure> {
        let structures = Structures::of(&device)?;
        let mut function =
            Self { device, structures, features: 0, largest_sizes: Vec::new(), queue_pairs: None };
        function.reset()?;
        function.features = function.read_features()?;
        if function.features & features::VERSION_1 == 0 {
            return Err(Failure::not_modern_virtio(function.address(), "it does not offer VERSION_1"));
        }
        let most_pairs = function.most_queue_pairs()?;
        if most_pairs > 1 {
            // QEMU's devices have the rings of the other pairs from when on a driver has agreed to them.
            function.negotiate(features::NET_QUEUE_PAIRS | features::NET_CONTROL_RING)?;
        }
        let count = function.half(common::QUEUES)?.min(MAX_RINGS);
        let sizes = (0..count).map(|ring| function.select(RingIndex(ring))?.half(common::QUEUE_SIZE));
        function.largest_sizes = sizes.collect::<Result<_, _>>()?;
        function.queue_pairs = QueuePairs::new(function.features, most_pairs, count);
        if most_pairs > 1 {
            function.reset()?;
        }
        Ok(function)
    }

    /// How many queue pairs a network device has, of which it may use one only; 0 if it does not say.
    fn most_queue_pairs(&self) -> Result<u16, Failure> {
        const MOST_QUEUE_PAIRS: u64 = 8;
        let (_, id) = ConfigSpace::new(&self.device).identity().map_err(Failure::device_call)?;
        let mut most = [0; 2];
        if id == NETWORK_DEVICE && self.features & features::NET_QUEUE_PAIRS != 0 {
            self.read_config(MOST_QUEUE_PAIRS, &mut most)?;
        }
        Ok(u16::from_le_bytes(most))
    }

    /// The device.
    pub const fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Where its registers are.
    pub(super) const fn structures(&self) -> &Structures {
        &self.structures
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.device.address()
    }

    /// What the device offers.
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// The most entries that each ring can have; 0 for one that there is not.
    pub fn largest_sizes(&self) -> &[u16] {
        &self.largest_sizes
    }

    /// The most entries of one ring.
    pub fn largest_size(&self, ring: RingIndex) -> u16 {
        self.largest_sizes.get(usize::from(ring.0)).copied().unwrap_or_default()
    }

    /// The queue pairs of a network device that has several, and can be told how many to use.
    pub const fn queue_pairs(&self) -> Option<QueuePairs> {
        self.queue_pairs
    }

    /// Makes the device forget everything, and waits for up to 2 s until it has. Without bus mastering it does nothing more.
    pub fn reset(&self) -> Result<(), Failure> {
        let config_space = ConfigSpace::new(&self.device);
        config_space.enable_command(command::MEMORY).map_err(Failure::device_call)?;
        self.set_status(DeviceStatus::default())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            if status == DeviceStatus::default() {
                return config_space.disable_bus_mastering().map_err(Failure::device_call);
            }
            if Instant::now() >= deadline {
                return Err(Failure::virtio_handshake(self.address(), "reset", status.0));
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Agrees on features with a device that was reset: what the guest wants, and what the way to its memory demands.
    pub fn negotiate(&self, guest: u64) -> Result<(), Failure> {
        let features = features::for_device(self.features, guest);
        let known = DeviceStatus::ACKNOWLEDGE.with(DeviceStatus::DRIVER);
        self.set_status(DeviceStatus::ACKNOWLEDGE)?;
        self.set_status(known)?;
        let [low, high] = [features & u64::from(u32::MAX), features >> 32];
        for (half, bits) in [(0_u32, low), (1, high)] {
            self.write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes())?;
            let [b0, b1, b2, b3, ..] = bits.to_le_bytes();
            self.write(common::DRIVER_FEATURE, &[b0, b1, b2, b3])?;
        }
        self.set_status(known.with(DeviceStatus::FEATURES_OK))?;
        let status = self.status()?;
        if status.has(DeviceStatus::FEATURES_OK) {
            Ok(())
        } else {
            let step = format!("agree to features {features:#x}");
            Err(Failure::virtio_handshake(self.address(), &step, status.0))
        }
    }

    /// Gives the device a ring, which tells of progress by `vector`.
    pub fn set_up(&self, ring: RingIndex, placement: &Placement, vector: u16) -> Result<(), Failure> {
        let not_taken = |what| Failure::ring_not_taken(self.address(), ring, what);
        self.select(ring)?;
        self.write(common::QUEUE_SIZE, &placement.size.to_le_bytes())?;
        self.assign(common::QUEUE_VECTOR, vector)?;
        let RingAreas { descriptors, driver, device } = placement.areas;
        self.write_address(common::QUEUE_DESCRIPTORS, descriptors)?;
        self.write_address(common::QUEUE_DRIVER, driver)?;
        self.write_address(common::QUEUE_DEVICE, device)?;
        self.write(common::QUEUE_ENABLE, &1_u16.to_le_bytes())?;
        match self.holds(ring, placement)? {
            None => Ok(()),
            Some(what) => Err(not_taken(what)),
        }
    }

    /// What of a ring is not as it was given to the device, if anything is not.
    pub fn holds(&self, ring: RingIndex, placement: &Placement) -> Result<Option<&'static str>, Failure> {
        self.select(ring)?;
        if self.half(common::QUEUE_SIZE)? != placement.size {
            return Ok(Some("size"));
        }
        let RingAreas { descriptors, driver, device } = placement.areas;
        for (register, address) in [
            (common::QUEUE_DESCRIPTORS, descriptors),
            (common::QUEUE_DRIVER, driver),
            (common::QUEUE_DEVICE, device),
        ] {
            if self.read_address(register)? != address {
                return Ok(Some("address"));
            }
        }
        Ok((self.half(common::QUEUE_ENABLE)? != 1).then_some("enabled state"))
    }

    /// Resets one ring, of a device that has agreed to [`features::RING_RESET`].
    pub fn reset_ring(&self, ring: RingIndex) -> Result<(), Failure> {
        self.select(ring)?.write(common::QUEUE_RESET, &1_u16.to_le_bytes())?;
        let deadline = Instant::now() + PATIENCE;
        while self.half(common::QUEUE_RESET)? != 0 || self.half(common::QUEUE_ENABLE)? != 0 {
            if Instant::now() >= deadline {
                return Err(Failure::ring_not_taken(self.address(), ring, "reset"));
            }
            thread::park_timeout(PAUSE);
        }
        Ok(())
    }

    /// Has changes of the configuration told by `vector`; by none without.
    pub fn set_config_vector(&self, vector: Option<u16>) -> Result<(), Failure> {
        match vector {
            Some(vector) => self.assign(common::CONFIG_VECTOR, vector),
            None => self.write(common::CONFIG_VECTOR, &NO_VECTOR.to_le_bytes()),
        }
    }

    /// Lets the device access memory and send messages.
    pub fn enable_bus_mastering(&self) -> Result<(), Failure> {
        let bits = command::MEMORY | command::BUS_MASTER;
        ConfigSpace::new(&self.device).enable_command(bits).map_err(Failure::device_call)
    }

    /// The opposite: it keeps its rings, and reaches nothing.
    pub fn disable_bus_mastering(&self) -> Result<(), Failure> {
        ConfigSpace::new(&self.device).disable_bus_mastering().map_err(Failure::device_call)
    }

    /// Lets the device begin, or go on. (QEMU's devices take the status away with bus mastering.)
    pub fn start(&self) -> Result<(), Failure> {
        let status = self.status()?;
        self.check(status)?;
        if !status.has(DeviceStatus::DRIVER_OK) {
            self.set_status(status.with(DeviceStatus::DRIVER_OK))?;
        }
        let status = self.status()?;
        self.check(status)?;
        if status.has(DeviceStatus::DRIVER_OK) {
            Ok(())
        } else {
            Err(Failure::virtio_handshake(self.address(), "begin", status.0))
        }
    }

    /// Whether the device is one that was started and can go on.
    fn check(&self, status: DeviceStatus) -> Result<(), Failure> {
        if status.has(DeviceStatus::NEEDS_RESET) {
            Err(Failure::virtio_needs_reset(self.address()))
        } else if status.has(DeviceStatus::FEATURES_OK) {
            Ok(())
        } else {
            Err(Failure::virtio_was_reset(self.address()))
        }
    }

    /// Where a ring's doorbell is.
    pub fn doorbell(&self, ring: RingIndex) -> Result<Doorbell, Failure> {
        let offset = self.select(ring)?.half(common::QUEUE_NOTIFY_OFFSET)?;
        let offset = u64::from(offset) * u64::from(self.structures.notify_multiplier);
        let notify = self.structures.notify;
        if notify.place(offset, 2).is_none() {
            return Err(Failure::ring_not_taken(self.address(), ring, "doorbell"));
        }
        Ok(Doorbell::new(Arc::clone(&self.device), notify, offset, ring))
    }

    /// Where all doorbells are, if each has a page of its own and begins it, as who maps it expects.
    pub fn mappable_doorbells(&self) -> Option<(RegionIndex, Range<u64>)> {
        let Structure { region, offset, length } = self.structures.notify;
        let spacing = u64::from(self.structures.notify_multiplier);
        let is_paged =
            spacing != 0 && [spacing, offset].iter().all(|place| place.is_multiple_of(page_size()));
        is_paged.then(|| (region, offset..offset + u64::from(length)))
    }

    /// The device's status.
    pub fn status(&self) -> Result<DeviceStatus, Failure> {
        let mut status = [0];
        self.read(common::STATUS, &mut status)?;
        let [status] = status;
        Ok(DeviceStatus(status))
    }

    fn set_status(&self, status: DeviceStatus) -> Result<(), Failure> {
        self.write(common::STATUS, &[status.0])
    }

    /// Takes what the interrupt line was asserted for: bit 0 a ring, bit 1 the configuration.
    pub fn take_isr(&self) -> Result<u8, Failure> {
        let mut isr = [0];
        read(&self.device, &self.structures.isr, 0, &mut isr).map_err(Failure::device_call)?;
        let [isr] = isr;
        Ok(isr)
    }

    /// Changes with the device's configuration.
    pub(super) fn config_generation(&self) -> Result<u8, Failure> {
        let mut generation = [0];
        self.read(common::CONFIG_GENERATION, &mut generation)?;
        let [generation] = generation;
        Ok(generation)
    }

    fn read_features(&self) -> Result<u64, Failure> {
        let mut features = 0;
        for half in [1_u32, 0] {
            self.write(common::DEVICE_FEATURE_SELECT, &half.to_le_bytes())?;
            let mut bits = [0; 4];
            self.read(common::DEVICE_FEATURE, &mut bits)?;
            features = features << 32 | u64::from(u32::from_le_bytes(bits));
        }
        Ok(features)
    }

    fn select(&self, ring: RingIndex) -> Result<&Self, Failure> {
        self.write(common::QUEUE_SELECT, &ring.0.to_le_bytes())?;
        Ok(self)
    }

    /// Assigns a vector, of which the device may have run out.
    fn assign(&self, register: u64, vector: u16) -> Result<(), Failure> {
        self.write(register, &vector.to_le_bytes())?;
        if self.half(register)? == vector {
            Ok(())
        } else {
            Err(Failure::no_interrupt_vector(self.address()))
        }
    }

    /// 64 bits in two halves, as is always allowed.
    fn write_address(&self, register: u64, address: Iova) -> Result<(), Failure> {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = address.0.to_le_bytes();
        self.write(register, &[b0, b1, b2, b3])?;
        self.write(register + 4, &[b4, b5, b6, b7])
    }

    fn read_address(&self, register: u64) -> Result<Iova, Failure> {
        let (mut low, mut high) = ([0; 4], [0; 4]);
        self.read(register, &mut low)?;
        self.read(register + 4, &mut high)?;
        Ok(Iova(u64::from(u32::from_le_bytes(low)) | u64::from(u32::from_le_bytes(high)) << 32))
    }

    fn half(&self, register: u64) -> Result<u16, Failure> {
        let mut data = [0; 2];
        self.read(register, &mut data)?;
        Ok(u16::from_le_bytes(data))
    }

    fn read(&self, register: u64, data: &mut [u8]) -> Result<(), Failure> {
        read(&self.device, &self.structures.common, register, data).map_err(Failure::device_call)
    }

    fn write(&self, register: u64, data: &[u8]) -> Result<(), Failure> {
        write(&self.device, &self.structures.common, register, data).map_err(Failure::device_call)
    }
}

/// An offset beyond the structure is one that its region does not have.
pub(super) fn position(structure: &Structure, offset: u64, length: usize) -> u64 {
    u64::try_from(length).ok().and_then(|count| structure.place(offset, count)).unwrap_or(u64::MAX)
}

pub(super) fn read(
    device: &Device,
    structure: &Structure,
    offset: u64,
    data: &mut [u8],
) -> Result<(), CallError> {
    device.read_region(structure.region, position(structure, offset, data.len()), data)
}

pub(super) fn write(
    device: &Device,
    structure: &Structure,
    offset: u64,
    data: &[u8],
) -> Result<(), CallError> {
    device.write_region(structure.region, position(structure, offset, data.len()), data)
}
