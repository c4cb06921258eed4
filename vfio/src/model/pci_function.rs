// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A PCI function as the host has it: who drives it, who has it open, what it is bound to.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::ioctl;
use crate::model::argument::Argument;
use crate::model::function::Function;
use crate::model::kernel::{ContextId, FileId, Kernel, OpenFile};
use crate::model::system_call::Named;
use crate::model::topology::{DeviceSet, Driver, Endpoint, KernelVersion};
use crate::pci_address::PciAddress;

/// A function of the modelled machine.
#[derive(Debug)]
pub(crate) struct PciFunction {
    pub(crate) hardware: Function,
    pub(crate) endpoint: Endpoint,
    pub(crate) driver: Driver,
    /// The number of the cdev that its VFIO driver gave it.
    pub(crate) cdev: Option<u32>,
    /// What it is reset along with; fixed when its VFIO driver was bound.
    pub(crate) set: Option<DeviceSet>,
    pub(crate) usage: Usage,
    /// Closed after use and not reset since.
    pub(crate) needs_reset: bool,
    /// Somebody unbinds its driver, and holds its lock until the last file is closed.
    pub(crate) is_being_unbound: bool,
}

/// Who uses a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// Nobody. Its cdev may be open all the same.
    Unused,
    /// It is bound to a context, as this object of it. Through its group it may be open more than once.
    Bound { context: ContextId, id: u32, opens: u32, has_function_reset: bool },
    /// Its group gave it, over a legacy container.
    Contained { opens: u32, has_function_reset: bool },
}

impl PciFunction {
    /// Whether a VFIO driver offers it to be opened.
    pub(crate) const fn is_registered(&self) -> bool {
        matches!(self.driver, Driver::Vfio(_)) && !self.is_being_unbound
    }

    pub(crate) fn iommu_group(&self) -> Option<u32> {
        self.endpoint.iommu_group
    }

    pub(crate) const fn is_open(&self) -> bool {
        !matches!(self.usage, Usage::Unused)
    }

    /// The context it is bound to, and its id there.
    pub(crate) const fn attachment(&self) -> Option<(ContextId, u32)> {
        match self.usage {
            Usage::Bound { context, id, .. } => Some((context, id)),
            Usage::Unused | Usage::Contained { .. } => None,
        }
    }

    pub(crate) fn context(&self) -> Option<ContextId> {
        self.attachment().map(|(context, _)| context)
    }

    const fn has_function_reset(&self) -> bool {
        match self.usage {
            Usage::Bound { has_function_reset, .. } | Usage::Contained { has_function_reset, .. } => {
                has_function_reset
            }
            Usage::Unused => false,
        }
    }
}

impl Kernel {
    pub(super) fn function(&self, address: PciAddress) -> Result<&PciFunction, Errno> {
        self.functions.get(&address).ok_or(Errno::NODEV)
    }

    pub(super) fn function_mut(&mut self, address: PciAddress) -> Result<&mut PciFunction, Errno> {
        self.functions.get_mut(&address).ok_or(Errno::NODEV)
    }

    /// `VFIO_DEVICE_BIND_IOMMUFD`, in the order of the kernel's checks.
    pub(super) fn bind_device(
        &mut self,
        file: FileId,
        address: PciAddress,
        argument: &mut Argument<'_>,
        named: &[Named],
    ) -> Result<u32, Errno> {
        const MINIMUM: u32 = 16;
        let (size, flags, iommufd) = (argument.word(0)?, argument.word(4)?, argument.word(8)?);
        // The one flag there is tells a token, for what SR-IOV is about; nobody of ours gives one.
        if size < MINIMUM || flags != 0 || iommufd.cast_signed() < 0 {
            return Err(Errno::INVAL);
        }
        let group = self.function(address)?.iommu_group();
        if group.is_some_and(|group| self.is_group_open(group)) {
            return Err(Errno::BUSY);
        }
        if self.files.get(&file).is_some_and(|file| matches!(file, OpenFile::Cdev { is_bound: true, .. })) {
            return Err(Errno::INVAL);
        }
        if self.needs_token(address) {
            return Err(Errno::ACCESS);
        }
        let context = self.named_context(named)?;
        if self.function(address)?.is_open() {
            return Err(Errno::INVAL);
        }
        let id = self.enable_device(address, context)?;
        if let Some(OpenFile::Cdev { is_bound, .. }) = self.files.get_mut(&file) {
            *is_bound = true;
        }
        argument.set_word(12, id)?;
        Ok(0)
    }

    /// Whether whoever binds a function must know the secret of who uses its physical function, or its virtual ones.
    fn needs_token(&self, address: PciAddress) -> bool {
        let is_on_vfio = |function: &PciFunction| matches!(function.driver, Driver::Vfio(_));
        let physical = self.functions.get(&address).and_then(|function| function.endpoint.physical_function);
        let is_guarded = physical.and_then(|physical| self.functions.get(&physical)).is_some_and(is_on_vfio);
        let is_virtual_in_use = |function: &PciFunction| {
            function.endpoint.physical_function == Some(address) && function.is_open()
        };
        self.version() == KernelVersion::Linux7_3
            && (is_guarded || self.functions.values().any(is_virtual_in_use))
    }

