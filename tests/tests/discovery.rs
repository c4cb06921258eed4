// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a management layer finds the server as a vhost-user backend: descriptor files and `--print-capabilities`, by the rules of
//! QEMU's docs/interop/vhost-user.json and of the backend program conventions in its vhost-user.rst.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value};
use vhost_device_vfio_tests::server_process::server_binary;

/// `VHostUserBackendType`.
const TYPES: [&str; 15] = [
    "9p",
    "balloon",
    "block",
    "caif",
    "console",
    "crypto",
    "gpu",
    "input",
    "net",
    "rng",
    "rpmsg",
    "rproc-serial",
    "scsi",
    "vsock",
    "fs",
];
/// `VHostUserBackendBlockFeature`, each of which is an option of the program as well.
const BLOCK_FEATURES: [&str; 2] = ["read-only", "blk-file"];

/// The descriptor files, by name.
fn descriptors() -> Vec<(String, Map<String, Value>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/qemu");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let read = |path: &Path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), read(&path))).collect()
}

/// What the server prints when it is called by this name.
fn capabilities(name: &str, further: &[&str]) -> Map<String, Value> {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join(name);
    symlink(server_binary(), &link).unwrap();
    let mut command = Command::new(link);
    let output = command.arg("--print-capabilities").args(further).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_type(fields: &Map<String, Value>) {
    let kind = fields["type"].as_str().unwrap();
    assert!(TYPES.contains(&kind), "{kind} is none of the schema's types");
}

/// `VhostUserBackend`.
#[test]
fn descriptors_have_the_fields_of_the_schema_and_no_others() {
    let descriptors = descriptors();
    assert_eq!(descriptors.len(), 2);
    for (name, fields) in descriptors {
        for field in fields.keys() {
            assert!(["description", "type", "binary", "tags"].contains(&field.as_str()), "{name}: {field}");
        }
        assert_type(&fields);
        assert!(!fields["description"].as_str().unwrap().is_empty(), "{name}");
        assert!(Path::new(fields["binary"].as_str().unwrap()).is_absolute(), "{name}");
        if let Some(tags) = fields.get("tags") {
            assert!(tags.as_array().unwrap().iter().all(Value::is_string), "{name}");
        }
    }
}

#[test]
fn descriptors_are_sorted_by_two_digits_and_named_after_their_program() {
    for (name, fields) in descriptors() {
        let (priority, rest) = name.split_once('-').unwrap();
        assert!(priority.len() == 2 && priority.bytes().all(|byte| byte.is_ascii_digit()), "{name}");
        let binary = Path::new(fields["binary"].as_str().unwrap());
        assert_eq!(rest.strip_suffix(".json"), binary.file_name().unwrap().to_str());
    }
}

/// `VHostUserBackendCapabilities`: of these types only a block device has features to tell.
#[test]
fn the_program_of_a_descriptor_prints_capabilities_of_its_type() {
    for (name, fields) in descriptors() {
        let binary = Path::new(fields["binary"].as_str().unwrap());
        let mut printed = capabilities(binary.file_name().unwrap().to_str().unwrap(), &[]);
        assert_type(&printed);
        assert_eq!(printed["type"], fields["type"], "{name}");
        if printed["type"] == "block" {
            let features = printed.remove("features").unwrap();
            let mut features = features.as_array().unwrap().iter();
            assert!(features.all(|feature| BLOCK_FEATURES.contains(&feature.as_str().unwrap())));
        }
        assert_eq!(printed.keys().collect::<Vec<_>>(), ["type"], "{name}");
    }
}

/// Each feature is an option that the conventions describe, and the server has none of them.
#[test]
fn a_feature_that_is_not_told_is_an_option_that_is_refused() {
    let printed = capabilities("vhost-device-vfio-block", &[]);
    for option in BLOCK_FEATURES {
        assert!(!printed["features"].as_array().unwrap().contains(&option.into()));
        let output = Command::new(server_binary()).arg(format!("--{option}")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{option}");
    }
}

#[test]
fn other_options_are_ignored_where_capabilities_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control");
    let further = ["--socket-path", socket.to_str().unwrap(), "--sanitize", "required"];
    let printed = capabilities("vhost-device-vfio-net", &further);
    assert_eq!(printed, capabilities("vhost-device-vfio-net", &[]));
    assert!(!socket.exists());
    assert_eq!(printed, capabilities("vhost-device-vfio-net", &["--fd", "1000"]));
}
