// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server was told at its start about resets.

use protocol::extension::ResetPolicy;

use crate::reset::engine::Sanitizing;

/// What holds where a client does not say otherwise, or cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// How far a reset may reach.
    pub reach: ResetPolicy,
    /// Whether a device is reset before somebody gets it and after somebody had it.
    pub sanitizing: Sanitizing,
    /// Whether a device that cannot be reset is not served.
    pub requires_reset: bool,
}

impl Default for Policies {
    fn default() -> Self {
        Self { reach: ResetPolicy::Group, sanitizing: Sanitizing::BestEffort, requires_reset: false }
    }
}
