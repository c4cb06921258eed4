// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server was told at its start about resets, and about who holds devices.

use protocol::extension::ResetPolicy;

use crate::reset::engine::Sanitizing;

/// How a client reaches the BARs of its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BarAccess {
    /// By messages: nobody but the server holds the device.
    #[default]
    Trap,
    /// By mapping them: the client gets the device's file, and with it all of the device's power.
    Map,
}

/// How a doorbell rings for a ring whose guest is behind a vhost-user frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoorbellAccess {
    /// By an eventfd: nobody but the server holds the device.
    #[default]
    Eventfd,
    /// The guest writes to it, in a page that the frontend maps. For that it gets the device's file, as with
    /// [`BarAccess::Map`].
    Map,
}

/// What holds where a client does not say otherwise, or cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// How far a reset may reach.
    pub reach: ResetPolicy,
    /// Whether a device is reset before somebody gets it and after somebody had it.
    pub sanitizing: Sanitizing,
    /// Whether a device that cannot be reset is not served.
    pub requires_reset: bool,
    /// How clients reach BARs.
    pub bar_access: BarAccess,
    /// How doorbells ring.
    pub doorbells: DoorbellAccess,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            reach: ResetPolicy::Group,
            sanitizing: Sanitizing::BestEffort,
            requires_reset: false,
            bar_access: BarAccess::Trap,
            doorbells: DoorbellAccess::Eventfd,
        }
    }
}
