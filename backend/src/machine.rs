// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: the VM's devices and address space. Every face turns its messages into calls of it, and none of them
//! knows the kernel.
//!
//! A call either answers at once or gives a [`Job`], whose completion [`Machine::finish`] turns into the answer. There is
//! one job at a time: what it works on is away meanwhile, and whoever would need it waits.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use protocol::extension::{
    Cookie, DEFAULT_RESET_DEADLINE, DeviceFlags, DeviceInfo, Epoch, Generation, IoasChoice, KernelFeatures,
    MAX_DEVICES, Name, ResetGroupPage, ResetMethod, ResetReport,
};
use vfio::{Device, HotResetInfo, Iommufd, Ownership, Sysfs, UnboundDevice};

use crate::address_space::AddressSpace;
use crate::device::{DataFace, HeldDevice, Quiescer};
use crate::failure::Failure;
use crate::memory_table::MemoryTable;
use crate::reset::group::ResetGroup;
use crate::reset::order::{ResetOrder, ResetResult};
use crate::reset::report;
use crate::worker::{Completion, Job, ReleasedSpace};

/// A connection of this process; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Who handed something over. It stays until the owner takes it back or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The command line; stays as long as the process.
    Process,
    /// A control connection.
    Connection(ConnectionId),
}

/// Who asks for a reset, which decides how far it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetOrigin {
    /// The control socket: every device of ours.
    Control,
    /// A guest, through its device's data face: no device that another face is using.
    DataFace,
}

/// A finished job, told to whoever asked for it.
#[derive(Debug)]
pub enum Answer {
    /// A device was added.
    DeviceAdded(DeviceInfo),
    /// Done, and nothing more to say.
    Done,
    /// A reset was done.
    Reset(ResetReport),
}

/// The address space's whereabouts.
#[derive(Debug)]
enum Slot {
    /// No iommufd yet.
    Empty,
    /// Here.
    Here(Owner, AddressSpace),
    /// With the job in flight.
    Away(Owner),
}

/// The devices of one VM and what they share.
#[derive(Debug)]
pub struct Machine {
    sysfs: Arc<Sysfs>,
    devices: BTreeMap<Cookie, HeldDevice>,
    address_space: Slot,
    /// Whose memory table is in force.
    memory_owner: Option<Owner>,
    generation: u64,
    epoch: u64,
    /// Devices that the job in flight works on.
    held: Vec<Cookie>,
}

impl Machine {
    /// A machine without devices.
    pub fn new(sysfs: Sysfs) -> Self {
        Self {
            sysfs: Arc::new(sysfs),
            devices: BTreeMap::new(),
            address_space: Slot::Empty,
            memory_owner: None,
            generation: 0,
            epoch: 0,
            held: Vec::new(),
        }
    }

    /// Takes the VM's iommufd and makes an address space in it.
    pub fn set_iommufd(
        &mut self,
        owner: Owner,
        iommufd: OwnedFd,
        ioas: IoasChoice,
    ) -> Result<KernelFeatures, Failure> {
        let Slot::Empty = self.address_space else { return Err(Failure::iommufd_already_set()) };
        let iommufd = Iommufd::from_fd(iommufd, &self.sysfs).map_err(|_| Failure::not_an_iommufd())?;
        let features =
            if iommufd.has_map_file() { KernelFeatures::MAP_FILE } else { KernelFeatures::default() };
        let address_space = AddressSpace::new(Arc::new(iommufd), ioas)?;
        self.address_space = Slot::Here(owner, address_space);
        Ok(features)
    }

    /// Binds a device and attaches it to the address space.
    pub fn add_device(&mut self, owner: Owner, cookie: Cookie, device: OwnedFd) -> Result<Job, Failure> {
        if self.devices.contains_key(&cookie) {
            return Err(Failure::cookie_in_use(cookie.0));
        }
        if self.devices.len() >= usize::from(MAX_DEVICES) {
            return Err(Failure::too_many_devices(MAX_DEVICES.into()));
        }
        let device = UnboundDevice::from_fd(device, &self.sysfs).map_err(|_| Failure::not_a_vfio_device())?;
        let address_space = self.take_address_space()?;
        Ok(Job::AddDevice { cookie, owner, device, address_space, sysfs: Arc::clone(&self.sysfs) })
    }

    /// Stops a device and releases it. Its data face must have been closed.
    pub fn remove_device(&mut self, owner: Owner, cookie: Cookie) -> Result<Job, Failure> {
        let device = self.device(cookie)?;
        if device.owner != owner {
            return Err(Failure::not_yours("the device's removal"));
        }
        let devices = vec![device.quiescer()];
        self.devices.remove(&cookie);
        Ok(Job::Release { devices, address_space: ReleasedSpace::Untouched })
    }

