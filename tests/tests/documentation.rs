// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the documents promise about the code.

#![allow(clippy::expect_used)]

use std::collections::BTreeSet;

const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// Where failures are built: each id is the first argument of the function that does it.
const SOURCES: [&str; 6] = [
    include_str!("../../backend/src/failure/handover.rs"),
    include_str!("../../backend/src/failure/memory.rs"),
    include_str!("../../backend/src/failure/message.rs"),
    include_str!("../../backend/src/failure/reset.rs"),
    include_str!("../../backend/src/bin/vfio-devctl/tool_error.rs"),
    include_str!("../../protocol/src/request_error.rs"),
];

/// Words of lower-case letters joined by hyphens, which are ids wherever they stand in quotes in these files.
fn is_id(text: &str) -> bool {
    text.contains('-')
        && text.split('-').all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn ids_of_the_code() -> BTreeSet<&'static str> {
    SOURCES.iter().flat_map(|source| source.split('"')).filter(|text| is_id(text)).collect()
}

/// First cells of the tables behind the heading.
fn ids_of_the_document() -> BTreeSet<&'static str> {
    let (_, errors) = OPERATIONS.split_once("## Every error").expect("the heading");
    let cells = errors.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.collect()
}

#[test]
fn every_error_id_is_explained_and_every_explained_id_exists() {
    assert_eq!(ids_of_the_document(), ids_of_the_code());
}
