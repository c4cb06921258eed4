// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vhost-user as QEMU, crosvm and Cloud Hypervisor speak it: the requests that the face of a virtio device answers, the
//! backend channel, and a small frontend. The payloads about memory are the control face's, too.

mod channel;
mod config;
mod frontend;
mod memory;
mod reply;
mod request;
mod vring;

pub use channel::{
    BackendChannel, BackendRequest, BackendRequestNumber, ChannelError, FrontendChannel, MAX_UNACKNOWLEDGED,
    NotifierArea, VringArea,
};
pub use config::{ConfigAccess, MAX_CONFIG};
pub use frontend::{Frontend, FrontendError, Vring};
pub use memory::{BackedRegion, MAX_TABLE_REGIONS, MemoryRegion, MemoryTableHeader, SingleMemoryRegion};
pub use reply::DeviceReply;
pub use request::{DeviceRequest, VringRequest};
pub use vring::{MAX_VRING_SIZE, VringAddress, VringDescriptor, VringState};
