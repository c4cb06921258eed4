// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vfio-user as QEMU and Cloud Hypervisor speak it: the commands that a data face answers, and a small client.

mod client;
mod command;
mod dma;
mod error;
mod feature;
mod header;
mod irq;
mod message;
mod region;
mod request;
mod version;

pub use client::{Client, ClientError};
pub use command::Command;
pub use dma::{DmaMap, DmaMapPayload, DmaUnmap, DmaUnmapPayload};
pub use error::RequestError;
pub use feature::{DeviceFeature, FeatureRequest, ResetGroupWish};
pub use header::{MAX_DATA, VfioUserHeader};
pub use irq::{IrqAction, IrqData, IrqSet, MAX_IRQS, SetIrqs};
pub use message::{DeviceInfo, IrqInfo, RegionAccess, RegionInfo};
pub use region::{MAX_WRITES, RegionDescription, RegionIoFds, RegionWrite, SparseMmap, SparseMmapArea};
pub use request::{Reply, Request};
pub use version::{Capabilities, MAJOR, MINOR, Proposal, VersionPayload};
