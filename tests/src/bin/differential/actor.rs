// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process that uses devices, on the director's command.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::SealFlags;
use serde::{Deserialize, Serialize};
use vfio::config_space::ConfigSpace;
use vfio::{Access, Device, Errno, Hwpt, Ioas, Iommufd, Iova, RegionIndex, Sysfs, UnboundDevice};
use vhost_device_vfio_tests::guest_memory::memfd;
use vhost_device_vfio_tests::host::Host;

use crate::answer::{Answer, Refusal};
use crate::channel::Channel;
use crate::name::{CdevName, FileName, GroupName, HwptName, IoasName, IommufdName, TableName};
use crate::operation::Operation;
use crate::undestroyed;

/// Bytes of memory that a process has for mappings.
pub(crate) const MEMORY: u64 = 0x1_0000;
/// The command register in the config space.
const COMMAND: u64 = 0x04;
/// How often a call is made again that somebody's lock was in the way of, as the kernel's own tests do.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// What the director sends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Perform(Operation),
    /// Send a copy of a file.
    Give(FileName),
    /// The descriptor that comes with this is a copy of a file.
    Take(FileName),
}

/// What comes back.
pub(crate) type Reply = Result<Answer, Refusal>;

/// A context, and the copy of its descriptor that can be passed on.
struct HeldIommufd {
    file: OwnedFd,
    iommufd: Arc<Iommufd>,
}

/// A copy of a cdev's descriptor that can be passed on, and the device if it was bound here.
struct HeldCdev {
    file: OwnedFd,
    device: Option<Device>,
}

struct HeldIoas {
    context: IommufdName,
    ioas: Ioas,
}

struct HeldHwpt {
    context: IommufdName,
    hwpt: Hwpt,
}

/// Everything the process has.
struct Actor {
    host: Host,
    sysfs: Sysfs,
    memory: OwnedFd,
    hwpts: BTreeMap<HwptName, HeldHwpt>,
    ioases: BTreeMap<IoasName, HeldIoas>,
    cdevs: BTreeMap<CdevName, HeldCdev>,
    groups: BTreeMap<GroupName, OwnedFd>,
    iommufds: BTreeMap<IommufdName, HeldIommufd>,
}

/// Obeys until the director goes. Its channel is the standard input.
pub(crate) fn run(host: Host) {
    undestroyed::listen();
    let channel = Channel::from(std::io::stdin().as_fd().try_clone_to_owned().expect("the channel"));
    let sysfs = host.sysfs();
    let mut actor = Actor {
        host,
        sysfs,
        memory: memfd(MEMORY, SealFlags::SHRINK),
        hwpts: BTreeMap::new(),
        ioases: BTreeMap::new(),
        cdevs: BTreeMap::new(),
        groups: BTreeMap::new(),
        iommufds: BTreeMap::new(),
    };
    while let Some((request, descriptor)) = channel.receive() {
        match (request, descriptor) {
            (Request::Perform(operation), None) => channel.send(&actor.perform(&operation), None),
            (Request::Give(file), None) => channel.send(&Reply::Ok(Answer::Done), Some(actor.copy_of(file))),
            (Request::Take(file), Some(descriptor)) => {
                actor.take(file, descriptor);
                channel.send(&Reply::Ok(Answer::Done), None);
            }
            (request, _) => panic!("{request:?} with or without a descriptor"),
        }
    }
}

impl Actor {
    fn perform(&mut self, operation: &Operation) -> Reply {
        match *operation {
            Operation::OpenIommufd(iommufd) => {
                let file = self.host.open_iommufd()?;
                self.take(FileName::Iommufd(iommufd), file.into());
            }
            Operation::OpenCdev(cdev, function) => {
                let file = self.host.open_cdev(function)?;
                self.take(FileName::Cdev(cdev), file.into());
            }
            Operation::OpenGroup(group, function) => {
                let number = self.sysfs.function(function)?.iommu_group.ok_or(Errno::NOENT)?;
                let file = self.host.open_group(number)?;
                self.take(FileName::Group(group), file.into());
            }
            Operation::Bind(cdev, iommufd) => return self.bind(cdev, iommufd),
            Operation::Release(cdev) => self.cdev_mut(cdev).device = None,
            Operation::Close(file) => return Ok(self.close(file)),
            Operation::AllocateIoas(name, context) => {
                let ioas = Ioas::allocate(self.context(context))?;
                let id = ioas.id();
                self.ioases.insert(name, HeldIoas { context, ioas });
                return Ok(Answer::Allocated { id });
            }
            Operation::AdoptIoas { ioas: name, iommufd: context, id } => {
                let ioas = Ioas::adopt(self.context(context), id)?;
                self.ioases.insert(name, HeldIoas { context, ioas });
            }
            Operation::DropIoas(name) => {
                self.ioases.remove(&name);
                undestroyed::take()?;
            }
            Operation::AllocateHwpt(name, ioas, cdev) => {
                let HeldIoas { context, ioas } = &self.ioases[&ioas];
                let hwpt = Hwpt::allocate(ioas, self.device(cdev).id())?;
                self.hwpts.insert(name, HeldHwpt { context: *context, hwpt });
            }
            Operation::DropHwpt(name) => {
                self.hwpts.remove(&name);
                undestroyed::take()?;
            }
            Operation::Attach(cdev, TableName::Ioas(ioas)) => {
                self.device(cdev).attach_ioas(&self.ioases[&ioas].ioas)?;
            }
            Operation::Attach(cdev, TableName::Hwpt(hwpt)) => {
                self.device(cdev).attach(&self.hwpts[&hwpt].hwpt)?;
            }
            Operation::Detach(cdev) => self.device(cdev).detach()?,
            Operation::Map { ioas, start, length, iova, writable } => {
                let access = if writable { Access::ReadWrite } else { Access::Read };
                let ioas = &mut self.ioases.get_mut(&ioas).expect("an IOAS of this process").ioas;
                ioas.map_file(&self.memory, start, length, Iova(iova), access)?;
            }
            Operation::Unmap { ioas, iova, length } => {
                let ioas = &mut self.ioases.get_mut(&ioas).expect("an IOAS of this process").ioas;
                ioas.unmap(Iova(iova), length)?;
            }
            Operation::IovaRanges(ioas) => {
                return Ok(Answer::ranges(&self.ioases[&ioas].ioas.iova_ranges()?));
            }
            Operation::HotResetInfo(cdev) => {
                return Ok(Answer::reset_set(&self.device(cdev).hot_reset_info()?));
            }
            Operation::HotReset(cdev) => {
                let outcome = patiently(&[Errno::BUSY, Errno::AGAIN], || {
                    self.device(cdev).hot_reset().map_err(|error| error.errno)
                })?;
                return Ok(Answer::hot_reset(outcome));
            }
            Operation::Reset(cdev) => {
                patiently(&[Errno::AGAIN], || self.device(cdev).reset().map_err(|error| error.errno))?;
            }
            Operation::ReadCommand(cdev) => {
                return Ok(Answer::Register(ConfigSpace::new(self.device(cdev)).command()?));
            }
            Operation::WriteCommand(cdev, value) => {
                self.device(cdev).write_region(RegionIndex::CONFIG, COMMAND, &value.to_le_bytes())?;
            }
            Operation::ReadBar(cdev) => self.device(cdev).read_region(RegionIndex(0), 0, &mut [0; 4])?,
        }
        Ok(Answer::Done)
    }

