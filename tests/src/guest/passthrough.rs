// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions that a guest gets, and who stands between.

use serde_json::{Value, json};

use crate::host::Host;
use crate::launched_vm::LaunchedVm;
use crate::server_process::wait_until;

/// Who has a function open for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// QEMU itself, with VFIO and iommufd in its own process: what the server is compared with.
    InProcess,
    /// The server; QEMU is its vfio-user client.
    Served,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::InProcess, Self::Served];
}

/// Functions for one guest after the other.
#[derive(Debug)]
pub struct Passthrough {
    functions: Vec<&'static str>,
    servers: Option<LaunchedVm>,
}

impl Passthrough {
    /// Functions by their addresses, each with a server of its own if they are served.
    pub fn new(way: Way, functions: &[&'static str]) -> Self {
        Self::with_arguments(way, functions, &[])
    }

    /// The same with more arguments for `vfio-devctl run`.
    pub fn with_arguments(way: Way, functions: &[&'static str], arguments: &[&str]) -> Self {
        let start = || LaunchedVm::start(Host::current(), &[arguments, functions].concat());
        Self { functions: functions.into(), servers: (way == Way::Served).then(start) }
    }

    /// The functions.
    pub fn functions(&self) -> &[&'static str] {
        &self.functions
    }

    /// The servers, if the functions are served.
    pub const fn servers(&self) -> Option<&LaunchedVm> {
        self.servers.as_ref()
    }

    /// QEMU's objects that the devices need.
    pub(super) fn objects(&self) -> Vec<Value> {
        let in_process = self.servers.is_none() && !self.functions.is_empty();
        in_process.then(|| json!({ "qom-type": "iommufd", "id": "iommufd0" })).into_iter().collect()
    }

    /// The function with this number as a QEMU device.
    pub(super) fn device(&self, number: usize) -> Value {
        let function = self.functions[number];
        let (id, bus) = (format!("device{number}"), format!("port{number}"));
        match &self.servers {
            None => {
                json!({ "driver": "vfio-pci", "id": id, "bus": bus, "host": function, "iommufd": "iommufd0" })
            }
            Some(servers) => {
                let socket = servers.directory().join(format!("{function}.sock"));
                let socket = json!({ "type": "unix", "path": socket });
                json!({ "driver": "vfio-user-pci", "id": id, "bus": bus, "socket": socket })
            }
        }
    }
}

impl Drop for Passthrough {
    /// Waits for the servers to end, too: the functions are the next test's.
    fn drop(&mut self) {
        let Some(servers) = self.servers.take() else { return };
        if std::thread::panicking() {
            eprintln!("--- servers\n{}---", servers.log());
        }
        let processes: Vec<_> = servers.processes().collect();
        drop(servers);
        wait_until(|| !processes.iter().any(|process| is_running(*process)));
    }
}

/// Whether a process has not ended; one that nobody has waited for has no command line any more.
fn is_running(process: u32) -> bool {
    std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|command| !command.is_empty())
}
