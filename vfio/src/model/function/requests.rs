// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ioctls of an open function, on the bytes of their structures.

use std::mem::{offset_of, size_of};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_MASK, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET,
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_device_feature, vfio_device_info,
    vfio_device_ioeventfd, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

use crate::ioctl;
use crate::irq::{IrqAction, IrqIndex};
use crate::model::argument::Argument;
use crate::model::function::eventfd::Eventfd;
use crate::model::function::interrupts::change::{Change, Data, Trigger};
use crate::model::function::io_eventfd::BarWrite;
use crate::model::function::part::BarKind;
use crate::model::function::registers::{capability_id, header};
use crate::model::function::{CONFIG_REGION, Function, LowPower, REGION_SHIFT, ROM_REGION, VGA_REGION};
use crate::model::topology::KernelVersion;

/// Of the table that [`ioctl`] is, only what this crate can issue is there.
const DEVICE_IOEVENTFD: u32 = 0x3b74;
const DEVICE_FEATURE: u32 = 0x3b75;

mod feature {
    pub(super) const VF_TOKEN: u32 = 0;
    pub(super) const LOW_POWER_ENTRY: u32 = 3;
    pub(super) const LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
    pub(super) const LOW_POWER_EXIT: u32 = 5;
    pub(super) const DMA_BUF: u32 = 11;
    pub(super) const PRECOPY_INFO: u32 = 12;
}

impl Function {
    /// An ioctl that is about this function alone. The descriptors are those that the structure names, in its order; `None`
    /// stands for -1. The result is the ioctl's return value.
    ///
    /// # Errors
    ///
    /// `ENOTTY` there is no such request; otherwise the kernel's errno.
    pub(crate) fn ioctl(
        &mut self,
        number: u32,
        argument: &mut Argument<'_>,
        eventfds: Vec<Option<OwnedFd>>,
    ) -> Result<u32, Errno> {
        self.wake();
        match number {
            number if number == ioctl::DEVICE_GET_INFO.number => self.describe(argument),
            number if number == ioctl::DEVICE_GET_REGION_INFO.number => self.describe_region(argument),
            number if number == ioctl::DEVICE_GET_IRQ_INFO.number => self.describe_irq(argument),
            number if number == ioctl::DEVICE_SET_IRQS.number => self.set_irqs(argument, eventfds),
            DEVICE_IOEVENTFD => self.set_io_eventfd(argument, eventfds),
            DEVICE_FEATURE => self.set_feature(argument, eventfds),
            _ => Err(Errno::NOTTY),
        }
    }

    /// `VFIO_DEVICE_GET_INFO`. An old structure ends before the offset of capabilities.
    fn describe(&self, argument: &mut Argument<'_>) -> Result<u32, Errno> {
        let size = announced(argument, offset_of!(vfio_device_info, cap_offset))?;
        let has_reset = self.user.as_ref().is_some_and(|user| user.has_function_reset);
        let reset = if has_reset { VFIO_DEVICE_FLAGS_RESET } else { 0 };
        let words = [
            (offset_of!(vfio_device_info, flags), VFIO_DEVICE_FLAGS_PCI | reset),
            (offset_of!(vfio_device_info, num_regions), 9),
            (offset_of!(vfio_device_info, num_irqs), 5),
        ];
        for (offset, value) in words {
            argument.set_word(offset, value)?;
        }
        let end = size.min(size_of::<vfio_device_info>());
        let start = offset_of!(vfio_device_info, cap_offset);
        argument.set(start, &vec![0; end - start])?;
        Ok(0)
    }

    /// `VFIO_DEVICE_GET_REGION_INFO`.
    fn describe_region(&self, argument: &mut Argument<'_>) -> Result<u32, Errno> {
        let size = announced(argument, size_of::<vfio_region_info>())?;
        let index = argument.word(offset_of!(vfio_region_info, index))?;
        let region = usize::try_from(index).ok().filter(|region| *region < VGA_REGION).ok_or(Errno::INVAL)?;
        let (length, flags) = self.region(region);
        let has_table = self.layout.msix().is_some_and(|(_, (bar, _))| usize::from(bar) == region);
        let capability = if has_table { VFIO_REGION_INFO_FLAG_CAPS } else { 0 };
        argument.set_word(offset_of!(vfio_region_info, flags), flags | capability)?;
        argument.set_double(offset_of!(vfio_region_info, size), length)?;
        argument.set_double(offset_of!(vfio_region_info, offset), u64::from(index) << REGION_SHIFT)?;
        if has_table {
            describe_msix_mappable(argument, size)?;
        }
        Ok(0)
    }

