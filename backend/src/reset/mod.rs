// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resetting: what would be hit ([`group`]), what is told about it ([`report`]), and doing it ([`order`]).
//! [`engine`] decides on resets, and is about to take [`order`]'s place.

pub mod engine;
pub mod group;
pub mod order;
pub mod report;