    /// Puts another memory table in force: the one that `change` makes of the present one.
    pub fn change_memory(
        &mut self,
        owner: Owner,
        change: impl FnOnce(MemoryTable) -> Result<MemoryTable, Failure>,
    ) -> Result<Job, Failure> {
        if self.memory_owner.is_some_and(|present| present != owner) {
            return Err(Failure::not_yours("the change of guest memory"));
        }
        let Slot::Here(_, address_space) = &self.address_space else {
            return Err(Failure::iommufd_missing());
        };
        if address_space.is_adopted() {
            return Err(Failure::memory_is_adopted());
        }
        let next = change(address_space.table().clone())?;
        self.memory_owner = Some(owner);
        Ok(Job::ChangeMemory { address_space: self.take_address_space()?, next })
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
        let devices =
            cookies.iter().filter_map(|cookie| self.devices.remove(cookie)).map(|device| device.quiescer());
        let devices: Vec<Quiescer> = devices.collect();
        if owns_memory {
            self.memory_owner = None;
        }
        let address_space = match (owns_space, owns_memory) {
            (true, _) => self.take_address_space().map_or(ReleasedSpace::Untouched, ReleasedSpace::Dissolved),
            (false, true) => {
                self.take_address_space().map_or(ReleasedSpace::Untouched, ReleasedSpace::Emptied)
            }
            (false, false) => ReleasedSpace::Untouched,
        };
        Some(Job::Release { devices, address_space })
    }

    /// The functions that a reset of the device would hit now; of the rows only those asked for.
    pub fn reset_group(
        &self,
        cookie: Cookie,
        first_row: u32,
        max_rows: u32,
    ) -> Result<ResetGroupPage, Failure> {
        let group = ResetGroup::of(&self.device(cookie)?.device).map_err(Failure::device_call)?;
        let functions = match &group {
            ResetGroup::None => [].as_slice(),
            ResetGroup::Functions(info) => &info.functions,
        };
        let first = usize::try_from(first_row).unwrap_or(usize::MAX);
        let count = usize::try_from(max_rows).unwrap_or(usize::MAX).min(protocol::extension::MAX_PAGE_ROWS);
        let wanted = functions.iter().skip(first).take(count);
        Ok(ResetGroupPage {
            generation: Generation(self.generation),
            reason: report::group_reason(&group),
            total_rows: u32::try_from(functions.len()).unwrap_or(u32::MAX),
            rows: wanted
                .map(|function| report::row(function, self.cookie_of(function.ownership), &self.sysfs))
                .collect(),
        })
    }

    /// Whether the device can be reset at all: alone, or with its slot or bus.
    pub fn has_reset(&self, cookie: Cookie) -> Result<bool, Failure> {
        let device = &self.device(cookie)?.device;
        Ok(device.info().has_function_reset
            || ResetGroup::of(device).map_err(Failure::device_call)? != ResetGroup::None)
    }

    /// Decides on a reset. Without a `method` it is the function's own if it has one, else its group's.
    pub fn reset(
        &mut self,
        cookie: Cookie,
        method: Option<ResetMethod>,
        deadline: Option<Duration>,
        origin: ResetOrigin,
    ) -> Result<Job, Failure> {
        let target = Arc::clone(&self.device(cookie)?.device);
        let has_function_reset = target.info().has_function_reset;
        let method = match method {
            Some(ResetMethod::Function) if !has_function_reset => {
                return Err(Failure::no_function_reset(target.address()));
            }
            Some(method) => method,
            None if has_function_reset => ResetMethod::Function,
            None => ResetMethod::Hot,
        };
        let affected = match method {
            ResetMethod::Function => vec![cookie],
            ResetMethod::Hot => self.hot_reset_members(&target, origin)?,
        };
        let quiescers =
            affected.iter().filter_map(|cookie| Some((*cookie, self.devices.get(cookie)?.quiescer())));
        let affected_devices = quiescers.collect();
        log::info!(
            "event=reset-begun device={} method={method:?} affected={}",
            target.address(),
            affected.len()
        );
        self.held = affected;
        let deadline = deadline.unwrap_or(DEFAULT_RESET_DEADLINE);
        Ok(Job::Reset(ResetOrder { target, method, affected: affected_devices, deadline }))
    }

    /// Our devices that a hot reset of `target` hits, if it may be done.
    fn hot_reset_members(&self, target: &Device, origin: ResetOrigin) -> Result<Vec<Cookie>, Failure> {
        let address = target.address();
        let info = match ResetGroup::of(target).map_err(Failure::device_call)? {
            ResetGroup::None => return Err(Failure::no_hot_reset(address)),
            ResetGroup::Functions(info) => info,
        };
        if !info.all_owned {
            return Err(self.blocked(target, &info));
        }
        let mut members = Vec::new();
        for function in &info.functions {
            let Ownership::Bound(_) = function.ownership else { continue };
            let cookie = self.cookie_of(function.ownership);
            let Some((cookie, device)) = cookie.and_then(|cookie| Some((cookie, self.devices.get(&cookie)?)))
            else {
                return Err(Failure::sibling_elsewhere(address, function.address));
            };
            let is_sibling = function.address != address;
            if origin == ResetOrigin::DataFace && is_sibling && device.face == DataFace::Connected {
                return Err(Failure::sibling_in_use(address, function.address));
            }
            members.push(cookie);
        }
        Ok(members)
    }