    /// A region's length and flags.
    fn region(&self, region: usize) -> (u64, u32) {
        let both = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        match (region, self.layout.bar(region), self.layout.rom) {
            (CONFIG_REGION, ..) => (self.registers.length() as u64, both),
            (ROM_REGION, _, Some(rom)) => (rom.size.into(), VFIO_REGION_INFO_FLAG_READ),
            (_, Some(bar), _) if bar.kind == BarKind::Io => (bar.size.into(), both),
            (_, Some(bar), _) => (bar.size.into(), both | VFIO_REGION_INFO_FLAG_MMAP),
            _ => (0, 0),
        }
    }

    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    fn describe_irq(&self, argument: &mut Argument<'_>) -> Result<u32, Errno> {
        announced(argument, size_of::<vfio_irq_info>())?;
        let index = argument.word(offset_of!(vfio_irq_info, index))?;
        let index = IrqIndex::from_number(index).ok_or(Errno::INVAL)?;
        let count = self.vectors(index);
        if index == IrqIndex::Err && count == 0 {
            return Err(Errno::INVAL);
        }
        let flags = match index {
            IrqIndex::Intx => VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
            IrqIndex::Msix if count != 0 && !self.interrupts.has_fixed_vectors => 0,
            IrqIndex::Msix | IrqIndex::Msi | IrqIndex::Err | IrqIndex::Req => VFIO_IRQ_INFO_NORESIZE,
        };
        argument.set_word(offset_of!(vfio_irq_info, flags), VFIO_IRQ_INFO_EVENTFD | flags)?;
        argument.set_word(offset_of!(vfio_irq_info, count), count)?;
        Ok(0)
    }

    fn vectors(&self, index: IrqIndex) -> u32 {
        match index {
            IrqIndex::Intx => (self.registers.byte(header::INTERRUPT_PIN) != 0).into(),
            IrqIndex::Msi => self.registers.capability(capability_id::MSI).is_some().into(),
            IrqIndex::Msix => self.layout.msix().map_or(0, |(vectors, _)| vectors.into()),
            IrqIndex::Err => match self.kernel {
                KernelVersion::Linux6_12 => self.layout.is_express().into(),
                KernelVersion::Linux7_3 => 1,
            },
            IrqIndex::Req => 1,
        }
    }