    fn bind(&mut self, name: CdevName, iommufd: IommufdName) -> Reply {
        let context = self.context(iommufd);
        for attempt in 1.. {
            // A refused bind takes its descriptor along.
            let file = self.cdev_mut(name).file.try_clone().expect("a copy of the descriptor");
            let device = UnboundDevice::from_fd(file, &self.sysfs).expect("a cdev");
            match device.bind(&context, &self.sysfs) {
                Ok(device) => {
                    let answer = Answer::bound(&device);
                    self.cdev_mut(name).device = Some(device);
                    return Ok(answer);
                }
                Err(error) if error.call.errno == Errno::AGAIN && attempt < TRIES => {
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("the tries are counted")
    }

    fn take(&mut self, name: FileName, file: OwnedFd) {
        match name {
            FileName::Iommufd(name) => {
                let view = file.try_clone().expect("a copy of the descriptor");
                let iommufd = Arc::new(Iommufd::from_fd(view, &self.sysfs).expect("an iommufd"));
                self.iommufds.insert(name, HeldIommufd { file, iommufd });
            }
            FileName::Cdev(name) => drop(self.cdevs.insert(name, HeldCdev { file, device: None })),
            FileName::Group(name) => drop(self.groups.insert(name, file)),
        }
    }

    fn copy_of(&self, file: FileName) -> BorrowedFd<'_> {
        match file {
            FileName::Iommufd(name) => self.iommufds[&name].file.as_fd(),
            FileName::Cdev(name) => self.cdevs[&name].file.as_fd(),
            FileName::Group(name) => self.groups[&name].as_fd(),
        }
    }

    fn close(&mut self, file: FileName) -> Answer {
        match file {
            FileName::Iommufd(name) => return self.close_iommufd(name),
            FileName::Cdev(name) => drop(self.cdevs.remove(&name)),
            FileName::Group(name) => drop(self.groups.remove(&name)),
        }
        Answer::Done
    }

    /// Its objects go one by one, since what cannot be destroyed is a part of the answer.
    fn close_iommufd(&mut self, name: IommufdName) -> Answer {
        let mut kept = Vec::new();
        for (hwpt, held) in self.hwpts.extract_if(.., |_, held| held.context == name) {
            drop(held.hwpt);
            kept.extend(undestroyed::take().err().map(|errno| (hwpt.to_string(), errno.into())));
        }
        for (ioas, held) in self.ioases.extract_if(.., |_, held| held.context == name) {
            drop(held.ioas);
            kept.extend(undestroyed::take().err().map(|errno| (ioas.to_string(), errno.into())));
        }
        self.iommufds.remove(&name);
        if kept.is_empty() { Answer::Done } else { Answer::ClosedWithout(kept) }
    }

    fn context(&self, name: IommufdName) -> Arc<Iommufd> {
        Arc::clone(&self.iommufds[&name].iommufd)
    }

    fn cdev_mut(&mut self, name: CdevName) -> &mut HeldCdev {
        self.cdevs.get_mut(&name).expect("a cdev of this process")
    }

    fn device(&self, name: CdevName) -> &Device {
        self.cdevs[&name].device.as_ref().expect("a device that this process bound")
    }
}

/// Makes a call until its answer is not that somebody is in the way at this moment.
fn patiently<T>(passing: &[Errno], mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES {
        match call() {
            Err(errno) if passing.contains(&errno) => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
    call()
}
