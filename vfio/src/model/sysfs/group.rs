// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! IOMMU groups: who is in one, and what it says of itself.

use std::io;

use rustix::io::Errno;

use super::SysfsTree;
use crate::pci_address::PciAddress;

/// The interrupt window, which the IOMMU keeps of every group's address space.
pub(super) const INTERRUPT_WINDOW: &str = "0x00000000fee00000 0x00000000feefffff msi\n";
/// What a firmware may demand to reach. Any place does, since nothing is ever bound that has one.
const FIRMWARE_MAPPING: &str = "0x000000007f000000 0x000000007fffffff direct\n";

/// A function's part in its IOMMU group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) number: u32,
    pub(super) kind: GroupKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupKind {
    /// An IOMMU's.
    Isolated { firmware_mapping: bool },
    /// One that vfio made up for a function without an IOMMU.
    NoIommu,
}

impl SysfsTree {
    pub(super) fn set_group(&mut self, address: PciAddress, group: Option<Group>) -> io::Result<()> {
        let function = self.functions.get_mut(&address).ok_or(Errno::NODEV)?;
        let directory = function.directory.clone();
        if let Some(old) = std::mem::replace(&mut function.group, group) {
            self.tree.unlink(&format!("{directory}/iommu_group"))?;
            self.tree.unlink(&format!("kernel/iommu_groups/{}/devices/{address}", old.number))?;
            self.describe_group(old.number)?;
        }
        if let Some(Group { number, .. }) = group {
            self.describe_group(number)?;
            self.tree.link(&format!("kernel/iommu_groups/{number}/devices/{address}"), &directory)?;
            self.tree.link(&format!("{directory}/iommu_group"), &format!("kernel/iommu_groups/{number}"))?;
        }
        Ok(())
    }

    /// A group is what its members are, and without any it is gone.
    fn describe_group(&self, number: u32) -> io::Result<()> {
        let directory = format!("kernel/iommu_groups/{number}");
        let groups = self.functions.values().filter_map(|function| function.group);
        let kinds: Vec<_> = groups.filter(|group| group.number == number).map(|group| group.kind).collect();
        if kinds.is_empty() {
            return self.tree.remove_directory(&directory);
        }
        self.tree.make_directory(&format!("{directory}/devices"))?;
        if kinds.contains(&GroupKind::NoIommu) {
            self.tree.write(&format!("{directory}/name"), "vfio-noiommu\n")?;
            self.tree.write(&format!("{directory}/type"), "unknown\n")?;
            return self.tree.write(&format!("{directory}/reserved_regions"), "");
        }
        let is_demanded = kinds.contains(&GroupKind::Isolated { firmware_mapping: true });
        let demanded = if is_demanded { FIRMWARE_MAPPING } else { "" };
        self.tree.write(&format!("{directory}/type"), "DMA\n")?;
        self.tree.write(&format!("{directory}/reserved_regions"), [demanded, INTERRUPT_WINDOW].concat())
    }
}
