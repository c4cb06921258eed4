// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that the test machine's own QEMU makes larger: what hardware does when its configuration changes.

use std::fs::OpenOptions;

use serde_json::json;

use crate::guest::Qmp;

/// The end of a session with that QEMU, in the topologies that have it. It begins once in the life of the machine.
const MONITOR: &str = "/dev/virtio-ports/monitor";

/// A disk that has grown, until this is dropped.
#[derive(Debug)]
pub struct GrownDisk {
    emulator: Qmp,
    node: &'static str,
    size_before: u64,
}

impl GrownDisk {
    /// Has the disk with this name grow from one size to another, in bytes. It tells its driver.
    pub fn new(node: &'static str, size_before: u64, size: u64) -> Self {
        let port = OpenOptions::new().read(true).write(true).open(MONITOR).expect("the session's port");
        let mut disk = Self { emulator: Qmp::begin(port), node, size_before };
        disk.resize(size);
        disk
    }

    fn resize(&mut self, size: u64) {
        self.emulator.execute("block_resize", &json!({ "node-name": self.node, "size": size }));
    }
}

impl Drop for GrownDisk {
    fn drop(&mut self) {
        self.resize(self.size_before);
    }
}
