// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's machine protocol: commands with their answers, and events (QEMU's docs/interop/qmp-spec.rst).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;

use serde_json::{Value, json};

/// A session with a QEMU.
#[derive(Debug)]
pub struct Qmp {
    connection: BufReader<File>,
    /// Events that came before somebody waited for them.
    events: Vec<Value>,
}

impl Qmp {
    /// Begins a session on a connection that QEMU has made, or on a port that leads to one.
    pub fn begin(connection: impl Into<OwnedFd>) -> Self {
        let connection = File::from(connection.into());
        let mut qmp = Self { connection: BufReader::new(connection), events: Vec::new() };
        let greeting = qmp.receive().expect("the greeting");
        assert!(greeting["QMP"].is_object(), "{greeting}");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Has a command carried out, and gives what it returns.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The same for a command that QEMU may refuse.
    ///
    /// # Errors
    ///
    /// QEMU's description; that of an end, when QEMU ended.
    pub fn try_execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.connection.get_mut().write_all(line.as_bytes()).map_err(|error| error.to_string())?;
        loop {
            let mut answer = self.receive()?;
            if answer["event"].is_string() {
                self.events.push(answer);
            } else if let Some(error) = answer["error"]["desc"].as_str() {
                return Err(error.into());
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Waits for an event of this name, unless one has come that nobody waited for.
    pub fn wait_for(&mut self, event: &str) -> Value {
        loop {
            if let Some(place) = self.events.iter().position(|found| found["event"] == event) {
                return self.events.swap_remove(place);
            }
            let next = self.receive().unwrap_or_else(|error| panic!("no {event}: {error}"));
            self.events.push(next);
        }
    }

    /// Takes the events of this name that have come, and tells how many there were.
    pub fn take(&mut self, event: &str) -> usize {
        // Its answer comes behind all events before it.
        self.execute("query-status", &json!({}));
        let before = self.events.len();
        self.events.retain(|found| found["event"] != event);
        before - self.events.len()
    }

    fn receive(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.connection.read_line(&mut line) {
            Ok(0) => Err("QEMU has ended".into()),
            Ok(_) => Ok(line.parse().expect("JSON")),
            Err(error) => Err(error.to_string()),
        }
    }
}
