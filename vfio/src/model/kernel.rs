// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The modelled kernel: open files, the functions and contexts behind them, and the system calls on them. Nothing here
//! waits: what takes time, or a lock, is for [`super::process`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::ioctl;
use crate::model::argument::Argument;
use crate::model::decision::Rules;
use crate::model::iommufd::{Caller, Context, LockedMemory};
use crate::model::legacy_group::{self, Container, Group};
use crate::model::pci_function::PciFunction;
use crate::model::sysfs;
use crate::model::system_call::{Given, IoctlRequest, Named, Return, backing, backing_offset};
use crate::model::topology::{KernelVersion, Topology};
use crate::model::wire::{Call, MAX_DATA};
use crate::pci_address::PciAddress;
use crate::topology::DeviceNumber;

/// An open file description: what all copies of a descriptor share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId(u64);

/// An iommufd context, which outlives its file while devices are bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContextId(u64);

/// A node of the modelled `/dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/GROUP`.
    Group(u32),
    /// `/dev/vfio/devices/vfioMINOR`.
    Cdev(u32),
}

impl Node {
    /// Its device number. The major numbers of VFIO are given out when it is loaded, as these were once.
    pub(crate) const fn number(self) -> DeviceNumber {
        match self {
            Self::Iommufd => sysfs::IOMMU,
            Self::Container => DeviceNumber { major: 10, minor: 196 },
            Self::Group(group) => DeviceNumber { major: 242, minor: group },
            Self::Cdev(minor) => DeviceNumber { major: 511, minor },
        }
    }
}

/// What is behind an open file.
#[derive(Debug)]
pub(crate) enum OpenFile {
    Iommufd(ContextId),
    Container(Container),
    /// A group opened the legacy way. The state is with the group: there is one open file of it at most.
    Group(u32),
    /// A group whose last VFIO driver has gone meanwhile: it is nothing any more, and its node is another one's.
    FormerGroup,
    /// A cdev, and its number.
    Cdev {
        function: PciAddress,
        minor: u32,
        is_bound: bool,
    },
    /// A device that its group's file gave.
    GroupDevice(PciAddress),
}

/// The kernel and the devices it drives.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(super) topology: Topology,
    pub(super) functions: BTreeMap<PciAddress, PciFunction>,
    pub(super) groups: BTreeMap<u32, Group>,
    pub(super) files: BTreeMap<FileId, OpenFile>,
    pub(super) contexts: BTreeMap<ContextId, Context>,
    pub(super) locked: LockedMemory,
    pub(super) rules: Rules,
    /// BAR accesses that last, and so keep a hot reset from beginning.
    pub(super) busy: BTreeSet<PciAddress>,
    next_file: u64,
    next_context: u64,
}

impl Kernel {
    /// A machine that has just started.
    ///
    /// # Errors
    ///
    /// That of making the files behind the BARs of its functions.
    pub(crate) fn new(topology: Topology) -> Result<Self, Errno> {
        let mut kernel = Self {
            functions: BTreeMap::new(),
            groups: BTreeMap::new(),
            files: BTreeMap::new(),
            contexts: BTreeMap::new(),
            locked: LockedMemory::default(),
            rules: Rules::default(),
            busy: BTreeSet::new(),
            next_file: 0,
            next_context: 0,
            topology,
        };
        for endpoint in kernel.topology.functions.clone() {
            kernel.plug(&endpoint)?;
        }
        Ok(kernel)
    }

    pub(super) fn version(&self) -> KernelVersion {
        self.topology.kernel
    }

    /// What can be opened now.
    pub(crate) fn nodes(&self) -> BTreeSet<Node> {
        let drivable = self.functions.values().filter(|function| function.is_registered());
        let with_node = drivable.clone().filter(|function| self.has_node(function));
        let cdevs = with_node.filter_map(|function| function.cdev).map(Node::Cdev);
        let groups = drivable.filter_map(PciFunction::iommu_group).map(Node::Group);
        [Node::Iommufd, Node::Container].into_iter().chain(cdevs).chain(groups).collect()
    }

