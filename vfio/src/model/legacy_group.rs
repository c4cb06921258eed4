// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Groups and containers, the way to a device before there were cdevs. Ours never goes it, but others do, and block.

use rustix::io::Errno;

use crate::model::argument::Argument;
use crate::model::kernel::{Answer, ContextId, FileId, Kernel, OpenFile};
use crate::model::pci_function::{Owner, PciFunction, Usage};
use crate::model::system_call::Named;
use crate::pci_address::PciAddress;

/// Requests of `<linux/vfio.h>` that are for groups and containers. They are not among [`crate::ioctl::ALL`], so that no
/// server can issue them.
mod request {
    pub(super) const GET_API_VERSION: u32 = 0x3b64;
    pub(super) const CHECK_EXTENSION: u32 = 0x3b65;
    pub(super) const SET_IOMMU: u32 = 0x3b66;
    pub(super) const GET_STATUS: u32 = 0x3b67;
    pub(super) const SET_CONTAINER: u32 = 0x3b68;
    pub(super) const UNSET_CONTAINER: u32 = 0x3b69;
    pub(super) const GET_DEVICE_FD: u32 = 0x3b6a;
}

/// An open `/dev/vfio/vfio`.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// Whether it has page tables: `VFIO_SET_IOMMU` was said.
    has_iommu: bool,
}

/// What a group that is open is used over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    Nothing,
    Container(FileId),
    Context(ContextId),
}

/// A group that is open.
#[derive(Debug)]
pub(crate) struct Group {
    backing: Backing,
    /// Its file is closed, but its devices are not.
    is_closing: bool,
}

impl Group {
    pub(super) const fn context(&self) -> Option<ContextId> {
        match self.backing {
            Backing::Context(context) => Some(context),
            Backing::Nothing | Backing::Container(_) => None,
        }
    }

    pub(super) const fn container(&self) -> Option<FileId> {
        match self.backing {
            Backing::Container(container) => Some(container),
            Backing::Nothing | Backing::Context(_) => None,
        }
    }
}

/// What a group that is none any more answers.
pub(super) const fn former(number: u32) -> Errno {
    match number {
        request::GET_STATUS | request::SET_CONTAINER | request::GET_DEVICE_FD => Errno::NODEV,
        request::UNSET_CONTAINER => Errno::INVAL,
        _ => Errno::NOTTY,
    }
}

impl Kernel {
    pub(super) fn is_group_open(&self, group: u32) -> bool {
        self.groups.contains_key(&group)
    }

    /// Opens `/dev/vfio/GROUP`: by one user at a time, and not beside cdevs.
    pub(super) fn open_group(&mut self, group: u32) -> Result<OpenFile, Errno> {
        let is_bound = self.files.values().any(|file| match file {
            OpenFile::Cdev { function, is_bound: true, .. } => self.is_in_group(*function, group),
            _ => false,
        });
        if is_bound || self.is_group_open(group) {
            return Err(Errno::BUSY);
        }
        self.groups.insert(group, Group { backing: Backing::Nothing, is_closing: false });
        Ok(OpenFile::Group(group))
    }

    fn is_in_group(&self, address: PciAddress, group: u32) -> bool {
        self.functions.get(&address).is_some_and(|function| function.iommu_group() == Some(group))
    }

