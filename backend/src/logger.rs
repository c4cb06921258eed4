// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log: a line on standard error for each event, `key=value`, with the level in front.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

#[derive(Debug)]
struct StandardError;

impl Log for StandardError {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_lowercase();
        // In one piece, because several servers can have one standard error. With that gone there is nowhere left to say so.
        let line = format!("level={level} {}\n", record.args());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Sends the log of this process to standard error.
///
/// # Errors
///
/// There is a logger already.
pub fn start(level: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_logger(&StandardError).map(|()| log::set_max_level(level))
}
