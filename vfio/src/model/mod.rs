// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model of the kernel's VFIO and iommufd, for machines without the hardware and for every fault on demand.
//!
//! It answers the same requests with the same structures and errnos, on descriptors that behave as the real ones do: an
//! open file is one end of a socket pair, so that copies, passing it on and closing the last copy need no emulation.
//! A folder takes the place of `/dev` and `/sys`; opening a node there is connecting to it.
//!
//! | module | noun |
//! |---|---|
//! | [`topology`], `sysfs` | what the machine consists of, and how that looks |
//! | `function` and what it is made of | the devices |
//! | `kernel`, `pci_function`, `hot_reset`, `legacy_group`, `iommufd`, `host`, `system_call` | the kernel's objects and rules, without time and sockets |
//! | `locks`, `schedule`, [`fault`] | what waits for what, what lasts, what fails |
//! | `process`, `open_files`, `machine`, [`order`] | running it |
//! | `wire`, `client` | system calls by message |

mod argument;
mod caller;
pub(crate) mod client;
mod decision;
#[cfg(test)]
mod direct;
pub mod fault;
mod function;
mod host;
mod hot_reset;
mod iommufd;
mod kernel;
mod legacy_group;
mod locks;
mod machine;
mod memory_map;
mod open_files;
pub mod order;
mod pci_function;
mod process;
mod schedule;
pub(crate) mod sysfs;
mod system_call;
pub mod topology;
mod wire;

pub use client::{ioctl, is_open_file, map, open, read};
pub use fault::Fault;
pub use machine::{Machine, run};
pub use order::Order;
pub use process::Settings;
pub use topology::Topology;
