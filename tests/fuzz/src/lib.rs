// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the fuzz targets do with an input, each in a module of its name. A finding is a panic, wherever it comes from.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

pub mod codec;
pub mod frontend;
mod patience;
mod process;
pub mod session;
