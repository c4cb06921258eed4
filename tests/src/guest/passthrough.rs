// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions that a guest gets, and who stands between.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::host::Host;
use crate::launched_vm::LaunchedVm;

/// Who has a function open for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// QEMU itself, with VFIO and iommufd in its own process: what the server is compared with.
    InProcess,
    /// The server; QEMU is its vfio-user client.
    Served,
    /// The server runs the rings of virtio functions; QEMU has a vhost-user device of the same kind for each.
    Rings,
    /// The same with QEMU's device for any kind.
    GenericRings,
}

impl Way {
    /// Those in which the guest has the function itself.
    pub const WHOLE: [Self; 2] = [Self::InProcess, Self::Served];

    const fn has_rings(self) -> bool {
        matches!(self, Self::Rings | Self::GenericRings)
    }
}

/// What a virtio function is (Virtio 1.3, chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VirtioKind {
    Network = 1,
    Block = 2,
    Entropy = 4,
}

impl VirtioKind {
    fn of(function: &str) -> Self {
        let path = format!("/sys/bus/pci/devices/{function}/device");
        match std::fs::read_to_string(path).expect("the device id").trim() {
            "0x1041" => Self::Network,
            "0x1042" => Self::Block,
            "0x1044" => Self::Entropy,
            other => panic!("{function} is {other}"),
        }
    }
}

/// Functions for one guest after the other.
#[derive(Debug)]
pub struct Passthrough {
    way: Way,
    functions: Vec<&'static str>,
    servers: Option<LaunchedVm>,
    /// Where the socket is, if not with the others.
    path: Option<PathBuf>,
    /// Of network devices whose rings the hardware runs.
    queue_pairs: u16,
    /// QEMU offers guests packed rings, where the hardware has them.
    has_packed_rings: bool,
}

impl Passthrough {
    /// Functions by their addresses, each with a server of its own if they are served.
    pub fn new(way: Way, functions: &[&'static str]) -> Self {
        Self::with_arguments(way, functions, &[])
    }

    /// The same with more arguments for `vfio-devctl run`.
    pub fn with_arguments(way: Way, functions: &[&'static str], arguments: &[&str]) -> Self {
        let rings =
            functions.iter().filter(|_| way.has_rings()).flat_map(|function| ["--vhost-user", function]);
        let arguments: Vec<_> =
            arguments.iter().copied().chain(rings).chain(functions.iter().copied()).collect();
        let start = || LaunchedVm::start(Host::current(), &arguments);
        let servers = (way != Way::InProcess).then(start);
        let functions = functions.into();
        Self { way, functions, servers, path: None, queue_pairs: 1, has_packed_rings: false }
    }

    /// The same functions, network devices with so many queue pairs.
    #[must_use]
    pub fn with_queue_pairs(mut self, pairs: u16) -> Self {
        self.queue_pairs = pairs;
        self
    }

    /// The same functions, network devices with packed rings.
    #[must_use]
    pub fn with_packed_rings(mut self) -> Self {
        self.has_packed_rings = true;
        self
    }

    /// One function, whose socket is at this path also after [`Self::start_again`].
    pub fn at_socket(way: Way, function: &'static str, path: &Path) -> Self {
        let mut passthrough = Self::by_another(way, function, path);
        passthrough.start_again();
        passthrough
    }

    /// One function, for which somebody else listens at this path.
    pub fn by_another(way: Way, function: &'static str, path: &Path) -> Self {
        let functions = vec![function];
        let path = Some(path.into());
        Self { way, functions, servers: None, path, queue_pairs: 1, has_packed_rings: false }
    }

    /// Ends the server if it is there, without a word, and starts another at the same path.
    pub fn start_again(&mut self) {
        for process in self.servers.iter().flat_map(LaunchedVm::processes) {
            let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(process, Signal::KILL).expect("the signal is sent");
        }
        drop(self.servers.take());
        let function = self.functions[0];
        let path = self.path.as_ref().expect("a path of its own");
        let device = format!("{function}={}", path.display());
        let rings = ["--vhost-user", function].into_iter().filter(|_| self.way.has_rings());
        let arguments: Vec<_> = rings.chain([device.as_str()]).collect();
        self.servers = Some(LaunchedVm::start(Host::current(), &arguments));
    }

    /// The functions.
    pub fn functions(&self) -> &[&'static str] {
        &self.functions
    }

    /// The servers, if the functions are served.
    pub const fn servers(&self) -> Option<&LaunchedVm> {
        self.servers.as_ref()
    }

    /// QEMU's arguments that the devices need.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.way == Way::InProcess && !self.functions.is_empty() {
            arguments.extend(["-object".into(), "iommufd,id=iommufd0".into()]);
        }
        if !self.way.has_rings() {
            return arguments;
        }
        for (number, function) in self.functions.iter().enumerate() {
            let path = self.socket(function);
            // A server that was started again finds its frontend soon, but for the generic one and those made of it, which would not
            // wait for their own.
            let waits = self.way == Way::Rings && VirtioKind::of(function) != VirtioKind::Entropy;
            let again = if waits { ",reconnect-ms=200" } else { "" };
            let socket = format!("socket,id=socket{number},path={}{again}", path.display());
            arguments.extend(["-chardev".into(), socket]);
            if self.way == Way::Rings && VirtioKind::of(function) == VirtioKind::Network {
                let queues = self.queue_pairs;
                let network = format!("vhost-user,id=net{number},chardev=socket{number},queues={queues}");
                arguments.extend(["-netdev".into(), network]);
            }
        }
        arguments
    }

