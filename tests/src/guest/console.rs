// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the test says to a guest's shell, and what that answers.
//!
//! Not on the serial line, which is for the kernel and the firmware and gives each byte by an exit, but on a port of a virtio
//! card. The test sends a command as a line; the answer is a line with the exit status and the length of the output, and then
//! the output, errors included.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The port's name.
pub(super) const PORT: &str = "console";
/// What the guest says when it has booted.
const READY: &str = "ready";

/// The guest's first process: a shell that does what it is told.
pub(super) const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
cd /tmp
until port=$(grep -lx console /sys/class/virtio-ports/*/name); do sleep 0.1; done
port=${port%/name}
exec <>"/dev/${port##*/}" >&0
echo ready
while read -r command; do
    sh -c "$command" >/tmp/.output 2>&1 </dev/null
    echo "$? $(wc -c </tmp/.output)"
    cat /tmp/.output
done
"#;

/// Whether a guest has said nothing for as long as anything may take.
static STOOD_STILL: AtomicBool = AtomicBool::new(false);

/// Whether a guest of this process has stood still. A nested guest does so now and then, also one without any device of ours, so
/// that what a test found then says nothing.
pub fn has_stood_still() -> bool {
    STOOD_STILL.load(Ordering::Relaxed)
}

/// The guest's shell.
#[derive(Debug)]
pub struct Console {
    connection: BufReader<UnixStream>,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status.
    pub status: i32,
    /// Standard output and standard error.
    pub output: String,
}

impl Console {
    /// The shell at the other end of a connection that QEMU has made.
    pub(super) fn new(connection: UnixStream) -> Self {
        Self { connection: BufReader::new(connection) }
    }

    /// Waits until the guest has booted, for the first time or again.
    pub fn wait_for_boot(&mut self) {
        self.hear_of_boot().unwrap_or_else(|error| panic!("no boot: {}", why(&error)));
    }

    /// Whether the guest boots without saying nothing for so long.
    pub(super) fn boots_within(&mut self, patience: Duration) -> bool {
        let before = self.connection.get_ref().read_timeout().expect("the stream's timeout");
        self.set_patience(Some(patience));
        let heard = self.hear_of_boot();
        self.set_patience(before);
        heard.is_ok()
    }

    fn set_patience(&self, patience: Option<Duration>) {
        self.connection.get_ref().set_read_timeout(patience).expect("the stream's timeout");
    }

    fn hear_of_boot(&mut self) -> io::Result<()> {
        // What the guest said before it was reset may be cut off.
        while !self.line()?.ends_with(READY) {}
        Ok(())
    }

    /// Has a command of one line carried out that has to succeed, and gives its output without the last line's end.
    pub fn run(&mut self, command: &str) -> String {
        self.begin(command);
        self.finish(command)
    }

    /// The same for a command that may fail.
    pub fn try_run(&mut self, command: &str) -> Outcome {
        self.begin(command);
        self.end().unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Has a command carried out while the test does something else.
    pub fn begin(&mut self, command: &str) {
        assert!(!command.contains('\n'), "{command} is more than a line");
        let stream = self.connection.get_mut();
        stream
            .write_all(format!("{command}\n").as_bytes())
            .unwrap_or_else(|error| panic!("{command}: {error}"));
    }

    /// The output of the command that was begun, which has to succeed.
    pub fn finish(&mut self, command: &str) -> String {
        let Outcome { status, output } = self.end().unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(status, 0, "{command}: {output}");
        output.trim_end().into()
    }

    fn end(&mut self) -> Result<Outcome, String> {
        let line = self.line().map_err(|error| why(&error))?;
        let (status, length) = line.split_once(' ').ok_or_else(|| format!("`{line}` is no answer"))?;
        let number = |error| format!("`{line}` is no answer: {error}");
        let mut output = vec![0; length.parse().map_err(number)?];
        self.connection.read_exact(&mut output).map_err(|error| why(&error))?;
        Ok(Outcome {
            status: status.parse().map_err(number)?,
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        match self.connection.read_until(b'\n', &mut line)? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "QEMU has ended")),
            _ => Ok(String::from_utf8_lossy(&line).trim_end().into()),
        }
    }
}

/// Why a test that waited for the guest cannot go on.
fn why(error: &io::Error) -> String {
    if error.kind() == ErrorKind::WouldBlock {
        STOOD_STILL.store(true, Ordering::Relaxed);
        return "the guest stands still".into();
    }
    error.to_string()
}
