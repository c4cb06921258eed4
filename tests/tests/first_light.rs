// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! First light on modelled kernels: the same tests with the same server as in the test VM.

#![allow(clippy::expect_used)]

use std::process::Command;

use vhost_device_vfio_tests::server_process::binary;

fn first_light(topology: &str, kernel: &str) {
    let mut command = Command::new(binary("first-light"));
    command.env("TESTVM_TOPOLOGY", topology).env("TESTVM_KERNEL", kernel).env("FIRST_LIGHT_MODEL", "1");
    let output = command.output().expect("first-light runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Names each test by its topology and kernel.
macro_rules! lanes {
    ($($test:ident: $topology:literal, $kernel:literal;)*) => {
        $(#[test] fn $test() { first_light($topology, $kernel); })*
    };
}

lanes! {
    edu_pair: "edu-pair", "7.3";
    edu_pair_on_6_12: "edu-pair", "6.12";
    edu_igb: "edu-igb", "7.3";
    edu_igb_on_6_12: "edu-igb", "6.12";
    igb_pair: "igb-pair", "7.3";
    nvme: "nvme", "7.3";
    rciep: "rciep", "7.3";
    e1000e: "e1000e", "7.3";
    gen4: "gen4", "7.3";
    edu_noremap: "edu-noremap", "7.3";
    hotplug_slot: "hotplug-slot", "7.3";
    switch: "switch", "7.3";
    virtio_pair: "virtio-pair", "7.3";
    virtio_rng: "virtio-rng", "7.3";
    virtio_queues: "virtio-queues", "7.3";
    virtio_queues_on_6_12: "virtio-queues", "6.12";
}
