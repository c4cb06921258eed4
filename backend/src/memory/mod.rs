// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory: what each client says about it, what follows for the kernel, and how to get there. Pure data: the address
//! space does what comes of it.

pub mod frontend_table;
pub mod plan;
pub mod region;
pub mod union;
pub mod view;

pub use self::frontend_table::{FrontendTable, TableChange};
pub use self::region::{GuestAddress, GuestRange, MemoryRegion};
pub use self::view::{Mapping, MemoryView};
