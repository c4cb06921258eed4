// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets that reach more than one function: who is affected, who owns that, and doing it.

use rustix::io::Errno;

use crate::model::argument::Argument;
use crate::model::decision::{DevId, Obstacle, Situation};
use crate::model::function::Reset;
use crate::model::kernel::{ContextId, Kernel, OpenFile};
use crate::model::pci_function::{PciFunction, Usage};
use crate::model::system_call::Named;
use crate::model::topology::{Bus, FunctionReset, Link, ResetScope};
use crate::pci_address::PciAddress;

/// `struct vfio_pci_hot_reset_info` and `struct vfio_pci_hot_reset` without their arrays.
const HEADER: usize = 12;
const ROW: usize = 8;
const FLAG_DEV_ID: u32 = 1;
const FLAG_OWNED: u32 = 2;

impl Kernel {
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    pub(super) fn hot_reset_info(
        &self,
        address: PciAddress,
        is_cdev: bool,
        argument: &mut Argument<'_>,
    ) -> Result<u32, Errno> {
        let size = usize::try_from(argument.word(0)?).map_err(|_| Errno::INVAL)?;
        if size < HEADER {
            return Err(Errno::INVAL);
        }
        let scope = self.reset_scope(address).ok_or(Errno::NODEV)?;
        let count = u32::try_from(scope.len()).map_err(|_| Errno::NOMEM)?;
        if scope.len() > (size - HEADER) / ROW {
            argument.set_word(4, 0)?;
            argument.set_word(8, count)?;
            return Err(Errno::NOSPC);
        }
        let rows = if let Some(context) = self.function(address)?.context().filter(|_| is_cdev) {
            let rows: Vec<_> = scope.iter().map(|affected| self.row(address, *affected, context)).collect();
            let owned = if self.rules.is_available(rows.iter().copied()) { FLAG_OWNED } else { 0 };
            argument.set_word(4, FLAG_DEV_ID | owned)?;
            rows.into_iter().map(DevId::number).collect()
        } else {
            argument.set_word(4, 0)?;
            let groups = scope.iter().map(|affected| self.iommu_group_of(*affected));
            groups.collect::<Option<Vec<_>>>().ok_or(Errno::PERM)?
        };
        for (place, (affected, first)) in scope.into_iter().zip(rows).enumerate() {
            let row = HEADER + ROW * place;
            argument.set_word(row, first)?;
            argument.set(row + 4, &affected.segment().to_ne_bytes())?;
            argument.set(row + 6, &[affected.bus(), affected.devfn()])?;
        }
        argument.set_word(8, count)?;
        Ok(0)
    }

    /// The functions that a slot or bus reset hits; `None` where there is no such reset.
    fn reset_scope(&self, address: PciAddress) -> Option<Vec<PciAddress>> {
        match self.topology.reset_scope(address) {
            ResetScope::Missing => None,
            ResetScope::Slot { affected, .. } | ResetScope::Bus { affected, .. } => Some(affected),
        }
    }

    /// What is on a function's bus, in the order in which the kernel found it.
    fn bus_of(&self, address: PciAddress) -> impl Iterator<Item = PciAddress> {
        let bus = Bus::of(address);
        self.topology.below(bus).into_iter().filter(move |other| Bus::of(*other) == bus)
    }

    fn iommu_group_of(&self, address: PciAddress) -> Option<u32> {
        let bridge = || self.topology.bridges.iter().find(|bridge| bridge.address == address)?.iommu_group;
        self.functions.get(&address).map_or_else(bridge, PciFunction::iommu_group)
    }

    fn row(&self, asked: PciAddress, affected: PciAddress, context: ContextId) -> DevId {
        self.rules.row(self.situation(asked, affected, context))
    }

    /// How an affected function relates to a context, as seen from a device bound to it.
    fn situation(&self, asked: PciAddress, affected: PciAddress, context: ContextId) -> Situation {
        let set = self.functions.get(&asked).and_then(|function| function.set);
        let member = self.functions.get(&affected).filter(|function| function.set == set);
        let Some(member) = member else { return Situation::OutsideSet };
        match (member.usage, member.iommu_group()) {
            (Usage::Bound { context: owner, id, .. }, _) if owner == context => Situation::Bound(id),
            (_, None) => Situation::NoGroup,
            (_, Some(group)) if self.has_device_of_group(context, group) => Situation::GroupBound,
            (Usage::Unused, _) => Situation::ForeignGroup,
            (Usage::Bound { .. }, _) => Situation::OtherContext,
            (Usage::Contained { .. }, _) => Situation::Contained,
        }
    }

    fn has_device_of_group(&self, context: ContextId, group: u32) -> bool {
        self.contexts.get(&context).is_some_and(|context| context.has_device_of_group(group))
    }

    /// `VFIO_DEVICE_PCI_HOT_RESET`, in the order of the kernel's checks.
    pub(super) fn hot_reset(
        &mut self,
        address: PciAddress,
        is_cdev: bool,
        argument: &Argument<'_>,
        named: &[Named],
    ) -> Result<u32, Errno> {
        let scope = self.check_hot_reset(address, is_cdev, argument, named)?;
        for affected in &scope {
            if let Some(function) = self.functions.get_mut(affected) {
                function.hardware.reset(Reset::Bus);
            }
        }
        let is_unconfirmed = self.link_above(address) == Link::Unconfirmed;
        self.rules.check(Obstacle::LinkUnconfirmed, is_unconfirmed).map(|()| 0)
    }

