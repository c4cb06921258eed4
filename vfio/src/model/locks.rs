// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which of the kernel's locks a system call takes.

use rustix::io::Errno;

use crate::ioctl;
use crate::model::argument::Argument;
use crate::model::kernel::{FileId, Kernel, OpenFile};
use crate::model::schedule::Locks;
use crate::model::wire::Call;
use crate::pci_address::PciAddress;
use crate::region::RegionIndex;

/// Requests that take the lock of the device's set.
const ON_SET: [u32; 5] = [
    ioctl::DEVICE_BIND_IOMMUFD.number,
    ioctl::DEVICE_ATTACH_IOMMUFD_PT.number,
    ioctl::DEVICE_DETACH_IOMMUFD_PT.number,
    ioctl::DEVICE_GET_PCI_HOT_RESET_INFO.number,
    ioctl::DEVICE_PCI_HOT_RESET.number,
];

impl Kernel {
    /// What a call has to wait for. A hot reset does not wait for a device's memory: it is `EBUSY`.
    pub(super) fn locks_needed(&self, file: FileId, call: Call) -> Locks {
        let Some(function) = self.function_behind(file) else { return Locks::default() };
        match call {
            Call::Ioctl(number) if ON_SET.contains(&number) => self.set_lock(function),
            Call::Ioctl(number) if number == ioctl::DEVICE_RESET.number => memory_lock(function),
            Call::Read(position, _) | Call::Write(position) if !is_config(position) => memory_lock(function),
            Call::Identify | Call::Ioctl(_) | Call::Read(..) | Call::Write(_) | Call::Map(..) => {
                Locks::default()
            }
        }
    }

    /// What a call holds while it lasts: what it had to wait for, and for a hot reset the memory of all it affects.
    pub(super) fn locks_held(&self, file: FileId, call: Call) -> Locks {
        let needed = self.locks_needed(file, call);
        match (call, self.function_behind(file)) {
            (Call::Ioctl(number), Some(function)) if number == ioctl::DEVICE_PCI_HOT_RESET.number => {
                Locks { memory: self.set_of(function), ..needed }
            }
            _ => needed,
        }
    }

    /// The last close of a bound device may reset its set.
    pub(super) fn locks_of_close(&self, file: FileId) -> Locks {
        match self.files.get(&file) {
            Some(OpenFile::Cdev { function, is_bound: true, .. } | OpenFile::GroupDevice(function)) => {
                self.set_lock(*function)
            }
            _ => Locks::default(),
        }
    }

    fn set_lock(&self, function: PciAddress) -> Locks {
        let set = self.functions.get(&function).and_then(|function| function.set);
        Locks { set, memory: Vec::new() }
    }

    /// Whether the kernel would refuse a call before it begins with what lasts.
    pub(super) fn check_before(&self, file: FileId, call: Call, data: &[u8]) -> Result<(), Errno> {
        match (call, self.files.get(&file)) {
            (Call::Ioctl(number), Some(OpenFile::Cdev { function, is_bound: true, .. }))
                if number == ioctl::DEVICE_PCI_HOT_RESET.number =>
            {
                let mut data = data.to_vec();
                self.check_hot_reset(*function, true, &Argument(&mut data), &[]).map(drop)
            }
            _ => Ok(()),
        }
    }
}

fn memory_lock(function: PciAddress) -> Locks {
    Locks { set: None, memory: vec![function] }
}

fn is_config(position: u64) -> bool {
    position >> 40 == u64::from(RegionIndex::CONFIG.0)
}
