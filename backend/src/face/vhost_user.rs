// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user face: the rings of one virtio device, as a VMM's vhost-user frontend has the hardware run them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use protocol::extension::Cookie;
use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{
    BackedRegion, ConfigAccess, DeviceReply, DeviceRequest, MemoryRegion, VringRequest,
};
use vfio::Iova;

use crate::failure::Failure;
use crate::memory::view::MAX_REGIONS;
use crate::memory::{FrontendTable, GuestAddress, GuestRange, TableChange};
use crate::virtio::features::PROTOCOL_FEATURES;
use crate::virtio::{Action, Base, Course, DeviceStatus, DoorbellPage, Drive, Eventfd, RingAreas, RingIndex};

/// What a request leads to.
#[derive(Debug)]
pub enum Step {
    /// The answer.
    Reply(DeviceReply),
    /// Something to be done to the device, which is lent for it, and the answer if it is done well.
    Drive(Box<Drive>, Vec<Action>, DeviceReply),
    /// A change of the frontend's memory.
    Memory(Vec<TableChange>),
    /// The socket for requests to the frontend.
    Channel(OwnedFd),
}

/// One frontend of a device.
#[derive(Debug)]
pub struct VhostUserSession {
    cookie: Cookie,
    /// Whether the device has been made ready for this client. Until then it is told nothing about it.
    pub is_admitted: bool,
    agreed: ProtocolFeatures,
    memory: FrontendTable,
    /// From when on the device was taken.
    course: Option<Course>,
    /// The device, unless a job has it.
    drive: Option<Box<Drive>>,
    /// What the frontend is told of errors with, ring by ring.
    errors: BTreeMap<u8, Eventfd>,
    /// Whether the guest may ring doorbells by itself.
    may_map_doorbells: bool,
    /// The rings whose doorbells the frontend has.
    doorbells: BTreeSet<u8>,
}

impl VhostUserSession {
    /// What it takes to give a frontend a doorbell.
    const DOORBELLS: ProtocolFeatures =
        ProtocolFeatures(ProtocolFeatures::HOST_NOTIFIER.0 | ProtocolFeatures::BACKEND_SEND_FD.0);

    /// A frontend that has just connected.
    pub fn new(cookie: Cookie) -> Self {
        Self {
            cookie,
            is_admitted: false,
            agreed: ProtocolFeatures::default(),
            memory: FrontendTable::default(),
            course: None,
            drive: None,
            errors: BTreeMap::new(),
            may_map_doorbells: false,
            doorbells: BTreeSet::new(),
        }
    }

    /// The device that is served.
    pub const fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// What was agreed on.
    pub const fn agreed(&self) -> ProtocolFeatures {
        self.agreed
    }

    /// Whether the device was taken, so that there is somebody to ask.
    pub const fn is_open(&self) -> bool {
        self.course.is_some()
    }

    /// The device was taken.
    pub fn open(&mut self, drive: Box<Drive>, may_map_doorbells: bool) {
        self.may_map_doorbells = may_map_doorbells;
        let function = drive.function();
        let sizes = function.largest_sizes().to_vec();
        self.course = Some(Course::new(function.features(), sizes, function.queue_pairs()));
        self.drive = Some(drive);
    }

    /// The device comes back from a job.
    ///
    /// # Errors
    ///
    /// The job failed: the rings are lost.
    pub fn take_back(&mut self, mut drive: Box<Drive>, outcome: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(failure) = &outcome {
            self.lose(failure.clone());
        }
        if drive.is_active() && !self.course.as_ref().is_some_and(Course::is_running) {
            // A reset came in between.
            drive.forget();
        }
        self.drive = Some(drive);
        outcome
    }

    /// The device has lost its rings. The frontend is told, where it wants to hear of it.
    pub fn lose(&mut self, failure: Failure) {
        let Some(course) = &mut self.course else { return };
        if course.is_running() {
            self.errors.values().for_each(Eventfd::signal);
        }
        course.lose(failure);
    }

