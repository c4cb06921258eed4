// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether functions that are to be handed to VMs can be reset there, and what it takes: decided before anything is opened,
//! from what sysfs shows. Nothing here reads or changes anything.

mod change;
mod obstacle;
mod situation;

use std::collections::BTreeSet;

use protocol::extension::ResetMethod;
use vfio::topology::Driver;
use vfio::{Hierarchy, PciAddress, Place, ResetScope};

pub use self::change::Change;
pub use self::obstacle::{Obstacle, Reason};
use self::situation::Situation;
pub use self::situation::{Assignment, WorkingReset};

/// What becomes of an assignment, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every device can be reset.
    Works,
    /// Every device can be reset once the plan's changes are made.
    WorksWithChanges,
    /// A device can never be reset so.
    Cannot,
}

/// The plan for all VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they were given.
    pub vms: Vec<VmPlan>,
}

/// The plan for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPlan {
    /// The VM's name.
    pub name: String,
    /// Every device it shall have and, at the end, those that it has to have in addition.
    pub devices: Vec<DevicePlan>,
    /// The functions that the devices are reset or owned together with, the devices among them; by address.
    pub functions: Vec<FunctionPlan>,
    /// What has to be done, in this order.
    pub changes: Vec<Change>,
}

/// The plan for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// Where it is.
    pub address: PciAddress,
    /// Whether the plan, and not the caller, gives it to the VM.
    pub is_additional: bool,
    /// What becomes of it.
    pub verdict: Verdict,
    /// How it is reset after the changes; `None` if it cannot be.
    pub reset: Option<WorkingReset>,
    /// What keeps it from being reset now; if it can never be, only what it is that stays.
    pub obstacles: Vec<Obstacle>,
    /// What keeps it from being hot reset after the changes, whether or not it needs that.
    pub hot_reset_obstacles: Vec<Obstacle>,
    /// What a hot reset takes along.
    pub scope: ResetScope,
    /// What the answer does not know.
    pub doubts: Vec<Doubt>,
}

/// A function beside the devices of a VM, or one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionPlan {
    /// Where it is.
    pub address: PciAddress,
    /// The IOMMU group.
    pub iommu_group: Option<u32>,
    /// Who drives it now.
    pub driver: Driver,
    /// Whose it is now.
    pub owned: Owned,
    /// Why it keeps a device of the VM from being bound or hot reset now; empty if it does not.
    pub reasons: Vec<Reason>,
    /// What has to be done with it.
    pub changes: Vec<Change>,
    /// What to do about it if no change helps.
    pub advice: String,
}

/// Whose a function is, by the assignments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// The VM is handed it; its place there, from 1.
    HandedOver(usize),
    /// The VM is handed something else of its IOMMU group.
    Implied,
    /// This other VM's, by either.
    OtherVm(String),
    /// Nobody's.
    No,
}

/// Something on which a hot reset depends and which sysfs does not tell for sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Linux does not list a bus reset for the first function of the bus, as it does unless it knows a device that does not
    /// survive one.
    BusResetNotListed,
    /// Older kernels do not count a function with a device number other than 0 as in its slot.
    BeyondDeviceZero,
}

impl Doubt {
    /// Its stable name.
    pub const fn id(self) -> &'static str {
        match self {
            Self::BusResetNotListed => "bus-reset-not-listed",
            Self::BeyondDeviceZero => "beyond-device-zero",
        }
    }

    /// What is in doubt, and why.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::BusResetNotListed => {
                "Linux lists no bus reset for the first function there, so it may know a device that does not survive one"
            }
            Self::BeyondDeviceZero => {
                "Linux 6.12 and the like count only device number 0 as in the slot, and never reset it with others there"
            }
        }
    }
}

impl Plan {
    /// Plans `assignments` on a machine. With a `wanted` method each device has to have that; without, any that the server
    /// would use. A VM keeps what an earlier one needs from having.
    pub fn new(hierarchy: &Hierarchy, assignments: &[Assignment], wanted: Option<ResetMethod>) -> Self {
        let now = Situation { hierarchy: hierarchy.clone(), assignments: assignments.to_vec() };
        let mut then = now.clone();
        let mut changes = Vec::new();
        for (vm, assignment) in assignments.iter().enumerate() {
            let mut made = Vec::new();
            for function in &assignment.functions {
                if let Ok((situation, changes)) = then.repaired(vm, *function, wanted) {
                    then = situation;
                    made.extend(changes);
                }
            }
            changes.push(made);
        }
        let planner = Planner { now, then, wanted };
        Self { vms: changes.into_iter().enumerate().map(|(vm, changes)| planner.vm(vm, changes)).collect() }
    }

    /// The worst of the VMs' verdicts.
    pub fn verdict(&self) -> Verdict {
        self.vms.iter().map(VmPlan::verdict).max().unwrap_or(Verdict::Works)
    }
}

impl VmPlan {
    /// The worst of its devices' verdicts. If something has to be changed anyway, it does not work as it is.
    pub fn verdict(&self) -> Verdict {
        self.devices.iter().map(|device| device.verdict).max().unwrap_or(Verdict::Works)
    }

    /// The functions that it has to have in addition.
    pub fn additional(&self) -> impl Iterator<Item = PciAddress> {
        self.devices.iter().filter(|device| device.is_additional).map(|device| device.address)
    }
}

/// What is, and what will be after all changes.
struct Planner {
    now: Situation,
    then: Situation,
    wanted: Option<ResetMethod>,
}

