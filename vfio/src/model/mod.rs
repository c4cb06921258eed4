// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model of the kernel's VFIO and iommufd, for machines without the hardware and for every fault on demand.
//!
//! It answers the same requests with the same structures and errnos, on descriptors that behave as the real ones do: an
//! open file is one end of a socket pair, so that copies, passing it on and closing the last copy need no emulation.
//! A folder takes the place of `/dev` and `/sys`; opening a node there is connecting to it.

mod argument;
mod function;
mod iommufd;
mod memory_map;
mod sysfs;
pub mod topology;

pub use topology::Topology;
