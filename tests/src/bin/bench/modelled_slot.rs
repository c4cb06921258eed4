// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A modelled machine in a process of its own, with a device of so many functions: as a kernel is, it is far from whoever
//! asks it, and equally far from all.

use std::fmt::Write;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use vfio::PciAddress;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::server_process::{binary, wait_until};

/// The server that knows the model.
pub(crate) const SERVER: &str = "modelled/vhost-device-vfio";
const TOOL: &str = "modelled/vfio-devctl";
const BUS: u8 = 1;
const FIRST_GROUP: usize = 5;

/// The machine. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ModelledSlot {
    process: Child,
    pub(crate) host: Host,
    pub(crate) functions: Vec<PciAddress>,
    _folder: TempDir,
}

impl ModelledSlot {
    /// Starts it. Each function is in an IOMMU group of its own, so that only who has it owns it.
    pub(crate) fn start(count: usize) -> Self {
        let functions: Vec<_> =
            (0..=u8::MAX).take(count).map(|devfn| PciAddress::from_devfn(0, BUS, devfn)).collect();
        let mut topology = format!(
            "[[bridge]]\naddress = '0000:00:04.0'\nkind = 'root-port'\nbus = {BUS}\ngroup = 1\nari = true\n"
        );
        for (group, function) in (FIRST_GROUP..).zip(&functions) {
            write!(
                topology,
                "[[function]]\naddress = '{function}'\npart = 'igb'\ngroup = {group}\ndriver = 'vfio-pci'\n"
            )
            .expect("a string takes all");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (file, root) = (folder.path().join("topology.toml"), folder.path().join("machine"));
        std::fs::write(&file, topology).expect("the topology");
        let mut command = Command::new(binary(TOOL));
        command.arg("model").arg(file).arg(&root).stdin(Stdio::null());
        let process = command.spawn().expect("the model starts");
        let host = Host::at(&root);
        let slot = Self { process, host, functions, _folder: folder };
        assert!(wait_until(|| slot.host.open_iommufd().is_ok()), "the model does not answer");
        slot
    }
}

impl Drop for ModelledSlot {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
