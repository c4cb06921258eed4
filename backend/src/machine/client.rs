// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The clients of the devices' data faces: they come, do something to the device, and go.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::extension::Cookie;
use protocol::vhost_user::NotifierArea;
use vfio::RegionIndex;

use super::Machine;
use crate::device::DataFace;
use crate::failure::Failure;
use crate::interrupts::IrqChange;
use crate::job::Job;
use crate::policy::{BarAccess, DoorbellAccess};
use crate::reset::engine::{Event, Vm, touch};
use crate::virtio::capability::Structures;
use crate::virtio::{Action, DoorbellPage, Drive, Relay, VirtioFunction};

/// What a client needs to map a BAR.
#[derive(Debug)]
pub struct Exposed {
    /// The parts of the BAR that it may map.
    pub areas: Vec<Range<u64>>,
    /// The device.
    pub file: OwnedFd,
}

impl Machine {
    /// A data face was set up for the device and waits for a client.
    pub fn listen(&mut self, cookie: Cookie) {
        if let Some(device) = self.devices.get_mut(&cookie) {
            device.face = DataFace::Listening;
        }
    }

    /// A client has come to the device's data face.
    pub fn connect(&mut self, cookie: Cookie, face: DataFace, vm: Vm) {
        if let Some(device) = self.devices.get_mut(&cookie) {
            device.face = face;
            device.client = Some(vm);
            self.note_usage(cookie);
        }
    }

    /// The client has gone, and leaves a quiet device.
    pub fn disconnect(&mut self, cookie: Cookie) {
        let is_away = self.is_held(cookie) || self.is_in_reset(cookie);
        let Some(device) = self.devices.get_mut(&cookie) else { return };
        device.face = device.face.without_client();
        device.client = None;
        device.is_driven = false;
        // What a job or a reset works on is left to that, and quieted when it is done.
        device.is_left = is_away;
        if !is_away {
            device.leave_quiet();
        }
        self.note_usage(cookie);
    }

    /// The client's `SET_IRQS`.
    pub fn set_irqs(&mut self, cookie: Cookie, change: IrqChange) -> Result<(), Failure> {
        let outcome = self.device_mut(cookie)?.set_irqs(change);
        self.note_usage(cookie);
        outcome.map_err(Failure::device_call)
    }

    /// Whether the device's rings can be driven for a vhost-user frontend.
    ///
    /// # Errors
    ///
    /// It is no virtio function, or one for legacy drivers.
    pub fn may_drive(&self, cookie: Cookie) -> Result<(), Failure> {
        Structures::of(&self.device(cookie)?.device).map(drop)
    }

    /// Takes a device to be driven for its client, a vhost-user frontend.
    pub fn take_drive(&mut self, cookie: Cookie, relay: Arc<Relay>) -> Result<Job, Failure> {
        let device = self.device_mut(cookie)?;
        device.is_driven = true;
        let device = Arc::clone(&device.device);
        self.held = vec![cookie];
        self.drive(Event::Touched(cookie));
        Ok(Job::TakeDrive { cookie, device, relay })
    }

    /// Has something done to a device for its frontend; nobody else accesses the device meanwhile.
    pub fn drive_device(&mut self, cookie: Cookie, drive: Box<Drive>, actions: Vec<Action>) -> Job {
        self.held = vec![cookie];
        self.drive(Event::Touched(cookie));
        let control = self.control_change(cookie, &drive, &actions);
        Job::Drive { cookie, drive, actions, control }
    }

    /// Something was done to a device for its frontend.
    pub(super) fn note_driven(&mut self, cookie: Cookie, is_active: bool) {
        if let Some(device) = self.devices.get_mut(&cookie) {
            device.note_driven(is_active);
            self.note_usage(cookie);
        }
    }

    /// The client writes to a region.
    pub fn note_write(&mut self, cookie: Cookie, region: RegionIndex, offset: u64, data: &[u8]) {
        let Some(device) = self.devices.get_mut(&cookie) else { return };
        let is_config = region == RegionIndex::CONFIG;
        if is_config {
            device.note_config_write(offset, data);
        }
        if !is_config || touch::config_write_touches(offset, data) {
            self.drive(Event::Touched(cookie));
        }
        if is_config {
            self.note_usage(cookie);
        }
    }

    /// What of a BAR the client of its device may map, and the file to do it with. Nothing, unless the server was told to let
    /// clients map.
    ///
    /// # Errors
    ///
    /// There is no such device, or no room for a copy of its descriptor.
    pub fn expose(&mut self, cookie: Cookie, region: RegionIndex) -> Result<Option<Exposed>, Failure> {
        if self.policies.bar_access == BarAccess::Trap {
            return Ok(None);
        }
        let device = self.device_mut(cookie)?;
        let areas = device.mappable_areas(region);
        if areas.is_empty() {
            return Ok(None);
        }
        let file = device.expose(cookie)?;
        Ok(Some(Exposed { areas, file }))
    }

    /// Whether the frontend of a device may map its doorbells: the server was told to let it, and they are where that can be done.
    pub fn may_map_doorbells(&self, cookie: Cookie, function: &VirtioFunction) -> bool {
        if self.policies.doorbells == DoorbellAccess::Eventfd {
            return false;
        }
        let is_possible = function.mappable_doorbells().is_some_and(|(region, doorbells)| {
            let areas =
                self.devices.get(&cookie).map(|device| device.mappable_areas(region)).unwrap_or_default();
            areas.iter().any(|area| area.start <= doorbells.start && doorbells.end <= area.end)
        });
        if !is_possible {
            log::warn!("event=doorbells-not-mappable device={} cookie={:#x}", function.address(), cookie.0);
        }
        is_possible
    }

    /// What a frontend needs to map a doorbell, which [it may](Self::may_map_doorbells).
    ///
    /// # Errors
    ///
    /// There is no such device, or no room for a copy of its descriptor.
    pub fn lend_doorbell(
        &mut self,
        cookie: Cookie,
        page: DoorbellPage,
    ) -> Result<NotifierArea<OwnedFd>, Failure> {
        let DoorbellPage { region, offset, size } = page;
        let device = self.device_mut(cookie)?;
        let file = device.expose(cookie)?;
        let start = device.device.region(region).map_or(0, |region| region.offset);
        Ok(NotifierArea { file, size, offset: start.saturating_add(offset) })
    }

    /// The job is done with its devices.
    pub(super) fn release_held(&mut self) {
        for cookie in std::mem::take(&mut self.held) {
            self.quiet_left(cookie);
        }
    }

    /// Quiets a device that a client has left while it was worked on. The next client, if it has come, has not reached it yet.
    pub(super) fn quiet_left(&mut self, cookie: Cookie) {
        if let Some(device) = self.devices.get_mut(&cookie).filter(|device| device.is_left) {
            device.leave_quiet();
        }
    }

    fn note_usage(&mut self, cookie: Cookie) {
        if let Some(device) = self.devices.get(&cookie) {
            let usage = device.usage();
            self.drive(Event::Used(cookie, usage));
        }
    }
}
