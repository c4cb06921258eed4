// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device server: connections → faces → [`machine::Machine`] → the `vfio` crate, and back.

pub mod address_space;
pub mod broker;
pub mod control_memory;
pub mod device;
pub mod face;
pub mod failure;
pub mod host;
pub mod interrupts;
pub mod job;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod memory_lock;
pub mod notice;
pub mod own_socket;
pub mod owner;
pub mod policy;
pub mod program;
pub mod reset;
pub mod server;
pub mod virtio;
pub mod worker;
