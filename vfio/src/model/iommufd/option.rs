// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a context or an address space of it can be set to.

use iommufd_bindings::{
    iommufd_option_IOMMU_OPTION_HUGE_PAGES as HUGE_PAGES,
    iommufd_option_IOMMU_OPTION_RLIMIT_MODE as RLIMIT_MODE, iommufd_option_ops_IOMMU_OPTION_OP_GET as GET,
    iommufd_option_ops_IOMMU_OPTION_OP_SET as SET, iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_CLEAR as IOAS_CLEAR,
    iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_GET as IOAS_GET,
    iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_SET as IOAS_SET,
};
use rustix::io::Errno;

use super::ioas::Ioas;
use super::{Caller, Context, Object};
use crate::iommufd::MemoryAccounting;
use crate::model::argument::Argument;

impl Context {
    /// `IOMMU_OPTION`.
    pub(super) fn option(&mut self, argument: &mut Argument<'_>, caller: &Caller) -> Result<(), Errno> {
        let (option, operation) = (argument.word(4)?, u32::from(argument.half(8)?));
        let (reserved, object, value) = (argument.half(10)?, argument.word(12)?, argument.double(16)?);
        if reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let value = match option {
            RLIMIT_MODE => self.accounting_option(operation, object, value, caller)?,
            HUGE_PAGES => self.large_pages_option(operation, object, value)?,
            _ => return Err(Errno::OPNOTSUPP),
        };
        argument.set_double(16, value)
    }

    fn accounting_option(
        &mut self,
        operation: u32,
        object: u32,
        value: u64,
        caller: &Caller,
    ) -> Result<u64, Errno> {
        match operation {
            _ if object != 0 => Err(Errno::OPNOTSUPP),
            GET => Ok(u64::from(self.accounting == MemoryAccounting::Process)),
            SET if !caller.may_change_accounting => Err(Errno::PERM),
            SET if !self.objects.is_empty() => Err(Errno::BUSY),
            SET => {
                self.accounting = match value {
                    0 => MemoryAccounting::User,
                    1 => MemoryAccounting::Process,
                    _ => return Err(Errno::INVAL),
                };
                Ok(value)
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn large_pages_option(&mut self, operation: u32, object: u32, value: u64) -> Result<u64, Errno> {
        let ioas = self.ioas_mut(object)?;
        match operation {
            GET => Ok(u64::from(ioas.large_pages)),
            SET if value > 1 => Err(Errno::INVAL),
            SET => ioas.set_large_pages(value == 1).map(|()| value),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// The address space that the requests of the legacy container act on; a legacy group that is given the context in
    /// place of a container makes one.
    pub(crate) fn compatibility_ioas(&mut self) -> u32 {
        if let Some(ioas) = self.compatibility_ioas {
            return ioas;
        }
        let ioas = self.insert(Object::Ioas(Ioas::new()));
        self.compatibility_ioas = Some(ioas);
        ioas
    }

    /// `IOMMU_VFIO_IOAS`: which address space the requests of the legacy container act on.
    pub(super) fn vfio_ioas(&mut self, argument: &mut Argument<'_>) -> Result<(), Errno> {
        let (ioas, operation, reserved) = (argument.word(4)?, argument.half(8)?, argument.half(10)?);
        if reserved != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        match u32::from(operation) {
            IOAS_GET => return argument.set_word(4, self.compatibility_ioas.ok_or(Errno::NODEV)?),
            IOAS_SET => self.compatibility_ioas = self.ioas(ioas).map(|_| Some(ioas))?,
            IOAS_CLEAR => self.compatibility_ioas = None,
            _ => return Err(Errno::OPNOTSUPP),
        }
        Ok(())
    }
}
