// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What others see of the machine without a system call: nodes, sysfs and open files, kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::UnixListener;

use super::Process;
use crate::model::kernel::FileId;
use crate::model::topology::KernelVersion;

impl Process {
    /// Something may be driven by somebody else now.
    pub(super) fn changed(&mut self) {
        shown(self.show_changes());
    }

    /// Brings nodes and sysfs up to date.
    pub(super) fn show_changes(&mut self) -> io::Result<()> {
        let wanted = self.kernel.nodes();
        for (_, (path, _)) in self.nodes.extract_if(.., |node, _| !wanted.contains(node)) {
            std::fs::remove_file(path)?;
        }
        for node in wanted {
            if !self.nodes.contains_key(&node) {
                let path = self.folder.join("dev").join(self.kernel.node_name(node));
                self.nodes.insert(node, (path.clone(), UnixListener::bind(path)?));
            }
        }
        let present = self.kernel.drivers();
        let absent: BTreeSet<_> =
            self.shown.keys().filter(|shown| !present.contains_key(shown)).copied().collect();
        for address in absent {
            self.sysfs.remove(address)?;
        }
        for (address, state) in &present {
            if !self.shown.contains_key(address)
                && let Some(function) = self.kernel.topology().function(*address)
            {
                self.sysfs.add(function, &self.kernel.identity(*address))?;
            }
            if self.shown.get(address) != Some(state) {
                let (driver, cdev) = state;
                self.sysfs.set_driver(*address, driver, cdev.clone())?;
                if self.kernel.is_without_iommu(*address) {
                    self.sysfs.set_no_iommu_group(*address, self.kernel.no_iommu_group(*address))?;
                }
            }
        }
        self.shown = present;
        self.show_uses()
    }

    /// Brings what sysfs says of who uses a function up to date.
    pub(super) fn show_uses(&mut self) -> io::Result<()> {
        let uses: BTreeMap<_, _> = self.kernel.uses().collect();
        for (address, now) in &uses {
            if self.shown_uses.get(address) != Some(now) {
                self.sysfs.set_use(*address, now)?;
            }
        }
        self.shown_uses = uses;
        Ok(())
    }

    /// Since 6.18 the kernel says of the file of a device which one it is.
    pub(super) fn show_open_file(&self, file: FileId, inode: u64) -> io::Result<()> {
        let function = self.kernel.function_behind(file);
        let tells = self.kernel.topology().kernel != KernelVersion::Linux6_12;
        let directory = function.filter(|_| tells).and_then(|function| self.sysfs.directory(function));
        let details = directory.map_or(String::new(), |path| format!("vfio-device-syspath: /sys/{path}\n"));
        self.open_files.add(inode, &self.kernel.link_of(file), &details)
    }
}

/// Whether something can be shown is for the next reader to notice.
pub(super) fn shown(done: io::Result<()>) {
    if let Err(error) = done {
        log::error!("event=model-not-shown reason=\"{error}\"");
    }
}
