// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite on modelled kernels. That real ones pass it as well, with the same transcript, shows in the test VM.

#![allow(clippy::expect_used)]

use std::process::Command;

use vhost_device_vfio_tests::server_process::binary;

fn conforms(topology: &str, kernel: &str) {
    let mut command = Command::new(binary("conformance"));
    command.args(["--modelled", "--topology", topology, "--kernel", kernel]);
    let output = command.output().expect("the suite runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Names each test by its topology, once for each kernel.
macro_rules! topologies {
    ($($test:ident: $topology:literal;)*) => {
        mod linux_7_3 {
            $(#[test] fn $test() { super::conforms($topology, "7.3"); })*
        }
        mod linux_6_12 {
            $(#[test] fn $test() { super::conforms($topology, "6.12"); })*
        }
    };
}

topologies! {
    bridge: "bridge";
    e1000e: "e1000e";
    edu_igb: "edu-igb";
    edu_noremap: "edu-noremap";
    edu_pair: "edu-pair";
    five_devices: "five-devices";
    gen4: "gen4";
    hotplug_slot: "hotplug-slot";
    igb_pair: "igb-pair";
    nvme: "nvme";
    rciep: "rciep";
    switch: "switch";
    virtio_pair: "virtio-pair";
    virtio_rng: "virtio-rng";
    virtio_queues: "virtio-queues";
    virtio_trio: "virtio-trio";
}
