// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steps of each kind that are possible now.
//!
//! A sensible one probably succeeds. A doubtful one is every other that is possible, which is to say that the process has
//! what it uses. No step waits for another process, as taking the driver of an open function away would. And only the
//! owner of an IOAS maps: some kernels map the memory of the process that asks, and what comes of that when a process that
//! only adopted the IOAS lets go of it depends on where its memory was.

use std::collections::BTreeSet;

use vfio::config_space::command;

use crate::generator::Plan;
use crate::ledger::{Binding, Cdev, Ledger};
use crate::machine::{DrivenBy, Function};
use crate::mapping::{self, Mapping};
use crate::name::{ActorName, CdevName, FileName, GroupName, HwptName, IoasName, IommufdName, TableName};
use crate::operation::{Operation, Step};
use crate::random::Random;

/// Limits on what is open at once, which keep sequences about few things. Cdevs: more than there are functions.
const SPARE_CDEVS: usize = 4;
const MAX_GROUPS: usize = 3;
const MAX_IOASES: usize = 2;

/// What to write to the command register.
const COMMANDS: [u16; 5] = [
    0,
    command::MEMORY,
    command::BUS_MASTER,
    command::MEMORY | command::BUS_MASTER,
    command::MEMORY | command::INTX_DISABLE,
];

/// How a step is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Sensible,
    Doubtful,
}

/// The candidates of one draw.
pub(crate) struct Candidates<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) ledger: &'a Ledger,
    pub(crate) manner: Manner,
    pub(crate) random: &'a mut Random,
}

impl<'a> Candidates<'a> {
    /// Whether a step is one of those asked for.
    fn is_wanted(&self, is_sensible: bool) -> bool {
        is_sensible == (self.manner == Manner::Sensible)
    }

    /// One step for each process and function that are fit for it.
    fn with_functions(&self, operation: impl Fn(ActorName, &Function) -> Option<Operation>) -> Vec<Step> {
        let mut steps = Vec::new();
        for actor in &self.ledger.actors {
            let functions = self.ledger.functions.iter();
            let operations = functions.filter_map(|function| operation(*actor, function));
            steps.extend(operations.map(|operation| Step::Act(*actor, operation)));
        }
        steps
    }

    /// Every bound device with the process that can use it.
    fn devices(&self) -> Vec<(ActorName, CdevName, &'a Cdev, &'a Binding)> {
        let devices_of = |actor: &ActorName| {
            let actor = *actor;
            self.ledger.used_by(actor).map(move |(name, cdev, binding)| (actor, name, cdev, binding))
        };
        self.ledger.actors.iter().flat_map(devices_of).collect()
    }

    /// One step for each bound device that is fit for it.
    fn with_devices(
        &self,
        fit: impl Fn(&Cdev, &Binding) -> bool,
        operation: impl Fn(CdevName) -> Operation,
    ) -> Vec<Step> {
        let devices = self.devices().into_iter().filter(|(_, _, cdev, binding)| fit(cdev, binding));
        devices.map(|(actor, name, ..)| Step::Act(actor, operation(name))).collect()
    }

    /// One step for each file that each process has.
    fn with_files(&self, step: impl Fn(ActorName, FileName) -> Option<Step>) -> Vec<Step> {
        let mut steps = Vec::new();
        for actor in &self.ledger.actors {
            steps.extend(self.ledger.files_of(*actor).into_iter().filter_map(|file| step(*actor, file)));
        }
        steps
    }

    fn has_iommufd(&self, actor: ActorName) -> bool {
        self.ledger.iommufds.values().any(|holders| holders.contains(&actor))
    }

    /// A sensible one is a process's first.
    pub(crate) fn open_iommufd(self) -> Vec<Step> {
        if self.ledger.iommufds.len() >= self.plan.contexts {
            return Vec::new();
        }
        let actors = self.ledger.actors.iter().filter(|actor| self.is_wanted(!self.has_iommufd(**actor)));
        let name = IommufdName(self.ledger.fresh());
        actors.map(|actor| Step::Act(*actor, Operation::OpenIommufd(name))).collect()
    }