impl Planner {
    fn vm(&self, vm: usize, mut changes: Vec<Change>) -> VmPlan {
        let given = self.now.handed_over(vm);
        let handed_over = self.then.handed_over(vm);
        let devices: Vec<_> =
            handed_over.iter().map(|address| self.device(vm, *address, !given.contains(address))).collect();
        let addresses: BTreeSet<_> = handed_over.iter().flat_map(|address| self.company(*address)).collect();
        let functions =
            addresses.into_iter().filter_map(|address| self.function(vm, address, &devices, &changes));
        let functions = functions.collect();
        // Handing over comes when everything is in place.
        changes.sort_by_key(|change| matches!(change, Change::HandOver { .. }));
        let name = self.now.assignments.get(vm).map(|assignment| assignment.vm.clone()).unwrap_or_default();
        VmPlan { name, devices, functions, changes }
    }

    fn device(&self, vm: usize, address: PciAddress, is_additional: bool) -> DevicePlan {
        let now = self.now.reset(vm, address, self.wanted);
        let then = self.then.reset(vm, address, self.wanted);
        let (verdict, obstacles) = match (now, &then) {
            (Ok(_), Ok(_)) if !is_additional => (Verdict::Works, Vec::new()),
            (Ok(_), Ok(_)) => (Verdict::WorksWithChanges, Vec::new()),
            (Err(obstacles), Ok(_)) => (Verdict::WorksWithChanges, obstacles),
            (_, Err(_)) => {
                let obstacles = self.then.repaired(vm, address, self.wanted).err();
                (Verdict::Cannot, obstacles.unwrap_or_default())
            }
        };
        let reset = then.ok();
        let hot_reset = self.then.hot_reset(vm, address);
        let doubts = if reset == Some(WorkingReset::Hot) { self.doubts(address) } else { Vec::new() };
        DevicePlan {
            address,
            is_additional,
            verdict,
            reset,
            obstacles,
            hot_reset_obstacles: hot_reset.err().unwrap_or_default(),
            scope: self.now.hierarchy.reset_scope(address),
            doubts,
        }
    }

    /// What a device is reset or owned together with.
    fn company(&self, device: PciAddress) -> Vec<PciAddress> {
        let hierarchy = &self.now.hierarchy;
        let group = hierarchy.place(device).and_then(|place| place.function.iommu_group);
        let members = group.into_iter().flat_map(|group| hierarchy.group_members(group));
        let members = members.map(|member| member.function.address);
        [&[device], hierarchy.reset_scope(device).affected()].concat().into_iter().chain(members).collect()
    }

    fn function(
        &self,
        vm: usize,
        address: PciAddress,
        devices: &[DevicePlan],
        changes: &[Change],
    ) -> Option<FunctionPlan> {
        let place = self.now.hierarchy.place(address)?;
        let obstacles = devices.iter().flat_map(|device| self.obstacles_of(vm, device, address));
        let mut reasons: Vec<Obstacle> = Vec::new();
        for obstacle in obstacles {
            if !reasons.contains(&obstacle) {
                reasons.push(obstacle);
            }
        }
        let changes: Vec<_> = changes.iter().filter(|change| change.function() == address).cloned().collect();
        let advice = match reasons.iter().find(|obstacle| obstacle.is_permanent()) {
            _ if !changes.is_empty() => String::new(),
            Some(permanent) => permanent.advice(),
            None if reasons.is_empty() => String::new(),
            None if devices.iter().any(|device| device.verdict == Verdict::Cannot) => {
                "Nothing yet: something else stays in the way".into()
            }
            None => "Nothing: no device needs that".into(),
        };
        Some(FunctionPlan {
            address,
            iommu_group: place.function.iommu_group,
            driver: place.function.driver.clone(),
            owned: self.owned(vm, address),
            reasons: reasons.into_iter().map(|obstacle| obstacle.reason).collect(),
            changes,
            advice,
        })
    }

    /// What a function has against a device as it is now. Against itself it has nothing to say that it works without.
    fn obstacles_of(&self, vm: usize, device: &DevicePlan, function: PciAddress) -> Vec<Obstacle> {
        if device.is_additional || (device.address == function && device.verdict == Verdict::Works) {
            return Vec::new();
        }
        let binding = self.now.binding(vm, device.address);
        let hot_reset = self.now.hot_reset(vm, device.address).err().unwrap_or_default();
        binding.into_iter().chain(hot_reset).filter(|obstacle| obstacle.function == function).collect()
    }

    fn owned(&self, vm: usize, function: PciAddress) -> Owned {
        let place = self.now.handed_over(vm).iter().position(|device| *device == function);
        let others = self.now.assignments.iter().enumerate().filter(|(other, _)| *other != vm);
        let mut others = others.filter(|(other, _)| self.now.owning(*other, function).is_some());
        match (place, others.next()) {
            (Some(place), _) => Owned::HandedOver(place + 1),
            (None, Some((_, other))) => Owned::OtherVm(other.vm.clone()),
            (None, None) if self.now.owning(vm, function).is_some() => Owned::Implied,
            (None, None) => Owned::No,
        }
    }

    /// What makes a hot reset of a device less than certain.
    fn doubts(&self, device: PciAddress) -> Vec<Doubt> {
        let hierarchy = &self.now.hierarchy;
        let scope = hierarchy.reset_scope(device);
        let places: Vec<&Place> =
            scope.affected().iter().filter_map(|function| hierarchy.place(*function)).collect();
        let lists_bus = |place: &&Place| place.own_resets.iter().any(|method| method.reaches_bus());
        let is_listed = places.first().is_none_or(lists_bus);
        let is_beyond = |place: &&Place| place.function.address.devfn() >= 8;
        let is_slot = matches!(scope, ResetScope::Slot { .. });
        let beyond = (is_slot && places.iter().any(is_beyond)).then_some(Doubt::BeyondDeviceZero);
        let unlisted = (!is_listed).then_some(Doubt::BusResetNotListed);
        [unlisted, beyond].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests;
