// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is released.

#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use vhost_device_vfio_tests::server_process::{server_binary, tool_binary};

/// What a build with the model has in it: an option's help, a module's name in a symbol, an order's word.
const TRACES: [&str; 3] = ["modelled machine", "vfio5model", "pinned-bytes"];

fn traces_in(binary: &Path) -> Vec<&'static str> {
    let bytes = std::fs::read(binary).expect("the binary");
    let is_in = |trace: &&str| bytes.windows(trace.len()).any(|window| window == trace.as_bytes());
    TRACES.into_iter().filter(is_in).collect()
}

/// Builds what README tells to build, and gives the folder that it is in.
fn release() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let built =
        Command::new(env!("CARGO")).args(["build", "--quiet", "--release"]).current_dir(workspace).status();
    assert!(built.expect("cargo runs").success());
    let debug = server_binary();
    debug.parent().and_then(Path::parent).expect("the target folder").join("release")
}

#[test]
fn a_release_has_no_trace_of_the_model() {
    let release = release();
    for name in ["vhost-device-vfio", "vfio-devctl"] {
        assert_eq!(traces_in(&release.join(name)), Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn the_traces_are_there_where_the_model_is() {
    for binary in [server_binary(), tool_binary()] {
        assert!(!traces_in(&binary).is_empty(), "{}", binary.display());
    }
    assert_eq!(traces_in(&tool_binary()), TRACES);
}
