// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The iommufd context: one per VM, the trust domain of every device bound to it.

use std::os::fd::OwnedFd;

use iommufd_bindings::{
    iommu_destroy, iommu_ioas_map_file, iommu_option, iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
    iommufd_option_ops_IOMMU_OPTION_OP_GET,
};
use rustix::io::Errno;

use crate::error::{CallError, Object};
use crate::ioctl::{self, Ioctl};
use crate::sys::{self, IommuFd};
use crate::topology::Sysfs;

/// How the kernel charges pinned memory (`IOMMU_OPTION_RLIMIT_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAccounting {
    /// Against the user's locked memory, shared by all the user's processes.
    User,
    /// Against the process, as the legacy container did.
    Process,
}

/// A received descriptor that is not `/dev/iommu`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnIommufd {
    /// The kernel refused to describe the descriptor.
    #[error("fstat of the descriptor failed")]
    Fstat(#[source] Errno),
    /// Some other kind of file.
    #[error("the descriptor is not /dev/iommu")]
    OtherFile,
}

/// An open `/dev/iommu` that somebody handed over.
#[derive(Debug)]
pub struct Iommufd {
    fd: IommuFd,
    has_map_file: bool,
}

impl Iommufd {
    /// Accepts a descriptor after checking that it is `/dev/iommu`, and finds out what the kernel behind it can do.
    pub fn from_fd(fd: OwnedFd, sysfs: &Sysfs) -> Result<Self, NotAnIommufd> {
        use std::os::fd::AsFd;
        let number = Sysfs::character_device(fd.as_fd()).map_err(NotAnIommufd::Fstat)?;
        if !number.is_some_and(|number| sysfs.is_iommufd(number)) {
            return Err(NotAnIommufd::OtherFile);
        }
        let fd = IommuFd(fd);
        // A kernel that knows the request (6.13) has something else to say about a call that maps nothing.
        let has_map_file =
            sys::call(&fd, &mut iommu_ioas_map_file { fd: -1, ..Default::default() }) != Err(Errno::NOTTY);
        Ok(Self { fd, has_map_file })
    }

    /// Whether the kernel maps a file's pages without a mapping in this process (`IOMMU_IOAS_MAP_FILE`, Linux 6.13).
    pub const fn has_map_file(&self) -> bool {
        self.has_map_file
    }

    /// Against whom pinned memory is charged.
    pub fn memory_accounting(&self) -> Result<MemoryAccounting, CallError> {
        let mut option = iommu_option {
            option_id: iommufd_option_IOMMU_OPTION_RLIMIT_MODE,
            op: OPTION_GET,
            ..Default::default()
        };
        sys::call(&self.fd, &mut option).map_err(|errno| Self::error(ioctl::IOMMU_OPTION, errno))?;
        Ok(if option.val64 == 0 { MemoryAccounting::User } else { MemoryAccounting::Process })
    }

    /// Destroys an object by its id.
    pub(crate) fn destroy(&self, id: u32) -> Result<(), CallError> {
        sys::call(&self.fd, &mut iommu_destroy { id, ..Default::default() })
            .map(drop)
            .map_err(|errno| Self::error(ioctl::IOMMU_DESTROY, errno))
    }

    pub(crate) const fn fd(&self) -> &IommuFd {
        &self.fd
    }

    pub(crate) const fn error(ioctl: Ioctl, errno: Errno) -> CallError {
        CallError { call: ioctl.name, object: Object::Iommufd, errno }
    }
}

#[allow(clippy::cast_possible_truncation)]
const OPTION_GET: u16 = iommufd_option_ops_IOMMU_OPTION_OP_GET as u16;