    /// Why the device has stopped by itself, if it has.
    pub fn stopped_by_itself(&self) -> Option<Failure> {
        let (course, drive) = (self.course.as_ref()?, self.drive.as_ref()?);
        let function = drive.function();
        let has_stopped = function.status().is_ok_and(|status| status.has(DeviceStatus::NEEDS_RESET));
        (course.is_running() && has_stopped).then(|| Failure::virtio_needs_reset(function.address()))
    }

    /// The device was reset by somebody.
    pub fn forget_rings(&mut self, failure: Failure) {
        self.lose(failure);
        if let Some(drive) = &mut self.drive {
            drive.forget();
        }
    }

    /// What is to become of doorbells: those of rings that have begun to run are given to the frontend, the others taken away. Not
    /// while the device is lent.
    pub fn doorbell_changes(&self) -> Vec<(u8, Option<DoorbellPage>)> {
        let Some(drive) = self.drive.as_ref().filter(|_| self.agreed.contains(Self::DOORBELLS)) else {
            return Vec::new();
        };
        let named = |(RingIndex(ring), page)| Some((u8::try_from(ring).ok()?, page));
        let wanted: BTreeMap<u8, DoorbellPage> = drive.doorbells().filter_map(named).collect();
        let taken = self.doorbells.iter().filter(|ring| !wanted.contains_key(ring)).map(|ring| (*ring, None));
        let given = wanted.iter().filter(|(ring, _)| !self.doorbells.contains(ring));
        taken.chain(given.map(|(ring, page)| (*ring, Some(*page)))).collect()
    }

    /// The frontend was told that it has a doorbell, or has it no more.
    pub fn note_doorbell(&mut self, ring: u8, is_given: bool) {
        if is_given {
            self.doorbells.insert(ring)
        } else {
            self.doorbells.remove(&ring)
        };
    }

    /// Whether a request may be one for a job: then it has to wait for the one in flight.
    pub const fn has_to_wait(request: &DeviceRequest) -> bool {
        !matches!(
            request,
            DeviceRequest::GetFeatures
                | DeviceRequest::GetProtocolFeatures
                | DeviceRequest::SetProtocolFeatures(_)
                | DeviceRequest::GetQueueNumber
                | DeviceRequest::GetMaxMemorySlots
                | DeviceRequest::GetConfig(_)
                | DeviceRequest::SetConfig { .. }
                | DeviceRequest::GetStatus
        )
    }

    /// Not even a job where there is nothing to do.
    fn step(&mut self, actions: Vec<Action>, reply: DeviceReply) -> Step {
        match self.drive.take_if(|_| !actions.is_empty()) {
            Some(drive) => Step::Drive(drive, actions, reply),
            None => Step::Reply(reply),
        }
    }

    /// A ring was described in a way that cannot even be read.
    pub fn refuse_ring(&mut self, ring: u8, failure: Failure) {
        if let Some(course) = &mut self.course {
            course.refuse(ring.into(), failure);
        }
    }

