// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A short soak; docs/security.md tells how the long one went.

#![allow(clippy::expect_used)]

use std::process::Command;

use vhost_device_vfio_tests::server_process::binary;

#[test]
fn hostile_connections_and_devices_that_come_and_go_add_up_to_nothing() {
    let output = Command::new(binary("soak")).args(["2000", "100"]).output().expect("soak runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
}