    /// `VFIO_DEVICE_SET_IRQS`.
    fn set_irqs(&mut self, argument: &Argument<'_>, eventfds: Vec<Option<OwnedFd>>) -> Result<u32, Errno> {
        let data = offset_of!(vfio_irq_set, data);
        let size = announced(argument, data)?;
        let [flags, index, start, count] = [
            argument.word(offset_of!(vfio_irq_set, flags))?,
            argument.word(offset_of!(vfio_irq_set, index))?,
            argument.word(offset_of!(vfio_irq_set, start))?,
            argument.word(offset_of!(vfio_irq_set, count))?,
        ];
        let index = IrqIndex::from_number(index).ok_or(Errno::INVAL)?;
        let known = VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK;
        let vectors = self.vectors(index);
        let end = start.checked_add(count).filter(|end| *end < u32::MAX).ok_or(Errno::INVAL)?;
        if flags & !known != 0 || start >= vectors || end > vectors {
            return Err(Errno::INVAL);
        }
        let room = size - data;
        let count_in_memory = usize::try_from(count).map_err(|_| Errno::INVAL)?;
        let data = match flags & VFIO_IRQ_SET_DATA_TYPE_MASK {
            VFIO_IRQ_SET_DATA_NONE => Data::None(count),
            VFIO_IRQ_SET_DATA_BOOL if count_in_memory <= room => {
                Data::Bool(argument.bytes(data, count_in_memory)?.iter().map(|byte| *byte != 0).collect())
            }
            VFIO_IRQ_SET_DATA_EVENTFD if 4 * count_in_memory <= room => {
                let mut eventfds = eventfds.into_iter();
                let numbers = (0..count_in_memory).map(|vector| argument.word(data + 4 * vector));
                let triggers = numbers.map(|number| Ok(Trigger::new(number?, eventfds.next().flatten())));
                Data::Eventfd(triggers.collect::<Result<_, Errno>>()?)
            }
            _ => return Err(Errno::INVAL),
        };
        let action = match flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
            VFIO_IRQ_SET_ACTION_MASK => IrqAction::Mask,
            VFIO_IRQ_SET_ACTION_UNMASK => IrqAction::Unmask,
            VFIO_IRQ_SET_ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(Errno::NOTTY),
        };
        self.interrupts.change(&mut self.registers, Change { index, action, start, data })?;
        // The kernel would return how many vectors there are if there were fewer. There never are.
        Ok(0)
    }

    /// `VFIO_DEVICE_IOEVENTFD`.
    fn set_io_eventfd(
        &mut self,
        argument: &Argument<'_>,
        eventfds: Vec<Option<OwnedFd>>,
    ) -> Result<u32, Errno> {
        announced(argument, offset_of!(vfio_device_ioeventfd, reserved))?;
        let length = argument.word(offset_of!(vfio_device_ioeventfd, flags))?;
        let number = argument.word(offset_of!(vfio_device_ioeventfd, fd))?;
        if !matches!(length, 1 | 2 | 4 | 8) || number.cast_signed() < -1 {
            return Err(Errno::INVAL);
        }
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        let write = self.bar_write(
            argument.double(offset_of!(vfio_device_ioeventfd, offset))?,
            argument.bytes(offset_of!(vfio_device_ioeventfd, data), length)?,
        )?;
        let user = self.user.as_mut().ok_or(Errno::INVAL)?;
        let fd = eventfds.into_iter().next().flatten();
        match (Trigger::new(number, fd), user.io_eventfds.contains(&write)) {
            (Trigger::Nothing | Trigger::Negative, _) => user.io_eventfds.remove(&write)?,
            (_, true) => return Err(Errno::EXIST),
            (Trigger::Missing, false) => return Err(Errno::BADF),
            (Trigger::Descriptor(fd), false) => user.io_eventfds.add(write, Eventfd::new(fd)?)?,
        }
        Ok(0)
    }

    /// A write to a BAR, if it ends inside and keeps off the table of MSI-X.
    fn bar_write(&self, position: u64, data: &[u8]) -> Result<BarWrite, Errno> {
        let bar = usize::try_from(position >> REGION_SHIFT).map_err(|_| Errno::INVAL)?;
        let offset = position & ((1 << REGION_SHIFT) - 1);
        let end = offset + data.len() as u64;
        let size = self.layout.bar(bar).map_or(0, |bar| bar.size.into());
        let table = self.table(bar);
        if end > size || (offset < table.end && end > table.start) {
            return Err(Errno::INVAL);
        }
        Ok(BarWrite { bar, offset, data: data.to_vec() })
    }

    /// `VFIO_DEVICE_FEATURE`.
    fn set_feature(&mut self, argument: &Argument<'_>, eventfds: Vec<Option<OwnedFd>>) -> Result<u32, Errno> {
        let data = offset_of!(vfio_device_feature, data);
        let room = announced(argument, data)? - data;
        let flags = argument.word(offset_of!(vfio_device_feature, flags))?;
        let both = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET;
        let is_probe = flags & VFIO_DEVICE_FEATURE_PROBE != 0;
        if flags & !(VFIO_DEVICE_FEATURE_MASK | both | VFIO_DEVICE_FEATURE_PROBE) != 0
            || (!is_probe && flags & both == both)
        {
            return Err(Errno::INVAL);
        }
        let feature = flags & VFIO_DEVICE_FEATURE_MASK;
        let (able, minimum) = match (feature, self.kernel) {
            (feature::VF_TOKEN, _) if self.layout.has_virtual_functions() => (VFIO_DEVICE_FEATURE_SET, 16),
            (feature::LOW_POWER_ENTRY | feature::LOW_POWER_EXIT, _) => (VFIO_DEVICE_FEATURE_SET, 0),
            (feature::LOW_POWER_ENTRY_WITH_WAKEUP, _) => (VFIO_DEVICE_FEATURE_SET, 8),
            // The model has no memory that another device could reach.
            (feature::DMA_BUF, KernelVersion::Linux7_3) => (VFIO_DEVICE_FEATURE_GET, usize::MAX),
            (feature::PRECOPY_INFO, KernelVersion::Linux7_3) => return Err(Errno::INVAL),
            _ => return Err(Errno::NOTTY),
        };
        if flags & both & !able != 0 || (!is_probe && (flags & both == 0 || room < minimum)) {
            return Err(Errno::INVAL);
        }
        // Nobody is asked for the token, because virtual functions here are guarded by none.
        if is_probe || feature == feature::VF_TOKEN {
            return Ok(0);
        }
        let user = self.user.as_mut().ok_or(Errno::INVAL)?;
        if feature == feature::LOW_POWER_EXIT {
            user.low_power = None;
            return Ok(0);
        }
        let wakeup = if feature == feature::LOW_POWER_ENTRY_WITH_WAKEUP {
            match Trigger::new(argument.word(data)?, eventfds.into_iter().next().flatten()) {
                Trigger::Nothing | Trigger::Negative => return Err(Errno::INVAL),
                Trigger::Missing => return Err(Errno::BADF),
                Trigger::Descriptor(fd) => Some(Eventfd::new(fd)?),
            }
        } else {
            None
        };
        if user.low_power.is_some() {
            return Err(Errno::INVAL);
        }
        user.low_power = Some(LowPower { wakeup });
        Ok(0)
    }
}

/// The size that a structure's first word announces.
///
/// # Errors
///
/// `EINVAL` it is less than `minimum`.
fn announced(argument: &Argument<'_>, minimum: usize) -> Result<usize, Errno> {
    let size = usize::try_from(argument.word(0)?).map_err(|_| Errno::INVAL)?;
    if size < minimum { Err(Errno::INVAL) } else { Ok(size) }
}

/// Says that all of a BAR may be mapped, the table of MSI-X included; if there is no room for that, how much is needed.
fn describe_msix_mappable(argument: &mut Argument<'_>, size: usize) -> Result<(), Errno> {
    const HEADER: u32 = 8;
    let start = size_of::<vfio_region_info>();
    let start_word = u32::try_from(start).map_err(|_| Errno::INVAL)?;
    if size < start + 8 {
        argument.set_word(0, start_word + HEADER)?;
        return argument.set_word(offset_of!(vfio_region_info, cap_offset), 0);
    }
    argument.set_word(offset_of!(vfio_region_info, cap_offset), start_word)?;
    // The capability's version, and that none follows.
    argument.set_word(start, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE | (1 << 16))?;
    argument.set_word(start + 4, 0)
}