    /// Carries a request out, or begins to. The device was taken, and is not lent.
    ///
    /// # Errors
    ///
    /// A failure whose errno is the reply, if there is to be one.
    pub fn handle(&mut self, request: DeviceRequest) -> Result<Step, Failure> {
        let (Some(course), Some(drive)) = (&mut self.course, &self.drive) else {
            return Err(Failure::unknown_device(self.cookie.0));
        };
        let reply = match request {
            DeviceRequest::GetFeatures => {
                DeviceReply::Features(VirtioFeatures(course.offered() | PROTOCOL_FEATURES))
            }
            DeviceRequest::SetFeatures(VirtioFeatures(features)) => {
                course.set_features(features)?;
                DeviceReply::Done
            }
            DeviceRequest::SetOwner => DeviceReply::Done,
            DeviceRequest::ResetOwner => {
                let actions = course.disable_all();
                return Ok(self.step(actions, DeviceReply::Done));
            }
            DeviceRequest::GetProtocolFeatures => DeviceReply::ProtocolFeatures(self.offered()),
            DeviceRequest::SetProtocolFeatures(features) => return self.agree(features),
            DeviceRequest::GetQueueNumber => DeviceReply::QueueNumber(course.ring_count().into()),
            DeviceRequest::GetMaxMemorySlots => {
                DeviceReply::MaxMemorySlots(u64::try_from(MAX_REGIONS).unwrap_or(u64::MAX))
            }
            DeviceRequest::GetConfig(access) => read_config(drive, access)?,
            DeviceRequest::SetConfig { access, data } => write_config(drive, access, &data)?,
            DeviceRequest::SetBackendChannel(socket) => {
                self.doorbells.clear();
                return Ok(Step::Channel(socket));
            }
            DeviceRequest::ResetDevice => {
                let actions = course.reset();
                return Ok(self.step(actions, DeviceReply::Done));
            }
            DeviceRequest::GetStatus => DeviceReply::Status(course.status().0),
            DeviceRequest::SetStatus(status) => {
                let actions = course.set_status(DeviceStatus(status))?;
                return Ok(self.step(actions, DeviceReply::Done));
            }
            DeviceRequest::SetMemoryTable(regions) => return self.replace_memory(regions),
            DeviceRequest::AddMemoryRegion(region) => {
                return Ok(Step::Memory(vec![FrontendTable::addition(region)?]));
            }
            DeviceRequest::RemoveMemoryRegion(region) => return self.remove_memory(region),
            DeviceRequest::Vring { queue, request } => return self.describe(queue, request),
        };
        Ok(Step::Reply(reply))
    }

    fn describe(&mut self, queue: u8, request: VringRequest) -> Result<Step, Failure> {
        let Some(course) = &mut self.course else { return Err(Failure::unknown_device(self.cookie.0)) };
        let ring = queue.into();
        let actions = match request {
            VringRequest::SetSize(size) => course.set_size(ring, size.into()).map(|()| Vec::new()),
            VringRequest::SetAddress { descriptors, available, used } => {
                return self.place(queue, [descriptors, available, used]);
            }
            VringRequest::SetBase(base) => course.set_base(ring, Base(base)).map(|()| Vec::new()),
            VringRequest::GetBase => {
                let (Base(base), actions) = course.stop(ring)?;
                return Ok(self.step(actions, DeviceReply::VringBase { queue, base }));
            }
            VringRequest::SetKick(eventfd) => received(eventfd).and_then(|kick| course.set_kick(ring, kick)),
            VringRequest::SetCall(eventfd) => received(eventfd).and_then(|call| course.set_call(ring, call)),
            VringRequest::SetError(eventfd) => {
                match received(eventfd)? {
                    Some(eventfd) => drop(self.errors.insert(queue, eventfd)),
                    None => drop(self.errors.remove(&queue)),
                }
                Ok(Vec::new())
            }
            VringRequest::SetEnabled(is_enabled) => course.set_enabled(ring, is_enabled),
        };
        actions.map(|actions| self.step(actions, DeviceReply::Done))
    }

    /// What the face offers.
    const fn offered(&self) -> ProtocolFeatures {
        let withheld = if self.may_map_doorbells { 0 } else { Self::DOORBELLS.0 };
        ProtocolFeatures(ProtocolFeatures::OF_DEVICES.0 & !withheld)
    }

    fn agree(&mut self, features: ProtocolFeatures) -> Result<Step, Failure> {
        let others = features.0 & !self.offered().0;
        if others != 0 {
            return Err(Failure::feature_not_offered(others));
        }
        self.agreed = features;
        if let Some(course) = &mut self.course {
            course.tell_status(features.contains(ProtocolFeatures::STATUS));
        }
        Ok(Step::Reply(DeviceReply::Done))
    }