    /// The iommufd that a call names.
    pub(super) fn named_context(&self, named: &[Named]) -> Result<ContextId, Errno> {
        match named.first() {
            Some(Named::File(file)) => match self.files.get(file) {
                Some(OpenFile::Iommufd(context)) => Ok(*context),
                _ => Err(Errno::BADFD),
            },
            Some(Named::Foreign(_)) => Err(Errno::BADFD),
            None => Err(Errno::BADF),
        }
    }

    /// Binds a function to a context and enables it.
    pub(super) fn enable_device(&mut self, address: PciAddress, context: ContextId) -> Result<u32, Errno> {
        let function = self.function(address)?;
        let group = function.iommu_group();
        if let Some(group) = group {
            if !self.topology.interrupt_remapping {
                return Err(Errno::PERM);
            }
            self.claim_group(group, Owner::Context(context))?;
        }
        if self.function(address)?.endpoint.firmware_mapping {
            return Err(Errno::INVAL);
        }
        let id = self.contexts.get_mut(&context).ok_or(Errno::BADFD)?.add_device(group);
        let has_function_reset = self.reset_at_open(address).inspect_err(|_| {
            if let Some(context) = self.contexts.get_mut(&context) {
                context.remove_device(id, &mut self.locked);
            }
        })?;
        let function = self.function_mut(address)?;
        function.hardware.open(has_function_reset);
        function.usage = Usage::Bound { context, id, opens: 1, has_function_reset };
        Ok(id)
    }

    /// Tries to reset a function that somebody begins to use. Whether that worked.
    pub(super) fn reset_at_open(&mut self, address: PciAddress) -> Result<bool, Errno> {
        if self.lists_function_reset(address) && self.function(address)?.is_being_unbound {
            return Err(Errno::AGAIN);
        }
        let works = self.has_function_reset(address);
        if works {
            let by = self.way_of_function_reset(address);
            self.function_mut(address)?.hardware.reset(by);
        }
        Ok(works)
    }

    /// Whether the group could be owned by `owner`, as far as others own it already.
    ///
    /// # Errors
    ///
    /// `EPERM` where somebody else does.
    pub(super) fn claim_group(&self, group: u32, owner: Owner) -> Result<(), Errno> {
        match self.group_owner(group) {
            None => Ok(()),
            Some(present) if present == owner => Ok(()),
            Some(_) => Err(Errno::PERM),
        }
    }

    /// Who owns a group's DMA. Drivers that do none, of ports for example, do not count.
    pub(super) fn group_owner(&self, group: u32) -> Option<Owner> {
        let mut members = self.functions.values().filter(|member| member.iommu_group() == Some(group));
        let is_contained = self.groups.get(&group).is_some_and(|group| group.container().is_some());
        members
            .find_map(|member| match member.context() {
                Some(context) => Some(Owner::Context(context)),
                None => member.driver.uses_dma().then_some(Owner::Driver),
            })
            .or(is_contained.then_some(Owner::Group))
    }

    /// An ioctl of a device that is open.
    pub(super) fn device_ioctl(
        &mut self,
        file: FileId,
        address: PciAddress,
        number: u32,
        argument: &mut Argument<'_>,
        named: Vec<Named>,
    ) -> Result<u32, Errno> {
        const BIND: u32 = ioctl::DEVICE_BIND_IOMMUFD.number;
        const ATTACH: u32 = ioctl::DEVICE_ATTACH_IOMMUFD_PT.number;
        const DETACH: u32 = ioctl::DEVICE_DETACH_IOMMUFD_PT.number;
        const RESET: u32 = ioctl::DEVICE_RESET.number;
        const HOT_RESET_INFO: u32 = ioctl::DEVICE_GET_PCI_HOT_RESET_INFO.number;
        const HOT_RESET: u32 = ioctl::DEVICE_PCI_HOT_RESET.number;
        let is_cdev = matches!(self.files.get(&file), Some(OpenFile::Cdev { .. }));
        match number {
            // The same checks lead to the same end: it is in use.
            BIND if is_cdev => self.bind_device(file, address, argument, &named),
            // A group's device is never bound, whatever its state.
            BIND => Err(Errno::INVAL),
            ATTACH if is_cdev => self.attach_device(address, argument),
            DETACH if is_cdev => self.detach_device(address, argument),
            RESET => self.reset_device(address),
            HOT_RESET_INFO => self.hot_reset_info(address, is_cdev, argument),
            HOT_RESET => self.hot_reset(address, is_cdev, argument, &named),
            number => {
                let eventfds = eventfds(number, argument, named)?;
                self.function_mut(address)?.hardware.ioctl(number, argument, eventfds)
            }
        }
    }

