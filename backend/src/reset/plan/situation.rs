// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's rules about binding and resetting, applied to a machine and to who is handed what there. The kernel itself
//! is not asked: nothing is open yet.

use protocol::extension::ResetMethod;
use vfio::topology::Driver;
use vfio::{GroupKind, Hierarchy, OwnReset, PciAddress};

use super::change::Change;
use super::obstacle::{Obstacle, Reason};

/// What one VM is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The VM's name.
    pub vm: String,
    /// The functions, each once, in the order in which they are handed over.
    pub functions: Vec<PciAddress>,
}

/// A reset that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkingReset {
    /// Of the function alone.
    Function(OwnReset),
    /// Of all functions of the slot or bus together.
    Hot,
}

/// The machine, and what each VM is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Situation {
    pub(super) hierarchy: Hierarchy,
    pub(super) assignments: Vec<Assignment>,
}

impl Situation {
    /// What a VM is handed.
    pub(super) fn handed_over(&self, vm: usize) -> &[PciAddress] {
        self.assignments.get(vm).map_or(&[], |assignment| &assignment.functions)
    }

    /// How a function is reset once `vm` has it, or everything that keeps it from that. Without a `wanted` method the order is
    /// the server's: the function's own reset, its slot's or bus's, and a mere power management reset last.
    pub(super) fn reset(
        &self,
        vm: usize,
        function: PciAddress,
        wanted: Option<ResetMethod>,
    ) -> Result<WorkingReset, Vec<Obstacle>> {
        let obstacles = self.binding(vm, function);
        if !obstacles.is_empty() {
            return Err(obstacles);
        }
        let own = self.hierarchy.own_reset(function);
        let hot = || self.hot_reset(vm, function);
        match (wanted, own) {
            (Some(ResetMethod::Function), None) => {
                Err(vec![Obstacle::new(function, Reason::NoFunctionReset)])
            }
            (Some(ResetMethod::Hot), _) | (None, None) => hot().map(|()| WorkingReset::Hot),
            (None, Some(OwnReset::PowerManagement)) if hot().is_ok() => Ok(WorkingReset::Hot),
            (Some(ResetMethod::Function) | None, Some(own)) => Ok(WorkingReset::Function(own)),
        }
    }

    /// Everything that keeps a function from being bound to the VM's iommufd.
    pub(super) fn binding(&self, vm: usize, function: PciAddress) -> Vec<Obstacle> {
        let Some(place) = self.hierarchy.place(function) else {
            return vec![Obstacle::new(function, Reason::NoSuchFunction)];
        };
        if place.is_bridge() {
            return vec![Obstacle::new(function, Reason::BridgeHandedOver)];
        }
        let mut obstacles = self.driver_obstacles(function);
        if !place.has_node && matches!(place.function.driver, Driver::Vfio { .. }) {
            obstacles.push(Obstacle::new(function, Reason::NoCdev));
        }
        let group = place.function.iommu_group;
        match group.and_then(|group| self.hierarchy.group(group)) {
            None => obstacles.push(Obstacle::new(function, Reason::NoIommu)),
            Some(GroupKind::NoIommu) => {}
            Some(GroupKind::Isolated { firmware_mapping }) => {
                if firmware_mapping {
                    obstacles.push(Obstacle::new(function, Reason::FirmwareMapping));
                }
                if !self.hierarchy.interrupts_allow_binding() {
                    obstacles.push(Obstacle::new(function, Reason::NoInterruptRemapping));
                }
                obstacles.extend(self.sibling_drivers(function));
            }
        }
        obstacles.extend(self.other_vm(vm, function));
        obstacles
    }

    /// Everything that keeps the slot or bus of a function from being reset.
    pub(super) fn hot_reset(&self, vm: usize, function: PciAddress) -> Result<(), Vec<Obstacle>> {
        let is_virtual = self.hierarchy.place(function).is_some_and(|place| place.function.is_virtual);
        let scope = self.hierarchy.reset_scope(function);
        let mut obstacles = Vec::new();
        if is_virtual {
            obstacles.push(Obstacle::new(function, Reason::VirtualFunction));
        } else if scope.affected().is_empty() {
            obstacles.push(Obstacle::new(function, Reason::NoSlotOrBusReset));
        } else {
            for affected in scope.affected() {
                let found = self.affected_obstacles(vm, function, *affected);
                let unknown: Vec<_> = found.into_iter().filter(|found| !obstacles.contains(found)).collect();
                obstacles.extend(unknown);
            }
        }
        if obstacles.is_empty() { Ok(()) } else { Err(obstacles) }
    }

    /// The VM that has a function or something of its IOMMU group, except `vm`.
    fn other_vm(&self, vm: usize, function: PciAddress) -> Option<Obstacle> {
        let others = self.assignments.iter().enumerate().filter(|(other, _)| *other != vm);
        let claims = others.filter_map(|(_, other)| Some((other, self.claim(other, function)?)));
        // Who has the function itself before who has others of its group.
        let (other, has) = claims.min_by_key(|(_, has)| *has != function)?;
        Some(Obstacle::new(function, Reason::OtherVm { vm: other.vm.clone(), has }))
    }

