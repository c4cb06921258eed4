// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: the VM's devices and address space. Every face turns its messages into calls of it, and none of them
//! knows the kernel.
//!
//! A call either answers at once or gives a [`Job`], whose completion [`Machine::finish`] turns into the answer. There is
//! one job at a time: what it works on is away meanwhile, and whoever would need it waits.
//!
//! Resets are the [engine's](crate::reset::engine): whatever it may want to know is told to it, and what it wants done
//! comes out as [`Effect`]s.

mod client;
mod course;
mod groups;
mod memory;
mod reset;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::extension::{
    Cookie, DeviceFlags, DeviceInfo, GroupReason, IoasChoice, KernelFeatures, MAX_DEVICES, Name, ResetReport,
};
use vfio::device::NotACdev;
use vfio::{Iommufd, PciAddress, Sysfs, UnboundDevice};

pub use self::client::Exposed;
pub use self::course::Effect;
use self::memory::views_of;
use crate::address_space::{AddressSpace, ViewOf};
use crate::control_memory::ControlMemory;
use crate::device::{DataFace, HeldDevice, Quiescer};
use crate::failure::Failure;
use crate::job::{Completion, Job, ReleasedSpace};
use crate::memory_lock::MemoryLimit;
use crate::owner::{ConnectionId, Owner};
use crate::policy::Policies;
use crate::reset::engine::{Engine, Event, RequestId, Settings};
use crate::reset::report;
use crate::virtio::Drive;

/// A finished job, told to whoever asked for it.
#[derive(Debug)]
pub enum Answer {
    /// A device was added.
    DeviceAdded(DeviceInfo),
    /// Done, and nothing more to say.
    Done,
    /// What came of each change of a client's memory.
    Memory(Vec<Result<(), Failure>>),
    /// A reset was done.
    Reset(ResetReport),
    /// A virtio function was taken to be driven.
    DriveTaken(Box<Drive>),
    /// What was done to a virtio function.
    Driven(Box<Drive>, Result<(), Failure>),
}

/// The address space's whereabouts.
#[derive(Debug)]
enum Slot {
    /// No iommufd yet.
    Empty,
    /// Here.
    Here(Owner, Box<AddressSpace>),
    /// With the job in flight.
    Away(Owner),
}

/// The devices of one VM and what they share.
#[derive(Debug)]
pub struct Machine {
    sysfs: Arc<Sysfs>,
    devices: BTreeMap<Cookie, HeldDevice>,
    address_space: Slot,
    control_memory: ControlMemory,
    /// Whether nothing more is handed over.
    has_fixed_devices: bool,
    memory_limit: MemoryLimit,
    /// Whose memory table is in force.
    memory_owner: Option<Owner>,
    policies: Policies,
    engine: Engine,
    effects: Vec<Effect>,
    /// Where the devices of the requests to the engine are.
    requests: BTreeMap<RequestId, PciAddress>,
    last_request: RequestId,
    generation: u64,
    /// What was last told of the groups.
    known_groups: BTreeMap<Cookie, GroupReason>,
    have_groups_changed: bool,
    /// Devices that the job in flight works on.
    held: Vec<Cookie>,
}

impl Machine {
    /// A machine without devices. What limits it is this process's from now on.
    pub fn new(sysfs: Sysfs, policies: Policies, control_memory: ControlMemory) -> Self {
        Self {
            sysfs: Arc::new(sysfs),
            devices: BTreeMap::new(),
            address_space: Slot::Empty,
            control_memory,
            has_fixed_devices: false,
            memory_limit: MemoryLimit::of_this_process(),
            memory_owner: None,
            policies,
            engine: Engine::new(Settings::default()),
            effects: Vec::new(),
            requests: BTreeMap::new(),
            last_request: RequestId(0),
            generation: 0,
            known_groups: BTreeMap::new(),
            have_groups_changed: false,
            held: Vec::new(),
        }
    }

    /// From now on nothing more is handed over.
    pub const fn fix_devices(&mut self) {
        self.has_fixed_devices = true;
    }

    /// Takes the VM's iommufd and makes an address space in it.
    pub fn set_iommufd(
        &mut self,
        owner: Owner,
        iommufd: OwnedFd,
        ioas: IoasChoice,
    ) -> Result<KernelFeatures, Failure> {
        if self.has_fixed_devices {
            return Err(Failure::devices_fixed("the iommufd"));
        }
        let Slot::Empty = self.address_space else { return Err(Failure::iommufd_already_set()) };
        let iommufd = Iommufd::from_fd(iommufd, &self.sysfs).map_err(|_| Failure::not_an_iommufd())?;
        let accounting = iommufd.memory_accounting().map_err(Failure::no_address_space)?;
        log::info!("event=iommufd-set map-file={} memory-accounting={accounting:?}", iommufd.has_map_file());
        let features =
            if iommufd.has_map_file() { KernelFeatures::MAP_FILE } else { KernelFeatures::default() };
        let address_space = AddressSpace::new(Arc::new(iommufd), ioas, self.memory_limit)?;
        self.address_space = Slot::Here(owner, Box::new(address_space));
        Ok(features)
    }

