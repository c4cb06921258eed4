// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resetting: what would be hit ([`group`]), how that looks ([`neighbour`]), what is told about it ([`report`]) and can be done about it ([`remedy`]), doing it
//! ([`order`]); and, before there is anything to reset, whether it will work ([`plan`]).
//! [`engine`] decides on resets, and is about to take [`order`]'s place.

pub mod engine;
pub mod group;
pub mod neighbour;
pub mod order;
pub mod plan;
pub mod remedy;
pub mod report;
