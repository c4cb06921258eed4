// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VFIO extension of vhost-user: payloads of the requests from 0x5200 and of their replies.
//!
//! docs/protocol.md specifies them; a test compares its tables with the structures here. All integers are in host
//! byte order.

use zerocopy::TryFromBytes;

mod coordination;
mod device;
mod event;
mod failure;
mod handover;
mod reset;
mod reset_group;
mod version;

pub(crate) use coordination::read_addresses;
pub use coordination::{
    AbortCause, AbortReason, AbortRequest, BrokerMessage, CoordinateRequest, CoordinationId,
    CoordinationRequest, CoordinationRequestHeader, DoneRequest, GrantRequest, MAX_SET_FUNCTIONS,
    MemberAnswer, MemberMessage, MemberName, Preparation, PrepareRequest, ResetAnswer, ResetPolicy,
    ResetRequestId,
};
pub use device::{DeviceFlags, DeviceInfo, IommuGroup, ListDevicesReply, Name, PciAddress};
pub use event::{
    AffectedDevice, AffectedState, EventKinds, GroupEvent, ResetEvent, ResetEventHeader, ResetProgress,
    ResetStage, SubscribeRequest,
};
pub use failure::{Failure, LastFailure, LastFailureReply, ReplyStatus};
pub(crate) use failure::{errno_from_wire, wire_errno};
pub use handover::{
    AddDeviceRequest, Cookie, CookieRequest, Face, IoasChoice, KernelFeatures, ServeRequest, SetIommufdReply,
    SetIommufdRequest,
};
pub use reset::{
    DEFAULT_RESET_DEADLINE, Epoch, LONGEST_ATTEMPT, ResetMethod, ResetOutcome, ResetReply, ResetReport,
    ResetRequest, ResetWish,
};
pub use reset_group::{
    Generation, GroupReason, MAX_GROUP_ROWS, MAX_PAGE_ROWS, Ownership, ResetGroup, ResetGroupPage,
    ResetGroupReply, ResetGroupRequest, ResetGroupRow, RowFlags, RowReason,
};
pub use version::{MAJOR, MAX_DEVICES, MAX_MEMORY_SLOTS, MINOR, VersionReply, VersionRequest};

/// A number that stands for nothing in the version of the extension spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} has no meaning here")]
pub struct UnknownNumber(pub u32);

/// Converts enums with `repr(u32)` from and to their numbers.
macro_rules! numbered {
    ($($name:ty),*) => {$(
        impl TryFrom<u32> for $name {
            type Error = $crate::extension::UnknownNumber;

            fn try_from(number: u32) -> Result<Self, Self::Error> {
                zerocopy::try_transmute!(number).map_err(|_| $crate::extension::UnknownNumber(number))
            }
        }

        impl From<$name> for u32 {
            fn from(value: $name) -> Self {
                zerocopy::transmute!(value)
            }
        }
    )*};
}
use numbered;

/// Reads a `T` from the front of `bytes`: the value and what follows it.
pub(crate) fn split<T: TryFromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::try_read_from_prefix(bytes).ok()
}

/// Reads as many `T` as fill `bytes`; `None` if something is left over or is not a `T`.
pub(crate) fn read_all<T: TryFromBytes>(bytes: &[u8]) -> Option<Vec<T>> {
    bytes.chunks(size_of::<T>()).map(|item| T::try_read_from_bytes(item).ok()).collect()
}
