// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What README shows first.

#![allow(clippy::expect_used)]

use std::process::Command;

use vhost_device_vfio_tests::server_process::tool_binary;

#[test]
fn the_demonstration_goes_from_the_blocker_to_the_reset() {
    let output = Command::new(tool_binary()).arg("demo").output().expect("the tool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let steps = [
        "moved by the device",
        "yes: kernel-driver  Take 0000:01:00.1 from igb",
        "(reset-blocked)",
        "Hand /dev/vfio/devices/vfio1 over too",
        "can be hot reset now",
        "hot reset done",
        "files = 0",
        "mapped-bytes = 0",
    ];
    let mut rest = text.as_str();
    for step in steps {
        let (_, after) =
            rest.split_once(step).unwrap_or_else(|| panic!("no `{step}` in its place in {text}"));
        rest = after;
    }
}
