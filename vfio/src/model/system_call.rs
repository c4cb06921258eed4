// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes into a system call and comes out of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::ioctl;
use crate::model::iommufd::Caller;
use crate::model::kernel::FileId;

/// A descriptor that a call names.
#[derive(Debug)]
pub(crate) enum Named {
    /// An open file of the model.
    File(FileId),
    /// A file of the machine the model runs on: memory or an eventfd.
    Foreign(OwnedFd),
}

impl Named {
    /// What should be an eventfd.
    ///
    /// # Errors
    ///
    /// `EINVAL` where it is a file of the model; what else it is shows when it is used.
    pub(super) fn into_eventfd(self) -> Result<OwnedFd, Errno> {
        match self {
            Self::Foreign(eventfd) => Ok(eventfd),
            Self::File(_) => Err(Errno::INVAL),
        }
    }
}

/// What a system call returns and writes to its caller's memory.
#[derive(Debug)]
pub(crate) struct Return {
    pub(crate) outcome: Result<u32, Errno>,
    pub(crate) data: Vec<u8>,
    pub(crate) given: Option<Given>,
}

/// A descriptor that a system call gives.
#[derive(Debug)]
pub(crate) enum Given {
    /// A new open file of the model.
    File(FileId),
    /// A file of the machine the model runs on.
    Descriptor(OwnedFd),
}

impl From<Result<Vec<u8>, Errno>> for Return {
    /// For calls whose value is the number of bytes.
    fn from(read: Result<Vec<u8>, Errno>) -> Self {
        let outcome = read.as_ref().map_err(|errno| *errno);
        let outcome = outcome.and_then(|data| u32::try_from(data.len()).map_err(|_| Errno::INVAL));
        Self { outcome, data: read.unwrap_or_default(), given: None }
    }
}

/// An ioctl without its argument.
pub(super) struct IoctlRequest<'a> {
    pub(super) number: u32,
    pub(super) named: Vec<Named>,
    pub(super) backing_offset: u64,
    pub(super) caller: &'a Caller,
}

/// The address in `IOMMU_IOAS_MAP` means nothing to another process, so the caller sends along which file is mapped there,
/// and after the argument the offset in it, which is taken off here.
pub(super) fn backing_offset(number: u32, data: &mut Vec<u8>) -> u64 {
    const ARGUMENT: usize = 40;
    if number != ioctl::IOMMU_IOAS_MAP.number || data.len() < ARGUMENT {
        return 0;
    }
    let offset = data.split_off(ARGUMENT);
    offset.first_chunk().copied().map_or(0, u64::from_ne_bytes)
}

/// The file that a map request of the iommufd names.
pub(super) fn backing(named: Vec<Named>, offset: u64) -> Result<Option<(Arc<File>, u64)>, Errno> {
    match named.into_iter().next() {
        Some(Named::Foreign(file)) => Ok(Some((Arc::new(File::from(file)), offset))),
        Some(Named::File(_)) => Err(Errno::INVAL),
        None => Ok(None),
    }
}