    /// Binds a device and attaches it to the address space.
    pub fn add_device(&mut self, owner: Owner, cookie: Cookie, device: OwnedFd) -> Result<Job, Failure> {
        if self.has_fixed_devices {
            return Err(Failure::devices_fixed("the device"));
        }
        if self.devices.contains_key(&cookie) {
            return Err(Failure::cookie_in_use(cookie.0));
        }
        if self.devices.len() >= usize::from(MAX_DEVICES) {
            return Err(Failure::too_many_devices(MAX_DEVICES.into()));
        }
        let device = UnboundDevice::from_fd(device, &self.sysfs).map_err(|error| match error {
            NotACdev::UnknownNumber => Failure::sysfs_off(),
            NotACdev::Fstat(_) | NotACdev::OtherFile => Failure::not_a_vfio_device(),
        })?;
        let address_space = self.take_address_space()?;
        Ok(Job::AddDevice { cookie, owner, device, address_space, sysfs: Arc::clone(&self.sysfs) })
    }

    /// Stops a device and releases it. It must not be in a reset.
    pub fn remove_device(&mut self, owner: Owner, cookie: Cookie) -> Result<Job, Failure> {
        let device = self.device(cookie)?;
        if device.owner != owner {
            return Err(Failure::not_yours("the device's removal"));
        }
        let devices = self.forget([cookie]);
        Ok(Job::Release { devices, address_space: self.clear(views_of(cookie)) })
    }

    /// The devices leave the machine, with what it takes to stop them.
    fn forget(&mut self, cookies: impl IntoIterator<Item = Cookie>) -> Vec<Quiescer> {
        let mut devices = Vec::new();
        for cookie in cookies {
            devices.extend(self.devices.remove(&cookie).map(|device| device.quiescer()));
            self.known_groups.remove(&cookie);
            self.control_memory.give_back(cookie);
            self.drive(Event::DeviceRemoved(cookie));
        }
        devices
    }

    /// Everything that `connection` handed over goes with it. `None` where that is nothing.
    pub fn withdraw(&mut self, connection: ConnectionId) -> Option<Job> {
        let owner = Owner::Connection(connection);
        let owns_space = matches!(&self.address_space, Slot::Here(present, _) if *present == owner);
        let owns_memory = self.memory_owner == Some(owner);
        // Nobody's device can stay when the context it is bound to goes.
        let leaving = |device: &HeldDevice| owns_space || device.owner == owner;
        let cookies: Vec<_> =
            self.devices.iter().filter(|(_, device)| leaving(device)).map(|(cookie, _)| *cookie).collect();
        if cookies.is_empty() && !owns_space && !owns_memory {
            return None;
        }
        let mut views: Vec<_> = cookies.iter().copied().flat_map(views_of).collect();
        let devices = self.forget(cookies);
        // With the address space goes the memory in it, whoever described that.
        if owns_space || owns_memory {
            self.memory_owner = None;
            views.push(ViewOf::Table);
        }
        let address_space = if owns_space {
            self.take_address_space().map_or(ReleasedSpace::Untouched, ReleasedSpace::Dissolved)
        } else {
            self.clear(views)
        };
        Some(Job::Release { devices, address_space })
    }

