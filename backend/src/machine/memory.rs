// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the machine's clients describe it: who may, and the jobs that follow.

use std::sync::Arc;

use protocol::extension::Cookie;
use vfio::Device;

use super::{Machine, Slot};
use crate::address_space::{AddressSpace, ViewChange, ViewOf};
use crate::failure::Failure;
use crate::job::{ControlChange, Job, ReleasedSpace};
use crate::memory::MemoryView;
use crate::owner::{ConnectionId, Owner};
use crate::virtio::{Action, Drive};

/// What is mapped for the sake of a device's client.
pub(super) fn views_of(cookie: Cookie) -> Vec<ViewOf> {
    vec![ViewOf::Device(cookie), ViewOf::ControlRing(cookie)]
}

impl Machine {
    /// Puts another memory table in force: the one that `change` makes of the present one.
    pub fn change_memory(
        &mut self,
        owner: Owner,
        change: impl FnOnce(MemoryView) -> Result<MemoryView, Failure>,
    ) -> Result<Job, Failure> {
        if self.memory_owner.is_some_and(|present| present != owner) {
            return Err(Failure::not_yours("the change of guest memory"));
        }
        let next = change(self.describable()?.table())?;
        self.memory_owner = Some(owner);
        let devices = self.attached();
        Ok(Job::ChangeTable { address_space: self.take_address_space()?, next, devices })
    }

    /// The address space, if it is this server that maps what it shall hold.
    fn describable(&self) -> Result<&AddressSpace, Failure> {
        match &self.address_space {
            Slot::Here(_, address_space) if address_space.is_adopted() => Err(Failure::memory_is_adopted()),
            Slot::Here(_, address_space) => Ok(address_space),
            Slot::Empty | Slot::Away(_) => Err(Failure::iommufd_missing()),
        }
    }

    /// Changes what the client of a device's data face describes of guest memory.
    pub fn change_view(&mut self, cookie: Cookie, changes: Vec<ViewChange>) -> Result<Job, Failure> {
        self.describable()?;
        let devices = self.attached();
        Ok(Job::ChangeView { address_space: self.take_address_space()?, cookie, changes, devices })
    }

    /// What the client of a device's data face has described is gone with it. `None` where that is nothing.
    pub fn drop_view(&mut self, cookie: Cookie) -> Option<Job> {
        match self.clear(views_of(cookie)) {
            ReleasedSpace::Untouched => None,
            address_space => Some(Job::Release { devices: Vec::new(), address_space }),
        }
    }

    /// Whether the control face's table describes guest memory.
    pub fn has_memory_table(&self) -> bool {
        matches!(&self.address_space, Slot::Here(_, space) if space.has_view(ViewOf::Table))
    }

    /// Whether the memory table in force is the connection's.
    pub fn has_memory_of(&self, connection: ConnectionId) -> bool {
        self.memory_owner == Some(Owner::Connection(connection))
    }

    /// The address space, for a job that takes these descriptions out of it.
    pub(super) fn clear(&mut self, views: Vec<ViewOf>) -> ReleasedSpace {
        let is_described = |space: &AddressSpace| views.iter().any(|view| space.has_view(*view));
        if !matches!(&self.address_space, Slot::Here(_, space) if is_described(space)) {
            return ReleasedSpace::Untouched;
        }
        let devices = self.attached();
        self.take_address_space().map_or(ReleasedSpace::Untouched, |address_space| ReleasedSpace::Cleared {
            address_space,
            views,
            devices,
        })
    }

    /// What becomes of the page of a device's control ring when this is done to the device.
    pub(super) fn control_change(
        &mut self,
        cookie: Cookie,
        drive: &Drive,
        actions: &[Action],
    ) -> Result<ControlChange, Failure> {
        let needs_page = actions.iter().any(|action| matches!(action, Action::SetUpControl(_)));
        match (needs_page, drive.has_control_page()) {
            (true, false) => {
                self.describable()?;
                let page = self.control_memory.page(cookie)?;
                let devices = self.attached();
                Ok(ControlChange::Map { page, address_space: self.take_address_space()?, devices })
            }
            (false, true) if actions.contains(&Action::Reset) => {
                let devices = self.attached();
                Ok(ControlChange::Unmap { address_space: self.take_address_space()?, devices })
            }
            _ => Ok(ControlChange::Unchanged),
        }
    }

    /// The devices that are attached to the address space.
    fn attached(&self) -> Vec<Arc<Device>> {
        self.devices.values().map(|held| Arc::clone(&held.device)).collect()
    }
}