    /// Where a ring is, as the device sees it.
    fn place(&mut self, queue: u8, addresses: [u64; 3]) -> Result<Step, Failure> {
        let Some(course) = &mut self.course else { return Err(Failure::unknown_device(self.cookie.0)) };
        let is_guests = self.agreed.contains(ProtocolFeatures::GPA_ADDRESSES);
        let places = addresses.map(|address| {
            if is_guests { Some(GuestAddress(address)) } else { self.memory.guest_address(address) }
        });
        let [Some(descriptors), Some(driver), Some(device)] =
            places.map(|place| place.map(|place| Iova(place.0)))
        else {
            let nowhere = addresses.into_iter().zip(places).find(|(_, place)| place.is_none());
            let address = nowhere.map_or_else(u64::default, |(address, _)| address);
            let failure = Failure::ring_outside_memory(RingIndex(queue.into()), address);
            course.refuse(queue.into(), failure.clone());
            return Err(failure);
        };
        course.set_areas(queue.into(), RingAreas { descriptors, driver, device })?;
        Ok(Step::Reply(DeviceReply::Done))
    }

    fn replace_memory(&mut self, regions: Vec<BackedRegion>) -> Result<Step, Failure> {
        let changes = self.memory.change_to(regions)?;
        self.give_up(&changes)?;
        Ok(Step::Memory(changes))
    }

    fn remove_memory(&mut self, region: MemoryRegion) -> Result<Step, Failure> {
        let range = GuestRange::new(GuestAddress(region.guest_address), region.size);
        let range = range.ok_or_else(|| Failure::region_unknown(region.guest_address))?;
        let changes = vec![TableChange::Remove(range)];
        self.give_up(&changes)?;
        Ok(Step::Memory(changes))
    }

    /// Whether the device can do without memory that goes.
    fn give_up(&mut self, changes: &[TableChange]) -> Result<(), Failure> {
        let Some(course) = &mut self.course else { return Ok(()) };
        course.lose_memory(|areas| {
            let lies_in =
                |range: &GuestRange, address: u64| (range.address().0..range.end()).contains(&address);
            changes.iter().any(|change| match change {
                TableChange::Add(..) => false,
                TableChange::Remove(range) => [areas.descriptors, areas.driver, areas.device]
                    .into_iter()
                    .any(|Iova(address)| lies_in(range, address)),
            })
        })
    }

    /// What came of changes of memory. What was done counts, whatever became of the others.
    ///
    /// # Errors
    ///
    /// The first that failed.
    pub fn memory_changed(
        &mut self,
        changes: Vec<TableChange>,
        outcomes: Vec<Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let mut first = Ok(());
        for (change, outcome) in changes.into_iter().zip(outcomes) {
            first = first.and(outcome.and_then(|()| self.memory.apply(change)));
        }
        let view = self.memory.view()?;
        if let Some(drive) = &mut self.drive {
            drive.set_memory(view);
        }
        first
    }
}

fn received(eventfd: Option<OwnedFd>) -> Result<Option<Eventfd>, Failure> {
    eventfd.map(Eventfd::received).transpose()
}

/// What lies beyond the end reads as 0: a frontend may ask for all that the newest specification has, and cannot be told less.
fn read_config(drive: &Drive, access: ConfigAccess) -> Result<DeviceReply, Failure> {
    let mut data = vec![0; usize::try_from(access.size).unwrap_or_default()];
    let there = within(drive, access);
    if let Some(data) = data.get_mut(..there).filter(|data| !data.is_empty()) {
        drive.function().read_config(access.offset.into(), data)?;
    }
    Ok(DeviceReply::Config { access, data })
}

fn write_config(drive: &Drive, access: ConfigAccess, data: &[u8]) -> Result<DeviceReply, Failure> {
    if let Some(data) = data.get(..within(drive, access)).filter(|data| !data.is_empty()) {
        drive.function().write_config(access.offset.into(), data)?;
    }
    Ok(DeviceReply::Done)
}

/// How many of the bytes the device has.
fn within(drive: &Drive, access: ConfigAccess) -> usize {
    let left = drive.function().config_length().saturating_sub(access.offset);
    usize::try_from(left.min(access.size)).unwrap_or_default()
}
