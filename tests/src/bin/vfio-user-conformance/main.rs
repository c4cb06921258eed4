// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A judge of vfio-user servers. It sends bytes of its own to any server's socket, good ones and bad ones, and judges what comes
//! back by the specification (QEMU's docs/interop/vfio-user.rst) and by what stock QEMU and Cloud Hypervisor need besides. Where the
//! specification leaves a choice, every choice passes: the case then shows that there is one answer, of good form, and that the
//! stream is in step afterwards.
//!
//! `vfio-user-conformance SOCKET [--patience SECONDS] [CASE…]` judges what has one of the texts in its name or its message's, or all;
//! `vfio-user-conformance --list [CASE…]` names the cases. The server must listen, take one client after the other, and serve a
//! device that nobody needs: its interrupts are fired and it is reset. docs/protocol.md tells more.

#![allow(clippy::expect_used, clippy::indexing_slicing)]

mod case;
mod client;
mod descriptors;
mod device_feature;
mod device_info;
mod device_reset;
mod disconnects;
mod dma_map;
mod dma_unmap;
mod header;
mod irq_info;
mod region_info;
mod region_io_fds;
mod region_read;
mod region_write;
mod region_write_multi;
mod second_client;
mod server;
mod set_irqs;
mod unknown_commands;
mod version;
mod wire;
mod witness;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use case::{Case, Finding};
use server::Server;

/// A message, or something else that cases are about.
struct Subject {
    name: &'static str,
    cases: Vec<Case>,
}

/// Everything that is judged, in this order.
fn subjects() -> Vec<Subject> {
    let subjects = [
        ("VERSION", version::cases()),
        ("header", header::cases()),
        ("unknown commands", unknown_commands::cases()),
        ("DEVICE_GET_INFO", device_info::cases()),
        ("DEVICE_GET_REGION_INFO", region_info::cases()),
        ("DEVICE_GET_REGION_IO_FDS", region_io_fds::cases()),
        ("DEVICE_GET_IRQ_INFO", irq_info::cases()),
        ("DEVICE_SET_IRQS", set_irqs::cases()),
        ("REGION_READ", region_read::cases()),
        ("REGION_WRITE", region_write::cases()),
        ("REGION_WRITE_MULTI", region_write_multi::cases()),
        ("DMA_MAP", dma_map::cases()),
        ("DMA_UNMAP", dma_unmap::cases()),
        ("DEVICE_RESET", device_reset::cases()),
        ("DEVICE_FEATURE", device_feature::cases()),
        ("descriptors", descriptors::cases()),
        ("disconnects", disconnects::cases()),
        ("second client", second_client::cases()),
    ];
    subjects.map(|(name, cases)| Subject { name, cases }).into()
}

/// The command line.
struct Arguments {
    socket: Option<PathBuf>,
    patience: Duration,
    filters: Vec<String>,
}

impl Arguments {
    const USAGE: &'static str = "usage: vfio-user-conformance SOCKET [--patience SECONDS] [CASE…]\n       \
                                 vfio-user-conformance --list [CASE…]";

    /// `None` where the command line is wrong.
    fn parse() -> Option<Self> {
        let mut arguments = std::env::args().skip(1);
        let first = arguments.next()?;
        let socket = (first != "--list").then(|| PathBuf::from(&first));
        if first.starts_with("--") && socket.is_some() {
            return None;
        }
        let mut parsed = Self { socket, patience: Duration::from_secs(20), filters: Vec::new() };
        while let Some(argument) = arguments.next() {
            if argument == "--patience" {
                parsed.patience =
                    Duration::from_secs(arguments.next()?.parse().ok().filter(|time| *time > 0)?);
            } else {
                parsed.filters.push(argument);
            }
        }
        Some(parsed)
    }

    fn wants(&self, subject: &str, case: &Case) -> bool {
        let is_named = |filter: &String| case.name.contains(filter) || subject.contains(filter);
        self.filters.is_empty() || self.filters.iter().any(is_named)
    }
}

/// How many cases of a subject came to what.
#[derive(Clone, Copy, Default)]
struct Score {
    passed: usize,
    failed: usize,
    not_applicable: usize,
}

impl Score {
    const fn of(finding: Option<&Finding>) -> Self {
        let (passed, failed, not_applicable) = match finding {
            None => (1, 0, 0),
            Some(Finding::Fault(_)) => (0, 1, 0),
            Some(Finding::NotApplicable(_)) => (0, 0, 1),
        };
        Self { passed, failed, not_applicable }
    }

    const fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            not_applicable: self.not_applicable + other.not_applicable,
        }
    }

    fn print(self, name: &str) {
        println!("{name:<26} {:>7} {:>7} {:>15}", self.passed, self.failed, self.not_applicable);
    }
}

/// Judges one case and says what came of it.
fn judge(server: &Server, subject: &Subject, case: &Case) -> Score {
    let finding = case.run(server).err();
    let (word, reason) = match &finding {
        None => ("ok", String::new()),
        Some(Finding::Fault(fault)) => ("FAILED", format!(": {fault}")),
        Some(Finding::NotApplicable(why)) => ("not applicable", format!(": {why}")),
    };
    println!("{}: {} ... {word}{reason}", subject.name, case.name);
    Score::of(finding.as_ref())
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse() else {
        eprintln!("{}", Arguments::USAGE);
        return ExitCode::from(2);
    };
    let mut subjects = subjects();
    for subject in &mut subjects {
        subject.cases.retain(|case| arguments.wants(subject.name, case));
    }
    let Some(socket) = &arguments.socket else {
        for subject in &subjects {
            subject.cases.iter().for_each(|case| println!("{}: {}", subject.name, case.name));
        }
        return ExitCode::SUCCESS;
    };
    let server = match Server::discover(socket.clone(), arguments.patience) {
        Ok(server) => server,
        Err(finding) => {
            eprintln!("vfio-user-conformance: {}: {finding:?}", socket.display());
            return ExitCode::from(2);
        }
    };
    let mut scores = Vec::new();
    for subject in subjects.iter().filter(|subject| !subject.cases.is_empty()) {
        let judged = subject.cases.iter().map(|case| judge(&server, subject, case));
        scores.push((subject.name, judged.fold(Score::default(), Score::and)));
    }
    println!("\n{:<26} {:>7} {:>7} {:>15}", "message", "passed", "failed", "not applicable");
    let mut total = Score::default();
    for (name, score) in scores {
        score.print(name);
        total = total.and(score);
    }
    total.print("total");
    if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_has_a_name_of_its_own_among_those_of_its_message() {
        for subject in subjects() {
            let mut names: Vec<_> = subject.cases.iter().map(|case| case.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", subject.name);
        }
    }
}
