// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hardware page table over an IOAS.
//!
//! Allocated by us, not by the kernel on attachment: it keeps its page tables and the pinned memory when the last
//! device is detached, so that detaching and attaching again is cheap.

use std::sync::Arc;

use iommufd_bindings::iommu_hwpt_alloc;

use crate::device_id::DeviceId;
use crate::error::CallError;
use crate::ioas::Ioas;
use crate::iommufd::Iommufd;
use crate::{ioctl, sys};

/// A page table that devices attach to.
#[derive(Debug)]
pub struct Hwpt {
    iommufd: Arc<Iommufd>,
    id: u32,
}

impl Hwpt {
    /// Allocates a page table of the kind `device` needs, over `ioas`.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` where a mapping of the IOAS collides with a reserved range of the device; `ENOMEM` and `EFAULT` for
    /// memory mapped earlier that cannot be pinned.
    pub fn allocate(ioas: &Ioas, device: DeviceId) -> Result<Self, CallError> {
        let iommufd = Arc::clone(ioas.iommufd());
        let mut argument = iommu_hwpt_alloc { dev_id: device.0, pt_id: ioas.id(), ..Default::default() };
        sys::call(iommufd.fd(), &mut argument)
            .map_err(|errno| Iommufd::error(ioctl::IOMMU_HWPT_ALLOC, errno))?;
        Ok(Self { iommufd, id: argument.out_hwpt_id })
    }

    pub(crate) const fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Hwpt {
    /// Destroys the page table; nothing may be attached to it any more.
    fn drop(&mut self) {
        if let Err(error) = self.iommufd.destroy(self.id) {
            log::warn!("event=hwpt-not-destroyed errno={}", error.errno.raw_os_error());
        }
    }
}
