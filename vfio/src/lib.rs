// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VFIO devices and iommufd address spaces on descriptors that somebody else opened.
//!
//! | module | noun |
//! |---|---|
//! | [`device`] | a VFIO cdev: received, bound, attached, asked |
//! | [`region`], [`irq`], [`config_space`], [`Msix`] | what a bound device consists of |
//! | [`hot_reset`] | the reset set of a device, and resetting it |
//! | [`iommufd`], [`ioas`], [`hwpt`] | the context, its address spaces and page tables |
//! | [`topology`] | what sysfs knows about the functions around a device |
//! | [`hierarchy`], [`reset_scope`], [`own_reset`] | the same about the whole machine, and what resets what there |
//! | `model`, a feature | the same kernel without a kernel, for machines without devices |
//! | [`ioctl`] | the number of every request this crate can make, for the sandbox |
//!
//! Nothing here opens a device node. Every ioctl is issued by the private module `sys`, which is also the only one
//! with `unsafe` code.

pub mod config_space;
pub mod device;
mod device_id;
mod error;
pub mod hierarchy;
pub mod hot_reset;
pub mod hwpt;
pub mod ioas;
pub mod ioctl;
pub mod iommufd;
pub mod irq;
#[cfg(feature = "model")]
pub mod model;
mod msix;
pub mod own_reset;
pub mod pci_address;
pub mod region;
pub mod reset_scope;
mod sys;
pub mod topology;

pub use config_space::ConfigSpace;
pub use device::{Device, DeviceInfo, UnboundDevice};
pub use device_id::DeviceId;
pub use error::{CallError, Object};
pub use hierarchy::{GroupKind, Hierarchy, Place};
pub use hot_reset::{HotReset, HotResetInfo, Ownership};
pub use hwpt::Hwpt;
pub use ioas::{Access, Ioas, Iova, IovaRange};
pub use iommufd::Iommufd;
pub use irq::{IrqAction, IrqIndex};
pub use msix::Msix;
pub use own_reset::OwnReset;
pub use pci_address::PciAddress;
pub use region::{Region, RegionIndex};
pub use reset_scope::ResetScope;
/// The errno type of every error of this crate.
pub use rustix::io::Errno;
pub use topology::{Function, Sysfs};
