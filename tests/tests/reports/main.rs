// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reset group tells of each case that there is: the real server and the real tool on modelled machines.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

mod changes;
mod fixture;
mod owners;
mod places;
