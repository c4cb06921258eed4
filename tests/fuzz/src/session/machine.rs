// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine of a session.

use crate::patience::wait_until;
use arbitrary::Arbitrary;
use rustix::io::Errno;
use vfio::ioctl;
use vfio::model::fault::ErrnoName;
use vfio::model::order::Nothing;
use vfio::model::topology::KernelVersion;
use vfio::model::{Fault, Order, Settings, Topology};
use vhost_device_vfio_tests::host::ModelledMachine;

/// Machines that differ in what a server finds there.
const TOPOLOGIES: [&str; 12] = [
    include_str!("../../../../vfio/topologies/edu-pair.toml"),
    include_str!("../../../../vfio/topologies/edu-igb.toml"),
    include_str!("../../../../vfio/topologies/five-devices.toml"),
    include_str!("../../../../vfio/topologies/igb-pair.toml"),
    include_str!("../../../../vfio/topologies/kernel-driver-sibling.toml"),
    include_str!("../../../../vfio/topologies/hotplug-slot.toml"),
    include_str!("../../../../vfio/topologies/gen4.toml"),
    include_str!("../../../../vfio/topologies/no-iommu.toml"),
    include_str!("../../../../vfio/topologies/scope-spans-groups.toml"),
    include_str!("../../../../vfio/topologies/virtual-function.toml"),
    include_str!("../../../../vfio/topologies/virtio-trio.toml"),
    include_str!("../../../../vfio/topologies/e1000e.toml"),
];

/// Calls besides the ioctls.
const OTHER_CALLS: [&str; 4] = ["open", "pread", "pwrite", "mmap"];

/// Errnos with which calls fail.
const ERRNOS: [Errno; 10] = [
    Errno::IO,
    Errno::INVAL,
    Errno::NOMEM,
    Errno::NOENT,
    Errno::NODEV,
    Errno::BUSY,
    Errno::AGAIN,
    Errno::PERM,
    Errno::NOSPC,
    Errno::INTR,
];

/// Longest delay in milliseconds: much longer than a message takes, and short enough for many sessions.
const LONGEST_DELAY: u32 = 8;

/// What the machine is.
#[derive(Arbitrary, Debug)]
pub(crate) struct Setup {
    topology: u8,
    is_old: bool,
    faults: [Option<FaultRule>; 3],
}

/// A call that does not go as it should.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct FaultRule {
    call: u8,
    skip: u8,
    times: u8,
    errno: Option<u8>,
    delay: u8,
}

impl From<FaultRule> for Fault {
    fn from(FaultRule { call, skip, times, errno, delay }: FaultRule) -> Self {
        let calls: Vec<_> = ioctl::ALL.iter().map(|ioctl| ioctl.name).chain(OTHER_CALLS).collect();
        Self {
            call: calls[usize::from(call) % calls.len()].into(),
            function: None,
            skip: u32::from(skip) % 8,
            // Never for ever: a server that asks a busy kernel again and again does right.
            times: u32::from(times) % 4 + 1,
            percent: 100,
            kill: false,
            remove: None,
            bind: None,
            delay: u32::from(delay) % (LONGEST_DELAY + 1),
            errno: errno.map(|errno| ErrnoName(ERRNOS[usize::from(errno) % ERRNOS.len()])),
        }
    }
}

/// The machine.
pub(crate) struct Machine {
    pub(crate) machine: ModelledMachine,
    pub(crate) topology: Topology,
}

impl Setup {
    pub(crate) fn start(&self) -> Machine {
        self.start_topology(TOPOLOGIES[usize::from(self.topology) % TOPOLOGIES.len()])
    }

    /// With the devices of this topology.
    pub(crate) fn start_topology(&self, text: &str) -> Machine {
        let mut topology = Topology::parse(text).expect("a good topology");
        if self.is_old {
            topology.kernel = KernelVersion::Linux6_12;
        }
        let faults = self.faults.iter().flatten().map(|rule| Fault::from(*rule)).collect();
        let machine = ModelledMachine::of(topology.clone(), Settings { faults, ..Settings::default() });
        Machine { machine, topology }
    }
}

impl Machine {
    /// Waits until nobody has anything open, bound or mapped.
    pub(crate) fn wait_until_unused(&self) {
        let usage = || self.machine.order(&Order::Inspect(Nothing {}));
        let is_unused = || usage().lines().all(|line| line.ends_with(" = 0"));
        assert!(wait_until(is_unused), "left behind: {}", usage());
    }
}
