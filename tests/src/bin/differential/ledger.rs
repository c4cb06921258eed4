// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the director knows of who has what, from what it asked for and what that came to.
//!
//! It serves to aim: what is sensible next depends on it. It predicts nothing, so a mistake in it is no false result.

use std::collections::{BTreeMap, BTreeSet};

use vfio::PciAddress;

use crate::actor::Reply;
use crate::answer::Answer;
use crate::machine::Function;
use crate::name::{ActorName, CdevName, FileName, GroupName, HwptName, IoasName, IommufdName, TableName};
use crate::operation::{Operation, Step};

/// The processes that have a copy of an open file.
pub(crate) type Holders = BTreeSet<ActorName>;

/// An open cdev.
#[derive(Debug)]
pub(crate) struct Cdev {
    pub(crate) function: PciAddress,
    pub(crate) holders: Holders,
    pub(crate) binding: Option<Binding>,
}

/// A bound cdev.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) iommufd: IommufdName,
    /// What the kernel calls the device, for comparison.
    pub(crate) id: String,
    pub(crate) has_function_reset: bool,
    /// The process that bound the device, while it has it: only there more than copying and closing can be done with it.
    pub(crate) user: Option<ActorName>,
    pub(crate) attachment: Option<TableName>,
}

/// An open legacy group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) iommu_group: u32,
    pub(crate) holders: Holders,
}

/// An IOAS; known until nobody has its iommufd.
#[derive(Debug)]
pub(crate) struct Ioas {
    pub(crate) iommufd: IommufdName,
    /// What the kernel calls it, for whoever adopts it.
    pub(crate) id: u32,
    pub(crate) owner: Option<ActorName>,
    /// Other processes that have a handle of it, each with the iommufd that it was adopted in.
    pub(crate) adopters: BTreeMap<ActorName, IommufdName>,
    /// IOVA and length.
    pub(crate) mappings: BTreeMap<u64, u64>,
    /// Something mapped is in the way of a page table: nothing could be attached, and nothing was unmapped since.
    pub(crate) is_spoilt: bool,
}

/// A page table.
#[derive(Debug)]
pub(crate) struct Hwpt {
    pub(crate) iommufd: IommufdName,
    pub(crate) ioas: IoasName,
    pub(crate) owner: ActorName,
}

/// Who has what.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) actors: Vec<ActorName>,
    pub(crate) functions: Vec<Function>,
    pub(crate) iommufds: BTreeMap<IommufdName, Holders>,
    pub(crate) cdevs: BTreeMap<CdevName, Cdev>,
    pub(crate) groups: BTreeMap<GroupName, Group>,
    pub(crate) ioases: BTreeMap<IoasName, Ioas>,
    pub(crate) hwpts: BTreeMap<HwptName, Hwpt>,
    named: u32,
}

impl Ledger {
    /// Nobody has anything.
    pub(crate) fn new(actors: Vec<ActorName>, functions: Vec<Function>) -> Self {
        Self {
            actors,
            functions,
            iommufds: BTreeMap::new(),
            cdevs: BTreeMap::new(),
            groups: BTreeMap::new(),
            ioases: BTreeMap::new(),
            hwpts: BTreeMap::new(),
            named: 0,
        }
    }

    /// A number that nothing in this sequence has had yet.
    pub(crate) const fn fresh(&self) -> u32 {
        self.named + 1
    }

    pub(crate) fn function(&self, address: PciAddress) -> &Function {
        let found = self.functions.iter().find(|function| function.address == address);
        found.expect("a function of the machine")
    }

    /// The cdevs that a process can use, and how they are bound.
    pub(crate) fn used_by(&self, actor: ActorName) -> impl Iterator<Item = (CdevName, &Cdev, &Binding)> {
        self.cdevs.iter().filter_map(move |(name, cdev)| {
            let binding = cdev.binding.as_ref().filter(|binding| binding.user == Some(actor))?;
            Some((*name, cdev, binding))
        })
    }

    /// The IOASes that a process has a handle of, each with the iommufd it is used in.
    pub(crate) fn ioases_of(&self, actor: ActorName) -> impl Iterator<Item = (IoasName, IommufdName, &Ioas)> {
        self.ioases.iter().filter_map(move |(name, ioas)| {
            let owned = (ioas.owner == Some(actor)).then_some(ioas.iommufd);
            Some((*name, owned.or_else(|| ioas.adopters.get(&actor).copied())?, ioas))
        })
    }

    /// The page tables that a process made.
    pub(crate) fn hwpts_of(&self, actor: ActorName) -> impl Iterator<Item = (HwptName, &Hwpt)> {
        self.hwpts.iter().filter(move |(_, hwpt)| hwpt.owner == actor).map(|(name, hwpt)| (*name, hwpt))
    }

