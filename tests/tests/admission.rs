// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who may connect to listening sockets, and what a server does that cannot let anybody in.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use vhost_device_vfio_tests::raw_client::RawClient;
use vhost_device_vfio_tests::server_process::{ServerProcess, server_binary, wait_until};
use vhost_device_vfio_tests::witnessed_server::WitnessedServer;

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A server that listens at `path`.
fn listening(path: &Path, arguments: &[&str]) -> ServerProcess {
    let mut command = Command::new(server_binary());
    command.args(arguments).arg("--socket-path").arg(path);
    let server = ServerProcess::spawn(command);
    assert!(wait_until(|| UnixStream::connect(path).is_ok()), "nobody listens: {}", server.log());
    server
}

#[test]
fn who_is_not_allowed_is_turned_away_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let stranger = (own_uid() + 1).to_string();
    let server = listening(&path, &["--allow-uid", &stranger]);
    // Whoever looked whether it listens was the first.
    server.wait_for_log(&format!("event=client-refused uid={}", own_uid()));
    let own_files = server.open_files();
    RawClient::connect(&path).assert_ended();
    server.wait_for_open_files(own_files);
    assert!(!server.log().contains("event=control-connected"));
}

#[test]
fn each_of_the_allowed_users_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let (stranger, own) = ((own_uid() + 1).to_string(), own_uid().to_string());
    let _server = listening(&path, &["--allow-uid", &stranger, "--allow-uid", &own]);
    RawClient::connect(&path).assert_served();
}

#[test]
fn a_new_socket_is_for_this_user_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _server = listening(&path, &[]);
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_group_may_be_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let group = rustix::process::getgid().as_raw();
    let _server = listening(&path, &["--socket-group", &group.to_string()]);
    let made = path.metadata().unwrap();
    assert_eq!((made.mode() & 0o7777, made.gid()), (0o660, group));
}

/// As when the whole system has no more files: each try fails, and whoever waits stays.
#[test]
fn a_server_that_cannot_let_anybody_in_does_not_try_again_and_again() {
    let (client, far) = UnixStream::pair().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("control")).unwrap();
    let mut command = Command::new(server_binary());
    command.env("VHOST_DEVICE_VFIO_WITHOUT", "accept4").args([
        "--seccomp",
        "errno",
        "--fd",
        "20",
        "--fd",
        "21",
    ]);
    let mappings = [(far.into(), 20), (listener.into(), 21)];
    let mappings = mappings.map(|(parent_fd, child_fd)| command_fds::FdMapping { parent_fd, child_fd });
    command_fds::CommandFdExt::fd_mappings(&mut command, mappings.into()).unwrap();
    let server = ServerProcess::spawn(command);
    let mut client = RawClient::from(client);
    client.assert_served();
    let _waiting = UnixStream::connect(folder.path().join("control")).unwrap();
    server.wait_for_log("event=accept-failed");
    // Whatever is ready is served in turn, so that one who tries again and again does between any two of these.
    for _ in 0..200 {
        client.assert_served();
    }
    let tries = server.log().matches("event=accept-failed").count();
    assert!(tries < 100, "{tries} tries");
}

#[test]
fn refusals_of_a_client_do_not_flood_the_log() {
    const REFUSED: usize = 5000;
    let server = WitnessedServer::start();
    let mut client = server.negotiate();
    for _ in 0..REFUSED {
        client.refused(protocol::RequestNumber::GET_DEVICE_INFO, &7_u64.to_ne_bytes(), &[]);
    }
    let log = server.server.log();
    let logged = log.matches("event=refused").count();
    assert!((32..64).contains(&logged), "{logged} of {REFUSED}");
    drop(client);
    server.server.wait_for_log("event=refusals-not-logged");
    assert!(server.server.log().contains(&format!(" refused={REFUSED}\n")));
}
