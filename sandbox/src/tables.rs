// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The policy as the tables of docs/security.md.

use std::fmt::Write;

use crate::policy::{CALLS, Entry, REQUESTS, SYSFS_CALLS, SYSFS_SUBTREES, Thread, Witness};

/// What docs/security.md shows of the policy.
pub fn markdown() -> String {
    let mut text = String::from("| call | if | threads | what for | test |\n|---|---|---|---|---|\n");
    for entry in CALLS {
        text.push_str(&row(entry));
    }
    text.push_str(
        "\nWhere sysfs is read:\n\n| call | if | threads | what for | test |\n|---|---|---|---|---|\n",
    );
    for entry in SYSFS_CALLS {
        text.push_str(&row(entry));
    }
    let subtrees: Vec<_> = SYSFS_SUBTREES.iter().map(|path| format!("`{path}`")).collect();
    let _ = writeln!(text, "\nOf sysfs there is: {}.\n", subtrees.join(", "));
    text.push_str(
        "| request | number | threads | only for new devices | what for | test |\n|---|---|---|---|---|---|\n",
    );
    for request in REQUESTS {
        let only = if request.is_for_new_devices { "yes" } else { "" };
        let _ = writeln!(
            text,
            "| `{}` | {:#x} | {} | {only} | {} | {} |",
            request.ioctl.name,
            request.ioctl.number,
            names(request.threads),
            request.why,
            witness(request.test)
        );
    }
    text
}

fn row(entry: &Entry) -> String {
    let conditions: Vec<_> = entry.arguments.iter().map(|argument| argument.words).collect();
    format!(
        "| `{}` | {} | {} | {} | {} |\n",
        entry.call.name,
        conditions.join("; "),
        names(entry.threads),
        entry.why,
        witness(entry.test)
    )
}

fn witness(test: Witness) -> String {
    match test {
        Witness::FirstLight { test, needs_real_kernel: true, .. } => format!("`{test}`, on a real kernel"),
        Witness::FirstLight { test, kernel: "7.3", .. } => format!("`{test}`"),
        Witness::FirstLight { test, kernel, .. } => format!("`{test}`, on {kernel}"),
        Witness::Untestable(why) => format!("none: {why}"),
    }
}

fn names(threads: &[Thread]) -> String {
    if threads.len() == Thread::ALL.len() {
        return "all".into();
    }
    threads.iter().map(|thread| thread.name()).collect::<Vec<_>>().join(", ")
}
