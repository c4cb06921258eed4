// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests that say what is mapped where.

use std::fs::File;
use std::sync::Arc;

use iommufd_bindings::{
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use rustix::io::Errno;

use super::ioas::{Protection, Slice};
use super::locked_memory::{Account, LockedMemory};
use super::pages::{Pages, Source, writable_by_a_device};
use super::span::Span;
use super::{Caller, Context, PAGE};
use crate::ioas::Iova;
use crate::iommufd::MemoryAccounting;
use crate::model::argument::Argument;

/// The words that mapping requests share, checked in the order of the kernel.
struct Placement {
    fixed: bool,
    protection: Protection,
    length: u64,
    iova: u64,
}

impl Placement {
    fn new(flags: u32, reserved: u32, length: u64, iova: u64) -> Result<Self, Errno> {
        let fixed = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
        let readable = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        let writable = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
        if flags & !(fixed | readable | writable) != 0 || reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if length == u64::MAX || iova == u64::MAX {
            return Err(Errno::OVERFLOW);
        }
        if flags & (readable | writable) == 0 {
            return Err(Errno::INVAL);
        }
        let protection = Protection { readable: flags & readable != 0, writable: flags & writable != 0 };
        Ok(Self { fixed: flags & fixed != 0, protection, length, iova })
    }

    fn place(&self) -> Option<Iova> {
        self.fixed.then_some(Iova(self.iova))
    }
}

/// What is to be mapped, from its first byte on.
struct Memory {
    source: Source,
    /// Where it begins in the source.
    address: u64,
    /// The file behind it, and where it begins there.
    file: Option<(Arc<File>, u64)>,
}

impl Context {
    /// `IOMMU_IOAS_MAP` of the caller's memory; `file` is behind it and is `None` where the model knows none.
    pub(super) fn map(
        &mut self,
        argument: &mut Argument<'_>,
        file: Option<(Arc<File>, u64)>,
        caller: &Caller,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        let (flags, ioas, reserved) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        let (address, length, iova) = (argument.double(16)?, argument.double(24)?, argument.double(32)?);
        let placement = Placement::new(flags, reserved, length, iova)?;
        self.ioas(ioas)?;
        address.checked_add(length).ok_or(Errno::OVERFLOW)?;
        let memory = Memory { source: Source::Process(caller.process), address, file };
        let start = self.map_memory(ioas, &placement, memory, caller, locked)?;
        argument.set_double(32, start.0)
    }

    /// `IOMMU_IOAS_MAP_FILE`.
    pub(super) fn map_file(
        &mut self,
        argument: &mut Argument<'_>,
        file: Option<Arc<File>>,
        caller: &Caller,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        let (flags, ioas) = (argument.word(4)?, argument.word(8)?);
        let (start, length, iova) = (argument.double(16)?, argument.double(24)?, argument.double(32)?);
        let placement = Placement::new(flags, 0, length, iova)?;
        self.ioas(ioas)?;
        if length == 0 {
            return Err(Errno::INVAL);
        }
        Span::new(start, length).ok_or(Errno::OVERFLOW)?;
        let file = file.ok_or(Errno::BADF)?;
        let memory = Memory { source: Source::File, address: start, file: Some((file, start)) };
        let start = self.map_memory(ioas, &placement, memory, caller, locked)?;
        argument.set_double(32, start.0)
    }

    /// Maps memory that was not mapped before.
    fn map_memory(
        &mut self,
        ioas: u32,
        placement: &Placement,
        memory: Memory,
        caller: &Caller,
        locked: &mut LockedMemory,
    ) -> Result<Iova, Errno> {
        let Placement { protection, length, .. } = *placement;
        if length == 0 || length > u64::MAX - PAGE {
            return Err(Errno::INVAL);
        }
        let account = match self.accounting {
            _ if caller.may_pin_without_limit => None,
            MemoryAccounting::User => Some(Account::User(caller.user)),
            MemoryAccounting::Process => Some(Account::Process(caller.process)),
        };
        let offset = memory.address % PAGE;
        let file = memory.file.and_then(|(file, start)| {
            let file = if protection.writable { writable_by_a_device(file) } else { file };
            Some((file, start.checked_sub(offset)?))
        });
        let pages = Pages {
            id: locked.new_id(),
            source: memory.source,
            address: memory.address - offset,
            file,
            writable: protection.writable,
            process: caller.process,
            account: account.map(|account| (account, caller.memory_lock_limit)),
        };
        let slice = Slice { pages: Arc::new(pages), offset, length };
        self.ioas_mut(ioas)?.map(placement.place(), vec![slice], protection, locked)
    }

    /// `IOMMU_IOAS_COPY`.
    pub(super) fn copy(
        &mut self,
        argument: &mut Argument<'_>,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        let (flags, to, from) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        let (length, to_iova, from_iova) = (argument.double(16)?, argument.double(24)?, argument.double(32)?);
        let latest = to_iova.max(from_iova);
        let placement = Placement { iova: to_iova, ..Placement::new(flags, 0, length, latest)? };
        let source = self.ioas(from)?;
        if length == 0 {
            return Err(Errno::INVAL);
        }
        let slices = source.slices(Span::new(from_iova, length).ok_or(Errno::OVERFLOW)?)?;
        let start = self.ioas_mut(to)?.map(placement.place(), slices, placement.protection, locked)?;
        argument.set_double(24, start.0)
    }

    /// `IOMMU_IOAS_UNMAP`.
    pub(super) fn unmap(
        &mut self,
        argument: &mut Argument<'_>,
        locked: &mut LockedMemory,
    ) -> Result<(), Errno> {
        let (ioas, iova, length) = (argument.word(4)?, argument.double(8)?, argument.double(16)?);
        let ioas = self.ioas_mut(ioas)?;
        let unmapped = if iova == 0 && length == u64::MAX {
            ioas.unmap(Span::ALL, locked)?
        } else if iova == u64::MAX || length == u64::MAX {
            return Err(Errno::OVERFLOW);
        } else if length == 0 {
            return Err(Errno::INVAL);
        } else {
            let span = Span::new(iova, length).ok_or(Errno::OVERFLOW)?;
            match ioas.unmap(span, locked)? {
                0 => return Err(Errno::NOENT),
                unmapped => unmapped,
            }
        };
        argument.set_double(16, unmapped)
    }

    /// `IOMMU_IOAS_IOVA_RANGES`; as many ranges as the caller has room for go to `array`.
    pub(super) fn iova_ranges(&self, argument: &mut Argument<'_>, array: &mut Vec<u8>) -> Result<(), Errno> {
        let (ioas, room, reserved) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        if reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let ioas = self.ioas(ioas)?;
        let usable = ioas.usable();
        let count = u32::try_from(usable.len()).map_err(|_| Errno::NOMEM)?;
        let fitting = usable.iter().take(usize::try_from(room).unwrap_or(usize::MAX));
        array.extend(fitting.flat_map(|span| [span.first, span.last]).flat_map(u64::to_ne_bytes));
        argument.set_word(8, count)?;
        argument.set_double(24, ioas.alignment())?;
        if count > room { Err(Errno::MSGSIZE) } else { Ok(()) }
    }

    /// `IOMMU_IOAS_ALLOW_IOVAS` of the ranges in `array`.
    pub(super) fn allow_iovas(&mut self, argument: &Argument<'_>, array: &[u8]) -> Result<(), Errno> {
        let (ioas, count, reserved) = (argument.word(4)?, argument.word(8)?, argument.word(12)?);
        if reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let ioas = self.ioas_mut(ioas)?;
        let mut ends = array.as_chunks().0.iter().map(|end| u64::from_ne_bytes(*end));
        let mut allowed: Vec<Span> = Vec::new();
        for _ in 0..count {
            let (Some(first), Some(last)) = (ends.next(), ends.next()) else { return Err(Errno::FAULT) };
            let span = Span { first, last };
            if first >= last || allowed.iter().any(|other| span.meets(*other)) {
                return Err(Errno::INVAL);
            }
            allowed.push(span);
        }
        ioas.allow(allowed)
    }
}