    /// A sensible one is of a function that nobody has open, by a process that could bind it.
    pub(crate) fn open_cdev(self) -> Vec<Step> {
        if self.ledger.cdevs.len() >= self.ledger.functions.len() + SPARE_CDEVS {
            return Vec::new();
        }
        let name = CdevName(self.ledger.fresh());
        self.with_functions(|actor, function| {
            let is_free = function.driver == DrivenBy::Vfio && !self.ledger.is_open(function.address);
            self.is_wanted(is_free && self.has_iommufd(actor))
                .then_some(Operation::OpenCdev(name, function.address))
        })
    }

    /// A sensible one is of a group that nobody uses.
    pub(crate) fn open_group(self) -> Vec<Step> {
        if self.ledger.groups.len() >= MAX_GROUPS {
            return Vec::new();
        }
        let name = GroupName(self.ledger.fresh());
        self.with_functions(|_, function| {
            let number = function.iommu_group;
            let is_bound = self.ledger.bound_in(number).next().is_some();
            let is_open = self.ledger.groups.values().any(|group| group.iommu_group == number);
            self.is_wanted(function.driver == DrivenBy::Vfio && !is_bound && !is_open)
                .then_some(Operation::OpenGroup(name, function.address))
        })
    }

    /// A sensible one is what a VMM hands to a server; a doubtful one is in use already.
    pub(crate) fn hand(self) -> Vec<Step> {
        let is_fit = |file| {
            self.is_wanted(match file {
                FileName::Iommufd(_) => true,
                FileName::Cdev(name) => self.ledger.cdevs[&name].binding.is_none(),
                FileName::Group(_) => false,
            })
        };
        let mut steps = Vec::new();
        for to in &self.ledger.actors {
            let has = self.ledger.files_of(*to);
            steps.extend(self.with_files(|from, file| {
                (!has.contains(&file) && is_fit(file)).then_some(Step::Hand { file, from, to: *to })
            }));
        }
        steps
    }

    /// A sensible one meets no other owner of the group and nobody who has it open.
    pub(crate) fn bind(self) -> Vec<Step> {
        self.binds(|cdev, iommufd| {
            let number = self.ledger.function(cdev.function).iommu_group;
            let mut functions = self.ledger.functions.iter();
            let is_kernels = functions.any(|other| other.iommu_group == number && other.has_kernel_driver());
            let is_foreign = self.ledger.bound_in(number).any(|binding| binding.iommufd != iommufd);
            let is_open = self.ledger.groups.values().any(|group| group.iommu_group == number);
            !self.is_bound(cdev) && self.is_wanted(!is_kernels && !is_foreign && !is_open)
        })
    }

    /// Binds what is bound, by this open file or another.
    pub(crate) fn bind_again(self) -> Vec<Step> {
        self.binds(|cdev, _| self.is_bound(cdev))
    }

    fn is_bound(&self, cdev: &Cdev) -> bool {
        let mut files = self.ledger.cdevs.values();
        files.any(|file| file.function == cdev.function && file.binding.is_some())
    }

    /// A cdev and an iommufd that are fit for each other, by each process that has both.
    fn binds(&self, fit: impl Fn(&Cdev, IommufdName) -> bool) -> Vec<Step> {
        let mut steps = Vec::new();
        for (name, cdev) in &self.ledger.cdevs {
            for (iommufd, holders) in &self.ledger.iommufds {
                if fit(cdev, *iommufd) {
                    let actors = cdev.holders.intersection(holders);
                    steps.extend(actors.map(|actor| Step::Act(*actor, Operation::Bind(*name, *iommufd))));
                }
            }
        }
        steps
    }

    pub(crate) fn release(self) -> Vec<Step> {
        self.with_devices(|_, _| true, Operation::Release)
    }

    pub(crate) fn close(self) -> Vec<Step> {
        self.with_files(|actor, file| Some(Step::Act(actor, Operation::Close(file))))
    }

    /// For a device that waits for one, if there is any.
    pub(crate) fn allocate_ioas(self) -> Vec<Step> {
        let count = |iommufd: &IommufdName| {
            self.ledger
                .ioases
                .values()
                .filter(|ioas| ioas.iommufd == *iommufd && ioas.owner.is_some())
                .count()
        };
        let name = IoasName(self.ledger.fresh());
        let waiting = self.ledger.without_ioas();
        self.with_files(|actor, file| {
            let FileName::Iommufd(iommufd) = file else { return None };
            let is_fit = if waiting.is_empty() {
                count(&iommufd) < MAX_IOASES
            } else {
                waiting.contains(&(actor, iommufd))
            };
            is_fit.then_some(Step::Act(actor, Operation::AllocateIoas(name, iommufd)))
        })
    }

