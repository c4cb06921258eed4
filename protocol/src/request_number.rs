// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers of the requests of the control face and of the vhost-user face.

use std::fmt;

use vhost::vhost_user::message::FrontendReq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number in a vhost-user header that tells what is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct RequestNumber(pub u32);

/// Declares a constant for each request and the table of their names.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $number:expr;)*) => {
        impl RequestNumber {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The request's name in the specification, if there is such a request.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

requests! {
    /// No request: what a final reply carries when no header was read.
    NONE = 0;
    /// Which virtio features the server offers.
    GET_FEATURES = FrontendReq::GET_FEATURES as u32;
    /// Which virtio features the client wants.
    SET_FEATURES = FrontendReq::SET_FEATURES as u32;
    /// Begins the session.
    SET_OWNER = FrontendReq::SET_OWNER as u32;
    /// Ends it; deprecated.
    RESET_OWNER = FrontendReq::RESET_OWNER as u32;
    /// Replaces the guest's memory table.
    SET_MEM_TABLE = FrontendReq::SET_MEM_TABLE as u32;
    /// How many descriptors a ring has.
    SET_VRING_NUM = FrontendReq::SET_VRING_NUM as u32;
    /// Where the parts of a ring are.
    SET_VRING_ADDR = FrontendReq::SET_VRING_ADDR as u32;
    /// Where a ring begins.
    SET_VRING_BASE = FrontendReq::SET_VRING_BASE as u32;
    /// Stops a ring; how far it has come.
    GET_VRING_BASE = FrontendReq::GET_VRING_BASE as u32;
    /// Hands over the eventfd that the guest notifies a ring with, and starts the ring.
    SET_VRING_KICK = FrontendReq::SET_VRING_KICK as u32;
    /// Hands over the eventfd that a ring interrupts the guest with.
    SET_VRING_CALL = FrontendReq::SET_VRING_CALL as u32;
    /// Hands over the eventfd that a ring tells an error with.
    SET_VRING_ERR = FrontendReq::SET_VRING_ERR as u32;
    /// Which protocol features the server offers.
    GET_PROTOCOL_FEATURES = FrontendReq::GET_PROTOCOL_FEATURES as u32;
    /// Which protocol features the client wants.
    SET_PROTOCOL_FEATURES = FrontendReq::SET_PROTOCOL_FEATURES as u32;
    /// How many rings the device has.
    GET_QUEUE_NUM = FrontendReq::GET_QUEUE_NUM as u32;
    /// Enables or disables a ring.
    SET_VRING_ENABLE = FrontendReq::SET_VRING_ENABLE as u32;
    /// Hands over the socket on which the server sends its requests.
    SET_BACKEND_REQ_FD = FrontendReq::SET_BACKEND_REQ_FD as u32;
    /// Reads the device's configuration space.
    GET_CONFIG = FrontendReq::GET_CONFIG as u32;
    /// Writes it.
    SET_CONFIG = FrontendReq::SET_CONFIG as u32;
    /// Resets the device.
    RESET_DEVICE = FrontendReq::RESET_DEVICE as u32;
    /// How many memory regions the server takes.
    GET_MAX_MEM_SLOTS = FrontendReq::GET_MAX_MEM_SLOTS as u32;
    /// Adds a region to the memory table.
    ADD_MEM_REG = FrontendReq::ADD_MEM_REG as u32;
    /// Removes a region from the memory table.
    REM_MEM_REG = FrontendReq::REM_MEM_REG as u32;
    /// Writes the device status.
    SET_STATUS = FrontendReq::SET_STATUS as u32;
    /// Reads the device status.
    GET_STATUS = FrontendReq::GET_STATUS as u32;
    /// Agrees on the version of the extension and its limits.
    VERSION = 0x5200;
    /// Hands over the iommufd.
    SET_IOMMUFD = 0x5201;
    /// Hands over a device.
    ADD_DEVICE = 0x5202;
    /// Hands over a socket on which the device is served.
    SERVE = 0x5203;
    /// Takes a device back.
    REMOVE_DEVICE = 0x5204;
    /// Describes a device.
    GET_DEVICE_INFO = 0x5205;
    /// Who is reset along with a device, and whether it can be done now.
    GET_RESET_GROUP = 0x5206;
    /// Resets a device.
    RESET = 0x5207;
    /// Why the last request failed.
    LAST_FAILURE = 0x5208;
    /// Which devices there are.
    LIST_DEVICES = 0x5209;
    /// Has the server tell of events.
    SUBSCRIBE = 0x520a;
    /// Makes the client the broker of the server's resets.
    COORDINATE = 0x520b;
    /// Has the server quiesce its devices of a reset set.
    RESET_PREPARE = 0x520c;
    /// Has the server reset the set.
    RESET_GRANT = 0x520d;
    /// The set was reset.
    RESET_DONE = 0x520e;
    /// The set was not reset.
    RESET_ABORT = 0x520f;
    /// From the server: how a reset goes.
    RESET_EVENT = 0x5280;
    /// From the server: a device has reported an error.
    DEVICE_ERROR = 0x5281;
    /// From the server: the host wants a device back.
    UNPLUG_REQUEST = 0x5282;
    /// From the server: a reset group became available, or is not any more.
    GROUP_CHANGED = 0x5283;
    /// From the server: it would like a reset that reaches beyond its own devices.
    RESET_REQUEST = 0x5284;
    /// From the server: it has done its part of a coordinated reset.
    RESET_ANSWER = 0x5285;
}

impl RequestNumber {
    /// Whether the number lies in the extension's block of frontend requests, which are answered always.
    pub fn is_extension(self) -> bool {
        (0x5200..0x5280).contains(&self.0)
    }

    /// Whether the number lies in the extension's block of the server's requests, which are never answered.
    pub fn is_from_server(self) -> bool {
        (0x5280..0x5300).contains(&self.0)
    }

    /// The minor version of the extension that the request came with.
    pub fn minor(self) -> u16 {
        match self {
            Self::SUBSCRIBE
            | Self::COORDINATE
            | Self::RESET_PREPARE
            | Self::RESET_GRANT
            | Self::RESET_DONE
            | Self::RESET_ABORT => 1,
            other => u16::from(other.is_from_server()),
        }
    }

    /// Whether the request describes guest memory.
    pub fn is_about_memory(self) -> bool {
        matches!(self, Self::SET_MEM_TABLE | Self::ADD_MEM_REG | Self::REM_MEM_REG)
    }

    /// Whether the request is answered even without `need_reply`.
    pub fn is_always_answered(self) -> bool {
        self.is_extension()
            || matches!(
                self,
                Self::GET_FEATURES
                    | Self::GET_VRING_BASE
                    | Self::GET_PROTOCOL_FEATURES
                    | Self::GET_QUEUE_NUM
                    | Self::GET_CONFIG
                    | Self::GET_MAX_MEM_SLOTS
                    | Self::GET_STATUS
            )
    }
}

impl fmt::Display for RequestNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for RequestNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_called_by_its_name_or_else_by_its_number() {
        assert_eq!(RequestNumber::ADD_DEVICE.to_string(), "ADD_DEVICE");
        assert_eq!(RequestNumber(0x5299).to_string(), "0x5299");
    }

    #[test]
    fn the_extension_stays_clear_of_the_numbers_of_vhost_user() {
        assert!(FrontendReq::try_from(RequestNumber::VERSION.0).is_err());
        assert!(RequestNumber::VERSION.is_extension());
        assert!(!RequestNumber::SET_MEM_TABLE.is_extension());
        assert!(!RequestNumber(0x5280).is_extension());
    }
}