    /// Processes with a bound device and no IOAS to attach it to, each with the device's iommufd.
    pub(crate) fn without_ioas(&self) -> BTreeSet<(ActorName, IommufdName)> {
        let bindings = self.cdevs.values().filter_map(|cdev| cdev.binding.as_ref());
        let used = bindings.filter_map(|binding| Some((binding.user?, binding.iommufd)));
        let has_iommufd = |actor, iommufd| {
            self.iommufds.get(&iommufd).is_some_and(|holders: &Holders| holders.contains(&actor))
        };
        let has_ioas = |actor, iommufd| self.ioases_of(actor).any(|(_, used_in, _)| used_in == iommufd);
        used.filter(|(actor, iommufd)| has_iommufd(*actor, *iommufd) && !has_ioas(*actor, *iommufd)).collect()
    }

    /// The files a process has copies of.
    pub(crate) fn files_of(&self, actor: ActorName) -> Vec<FileName> {
        let held = |holders: &Holders| holders.contains(&actor);
        let iommufds = self.iommufds.iter().filter(|(_, holders)| held(holders));
        let cdevs = self.cdevs.iter().filter(|(_, cdev)| held(&cdev.holders));
        let groups = self.groups.iter().filter(|(_, group)| held(&group.holders));
        iommufds
            .map(|(name, _)| FileName::Iommufd(*name))
            .chain(cdevs.map(|(name, _)| FileName::Cdev(*name)))
            .chain(groups.map(|(name, _)| FileName::Group(*name)))
            .collect()
    }

    /// The bound devices of an IOMMU group.
    pub(crate) fn bound_in(&self, iommu_group: u32) -> impl Iterator<Item = &Binding> {
        let members =
            self.cdevs.values().filter(move |cdev| self.function(cdev.function).iommu_group == iommu_group);
        members.filter_map(|cdev| cdev.binding.as_ref())
    }

    /// Whether anybody has the function's cdev open, so that taking its driver away would wait.
    pub(crate) fn is_open(&self, function: PciAddress) -> bool {
        self.cdevs.values().any(|cdev| cdev.function == function)
    }

    /// The bound device that an iommufd knows by this id.
    pub(crate) fn device(&self, iommufd: IommufdName, id: &str) -> Option<(CdevName, &Cdev)> {
        let mut cdevs = self.cdevs.iter().map(|(name, cdev)| (*name, cdev));
        cdevs.find(|(_, cdev)| {
            cdev.binding.as_ref().is_some_and(|binding| binding.iommufd == iommufd && binding.id == id)
        })
    }

    /// Notes what a step has changed.
    pub(crate) fn record(&mut self, step: &Step, reply: &Reply) {
        match (step, reply) {
            (step, Ok(answer)) => self.record_success(step, answer),
            // An object that could not be destroyed goes on without an owner.
            (Step::Act(actor, Operation::DropIoas(name)), Err(_)) => self.drop_ioas(*name, *actor),
            (Step::Act(_, Operation::DropHwpt(name)), Err(_)) => drop(self.hwpts.remove(name)),
            (
                Step::Act(
                    _,
                    Operation::Attach(_, TableName::Ioas(name)) | Operation::AllocateHwpt(_, name, _),
                ),
                Err(_),
            ) => self.ioas_mut(*name).is_spoilt = true,
            _ => {}
        }
    }

    fn record_success(&mut self, step: &Step, answer: &Answer) {
        match step {
            Step::Act(actor, operation) => self.record_operation(*actor, operation, answer),
            Step::Hand { file, to, .. } => drop(self.holders_mut(*file).insert(*to)),
            Step::Kill(actor) => {
                for file in self.files_of(*actor) {
                    self.close(file, *actor);
                }
            }
            Step::BindDriver { function, .. } | Step::UnbindDriver { function } => {
                let Answer::Driver(driver) = answer else { unreachable!("the answer is who drives it") };
                let mut functions = self.functions.iter_mut();
                let found = functions.find(|found| found.address == *function).expect("a function");
                found.driver = driver.clone();
            }
        }
    }

