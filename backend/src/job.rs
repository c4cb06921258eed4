// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's jobs: binding, pinning memory, releasing, slow registers. One at a time.
//!
//! A job owns what it works on; the machine gets it back with the completion.

use std::sync::Arc;

use protocol::extension::Cookie;
use vfio::{Device, RegionIndex, Sysfs, UnboundDevice};

use crate::address_space::{AddressSpace, ViewChange, ViewOf};
use crate::control_memory::ControlPage;
use crate::device::{HeldDevice, Quiescer};
use crate::failure::Failure;
use crate::memory::MemoryView;
use crate::owner::Owner;
use crate::virtio::{Action, Drive, Relay};
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
        address_space: Box<AddressSpace>,
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
    /// Put another memory table in force.
    ChangeTable {
        /// Where.
        address_space: Box<AddressSpace>,
        /// The table.
        next: MemoryView,
        /// Who is attached.
        devices: Vec<Arc<Device>>,
    },
    /// Change what the client of a data face describes.
    ChangeView {
        /// Where.
        address_space: Box<AddressSpace>,
        /// Of which device.
        cookie: Cookie,
        /// How.
        changes: Vec<ViewChange>,
        /// Who is attached.
        devices: Vec<Arc<Device>>,
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
    /// Take a virtio function, to be driven for a frontend.
    TakeDrive {
        /// Its name.
        cookie: Cookie,
        /// The function.
        device: Arc<Device>,
        /// Who passes its kicks on.
        relay: Arc<Relay>,
    },
    /// Do to a virtio function what its frontend wants.
    Drive {
        /// Its name.
        cookie: Cookie,
        /// The function.
        drive: Box<Drive>,
        /// What.
        actions: Vec<Action>,
        /// What becomes of the memory of its control ring, or why there can be none.
        control: Result<ControlChange, Failure>,
    },
}

/// What becomes of the page of a device's control ring.
#[derive(Debug)]
pub enum ControlChange {
    /// Nothing.
    Unchanged,
    /// The device reaches it from now on.
    Map {
        /// The page.
        page: ControlPage,
        /// Where it is mapped.
        address_space: Box<AddressSpace>,
        /// Who is attached.
        devices: Vec<Arc<Device>>,
    },
    /// The device was reset, and reaches it no more.
    Unmap {
        /// Where it was mapped.
        address_space: Box<AddressSpace>,
        /// Who is attached.
        devices: Vec<Arc<Device>>,
    },
}

/// What becomes of an address space when devices are released.
#[derive(Debug)]
pub enum ReleasedSpace {
    /// It is not concerned.
    Untouched,
    /// Some descriptions of its memory are gone.
    Cleared {
        /// The address space.
        address_space: Box<AddressSpace>,
        /// Which.
        views: Vec<ViewOf>,
        /// Who stays attached.
        devices: Vec<Arc<Device>>,
    },
    /// It goes, with page tables and mappings.
    Dissolved(Box<AddressSpace>),
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
        address_space: Box<AddressSpace>,
    },
    /// Of [`Job::Release`]; the address space comes back unless it was dissolved or not concerned.
    Released(Option<Box<AddressSpace>>),
    /// Of [`Job::ChangeTable`].
    TableChanged {
        /// Whether the new table is in force; if not, the old one is, as far as it could be put back.
        outcome: Result<(), Failure>,
        /// Back from the job.
        address_space: Box<AddressSpace>,
    },
    /// Of [`Job::ChangeView`].
    ViewChanged {
        /// Of each of the changes.
        outcomes: Vec<Result<(), Failure>>,
        /// Back from the job.
        address_space: Box<AddressSpace>,
    },
    /// Of [`Job::WriteConfig`].
    ConfigWritten(Result<(), Failure>),
    /// Of [`Job::TakeDrive`].
    DriveTaken(Cookie, Result<Box<Drive>, Failure>),
    /// Of [`Job::Drive`].
    Driven {
        /// Its name.
        cookie: Cookie,
        /// The function; without its rings if that failed.
        drive: Box<Drive>,
        /// Whether it was done.
        outcome: Result<(), Failure>,
        /// Back from the job, if it was concerned.
        address_space: Option<Box<AddressSpace>>,
    },
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
            Self::ChangeTable { mut address_space, next, devices } => {
                let outcome = address_space.change_table(&next, &devices);
                Completion::TableChanged { outcome, address_space }
            }
            Self::ChangeView { mut address_space, cookie, changes, devices } => {
                let outcomes = address_space.change_view(ViewOf::Device(cookie), changes, &devices);
                Completion::ViewChanged { outcomes, address_space }
            }
            Self::WriteConfig { device, offset, data } => {
                let written = device.write_region(RegionIndex::CONFIG, offset, &data);
                Completion::ConfigWritten(written.map_err(Failure::device_call))
            }
            Self::TakeDrive { cookie, device, relay } => {
                Completion::DriveTaken(cookie, Drive::new(device, relay).map(Box::new))
            }
            Self::Drive { cookie, mut drive, actions, control } => {
                let (outcome, address_space) = match control {
                    Ok(change) => change_and_drive(cookie, &mut drive, actions, change),
                    Err(failure) => (Err(failure), None),
                };
                Completion::Driven { cookie, drive, outcome, address_space }
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

/// The page is there before the device has its ring, and goes after that.
fn change_and_drive(
    cookie: Cookie,
    drive: &mut Drive,
    actions: Vec<Action>,
    change: ControlChange,
) -> (Result<(), Failure>, Option<Box<AddressSpace>>) {
    match change {
        ControlChange::Unchanged => (drive.carry_out(actions), None),
        ControlChange::Map { page, mut address_space, devices } => {
            let mapped = address_space.map_control_ring(cookie, page.region(), &devices);
            let outcome = mapped.and_then(|address| {
                drive.set_control_page(Some((page, address)));
                drive.carry_out(actions)
            });
            (outcome, Some(address_space))
        }
        ControlChange::Unmap { mut address_space, devices } => {
            let outcome = drive.carry_out(actions);
            drive.set_control_page(None);
            address_space.clear(ViewOf::ControlRing(cookie), &devices);
            (outcome, Some(address_space))
        }
    }
}

fn release(address_space: ReleasedSpace) -> Option<Box<AddressSpace>> {
    match address_space {
        ReleasedSpace::Untouched | ReleasedSpace::Dissolved(_) => None,
        ReleasedSpace::Cleared { mut address_space, views, devices } => {
            for view in views {
                address_space.clear(view, &devices);
            }
            Some(address_space)
        }
    }
}
