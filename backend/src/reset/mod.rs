// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resetting: what would be hit ([`group`]), what is told about it ([`report`]), and doing it ([`order`]).

pub mod group;
pub mod order;
pub mod report;