    fn record_operation(&mut self, actor: ActorName, operation: &Operation, answer: &Answer) {
        match (operation, answer) {
            (Operation::OpenIommufd(name), _) => {
                self.named = name.0;
                self.iommufds.insert(*name, [actor].into());
            }
            (Operation::OpenCdev(name, function), _) => {
                self.named = name.0;
                let cdev = Cdev { function: *function, holders: [actor].into(), binding: None };
                self.cdevs.insert(*name, cdev);
            }
            (Operation::OpenGroup(name, function), _) => {
                self.named = name.0;
                let iommu_group = self.function(*function).iommu_group;
                self.groups.insert(*name, Group { iommu_group, holders: [actor].into() });
            }
            (Operation::Bind(cdev, iommufd), Answer::Bound { id, has_function_reset, .. }) => {
                self.cdev_mut(*cdev).binding = Some(Binding {
                    iommufd: *iommufd,
                    id: id.clone(),
                    has_function_reset: *has_function_reset,
                    user: Some(actor),
                    attachment: None,
                });
            }
            (Operation::Release(cdev), _) => self.binding_mut(*cdev).user = None,
            (Operation::Close(file), _) => self.close(*file, actor),
            (Operation::AllocateIoas(name, iommufd), Answer::Allocated { id }) => {
                self.named = name.0;
                let (adopters, mappings) = (BTreeMap::new(), BTreeMap::new());
                let (owner, is_spoilt) = (Some(actor), false);
                let ioas = Ioas { iommufd: *iommufd, id: *id, owner, adopters, mappings, is_spoilt };
                self.ioases.insert(*name, ioas);
            }
            (Operation::AdoptIoas { ioas, iommufd, .. }, _) => {
                self.ioas_mut(*ioas).adopters.insert(actor, *iommufd);
            }
            (Operation::DropIoas(name), _) => self.drop_ioas(*name, actor),
            (Operation::AllocateHwpt(name, ioas, _), _) => {
                self.named = name.0;
                let handle = self.ioases_of(actor).find(|(handle, ..)| handle == ioas);
                let iommufd = handle.map(|(_, iommufd, _)| iommufd).expect("the process has it");
                self.hwpts.insert(*name, Hwpt { iommufd, ioas: *ioas, owner: actor });
            }
            (Operation::DropHwpt(name), _) => drop(self.hwpts.remove(name)),
            (Operation::Attach(cdev, table), _) => self.attach(*cdev, *table),
            (Operation::Detach(cdev), _) => self.binding_mut(*cdev).attachment = None,
            (Operation::Map { ioas, iova, length, .. }, _) => {
                self.ioas_mut(*ioas).mappings.insert(*iova, *length);
            }
            (Operation::Unmap { ioas, iova, length }, _) => {
                let end = iova.saturating_add(*length);
                let ioas = self.ioas_mut(*ioas);
                ioas.is_spoilt = false;
                ioas.mappings.retain(|start, length| start < iova || start.saturating_add(*length) > end);
            }
            _ => {}
        }
    }

    /// An attachment goes for every attached function of the IOMMU group.
    fn attach(&mut self, name: CdevName, table: TableName) {
        let iommu_group = self.function(self.cdevs[&name].function).iommu_group;
        for (other, cdev) in &mut self.cdevs {
            let function = self.functions.iter().find(|function| function.address == cdev.function);
            let is_in_group = function.is_some_and(|function| function.iommu_group == iommu_group);
            let Some(binding) = cdev.binding.as_mut().filter(|_| is_in_group) else { continue };
            if *other == name || binding.attachment.is_some() {
                binding.attachment = Some(table);
            }
        }
    }

    fn drop_ioas(&mut self, name: IoasName, actor: ActorName) {
        let ioas = self.ioas_mut(name);
        if ioas.owner == Some(actor) {
            ioas.owner = None;
        } else {
            ioas.adopters.remove(&actor);
        }
    }

    fn close(&mut self, file: FileName, actor: ActorName) {
        match file {
            FileName::Iommufd(name) => self.close_iommufd(name, actor),
            FileName::Cdev(name) => {
                let cdev = self.cdev_mut(name);
                cdev.holders.remove(&actor);
                if let Some(binding) = &mut cdev.binding
                    && binding.user == Some(actor)
                {
                    binding.user = None;
                }
                self.cdevs.retain(|_, cdev| !cdev.holders.is_empty());
            }
            FileName::Group(_) => {
                self.holders_mut(file).remove(&actor);
                self.groups.retain(|_, group| !group.holders.is_empty());
            }
        }
    }

    fn close_iommufd(&mut self, name: IommufdName, actor: ActorName) {
        self.holders_mut(FileName::Iommufd(name)).remove(&actor);
        self.hwpts.retain(|_, hwpt| hwpt.iommufd != name || hwpt.owner != actor);
        for ioas in self.ioases.values_mut() {
            if ioas.iommufd == name && ioas.owner == Some(actor) {
                ioas.owner = None;
            }
            ioas.adopters.retain(|adopter, iommufd| *adopter != actor || *iommufd != name);
        }
        self.iommufds.retain(|_, holders| !holders.is_empty());
        let iommufds = &self.iommufds;
        self.ioases.retain(|_, ioas| iommufds.contains_key(&ioas.iommufd) || !ioas.adopters.is_empty());
    }

    fn holders_mut(&mut self, file: FileName) -> &mut Holders {
        let holders = match file {
            FileName::Iommufd(name) => self.iommufds.get_mut(&name),
            FileName::Cdev(name) => self.cdevs.get_mut(&name).map(|cdev| &mut cdev.holders),
            FileName::Group(name) => self.groups.get_mut(&name).map(|group| &mut group.holders),
        };
        holders.expect("an open file")
    }

    fn cdev_mut(&mut self, name: CdevName) -> &mut Cdev {
        self.cdevs.get_mut(&name).expect("an open cdev")
    }

    fn binding_mut(&mut self, name: CdevName) -> &mut Binding {
        self.cdev_mut(name).binding.as_mut().expect("a bound cdev")
    }

    fn ioas_mut(&mut self, name: IoasName) -> &mut Ioas {
        self.ioases.get_mut(&name).expect("an IOAS")
    }
}
