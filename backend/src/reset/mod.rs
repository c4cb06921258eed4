// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resetting: what would be hit ([`group`]), how that looks ([`neighbour`]), what is told about it ([`report`]) and can be done
//! about it ([`remedy`]), doing it ([`step`]) when the [`engine`] says so; and, before there is anything to reset, whether it will
//! work ([`plan`]).

pub mod engine;
pub mod group;
pub mod neighbour;
pub mod plan;
pub mod remedy;
pub mod report;
pub mod step;
