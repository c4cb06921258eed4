// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What tests of the server process share: the process, a VMM's memory and devices, what stock VMMs say, and a driver for QEMU's edu device.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::missing_panics_doc, clippy::indexing_slicing)]

pub mod driver_ring;
pub mod edu;
pub mod foreign_file;
pub mod frontends;
pub mod grown_disk;
pub mod guest;
pub mod guest_memory;
pub mod host;
pub mod interrupt;
pub mod launched_vm;
pub mod legacy_group;
pub mod mapped_bar;
pub mod modelled_vm;
pub mod network;
pub mod node;
pub mod pci_function;
pub mod raw_client;
pub mod server_process;
pub mod vmm;
pub mod witnessed_server;