    /// `open`.
    pub(crate) fn open(&mut self, node: Node) -> Result<FileId, Errno> {
        let file = match node {
            Node::Iommufd => {
                let context = ContextId(self.next_context);
                self.next_context += 1;
                self.contexts.insert(context, Context::new(self.version()));
                OpenFile::Iommufd(context)
            }
            Node::Container => OpenFile::Container(Container::default()),
            Node::Group(group) => self.open_group(group)?,
            Node::Cdev(minor) => {
                OpenFile::Cdev { function: self.function_of_cdev(minor)?, minor, is_bound: false }
            }
        };
        Ok(self.install(file))
    }

    pub(super) fn install(&mut self, file: OpenFile) -> FileId {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.files.insert(id, file);
        id
    }

    fn function_of_cdev(&self, minor: u32) -> Result<PciAddress, Errno> {
        let mut functions = self.functions.iter();
        let found = functions.find(|(_, function)| function.is_registered() && function.cdev == Some(minor));
        found.map(|(address, _)| *address).ok_or(Errno::NODEV)
    }

    /// The last copy of a descriptor was closed.
    pub(crate) fn close(&mut self, id: FileId) {
        match self.files.remove(&id) {
            Some(OpenFile::Cdev { function, is_bound: true, .. }) => self.release_device(function),
            Some(OpenFile::GroupDevice(function)) => self.close_group_device(function),
            Some(OpenFile::Group(group)) => self.close_group(group),
            Some(
                OpenFile::Iommufd(_) | OpenFile::Container(_) | OpenFile::FormerGroup | OpenFile::Cdev { .. },
            )
            | None => {}
        }
        self.drop_unused_contexts();
    }

    /// A context lives as long as a file of it, a device bound to it or a group that uses it.
    pub(super) fn drop_unused_contexts(&mut self) {
        let of_files = self.files.values().filter_map(|file| match file {
            OpenFile::Iommufd(context) => Some(*context),
            _ => None,
        });
        let of_devices = self.functions.values().filter_map(PciFunction::context);
        let of_groups = self.groups.values().filter_map(Group::context);
        let used: BTreeSet<_> = of_files.chain(of_devices).chain(of_groups).collect();
        for (_, context) in self.contexts.extract_if(.., |id, _| !used.contains(id)) {
            context.close(&mut self.locked);
        }
    }

    /// Carries out a system call. One that takes time has taken it already.
    pub(crate) fn call(
        &mut self,
        file: FileId,
        call: Call,
        mut data: Vec<u8>,
        named: Vec<Named>,
        caller: &Caller,
    ) -> Return {
        match call {
            Call::Identify => self.identify(file).into(),
            Call::Ioctl(number) => {
                let mut beyond = Vec::new();
                let backing_offset = backing_offset(number, &mut data);
                let request = IoctlRequest { number, named, backing_offset, caller };
                let outcome = self.ioctl(file, request, &mut Argument(&mut data), &mut beyond);
                // What the kernel wrote counts for an error as well.
                data.append(&mut beyond);
                let (outcome, given) = match outcome {
                    Ok(Answer { value, file }) => (Ok(value), file.map(Given::File)),
                    Err(errno) => (Err(errno), None),
                };
                Return { outcome, data, given }
            }
            Call::Read(position, length) => self.read(file, position, length).into(),
            Call::Write(position) => {
                let outcome = self.write(file, position, &data);
                Return { outcome, data: Vec::new(), given: None }
            }
            Call::Map(position, length) => self.map(file, position, length),
        }
    }

    fn identify(&self, file: FileId) -> Result<Vec<u8>, Errno> {
        let node = match self.files.get(&file).ok_or(Errno::BADF)? {
            OpenFile::Iommufd(_) => Node::Iommufd,
            OpenFile::Container(_) => Node::Container,
            OpenFile::Group(group) => Node::Group(*group),
            OpenFile::Cdev { minor, .. } => Node::Cdev(*minor),
            // Whoever has it knows what it was; an anonymous file has no device number.
            OpenFile::FormerGroup | OpenFile::GroupDevice(_) => return Err(Errno::NOTTY),
        };
        let DeviceNumber { major, minor } = node.number();
        Ok([major, minor].into_iter().flat_map(u32::to_ne_bytes).collect())
    }

