// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which crate of the workspace may know which: the wire knows no kernel, the kernel no wire, and nothing imports upward.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each crate of the server, and the crates of the workspace that it may depend on.
const ALLOWED: [(&str, &[&str]); 4] = [
    ("protocol", &[]),
    ("vfio", &[]),
    ("sandbox", &["vfio"]),
    ("vhost-device-vfio", &["protocol", "vfio", "sandbox"]),
];

fn names(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

/// Every crate of the workspace with its dependencies, those for tests and builds included.
fn workspace() -> BTreeMap<String, BTreeSet<String>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]);
    let output = cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| (package["name"].as_str().unwrap().to_owned(), names(&package["dependencies"])))
        .collect()
}

#[test]
fn crates_know_only_what_is_below_them() {
    let workspace = workspace();
    let members: BTreeSet<_> = workspace.keys().cloned().collect();
    for (package, allowed) in ALLOWED {
        let allowed = allowed.iter().map(|&name| name.to_owned()).collect();
        let known: BTreeSet<_> = workspace[package].intersection(&members).cloned().collect();
        let forbidden: Vec<_> = known.difference(&allowed).collect();
        assert!(forbidden.is_empty(), "{package} depends on {forbidden:?}");
    }
}

#[test]
fn the_rule_covers_every_crate_but_the_tests() {
    let mut members: BTreeSet<_> = workspace().into_keys().collect();
    for (package, _) in ALLOWED {
        assert!(members.remove(package), "{package} is not there");
    }
    let tests = ["vhost-device-vfio-peers", "vhost-device-vfio-tests"];
    assert_eq!(members.into_iter().collect::<Vec<_>>(), tests);
}
