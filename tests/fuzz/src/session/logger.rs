// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whoever reads the log: that a line can be written is a part of what is tried, and some lines must never come.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

/// What only a fault of the server or of the model can bring about.
const NEVER: [&str; 5] = ["watch-failed", "worker-lost", "job-failed", "model-failed", "model-not-shown"];

struct Logger {
    /// Lines are shown to who wants to know what happens: with `FUZZ_LOG` in the environment.
    shows: bool,
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        if self.shows {
            // Not by the macro, which would be caught where output is captured.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        let event = line.strip_prefix("event=").and_then(|rest| rest.split(' ').next());
        let event = event.unwrap_or_else(|| panic!("a line without event: {line}"));
        assert!(!NEVER.contains(&event), "{line}");
    }

    fn flush(&self) {}
}

/// Begins to read.
pub(crate) fn start() {
    let shows = std::env::var_os("FUZZ_LOG").is_some();
    if log::set_boxed_logger(Box::new(Logger { shows })).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
}