    pub(super) fn close_group(&mut self, group: u32) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.is_closing = true;
        }
        self.drop_closed_group(group);
    }

    /// The devices that a group gave keep it open.
    fn drop_closed_group(&mut self, group: u32) {
        let is_closing = self.groups.get(&group).is_some_and(|group| group.is_closing);
        if is_closing && !self.has_open_device(group) {
            self.groups.remove(&group);
        }
    }

    fn has_open_device(&self, group: u32) -> bool {
        self.functions.values().any(|function| function.is_open() && function.iommu_group() == Some(group))
    }

    /// A function has lost its VFIO driver. With the last one of them a group loses its meaning, open or not.
    pub(super) fn forget_unused_group(&mut self, group: u32) {
        let is_member = |function: &PciFunction| function.iommu_group() == Some(group);
        if self.functions.values().any(|function| is_member(function) && function.cdev.is_some()) {
            return;
        }
        self.groups.remove(&group);
        for file in self.files.values_mut() {
            if matches!(file, OpenFile::Group(open) if *open == group) {
                *file = OpenFile::FormerGroup;
            }
        }
    }

    pub(super) fn container_ioctl(
        &mut self,
        file: FileId,
        number: u32,
        argument: &Argument<'_>,
    ) -> Result<u32, Errno> {
        const TYPE1: u32 = 1;
        const TYPE1V2: u32 = 3;
        match number {
            request::GET_API_VERSION => Ok(0),
            request::CHECK_EXTENSION => Ok(matches!(argument.word(0)?, TYPE1 | TYPE1V2).into()),
            request::SET_IOMMU => {
                let has_group = self.groups.values().any(|group| group.container() == Some(file));
                let Some(OpenFile::Container(container)) = self.files.get_mut(&file) else {
                    return Err(Errno::BADF);
                };
                if !has_group || container.has_iommu {
                    return Err(Errno::INVAL);
                }
                if !matches!(argument.word(0)?, TYPE1 | TYPE1V2) {
                    return Err(Errno::NODEV);
                }
                if !self.topology.interrupt_remapping {
                    return Err(Errno::PERM);
                }
                container.has_iommu = true;
                Ok(0)
            }
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn group_ioctl(
        &mut self,
        group: u32,
        number: u32,
        argument: &mut Argument<'_>,
        named: &[Named],
    ) -> Result<Answer, Errno> {
        match number {
            request::GET_STATUS => self.group_status(group, argument).map(Answer::value),
            request::SET_CONTAINER => self.set_container(group, named).map(Answer::value),
            request::UNSET_CONTAINER => self.unset_container(group).map(Answer::value),
            request::GET_DEVICE_FD => self.open_group_device(group, argument),
            _ => Err(Errno::NOTTY),
        }
    }

    fn group_status(&self, group: u32, argument: &mut Argument<'_>) -> Result<u32, Errno> {
        const VIABLE: u32 = 1;
        const CONTAINER_SET: u32 = 2;
        if argument.word(0)? < 8 {
            return Err(Errno::INVAL);
        }
        let state = self.groups.get(&group).ok_or(Errno::NODEV)?;
        let flags = match (state.backing, self.group_owner(group)) {
            (Backing::Nothing, None) => VIABLE,
            (Backing::Nothing, Some(_)) => 0,
            (Backing::Container(_) | Backing::Context(_), _) => VIABLE | CONTAINER_SET,
        };
        argument.set_word(4, flags)?;
        Ok(0)
    }

    fn set_container(&mut self, group: u32, named: &[Named]) -> Result<u32, Errno> {
        if self.groups.get(&group).ok_or(Errno::NODEV)?.backing != Backing::Nothing {
            return Err(Errno::INVAL);
        }
        let backing = match named.first().ok_or(Errno::BADF)? {
            Named::Foreign(_) => return Err(Errno::BADFD),
            Named::File(file) => match self.files.get(file) {
                Some(OpenFile::Container(_)) => {
                    self.claim_group(group, Owner::Group)?;
                    Backing::Container(*file)
                }
                Some(OpenFile::Iommufd(context)) => Backing::Context(*context),
                _ => return Err(Errno::BADFD),
            },
        };
        if let Backing::Context(context) = backing {
            self.contexts.get_mut(&context).ok_or(Errno::BADFD)?.compatibility_ioas();
        }
        if let Some(group) = self.groups.get_mut(&group) {
            group.backing = backing;
        }
        Ok(0)
    }

    fn unset_container(&mut self, group: u32) -> Result<u32, Errno> {
        let has_open_device = self.has_open_device(group);
        let state = self.groups.get_mut(&group).ok_or(Errno::NODEV)?;
        match state.backing {
            Backing::Nothing => return Err(Errno::INVAL),
            Backing::Container(_) if has_open_device => return Err(Errno::BUSY),
            Backing::Container(_) | Backing::Context(_) => state.backing = Backing::Nothing,
        }
        Ok(0)
    }

    /// `VFIO_GROUP_GET_DEVICE_FD`: the argument is the device's name.
    fn open_group_device(&mut self, group: u32, argument: &Argument<'_>) -> Result<Answer, Errno> {
        let name = argument.0.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| Errno::NODEV)?;
        let address: PciAddress = name.parse().map_err(|_| Errno::NODEV)?;
        let function = self.functions.get(&address).filter(|function| function.is_registered());
        if function.is_none_or(|function| function.iommu_group() != Some(group)) {
            return Err(Errno::NODEV);
        }
        match self.groups.get(&group).ok_or(Errno::NODEV)?.backing {
            Backing::Nothing => return Err(Errno::INVAL),
            Backing::Container(container) => self.open_contained(address, container)?,
            Backing::Context(context) => self.open_in_context(address, context)?,
        }
        Ok(Answer { value: 0, file: Some(self.install(OpenFile::GroupDevice(address))) })
    }

    fn open_contained(&mut self, address: PciAddress, container: FileId) -> Result<(), Errno> {
        if !matches!(self.files.get(&container), Some(OpenFile::Container(Container { has_iommu: true }))) {
            return Err(Errno::INVAL);
        }
        if let Usage::Contained { opens, .. } = &mut self.function_mut(address)?.usage {
            *opens += 1;
            return Ok(());
        }
        let has_function_reset = self.reset_at_open(address)?;
        let function = self.function_mut(address)?;
        function.hardware.open(has_function_reset);
        function.usage = Usage::Contained { opens: 1, has_function_reset };
        Ok(())
    }

    fn open_in_context(&mut self, address: PciAddress, context: ContextId) -> Result<(), Errno> {
        if let Usage::Bound { opens, .. } = &mut self.function_mut(address)?.usage {
            *opens += 1;
            return Ok(());
        }
        let id = self.enable_device(address, context)?;
        let context = self.contexts.get_mut(&context).ok_or(Errno::BADFD)?;
        let ioas = context.compatibility_ioas();
        let attached = context.attach(id, ioas, &mut self.locked);
        attached.map(drop).inspect_err(|_| self.release_device(address))
    }

    pub(super) fn close_group_device(&mut self, address: PciAddress) {
        let Some(function) = self.functions.get_mut(&address) else { return };
        let group = function.iommu_group();
        let (Usage::Bound { opens, .. } | Usage::Contained { opens, .. }) = &mut function.usage else {
            return;
        };
        *opens -= 1;
        if *opens == 0 {
            self.release_device(address);
        }
        if let Some(group) = group {
            self.drop_closed_group(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::direct::Direct;

    const ALONE: &str = r#"
        [[function]]
        address = "0000:00:05.0"
        part = "edu"
        group = 1
        driver = "vfio-pci"
    "#;

    #[test]
    fn a_group_that_lost_its_last_driver_hinders_nobody() {
        let mut direct = Direct::new(ALONE);
        direct.group("0000:00:05.0").unwrap();
        direct.bind_driver("0000:00:05.0", "vfio-pci");
        let context = direct.iommufd();
        assert!(direct.bind("0000:00:05.0", context).is_ok());
    }
}
