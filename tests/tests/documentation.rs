// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the documents promise about the code.

#![allow(clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use protocol::extension::RowReason;
use vhost_device_vfio::reset::report;

const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// Where failures are built: each id is the first argument of the function that does it.
const SOURCES: [&str; 8] = [
    include_str!("../../backend/src/failure/channel.rs"),
    include_str!("../../backend/src/failure/handover.rs"),
    include_str!("../../backend/src/failure/memory.rs"),
    include_str!("../../backend/src/failure/message.rs"),
    include_str!("../../backend/src/failure/reset.rs"),
    include_str!("../../backend/src/failure/virtio.rs"),
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

/// Where the reasons of a plan are named.
const PLAN_SOURCES: [&str; 2] = [
    include_str!("../../backend/src/reset/plan/obstacle.rs"),
    include_str!("../../backend/src/reset/plan/mod.rs"),
];

#[test]
fn every_reason_of_a_plan_is_explained_and_every_explained_reason_exists() {
    let (_, planning) = OPERATIONS.split_once("## Planning").expect("the heading");
    let (planning, _) = planning.split_once("\n## ").expect("the next heading");
    let cells = planning.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let explained: BTreeSet<_> = cells.filter(|cell| is_id(cell)).collect();
    let named: BTreeSet<_> =
        PLAN_SOURCES.iter().flat_map(|source| source.split('"')).filter(|text| is_id(text)).collect();
    assert!(named.len() > 10, "{named:?}");
    assert_eq!(explained, named);
}

/// Where the tool names what it sees more than the server.
const BLOCKERS: &str = include_str!("../../backend/src/bin/vfio-devctl/blocker.rs");

#[test]
fn every_reason_of_a_row_is_explained_and_every_explained_reason_exists() {
    let (_, groups) = OPERATIONS.split_once("## Reset groups").expect("the heading");
    let (_, reasons) = groups.split_once("| reason | meaning | what to do |").expect("the table");
    let (reasons, _) = reasons.split_once("\n\n").expect("the end of the table");
    let explained: BTreeSet<_> =
        reasons.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let told = (1..=u32::from(u16::MAX)).filter_map(|number| RowReason::try_from(number).ok());
    let seen = BLOCKERS.split('"').filter(|text| is_id(text));
    let named: BTreeSet<_> = told.map(report::reason_id).chain(seen).collect();
    assert_eq!(explained, named);
}

const SECURITY: &str = include_str!("../../docs/security.md");

/// With `UPDATE_DOCUMENTS` set, the tables are written anew.
#[test]
fn the_policy_in_the_document_is_the_one_in_force() {
    let (before, rest) = SECURITY.split_once("documentation.rs -->\n").expect("the mark");
    let (shown, after) = rest.split_once("<!-- /policy -->").expect("the second mark");
    let policy = format!("\n{}\n", sandbox::tables::markdown());
    if std::env::var_os("UPDATE_DOCUMENTS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
        let text = format!("{before}documentation.rs -->\n{policy}<!-- /policy -->{after}");
        std::fs::write(path, text).expect("the document is written");
        return;
    }
    assert_eq!(shown, policy);
}

/// Every Rust file below a folder, in one text.
fn sources_below(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let texts = entries.map(|path| {
        if path.is_dir() {
            sources_below(&path)
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            std::fs::read_to_string(path).expect("a source file")
        } else {
            String::new()
        }
    });
    texts.collect()
}

/// The rows of the table below a heading of the document on security, but for its head, have tests in this column.
fn assert_tests_exist(heading: &str, column: usize) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let crates = ["protocol", "vfio", "sandbox", "backend", "tests"];
    let sources: String = crates.iter().map(|name| sources_below(&workspace.join(name))).collect();
    let (_, table) = SECURITY.split_once(heading).expect("the heading");
    let (table, _) = table.split_once("\n## ").expect("the next heading");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 10, "the table was found");
    for row in rows {
        let proof = row.split('|').nth(column).expect("as many columns");
        let tests: Vec<_> =
            proof.split('`').filter(|name| name.contains('_') && !name.contains(':')).collect();
        for test in tests.iter().filter(|name| **name != "memory_table") {
            assert!(sources.contains(&format!("fn {test}(")), "there is no test `{test}`");
        }
        let files: Vec<_> = proof.split([' ', ',', ';']).filter(|word| word.starts_with("tests/")).collect();
        for file in &files {
            assert!(workspace.join(file).exists(), "there is no {file}");
        }
        assert!(!tests.is_empty() || !files.is_empty() || proof.contains("unit tests"), "no test: {row}");
    }
}

#[test]
fn every_promise_of_the_security_document_has_a_test_that_exists() {
    assert_tests_exist("## What the server promises", 2);
}

#[test]
fn every_bug_class_of_the_security_document_has_a_test_that_exists() {
    assert_tests_exist("## Bug classes of others", 3);
}