    /// Everything that keeps a hot reset from beginning; else the functions it will reset.
    pub(super) fn check_hot_reset(
        &self,
        address: PciAddress,
        is_cdev: bool,
        argument: &Argument<'_>,
        named: &[Named],
    ) -> Result<Vec<PciAddress>, Errno> {
        let count = argument.word(8)?;
        let is_malformed = argument.word(0)? < 12 || argument.word(4)? != 0 || (count != 0) == is_cdev;
        self.rules.check(Obstacle::Argument, is_malformed)?;
        let scope = self.reset_scope(address);
        self.rules.check(Obstacle::NoReset, scope.is_none())?;
        let scope = scope.unwrap_or_default();
        let groups = if is_cdev { Vec::new() } else { self.named_groups(count, scope.len(), named)? };
        self.rules.check(Obstacle::SetIncomplete, !self.is_set_complete(address, &scope))?;
        let context = self.function(address)?.context().filter(|_| is_cdev);
        for member in self.set_of(address) {
            let is_owned = match context {
                Some(context) => self.row(address, member, context) != DevId::NotOwned,
                None => self.iommu_group_of(member).is_some_and(|group| groups.contains(&group)),
            };
            self.rules.check(Obstacle::NotOwned, !is_owned)?;
            self.rules.check(Obstacle::MemoryInUse, self.busy.contains(&member))?;
        }
        self.rules.check(Obstacle::DeviceLocked, self.is_locked(&scope))?;
        Ok(scope)
    }

    /// The groups whose files prove who may reset them.
    fn named_groups(&self, count: u32, affected: usize, named: &[Named]) -> Result<Vec<u32>, Errno> {
        if usize::try_from(count).is_ok_and(|count| count > affected) {
            return Err(Errno::INVAL);
        }
        let group_of = |named: &Named| match named {
            Named::File(file) => match self.files.get(file) {
                Some(OpenFile::Group(group)) => Ok(*group),
                _ => Err(Errno::INVAL),
            },
            Named::Foreign(_) => Err(Errno::INVAL),
        };
        named.iter().map(group_of).collect()
    }

    /// Whether every affected function, bridges included, is in the function's own set.
    fn is_set_complete(&self, address: PciAddress, scope: &[PciAddress]) -> bool {
        let set = self.functions.get(&address).and_then(|function| function.set);
        set.is_some()
            && scope
                .iter()
                .all(|affected| self.functions.get(affected).is_some_and(|function| function.set == set))
    }

    /// The members of a function's set, itself among them.
    pub(super) fn set_of(&self, address: PciAddress) -> Vec<PciAddress> {
        let set = self.functions.get(&address).and_then(|function| function.set);
        let members = self.functions.iter().filter(|(_, function)| set.is_some() && function.set == set);
        members.map(|(address, _)| *address).collect()
    }

    fn is_locked(&self, scope: &[PciAddress]) -> bool {
        scope
            .iter()
            .any(|affected| self.functions.get(affected).is_some_and(|function| function.is_being_unbound))
    }

    /// After a close: resets a set that nobody uses any more and of which something was not reset since its last use.
    pub(super) fn try_reset_set(&mut self, address: PciAddress) {
        let set = self.set_of(address);
        let members: Vec<_> = set.iter().filter_map(|member| self.functions.get(member)).collect();
        // The one that is being closed still counts.
        let opens = members.iter().filter(|member| member.is_open()).count();
        if opens > 1 || !members.iter().any(|member| member.needs_reset) {
            return;
        }
        let Some(scope) = self.reset_scope(address) else { return };
        if !self.is_set_complete(address, &scope) || self.is_locked(&scope) {
            return;
        }
        let is_confirmed = self.link_above(address) == Link::Trains;
        for member in scope {
            if let Some(function) = self.functions.get_mut(&member) {
                function.hardware.reset(Reset::Bus);
                function.needs_reset &= !is_confirmed;
            }
        }
    }

    /// Whether a function can be reset alone: by a way of its own, or by way of the bus where it is alone.
    pub(super) fn has_function_reset(&self, address: PciAddress) -> bool {
        let Some(function) = self.functions.get(&address) else { return false };
        if function.endpoint.reset != FunctionReset::Missing {
            return true;
        }
        let is_alone = self.bus_of(address).all(|other| other == address);
        is_alone && self.reset_scope(address).is_some() && self.link_above(address) == Link::Trains
    }

    /// How a function is reset alone.
    pub(super) fn way_of_function_reset(&self, address: PciAddress) -> Reset {
        let function = self.functions.get(&address);
        let has_own = function.is_some_and(|function| function.endpoint.reset != FunctionReset::Missing);
        if has_own { Reset::Function } else { Reset::Bus }
    }

    /// Whether the kernel, when it found the function, took it for one that can be reset alone: then the bus was the
    /// function's own, if others on it were not found yet.
    pub(super) fn lists_function_reset(&self, address: PciAddress) -> bool {
        let is_first = || self.bus_of(address).next() == Some(address);
        self.has_function_reset(address) || (is_first() && self.reset_scope(address).is_some())
    }

    fn link_above(&self, address: PciAddress) -> Link {
        self.topology.parent_bridge(address).map_or(Link::Trains, |bridge| bridge.link)
    }
}

#[cfg(test)]
mod tests;