    /// What makes a function the VM's, so that nobody else can have it: that it is handed over, or something of its group is. A
    /// group that vfio made up for want of an IOMMU has one member, so that owning it owns nothing else.
    fn claim(&self, assignment: &Assignment, function: PciAddress) -> Option<PciAddress> {
        if assignment.functions.contains(&function) {
            return Some(function);
        }
        let group_of = |function| self.hierarchy.place(function).and_then(|place| place.function.iommu_group);
        let group = group_of(function)?;
        assignment.functions.iter().copied().find(|member| group_of(*member) == Some(group))
    }

    /// What makes a function `vm`'s, if anything does.
    pub(super) fn owning(&self, vm: usize, function: PciAddress) -> Option<PciAddress> {
        self.claim(self.assignments.get(vm)?, function)
    }

    /// What an affected function has against a hot reset of `asked`: the kernel's table of who is in the set and whose it is.
    fn affected_obstacles(&self, vm: usize, asked: PciAddress, affected: PciAddress) -> Vec<Obstacle> {
        let Some(place) = self.hierarchy.place(affected) else { return Vec::new() };
        let permanent = if place.is_bridge() {
            Some(Reason::Bridge)
        } else if place.function.is_virtual {
            Some(Reason::VirtualFunction)
        } else if !self.hierarchy.is_in_set_of(asked, affected) {
            Some(Reason::OtherScope)
        } else {
            None
        };
        if let Some(reason) = permanent {
            return vec![Obstacle::new(affected, reason)];
        }
        let mut obstacles = self.driver_obstacles(affected);
        match self.owning(vm, affected) {
            // It counts only if it can be bound.
            Some(claim) => {
                let unknown = self.binding(vm, claim).into_iter().filter(|found| !obstacles.contains(found));
                let unknown: Vec<_> = unknown.collect();
                obstacles.extend(unknown);
            }
            None => obstacles
                .push(self.other_vm(vm, affected).unwrap_or(Obstacle::new(affected, Reason::NotHandedOver))),
        }
        obstacles
    }

    /// That no VFIO driver has a function, and what is against one.
    fn driver_obstacles(&self, function: PciAddress) -> Vec<Obstacle> {
        let Some(place) = self.hierarchy.place(function) else { return Vec::new() };
        let reason = match &place.function.driver {
            Driver::Vfio { .. } => return Vec::new(),
            Driver::Kernel(driver) => Reason::KernelDriver(driver.clone()),
            Driver::None => Reason::NoDriver,
        };
        let has_virtual_functions = self.hierarchy.virtual_functions(function).next().is_some();
        let against = has_virtual_functions.then_some(Reason::HasVirtualFunctions);
        [Some(reason), against].into_iter().flatten().map(|reason| Obstacle::new(function, reason)).collect()
    }

    /// The other functions of the group whose drivers claim its DMA for the kernel.
    fn sibling_drivers(&self, function: PciAddress) -> impl Iterator<Item = Obstacle> {
        let group = self.hierarchy.place(function).and_then(|place| place.function.iommu_group);
        let members = group.into_iter().flat_map(|group| self.hierarchy.group_members(group));
        let siblings = members.filter(move |member| member.function.address != function);
        siblings.filter_map(|sibling| {
            let driver = sibling.function.driver.claimant()?.to_owned();
            Some(Obstacle::new(sibling.function.address, Reason::SiblingHasDriver(driver)))
        })
    }

    /// The situation is as it would be after a change for `vm`.
    pub(super) fn apply(&mut self, vm: usize, change: &Change) {
        match change {
            Change::Unbind { function, .. } => self.hierarchy.set_driver(*function, Driver::None),
            Change::Bind { function } => {
                let vfio = Driver::Vfio { name: "vfio-pci".into(), device: String::new() };
                self.hierarchy.set_driver(*function, vfio);
            }
            Change::HandOver { function } => {
                if let Some(assignment) = self.assignments.get_mut(vm) {
                    assignment.functions.push(*function);
                }
            }
        }
    }

    /// This situation with what it takes for a function of `vm` to be reset, and those changes.
    ///
    /// # Errors
    ///
    /// What no change removes.
    pub(super) fn repaired(
        &self,
        vm: usize,
        function: PciAddress,
        wanted: Option<ResetMethod>,
    ) -> Result<(Self, Vec<Change>), Vec<Obstacle>> {
        let (mut situation, mut changes) = (self.clone(), Vec::new());
        // Each change removes what it is made for and adds nothing that was not there, so that this ends.
        while let Err(obstacles) = situation.reset(vm, function, wanted) {
            let remedies: Vec<_> = obstacles.iter().filter_map(Obstacle::remedy).collect();
            if remedies.len() < obstacles.len() {
                return Err(obstacles.into_iter().filter(Obstacle::is_permanent).collect());
            }
            let Some(change) = remedies.first() else { return Err(obstacles) };
            situation.apply(vm, change);
            changes.push(change.clone());
        }
        Ok((situation, changes))
    }
}
