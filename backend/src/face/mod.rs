// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The faces: translators between a protocol's messages and calls of the machine. None of them knows the kernel.

pub mod control;
pub mod memory_batch;
pub mod socket;
pub mod vfio_user;
pub mod vhost_user;