    /// Names every function that stands in the way, and what to do about the first.
    fn blocked(&self, target: &Device, info: &HotResetInfo) -> Failure {
        let blocking = info.functions.iter().filter(|function| function.ownership == Ownership::NotOwned);
        let rows: Vec<_> = blocking.map(|function| report::row(function, None, &self.sysfs)).collect();
        let names: Vec<_> = rows.iter().map(|row| row.address.to_string()).collect();
        let remedy = rows.first().map(report::remedy).unwrap_or_default();
        Failure::reset_blocked(target.address(), &names.join(", "), remedy)
    }

    /// A data face was set up for the device, or a client came or went. One that went leaves a quiet device.
    pub fn set_face(&mut self, cookie: Cookie, face: DataFace) {
        // A reset in flight stops the device itself, and must not be disturbed.
        let is_held = self.is_held(cookie);
        let Some(device) = self.devices.get_mut(&cookie) else { return };
        let client_left = device.face == DataFace::Connected && face != DataFace::Connected;
        device.face = face;
        if client_left && !is_held {
            if let Err(error) = device.quiescer().quiesce() {
                log::warn!(
                    "event=quiesce-failed device={} call={} errno={}",
                    device.device.address(),
                    error.call,
                    error.errno.raw_os_error()
                );
            }
            device.note_quiesced();
        }
    }

    /// Everything goes, whoever handed it over: the process ends.
    pub fn dissolve(&mut self) -> Job {
        let devices =
            std::mem::take(&mut self.devices).into_values().map(|device| device.quiescer()).collect();
        let address_space =
            self.take_address_space().map_or(ReleasedSpace::Untouched, ReleasedSpace::Dissolved);
        Job::Release { devices, address_space }
    }

    /// Takes a finished job back and says what came of it.
    pub fn finish(&mut self, completion: Completion) -> Result<Answer, Failure> {
        self.held.clear();
        match completion {
            Completion::DeviceAdded { cookie, owner, outcome, address_space } => {
                self.put_address_space(Some(address_space));
                let (device, function) = outcome?;
                log::info!("event=device-added device={} cookie={:#x}", device.address(), cookie.0);
                self.devices.insert(cookie, HeldDevice::new(Arc::new(device), owner, function));
                self.generation += 1;
                self.device_info(cookie).map(Answer::DeviceAdded)
            }
            Completion::Released(address_space) => {
                self.put_address_space(address_space);
                self.generation += 1;
                log::info!("event=released devices-left={}", self.devices.len());
                Ok(Answer::Done)
            }
            Completion::MemoryChanged { outcome, address_space } => {
                if address_space.table().regions().is_empty() {
                    self.memory_owner = None;
                }
                self.put_address_space(Some(address_space));
                outcome.map(|()| Answer::Done)
            }
            Completion::Reset(result) => self.finish_reset(result).map(Answer::Reset),
        }
    }

    fn finish_reset(&mut self, result: ResetResult) -> Result<ResetReport, Failure> {
        for cookie in &result.affected {
            if let Some(device) = self.devices.get_mut(cookie) {
                device.note_quiesced();
            }
        }
        self.generation += 1;
        let done = result.outcome?;
        self.epoch += 1;
        log::info!(
            "event=reset-done method={:?} outcome={:?} epoch={} attempts={} affected={} duration-us={}",
            done.method,
            done.outcome,
            self.epoch,
            done.attempts,
            result.affected.len(),
            done.duration.as_micros()
        );
        Ok(ResetReport {
            epoch: Epoch(self.epoch),
            duration: done.duration,
            method: done.method,
            outcome: done.outcome,
            attempts: done.attempts,
            affected: result.affected,
        })
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

    fn cookie_of(&self, ownership: Ownership) -> Option<Cookie> {
        let Ownership::Bound(id) = ownership else { return None };
        self.devices.iter().find(|(_, held)| held.device.id() == id).map(|(cookie, _)| *cookie)
    }

    fn take_address_space(&mut self) -> Result<AddressSpace, Failure> {
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
    fn put_address_space(&mut self, address_space: Option<AddressSpace>) {
        if let Slot::Away(owner) = self.address_space {
            self.address_space =
                address_space.map_or(Slot::Empty, |address_space| Slot::Here(owner, address_space));
        }
    }
}
