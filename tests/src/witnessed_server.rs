// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server with a client that must not notice what others do to it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use protocol::ControlClient;
use tempfile::TempDir;

use crate::raw_client::{RawClient, Refusal};
use crate::server_process::{PATIENCE, ServerProcess, server_binary, wait_until};

/// The server, and the witness.
#[derive(Debug)]
pub struct WitnessedServer {
    /// The process.
    pub server: ServerProcess,
    witness: ControlClient,
    /// Descriptors that the server has open for itself and the witness.
    open_files: usize,
    path: PathBuf,
    _directory: TempDir,
}

impl WitnessedServer {
    /// A server that has nothing but one client, which behaves.
    pub fn start() -> Self {
        Self::start_command(Command::new(server_binary()))
    }

    /// The same for a server with a command of the test's own, which ends before `--socket-path`.
    pub fn start_command(mut command: Command) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("control");
        let server = ServerProcess::spawn({
            command.arg("--socket-path").arg(&path);
            command
        });
        let mut socket = None;
        wait_until(|| {
            socket = UnixStream::connect(&path).ok();
            socket.is_some()
        });
        let socket = socket.unwrap_or_else(|| panic!("nobody listens: {}", server.log()));
        let mut witness = ControlClient::new(socket, PATIENCE);
        witness.negotiate().expect("the witness is served");
        let open_files = server.open_files();
        Self { server, witness, open_files, path, _directory: directory }
    }

    /// A client that has said nothing yet.
    pub fn connect(&self) -> RawClient {
        RawClient::connect(&self.path)
    }

    /// A client that may use the extension.
    pub fn negotiate(&self) -> RawClient {
        let mut client = self.connect();
        client.negotiate();
        client
    }

    /// Has a client send something that is refused, in which case it is told why, and everything else goes on.
    pub fn refuses(
        &mut self,
        mut client: RawClient,
        input: impl FnOnce(&mut RawClient) -> Refusal,
    ) -> Refusal {
        let before = self.server.log().len();
        let refusal = input(&mut client);
        let Refusal { request, errno, .. } = &refusal;
        let entry = format!("request={request} errno={} ", errno.raw_os_error());
        self.assert_logged(before, &["event=refused", &entry, &reason(&refusal)]);
        client.assert_served();
        self.assert_unharmed(1);
        drop(client);
        self.assert_unharmed(0);
        refusal
    }

    /// Has a client send something after which the server tells it why, and parts from it.
    pub fn parts_from(
        &mut self,
        mut client: RawClient,
        input: impl FnOnce(&mut RawClient) -> Refusal,
    ) -> Refusal {
        let before = self.server.log().len();
        let refusal = input(&mut client);
        self.assert_logged(before, &["event=connection-broken", &reason(&refusal)]);
        client.assert_ended();
        self.assert_unharmed(0);
        refusal
    }

    /// Has a client do something that ends its connection, and looks for an entry with all of these parts in the log.
    pub fn outlives(&mut self, client: RawClient, entry: &[&str], input: impl FnOnce(RawClient)) {
        let before = self.server.log().len();
        input(client);
        self.assert_logged(before, entry);
        self.assert_unharmed(0);
    }

    /// The witness is answered, and for so many more clients as many descriptors are open, and none else.
    pub fn assert_unharmed(&mut self, clients: usize) {
        let devices = self.witness.list_devices();
        assert!(devices.is_ok_and(|devices| devices.is_empty()), "the witness: {}", self.server.log());
        self.server.wait_for_open_files(self.open_files + clients);
    }

    /// One line of what was logged since `before` has all of these parts.
    fn assert_logged(&self, before: usize, parts: &[&str]) {
        let is_logged = || {
            let log = self.server.log();
            log[before..].lines().any(|line| parts.iter().all(|part| line.contains(part)))
        };
        assert!(wait_until(is_logged), "no entry with {parts:?} in {}", &self.server.log()[before..]);
    }
}

/// How a refusal stands in the log.
fn reason(Refusal { id, sentences, .. }: &Refusal) -> String {
    format!("reason=\"{sentences} ({id})\"")
}
