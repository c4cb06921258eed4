// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much memory the user that runs a server must be allowed to lock. The kernel charges each page of guest memory that a
//! device may reach, once however many devices of the VM may, because they share one address space.

use std::str::FromStr;

use serde::Serialize;
use vhost_device_vfio::memory_lock::MemoryLockSettings;

/// The kernel counts in pages.
const PAGE: u64 = 4096;

/// A size in bytes, more than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySize(u64);

/// What the limit has to be.
#[derive(Debug, Serialize)]
pub(crate) struct MemoryLock {
    /// For one VM.
    bytes_per_vm: u64,
    /// For all of them, if one user runs them.
    bytes: u64,
    settings: Settings,
}

/// How the limit for all VMs, or libvirt's for each, is set.
#[derive(Debug, Serialize)]
struct Settings {
    systemd: String,
    libvirt: String,
    shell: String,
}

impl From<MemoryLockSettings> for Settings {
    fn from(MemoryLockSettings { systemd, libvirt, shell }: MemoryLockSettings) -> Self {
        Self { systemd, libvirt, shell }
    }
}

impl FromStr for MemorySize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
        let unit = match text.get(digits.len()..).unwrap_or_default() {
            "" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err("the unit is none of K, M, G and T"),
        };
        let number: u64 = digits.parse().map_err(|_| "expected a number like 16G")?;
        let bytes = number.checked_mul(1 << unit).filter(|bytes| *bytes <= 1 << 52);
        bytes.filter(|bytes| *bytes > 0).map(Self).ok_or("no VM has so much memory")
    }
}

impl MemoryLock {
    /// For VMs of this size.
    pub(crate) fn new(size: MemorySize, vms: usize) -> Self {
        let bytes_per_vm = size.0.next_multiple_of(PAGE);
        let bytes = bytes_per_vm.saturating_mul(u64::try_from(vms).unwrap_or(u64::MAX));
        Self { bytes_per_vm, bytes, settings: MemoryLockSettings::new(bytes, bytes_per_vm).into() }
    }

    /// The lines for a person.
    pub(crate) fn text(&self) -> String {
        let Self { bytes_per_vm, bytes, settings } = self;
        let total = if bytes == bytes_per_vm {
            format!("{bytes} bytes")
        } else {
            format!("{bytes} bytes, {bytes_per_vm} for each VM")
        };
        format!(
            "Memory-lock limit of the user that runs the server: at least {total}; none is needed with CAP_IPC_LOCK.\n\
             \x20 systemd  {}\n\
             \x20 libvirt  {} (guest memory and 1 GiB for QEMU, for each VM)\n\
             \x20 shell    {}\n",
            settings.systemd, settings.libvirt, settings.shell
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> MemorySize {
        text.parse().unwrap()
    }

    #[test]
    fn a_size_has_a_binary_unit_or_none() {
        let sizes = ["4096", "4K", "4KiB", "3M", "16G", "1TiB"].map(|text| size(text).0);
        assert_eq!(sizes, [4096, 4096, 4096, 3 << 20, 16 << 30, 1 << 40]);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "0", "16GB", "1.5G", "-1", "99999999T", "18446744073709551616"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_limit_is_exact_in_each_settings_own_unit() {
        let limit = MemoryLock::new(size("16G"), 1);
        assert_eq!(limit.settings.systemd, "LimitMEMLOCK=17179869184");
        assert_eq!(limit.settings.shell, "ulimit -l 16777216");
        assert!(limit.settings.libvirt.contains("'KiB'>17825792<"), "{}", limit.settings.libvirt);
    }

    #[test]
    fn vms_of_one_user_add_up_and_libvirts_limit_does_not() {
        let limit = MemoryLock::new(size("1G"), 3);
        assert_eq!((limit.bytes, limit.bytes_per_vm), (3 << 30, 1 << 30));
        assert!(limit.settings.libvirt.contains(">2097152<"), "{}", limit.settings.libvirt);
    }

    #[test]
    fn whole_pages_are_charged() {
        assert_eq!(MemoryLock::new(size("1"), 1).bytes, 4096);
    }
}