    fn socket(&self, function: &str) -> PathBuf {
        if let Some(path) = &self.path {
            return path.clone();
        }
        let servers = self.servers.as_ref().expect("it is served");
        servers.directory().join(format!("{function}.sock"))
    }

    /// The function with this number as a QEMU device.
    pub(super) fn device(&self, number: usize) -> Value {
        let function = self.functions[number];
        let (id, bus) = (format!("device{number}"), format!("port{number}"));
        let mut device = match self.way {
            Way::InProcess => json!({ "driver": "vfio-pci", "host": function, "iommufd": "iommufd0" }),
            Way::Served => {
                let socket = json!({ "type": "unix", "path": self.socket(function) });
                json!({ "driver": "vfio-user-pci", "socket": socket })
            }
            Way::Rings => match VirtioKind::of(function) {
                VirtioKind::Network => {
                    // A vector for each ring, one for the control ring and one for the configuration.
                    let (pairs, network) = (self.queue_pairs, format!("net{number}"));
                    let vectors = 2 * pairs + 2;
                    json!({
                        "driver": "virtio-net-pci",
                        "netdev": network,
                        "mq": pairs > 1,
                        "packed": self.has_packed_rings,
                        "vectors": vectors,
                    })
                }
                VirtioKind::Block => {
                    let chardev = format!("socket{number}");
                    // With room for doorbells that the guest rings by itself, where the server gives any.
                    json!({ "driver": "vhost-user-blk-pci", "chardev": chardev, "page-per-vq": true })
                }
                VirtioKind::Entropy => {
                    json!({ "driver": "vhost-user-rng-pci", "chardev": format!("socket{number}") })
                }
            },
            Way::GenericRings => generic(VirtioKind::of(function), number),
        };
        device["id"] = json!(id);
        device["bus"] = json!(bus);
        device
    }
}

/// QEMU's device for any kind: it knows nothing of the kind but what it is told here.
fn generic(kind: VirtioKind, number: usize) -> Value {
    let (rings, size, config) = match kind {
        // With the control ring, which is the hardware's as well.
        VirtioKind::Network => (3, 64, 24),
        VirtioKind::Block => (1, 64, 60),
        VirtioKind::Entropy => (1, 8, 0),
    };
    json!({
        "driver": "vhost-user-test-device-pci",
        "chardev": format!("socket{number}"),
        "virtio-id": kind as u16,
        "num_vqs": rings,
        "vq_size": size,
        "config_size": config,
    })
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        if let (true, Some(servers)) = (std::thread::panicking(), &self.servers) {
            eprintln!("--- servers\n{}---", servers.log());
        }
    }
}
