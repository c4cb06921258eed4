// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel calls a bound device.

/// A bound device's object id in its iommufd. Ids of one context mean nothing in another, and are reused at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub(crate) u32);