    /// Writes to a register that takes time; nobody else accesses the device meanwhile.
    pub fn write_slow_register(
        &mut self,
        cookie: Cookie,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Job, Failure> {
        let device = Arc::clone(&self.device(cookie)?.device);
        self.held = vec![cookie];
        Ok(Job::WriteConfig { device, offset, data })
    }

    /// Everything goes, whoever handed it over: the process ends.
    pub fn dissolve(&mut self) -> Job {
        let cookies: Vec<_> = self.cookies().collect();
        let devices = self.forget(cookies);
        let address_space =
            self.take_address_space().map_or(ReleasedSpace::Untouched, ReleasedSpace::Dissolved);
        Job::Release { devices, address_space }
    }

    /// Takes a finished job back and says what came of it.
    pub fn finish(&mut self, completion: Completion) -> Result<Answer, Failure> {
        if let Completion::Driven { cookie, drive, .. } = &completion {
            // Before it is quieted, if its client has gone meanwhile.
            self.note_driven(*cookie, drive.is_active());
        }
        self.release_held();
        match completion {
            Completion::DeviceAdded { cookie, outcome, address_space } => {
                self.put_address_space(Some(address_space));
                let device = outcome?;
                log::info!("event=device-added device={} cookie={:#x}", device.function.address, cookie.0);
                let address = report::wire_address(device.function.address);
                let function_reset = device.function_reset;
                self.devices.insert(cookie, device);
                self.note_change();
                self.drive(Event::DeviceAdded { device: cookie, address, function_reset });
                self.device_info(cookie).map(Answer::DeviceAdded)
            }
            Completion::Released(address_space) => {
                self.put_address_space(address_space);
                self.note_change();
                log::info!("event=released devices-left={}", self.devices.len());
                Ok(Answer::Done)
            }
            Completion::TableChanged { outcome, address_space } => {
                if !address_space.has_view(ViewOf::Table) {
                    self.memory_owner = None;
                }
                self.put_address_space(Some(address_space));
                outcome.map(|()| Answer::Done)
            }
            Completion::ViewChanged { outcomes, address_space } => {
                self.put_address_space(Some(address_space));
                Ok(Answer::Memory(outcomes))
            }
            Completion::ConfigWritten(outcome) => outcome.map(|()| Answer::Done),
            Completion::DriveTaken(_, outcome) => outcome.map(Answer::DriveTaken),
            Completion::Driven { drive, outcome, address_space, .. } => {
                self.put_address_space(address_space);
                Ok(Answer::Driven(drive, outcome))
            }
        }
    }

    /// What there is to know about a device.
    pub fn device_info(&self, cookie: Cookie) -> Result<DeviceInfo, Failure> {
        let HeldDevice { device, function, face, .. } = self.device(cookie)?;
        let info = device.info();
        let (vfio_device, driver) = report::driver_names(Some(function));
        let reset =
            if info.has_function_reset { DeviceFlags::FUNCTION_RESET } else { DeviceFlags::default() };
        let served = if *face == DataFace::None { DeviceFlags::default() } else { DeviceFlags::SERVED };
        Ok(DeviceInfo {
            cookie,
            address: report::wire_address(function.address),
            vendor: function.vendor,
            device: function.device,
            class: function.class,
            iommu_group: report::wire_group(function.iommu_group),
            flags: reset | served,
            regions: info.regions,
            irqs: info.irqs,
            reserved: 0,
            vfio_device: Name::new(vfio_device),
            driver: Name::new(driver),
        })
    }

    /// A device by its name.
    pub fn device(&self, cookie: Cookie) -> Result<&HeldDevice, Failure> {
        self.devices.get(&cookie).ok_or_else(|| Failure::unknown_device(cookie.0))
    }

    /// A device by its name that has no data face.
    pub fn unserved(&self, cookie: Cookie) -> Result<&HeldDevice, Failure> {
        let device = self.device(cookie)?;
        match device.face {
            DataFace::None => Ok(device),
            _ => Err(Failure::already_served(device.function.address)),
        }
    }

    /// A device by its name, to be changed.
    pub fn device_mut(&mut self, cookie: Cookie) -> Result<&mut HeldDevice, Failure> {
        self.devices.get_mut(&cookie).ok_or_else(|| Failure::unknown_device(cookie.0))
    }

    /// The names of all devices, in ascending order.
    pub fn cookies(&self) -> impl Iterator<Item = Cookie> {
        self.devices.keys().copied()
    }

    /// Whether the job in flight works on this device, so that it must be left alone.
    pub fn is_held(&self, cookie: Cookie) -> bool {
        self.held.contains(&cookie)
    }

    /// The devices that are being reset and would leave with this connection.
    pub fn in_reset_of(&self, connection: ConnectionId) -> Vec<Cookie> {
        let owner = Owner::Connection(connection);
        let owns_space =
            matches!(&self.address_space, Slot::Here(present, _) | Slot::Away(present) if *present == owner);
        let is_theirs = |cookie: &Cookie| {
            owns_space || self.devices.get(cookie).is_some_and(|device| device.owner == owner)
        };
        self.cookies().filter(|cookie| is_theirs(cookie) && self.is_in_reset(*cookie)).collect()
    }

    /// What was told of reset groups may not hold any more.
    fn note_change(&mut self) {
        self.generation += 1;
        self.have_groups_changed = true;
    }

    fn take_address_space(&mut self) -> Result<Box<AddressSpace>, Failure> {
        match std::mem::replace(&mut self.address_space, Slot::Empty) {
            Slot::Here(owner, address_space) => {
                self.address_space = Slot::Away(owner);
                Ok(address_space)
            }
            slot => {
                self.address_space = slot;
                Err(Failure::iommufd_missing())
            }
        }
    }

    /// The address space comes back from a job, or was dissolved by it.
    fn put_address_space(&mut self, address_space: Option<Box<AddressSpace>>) {
        if let Slot::Away(owner) = self.address_space {
            self.address_space =
                address_space.map_or(Slot::Empty, |address_space| Slot::Here(owner, address_space));
        }
    }
}