    fn ioctl(
        &mut self,
        file: FileId,
        request: IoctlRequest<'_>,
        argument: &mut Argument<'_>,
        beyond: &mut Vec<u8>,
    ) -> Result<Answer, Errno> {
        let IoctlRequest { number, named, backing_offset, caller } = request;
        match self.files.get(&file).ok_or(Errno::BADF)? {
            OpenFile::Iommufd(context) => {
                let backing = backing(named, backing_offset)?;
                let context = self.contexts.get_mut(context).ok_or(Errno::BADF)?;
                context
                    .ioctl(number, argument, backing, beyond, caller, &mut self.locked)
                    .map(|()| Answer::default())
            }
            OpenFile::Container(_) => self.container_ioctl(file, number, argument).map(Answer::value),
            OpenFile::Group(group) => self.group_ioctl(*group, number, argument, &named),
            OpenFile::FormerGroup => Err(legacy_group::former(number)),
            OpenFile::Cdev { function, is_bound: false, .. } => {
                let function = *function;
                // Before it is bound, a device knows nothing else, not even that something is unknown.
                if number != ioctl::DEVICE_BIND_IOMMUFD.number {
                    return Err(Errno::INVAL);
                }
                self.bind_device(file, function, argument, &named).map(Answer::value)
            }
            OpenFile::Cdev { function, .. } | OpenFile::GroupDevice(function) => {
                let function = *function;
                self.device_ioctl(file, function, number, argument, named).map(Answer::value)
            }
        }
    }

    fn read(&mut self, file: FileId, position: u64, length: u64) -> Result<Vec<u8>, Errno> {
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?.min(MAX_DATA);
        let function = self.accessed_function(file)?;
        let mut data = vec![0; length];
        let count = function.hardware.read(position, &mut data)?;
        data.truncate(count);
        Ok(data)
    }

    fn write(&mut self, file: FileId, position: u64, data: &[u8]) -> Result<u32, Errno> {
        let address = self.accessed_address(file)?;
        let function = self.functions.get_mut(&address).ok_or(Errno::NODEV)?;
        let attachment = function.attachment();
        let memory = attachment.and_then(|(context, id)| self.contexts.get(&context)?.memory(id));
        let count = function.hardware.write(position, data, memory)?;
        u32::try_from(count).map_err(|_| Errno::INVAL)
    }

    fn map(&mut self, file: FileId, position: u64, length: u64) -> Return {
        let found = self.accessed_function(file).and_then(|function| {
            let (file, offset) = function.hardware.map(position, length)?;
            let copy = file.try_clone_to_owned().map_err(|_| Errno::NFILE)?;
            Ok((copy, offset))
        });
        match found {
            Ok((copy, offset)) => {
                let given = Some(Given::Descriptor(copy));
                Return { outcome: Ok(0), data: offset.to_ne_bytes().into(), given }
            }
            Err(errno) => Return { outcome: Err(errno), data: Vec::new(), given: None },
        }
    }

    /// The eventfds that make a device do something when they are signalled.
    pub(crate) fn listening(&self) -> impl Iterator<Item = (PciAddress, BorrowedFd<'_>)> {
        self.functions.iter().flat_map(|(address, function)| {
            function.hardware.listening().map(move |eventfd| (*address, eventfd))
        })
    }

    /// Does what the eventfds of a device ask for.
    pub(crate) fn hear(&mut self, address: PciAddress) {
        let Some(function) = self.functions.get_mut(&address) else { return };
        let attachment = function.attachment();
        let memory = attachment.and_then(|(context, id)| self.contexts.get(&context)?.memory(id));
        function.hardware.hear(memory);
    }

    /// The function that a file gives access to.
    pub(super) fn accessed_address(&self, file: FileId) -> Result<PciAddress, Errno> {
        match self.files.get(&file).ok_or(Errno::BADF)? {
            OpenFile::Cdev { function, is_bound: true, .. } | OpenFile::GroupDevice(function) => {
                Ok(*function)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn accessed_function(&mut self, file: FileId) -> Result<&mut PciFunction, Errno> {
        let address = self.accessed_address(file)?;
        self.functions.get_mut(&address).ok_or(Errno::NODEV)
    }

    /// The function behind a file, bound or not.
    pub(crate) fn function_behind(&self, file: FileId) -> Option<PciAddress> {
        match self.files.get(&file)? {
            OpenFile::Cdev { function, .. } | OpenFile::GroupDevice(function) => Some(*function),
            _ => None,
        }
    }
}

/// What an ioctl returns when it succeeds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    pub(super) value: u32,
    /// A new open file, whose descriptor the caller gets.
    pub(super) file: Option<FileId>,
}

impl Answer {
    pub(super) fn value(value: u32) -> Self {
        Self { value, file: None }
    }
}