    fn attach_device(&mut self, address: PciAddress, argument: &mut Argument<'_>) -> Result<u32, Errno> {
        refuse_pasid(argument, 12)?;
        let (context, id) = self.function(address)?.attachment().ok_or(Errno::INVAL)?;
        let context = self.contexts.get_mut(&context).ok_or(Errno::INVAL)?;
        let page_table = context.attach(id, argument.word(8)?, &mut self.locked)?;
        argument.set_word(8, page_table)?;
        Ok(0)
    }

    fn detach_device(&mut self, address: PciAddress, argument: &Argument<'_>) -> Result<u32, Errno> {
        refuse_pasid(argument, 8)?;
        let (context, id) = self.function(address)?.attachment().ok_or(Errno::INVAL)?;
        self.contexts.get_mut(&context).ok_or(Errno::INVAL)?.detach(id, &mut self.locked);
        Ok(0)
    }

    /// `VFIO_DEVICE_RESET`.
    fn reset_device(&mut self, address: PciAddress) -> Result<u32, Errno> {
        let function = self.function_mut(address)?;
        if !function.has_function_reset() {
            return Err(Errno::INVAL);
        }
        if function.is_being_unbound {
            return Err(Errno::AGAIN);
        }
        let by = self.way_of_function_reset(address);
        self.function_mut(address)?.hardware.reset(by);
        Ok(0)
    }

    /// Nobody uses a function any more: it is stopped, restored and, as far as possible, reset.
    pub(super) fn release_device(&mut self, address: PciAddress) {
        let by = self.way_of_function_reset(address);
        let Some(function) = self.functions.get_mut(&address) else { return };
        let (is_locked, has_function_reset) = (function.is_being_unbound, function.has_function_reset());
        let attachment = function.attachment();
        function.hardware.close();
        function.needs_reset = true;
        if has_function_reset && !is_locked {
            function.hardware.reset(by);
            function.needs_reset = false;
        }
        self.try_reset_set(address);
        if let Some(function) = self.functions.get_mut(&address) {
            function.usage = Usage::Unused;
        }
        if let Some((context, id)) = attachment
            && let Some(context) = self.contexts.get_mut(&context)
        {
            context.remove_device(id, &mut self.locked);
        }
    }
}

/// Checks the size and the flags of an attachment: the one flag there is asks for a PASID, which no modelled device has.
fn refuse_pasid(argument: &Argument<'_>, least: u32) -> Result<(), Errno> {
    match (argument.word(0)?, argument.word(4)?) {
        (size, 0) if size >= least => Ok(()),
        (size, 1) if size >= least => Err(Errno::OPNOTSUPP),
        _ => Err(Errno::INVAL),
    }
}

/// Who owns the DMA of an IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Context(ContextId),
    /// The group's file, over a legacy container.
    Group,
    /// A driver of the kernel.
    Driver,
}

/// The eventfds of a request. For `VFIO_DEVICE_SET_IRQS` one for each vector: the structure says which vectors have one, the message
/// brings those.
fn eventfds(number: u32, argument: &Argument<'_>, named: Vec<Named>) -> Result<Vec<Option<OwnedFd>>, Errno> {
    const DATA: usize = 20;
    const DATA_EVENTFD: u32 = 4;
    if number != ioctl::DEVICE_SET_IRQS.number || argument.word(4)? & DATA_EVENTFD == 0 {
        // Others name one at most.
        return named.into_iter().map(|named| named.into_eventfd().map(Some)).collect();
    }
    let room = argument.len().saturating_sub(DATA) / 4;
    let count = usize::try_from(argument.word(16)?).unwrap_or(usize::MAX).min(room);
    let mut named = named.into_iter();
    (0..count)
        .map(|vector| match argument.word(DATA + 4 * vector)?.cast_signed() {
            ..0 => Ok(None),
            // What is named but did not come is not open.
            0.. => named.next().map(Named::into_eventfd).transpose(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::direct::Direct;

    const VIRTUAL: &str = r#"
        [[bridge]]
        address = "0000:00:04.0"
        kind = "root-port"
        bus = 1
        [[function]]
        address = "0000:01:00.0"
        part = "igb"
        group = 5
        driver = "vfio-pci"
        [[function]]
        address = "0000:01:10.0"
        part = "igb"
        group = 6
        driver = "vfio-pci"
        virtual-function-of = "0000:01:00.0"
    "#;

    #[test]
    fn a_virtual_function_needs_the_token_of_its_physical_one_on_vfio() {
        let mut direct = Direct::new(VIRTUAL);
        let context = direct.iommufd();
        assert_eq!(direct.bind("0000:01:10.0", context).err(), Some(Errno::ACCESS));
        direct.bind_driver("0000:01:00.0", "igb");
        assert!(direct.bind("0000:01:10.0", context).is_ok());
    }

    #[test]
    fn before_7_3_nobody_asks_for_a_token() {
        let mut direct = Direct::new(&format!("kernel = '6.12'\n{VIRTUAL}"));
        let context = direct.iommufd();
        assert!(direct.bind("0000:01:10.0", context).is_ok());
    }
}
