// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much memory a process may lock (`RLIMIT_MEMLOCK`), and how that is set. The kernel charges all memory that a device may
//! reach: each page of a mapping, for all processes of a user together.

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

const KIB: u64 = 1 << 10;
/// What libvirt itself adds for a VM with devices: its limit is one for all of QEMU's memory.
const LIBVIRT_EXTRA: u64 = 1 << 30;

/// How a limit is set, for those who start servers in the usual ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLockSettings {
    /// Line of a systemd unit.
    pub systemd: String,
    /// Elements of a libvirt domain.
    pub libvirt: String,
    /// Command of a shell.
    pub shell: String,
}

impl MemoryLockSettings {
    /// For a limit of so many bytes, and so many for one VM, which is what libvirt sets.
    pub fn new(bytes: u64, bytes_per_vm: u64) -> Self {
        let libvirt = bytes_per_vm.saturating_add(LIBVIRT_EXTRA).div_ceil(KIB);
        Self {
            systemd: format!("LimitMEMLOCK={bytes}"),
            libvirt: format!("<memtune><hard_limit unit='KiB'>{libvirt}</hard_limit></memtune>"),
            shell: format!("ulimit -l {}", bytes.div_ceil(KIB)),
        }
    }
}

/// The limit of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    bytes: Option<u64>,
}

impl MemoryLimit {
    /// As it is now. A capability may lift it.
    pub fn of_this_process() -> Self {
        let is_lifted = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
        Self { bytes: getrlimit(Resource::Memlock).current.filter(|_| !is_lifted) }
    }

    /// In bytes; `None` where there is none.
    pub const fn bytes(self) -> Option<u64> {
        self.bytes
    }

    /// The limit where so many bytes are beyond it, whatever other processes have locked.
    pub fn exceeded_by(self, needed: u64) -> Option<u64> {
        self.bytes.filter(|limit| needed > *limit)
    }
}
