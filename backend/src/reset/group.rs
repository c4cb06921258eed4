// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset group of a device, asked for anew each time: the kernel's answer is true only at the moment it is given.

use rustix::io::Errno;
use vfio::{CallError, Device, HotResetInfo};

/// What a hot reset of a device would come to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetGroup {
    /// Neither the slot nor the bus can be reset.
    None,
    /// These functions are hit.
    Functions(HotResetInfo),
}

impl ResetGroup {
    /// Asks the kernel.
    pub fn of(device: &Device) -> Result<Self, CallError> {
        match device.hot_reset_info() {
            Ok(info) => Ok(Self::Functions(info)),
            Err(error) if error.errno == Errno::NODEV => Ok(Self::None),
            Err(error) => Err(error),
        }
    }
}