    /// A sensible one is somebody else's of the same iommufd; a doubtful one is gone, or of another iommufd.
    pub(crate) fn adopt_ioas(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (name, ioas) in &self.ledger.ioases {
            steps.extend(self.with_files(|actor, file| {
                let FileName::Iommufd(iommufd) = file else { return None };
                let has = ioas.owner == Some(actor) || ioas.adopters.contains_key(&actor);
                let is_sensible = ioas.iommufd == iommufd && ioas.owner.is_some();
                let operation = Operation::AdoptIoas { ioas: *name, iommufd, id: ioas.id };
                (!has && self.is_wanted(is_sensible)).then_some(Step::Act(actor, operation))
            }));
        }
        steps
    }

    /// Every handle of an IOAS: who has it, its name, the iommufd it is used in.
    fn ioases(&self) -> Vec<(ActorName, IoasName, IommufdName)> {
        let ioases_of = |actor: &ActorName| {
            let actor = *actor;
            self.ledger.ioases_of(actor).map(move |(name, iommufd, _)| (actor, name, iommufd))
        };
        self.ledger.actors.iter().flat_map(ioases_of).collect()
    }

    /// A sensible one is in no use.
    pub(crate) fn drop_ioas(self) -> Vec<Step> {
        let used: BTreeSet<_> = self.ledger.hwpts.values().map(|hwpt| hwpt.ioas).collect();
        let attached = self.attached();
        let is_used = |name| used.contains(&name) || attached.contains(&TableName::Ioas(name));
        let ioases = self.ioases().into_iter();
        let fit = ioases.filter(|(_, name, _)| self.is_wanted(!is_used(*name)));
        fit.map(|(actor, name, _)| Step::Act(actor, Operation::DropIoas(name))).collect()
    }

    fn attached(&self) -> BTreeSet<TableName> {
        let bindings = self.ledger.cdevs.values().filter_map(|cdev| cdev.binding.as_ref());
        bindings.filter_map(|binding| binding.attachment).collect()
    }

    pub(crate) fn allocate_hwpt(self) -> Vec<Step> {
        let name = HwptName(self.ledger.fresh());
        let mut steps = Vec::new();
        for (actor, cdev, _, binding) in self.devices() {
            for (ioas, iommufd, state) in self.ledger.ioases_of(actor) {
                if self.is_wanted(iommufd == binding.iommufd && !state.is_spoilt) {
                    steps.push(Step::Act(actor, Operation::AllocateHwpt(name, ioas, cdev)));
                }
            }
        }
        steps
    }

    /// A sensible one has nothing attached.
    pub(crate) fn drop_hwpt(self) -> Vec<Step> {
        let attached = self.attached();
        let hwpts = self.ledger.hwpts.iter();
        let fit = hwpts.filter(|(name, _)| self.is_wanted(!attached.contains(&TableName::Hwpt(**name))));
        fit.map(|(name, hwpt)| Step::Act(hwpt.owner, Operation::DropHwpt(*name))).collect()
    }

    /// A sensible one stays within the iommufd, does not part an IOMMU group that is attached, and has not failed before.
    pub(crate) fn attach(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (actor, name, cdev, binding) in self.devices() {
            let iommu_group = self.ledger.function(cdev.function).iommu_group;
            let siblings: Vec<_> =
                self.ledger.bound_in(iommu_group).filter_map(|binding| binding.attachment).collect();
            let ioases = self.ledger.ioases_of(actor);
            let ioases = ioases.map(|(name, iommufd, ioas)| (TableName::Ioas(name), iommufd, ioas.is_spoilt));
            let hwpts = self.ledger.hwpts_of(actor);
            let hwpts = hwpts.map(|(name, hwpt)| (TableName::Hwpt(name), hwpt.iommufd, false));
            for (table, iommufd, is_spoilt) in ioases.chain(hwpts) {
                let is_apart = binding.attachment.is_none() && siblings.iter().any(|other| *other != table);
                if self.is_wanted(iommufd == binding.iommufd && !is_apart && !is_spoilt) {
                    steps.push(Step::Act(actor, Operation::Attach(name, table)));
                }
            }
        }
        steps
    }

