// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a server process uses.

use std::fmt;

use vhost_device_vfio_tests::server_process::ServerProcess;

/// How much the heap may differ from one moment to another, in bytes.
const SLACK: usize = 1 << 20;
/// How many mappings the allocator may have more for that.
const SPARE_MAPPINGS: usize = 8;

/// Descriptors, threads, mappings, and memory of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) files: usize,
    threads: usize,
    mappings: usize,
    memory: usize,
}

impl Usage {
    pub(crate) const HEADING: &'static str = "descriptors  threads  mappings  memory (KiB)";

    pub(crate) fn of(server: &ServerProcess) -> Self {
        let folder = format!("/proc/{}", server.id());
        let threads = std::fs::read_dir(format!("{folder}/task")).expect("the threads").count();
        let mappings = std::fs::read_to_string(format!("{folder}/maps")).expect("the mappings");
        Self {
            files: server.open_files(),
            threads,
            mappings: mappings.lines().count(),
            memory: server.resident_memory(),
        }
    }

    /// What there is more of than before.
    pub(crate) fn grown_since(&self, before: &Self) -> Option<&'static str> {
        let grown = [
            ("descriptors", self.files > before.files),
            ("threads", self.threads > before.threads),
            ("mappings", self.mappings > before.mappings + SPARE_MAPPINGS),
            ("memory", self.memory > before.memory + SLACK),
        ];
        grown.into_iter().find(|(_, has_grown)| *has_grown).map(|(what, _)| what)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, threads, mappings, memory } = self;
        write!(f, "{files:>11}  {threads:>7}  {mappings:>8}  {:>12}", memory >> 10)
    }
}
