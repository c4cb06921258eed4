// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The error of a kernel call: which one, on what, and the errno.

use std::fmt;

use rustix::io::Errno;

use crate::pci_address::PciAddress;

/// What a failed call was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A VFIO device.
    Device(PciAddress),
    /// The iommufd context.
    Iommufd,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(address) => write!(f, "device {address}"),
            Self::Iommufd => f.write_str("iommufd"),
        }
    }
}

/// A kernel call that failed. The errno is the kernel's own, unless a `reply` to a call was malformed (then `EPROTO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} on {object} failed")]
pub struct CallError {
    /// The request as the uapi header names it, or `pread`, `pwrite`.
    pub call: &'static str,
    /// What the call was made on.
    pub object: Object,
    /// Why it failed.
    #[source]
    pub errno: Errno,
}