    pub(crate) fn detach(self) -> Vec<Step> {
        self.with_devices(|_, binding| self.is_wanted(binding.attachment.is_some()), Operation::Detach)
    }

    /// A sensible mapping lies where nothing is mapped and everything can be.
    pub(crate) fn map(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for actor in &self.ledger.actors {
            for (ioas, _, state) in self.ledger.ioases_of(*actor) {
                if state.owner != Some(*actor) {
                    continue;
                }
                let drawn = match self.manner {
                    Manner::Sensible => mapping::sensible(self.random, &state.mappings),
                    Manner::Doubtful => Some(mapping::doubtful(self.random, &state.mappings)),
                };
                steps.extend(drawn.map(|Mapping { start, length, iova, writable }| {
                    Step::Act(*actor, Operation::Map { ioas, start, length, iova, writable })
                }));
            }
        }
        steps
    }

    /// A sensible one is of one whole mapping.
    pub(crate) fn unmap(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (actor, ioas, _) in self.ioases() {
            let mappings = &self.ledger.ioases[&ioas].mappings;
            let drawn = match self.manner {
                Manner::Sensible => mapping::mapped(self.random, mappings),
                Manner::Doubtful => mapping::doubtful_range(self.random, mappings),
            };
            steps.extend(
                drawn.map(|(iova, length)| Step::Act(actor, Operation::Unmap { ioas, iova, length })),
            );
        }
        steps
    }

    pub(crate) fn iova_ranges(self) -> Vec<Step> {
        let ioases = self.ioases().into_iter();
        ioases.map(|(actor, name, _)| Step::Act(actor, Operation::IovaRanges(name))).collect()
    }

    pub(crate) fn hot_reset_info(self) -> Vec<Step> {
        self.with_devices(|_, _| true, Operation::HotResetInfo)
    }

    /// A sensible one has every function of its bus in a group of ours.
    pub(crate) fn hot_reset(self) -> Vec<Step> {
        let is_ours = |function: &Function, iommufd| {
            let mut devices = self.ledger.bound_in(function.iommu_group);
            function.driver == DrivenBy::Vfio && devices.any(|device| device.iommufd == iommufd)
        };
        let fit = |cdev: &Cdev, binding: &Binding| {
            let mut functions = self.ledger.functions.iter();
            functions.all(|function| {
                !function.address.is_on_bus_of(cdev.function) || is_ours(function, binding.iommufd)
            })
        };
        self.with_devices(|cdev, binding| self.is_wanted(fit(cdev, binding)), Operation::HotReset)
    }

    pub(crate) fn reset(self) -> Vec<Step> {
        self.with_devices(|_, binding| self.is_wanted(binding.has_function_reset), Operation::Reset)
    }

    pub(crate) fn read_command(self) -> Vec<Step> {
        self.with_devices(|_, _| true, Operation::ReadCommand)
    }

    pub(crate) fn write_command(self) -> Vec<Step> {
        let value = self.random.pick(&COMMANDS);
        self.with_devices(|_, _| true, |cdev| Operation::WriteCommand(cdev, value))
    }

    pub(crate) fn read_bar(self) -> Vec<Step> {
        self.with_devices(|_, _| true, Operation::ReadBar)
    }

    pub(crate) fn kill(self) -> Vec<Step> {
        let actors = self.ledger.actors.iter();
        let fit = actors.filter(|actor| !self.ledger.files_of(**actor).is_empty());
        fit.map(|actor| Step::Kill(*actor)).collect()
    }

    /// Of functions without one.
    pub(crate) fn bind_driver(self) -> Vec<Step> {
        let functions = self.ledger.functions.iter();
        let driverless = functions.filter(|function| function.driver == DrivenBy::Nobody);
        let steps = driverless.flat_map(|function| {
            let address = function.address;
            function.drivers.iter().map(move |driver| Step::BindDriver { function: address, driver })
        });
        steps.collect()
    }

    /// Of functions that have one and that nobody has open.
    pub(crate) fn unbind_driver(self) -> Vec<Step> {
        let functions = self.ledger.functions.iter();
        let fit = functions
            .filter(|function| function.driver != DrivenBy::Nobody && !self.ledger.is_open(function.address));
        fit.map(|function| Step::UnbindDriver { function: function.address }).collect()
    }
}
