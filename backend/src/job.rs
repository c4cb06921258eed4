// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's jobs: binding, pinning memory, releasing, slow registers. One at a time.
//!
//! A job owns what it works on; the machine gets it back with the completion.

use std::sync::Arc;

use protocol::extension::Cookie;
use vfio::{Device, RegionIndex, Sysfs, UnboundDevice};

use crate::address_space::AddressSpace;
use crate::device::{HeldDevice, Quiescer};
use crate::failure::Failure;
use crate::memory_table::MemoryTable;
use crate::owner::Owner;
use crate::worker::Work;

/// What the machine has to have done and may block, but for resets.
#[derive(Debug)]
pub enum Job {
    /// Bind a device and attach it; maps the memory if it is the first one.
    AddDevice {
        /// The frontend's name for it.
        cookie: Cookie,
        /// Who hands it over.
        owner: Owner,
        /// What was handed over.
        device: UnboundDevice,
        /// Where it is attached.
        address_space: AddressSpace,
        /// For the reasons of a refused bind.
        sysfs: Arc<Sysfs>,
    },
    /// Stop devices and release them.
    Release {
        /// Which.
        devices: Vec<Quiescer>,
        /// What becomes of the memory that they saw.
        address_space: ReleasedSpace,
    },
    /// Map and unmap guest memory.
    ChangeMemory {
        /// Where.
        address_space: AddressSpace,
        /// What shall be mapped in the end.
        next: MemoryTable,
    },
    /// Write registers of the config space that the kernel takes its time over.
    WriteConfig {
        /// Whose.
        device: Arc<Device>,
        /// From where on.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
}

/// What becomes of an address space when devices are released.
#[derive(Debug)]
pub enum ReleasedSpace {
    /// It is not concerned.
    Untouched,
    /// Its memory is unmapped.
    Emptied(AddressSpace),
    /// It goes, with page tables and mappings.
    Dissolved(AddressSpace),
}

/// What came of a job.
#[derive(Debug)]
pub enum Completion {
    /// Of [`Job::AddDevice`].
    DeviceAdded {
        /// The frontend's name for it.
        cookie: Cookie,
        /// The device, or why there is none.
        outcome: Result<HeldDevice, Failure>,
        /// Back from the job.
        address_space: AddressSpace,
    },
    /// Of [`Job::Release`]; the address space comes back unless it was dissolved or not concerned.
    Released(Option<AddressSpace>),
    /// Of [`Job::ChangeMemory`].
    MemoryChanged {
        /// Whether the new table is in force; if not, the old one is, as far as it could be put back.
        outcome: Result<(), Failure>,
        /// Back from the job.
        address_space: AddressSpace,
    },
    /// Of [`Job::WriteConfig`].
    ConfigWritten(Result<(), Failure>),
}

impl Work for Job {
    type Outcome = Completion;

    fn carry_out(self) -> Completion {
        match self {
            Self::AddDevice { cookie, owner, device, mut address_space, sysfs } => {
                let outcome = add_device(owner, device, &mut address_space, &sysfs);
                Completion::DeviceAdded { cookie, outcome, address_space }
            }
            Self::Release { devices, address_space } => {
                devices.iter().for_each(Quiescer::retire);
                drop(devices);
                Completion::Released(release(address_space))
            }
            Self::ChangeMemory { mut address_space, next } => {
                let outcome = address_space.change(next);
                Completion::MemoryChanged { outcome, address_space }
            }
            Self::WriteConfig { device, offset, data } => {
                let written = device.write_region(RegionIndex::CONFIG, offset, &data);
                Completion::ConfigWritten(written.map_err(Failure::device_call))
            }
        }
    }
}

fn add_device(
    owner: Owner,
    device: UnboundDevice,
    address_space: &mut AddressSpace,
    sysfs: &Sysfs,
) -> Result<HeldDevice, Failure> {
    let function = sysfs.function(device.address()).map_err(|_| Failure::not_a_vfio_device())?;
    let device = device.bind(address_space.iommufd(), sysfs).map_err(Failure::bind)?;
    address_space.attach(&device)?;
    HeldDevice::new(device, owner, function).map_err(Failure::device_call)
}

fn release(address_space: ReleasedSpace) -> Option<AddressSpace> {
    match address_space {
        ReleasedSpace::Untouched | ReleasedSpace::Dissolved(_) => None,
        ReleasedSpace::Emptied(mut address_space) => {
            address_space.clear();
            Some(address_space)
        }
    }
}
