// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the server is started and ended: what it is given by number, and what it leaves at its socket's path.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};

use command_fds::{CommandFdExt, FdMapping};
use protocol::ControlClient;
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};
use vhost_device_vfio_tests::foreign_file::ForeignFile;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, server_binary, wait_until};

/// The server, told to take `inherited` from number 3 on.
fn command<const COUNT: usize>(arguments: &[&str], inherited: [OwnedFd; COUNT]) -> Command {
    let mut command = Command::new(server_binary());
    command.args(arguments);
    let mappings = (3..).zip(inherited).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    command
}

fn start<const COUNT: usize>(arguments: &[&str], inherited: [OwnedFd; COUNT]) -> ServerProcess {
    ServerProcess::spawn(command(arguments, inherited))
}

/// A server that does not start says why, once, and ends with 1.
fn expect_failure(mut server: ServerProcess, why: &str) {
    let status = server.wait_for_exit();
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let fatal: Vec<_> = log.lines().filter(|line| line.contains("level=error event=fatal reason=")).collect();
    assert!(fatal.len() == 1 && fatal[0].contains(why), "no `{why}` in {log}");
}

fn output(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(server_binary()).current_dir(directory).args(arguments).output().unwrap()
}

fn assert_empty(directory: &Path) {
    let entries: Vec<_> = std::fs::read_dir(directory).unwrap().collect();
    assert!(entries.is_empty(), "{entries:?} was made");
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

/// Negotiates on `socket`, so that the server is known to serve it.
fn assert_served(socket: UnixStream) -> ControlClient {
    let mut client = ControlClient::new(socket, PATIENCE);
    client.negotiate().unwrap();
    client
}

/// A server that listens at `path`, and a client of it.
fn listen_at(path: &Path) -> (ServerProcess, ControlClient) {
    let server = start(&["--socket-path", path.to_str().unwrap()], []);
    let mut socket = None;
    assert!(wait_until(|| {
        socket = UnixStream::connect(path).ok();
        socket.is_some()
    }));
    (server, assert_served(socket.unwrap()))
}

#[test]
fn capabilities_are_printed_as_json() {
    let output = output(Path::new("/"), &["--print-capabilities"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({"type": "vfio", "features": ["vfio-extension-1.1", "vfio-user-0.1"]});
    assert_eq!(capabilities, expected);
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["--fd", "3", "--socket-path", "control"],
        &["--print-capabilities", "--unknown"],
        &["--fd", "three"],
        &["--fd", "-1"],
        &["--fd"],
        &["--fd", "3", "--device-fd", "1=4"],
        &["--fd", "3", "--iommufd-fd", "4", "--device-fd", "5"],
        &["--fd", "3", "--iommufd-fd", "4", "--vfio-user-fd", "1=5"],
        &["--fd", "3", "--log-level", "loud"],
        &["--unknown"],
        &["control"],
    ] {
        let output = output(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.starts_with("error: ") && output.stdout.is_empty(), "{arguments:?}: {message}");
    }
    assert_empty(directory.path());
}

#[test]
fn standard_streams_are_not_for_inheriting() {
    for number in ["0", "1", "2"] {
        expect_failure(start(&["--fd", number], []), "is not the number of an inherited descriptor");
    }
}

#[test]
fn a_number_that_is_not_open_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &["--fd", "100000"][..],
        &["--socket-path", "control", "--iommufd-fd", "100000"],
        &["--socket-path", "control", "--iommufd-fd", "3", "--device-fd", "1=100000"],
    ] {
        let mut command = command(arguments, [null()]);
        command.current_dir(directory.path());
        expect_failure(ServerProcess::spawn(command), "descriptor 100000 is not open");
    }
    assert_empty(directory.path());
}

#[test]
fn a_number_is_taken_once() {
    for arguments in [
        &["--fd", "3", "--fd", "3"][..],
        &["--fd", "3", "--iommufd-fd", "3"],
        &["--fd", "4", "--iommufd-fd", "3", "--device-fd", "1=3"],
        &["--fd", "4", "--iommufd-fd", "5", "--device-fd", "1=3", "--vfio-user-fd", "1=3"],
    ] {
        expect_failure(start(arguments, [null(), null(), null()]), "descriptor 3 is named twice");
    }
}

#[test]
fn a_control_socket_must_be_a_unix_stream() {
    for ForeignFile { kind, file } in ForeignFile::all() {
        if !["a connected socket", "a listening socket"].contains(&kind) {
            expect_failure(start(&["--fd", "3"], [file]), "(not-a-unix-stream)");
        }
    }
}

#[test]
fn a_control_socket_must_have_a_peer_or_listen() {
    let neither = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    expect_failure(start(&["--fd", "3"], [neither]), "(not-a-unix-stream)");
}

#[test]
fn a_failed_start_without_sandbox_leaves_no_socket_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let arguments = ["--sandbox", "none", "--socket-path", path.to_str().unwrap(), "--iommufd-fd", "3"];
    let server = start(&arguments, [null()]);
    expect_failure(server, "(not-an-iommufd)");
    assert!(!path.exists());
}

#[test]
fn a_path_that_exists_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
    std::fs::write(&file, "somebody's").unwrap();
    symlink("nowhere", &link).unwrap();
    for path in [&file, &link, directory.path()] {
        let server = start(&["--socket-path", path.to_str().unwrap()], []);
        expect_failure(server, &format!("cannot listen on {}", path.display()));
    }
    assert_eq!(std::fs::read(file).unwrap(), b"somebody's");
    assert_eq!(std::fs::read_link(link).unwrap(), Path::new("nowhere"));
    assert!(!directory.path().join("nowhere").exists());
}

#[test]
fn a_second_server_leaves_the_first_ones_path_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let (_first, mut client) = listen_at(&path);
    expect_failure(start(&["--socket-path", path.to_str().unwrap()], []), "cannot listen on");
    assert!(client.list_devices().is_ok());
    assert_served(UnixStream::connect(&path).unwrap());
}

#[test]
fn a_socket_that_a_server_left_is_replaced_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let (mut server, _client) = listen_at(&path);
    server.terminate();
    assert!(server.wait_for_exit().success(), "{}", server.log());
    assert!(
        path.symlink_metadata().unwrap().file_type().is_socket(),
        "in the sandbox nothing can be removed"
    );
    let (_next, mut client) = listen_at(&path);
    assert!(client.list_devices().is_ok());
}

#[test]
fn sigterm_ends_the_server_in_the_middle_of_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let (mut server, _client) = listen_at(&path);
    // In the middle of a message.
    let mut other = UnixStream::connect(&path).unwrap();
    other.write_all(&[1, 0, 0]).unwrap();
    server.terminate();
    assert!(server.wait_for_exit().success(), "{}", server.log());
}

#[test]
fn what_took_the_sockets_place_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let (mut server, _client) = listen_at(&path);
    std::fs::remove_file(&path).unwrap();
    let (_next, _next_client) = listen_at(&path);
    server.terminate();
    assert!(server.wait_for_exit().success(), "{}", server.log());
    assert_served(UnixStream::connect(&path).unwrap());
}

#[test]
fn the_server_ends_with_the_peer_of_a_connected_socket() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut server = start(&["--fd", "3"], [far.into()]);
    drop(assert_served(near));
    assert!(server.wait_for_exit().success(), "{}", server.log());
    server.wait_for_log("event=control-closed");
}

#[test]
fn the_server_ends_with_the_peer_that_was_gone_before() {
    let (near, far) = UnixStream::pair().unwrap();
    drop(near);
    let mut server = start(&["--fd", "3"], [far.into()]);
    assert!(server.wait_for_exit().success(), "{}", server.log());
}

#[test]
fn an_inherited_listening_socket_outlives_its_clients() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let mut server = start(&["--fd", "3"], [listener.into()]);
    for _ in 0..2 {
        drop(assert_served(UnixStream::connect(&path).unwrap()));
    }
    server.terminate();
    assert!(server.wait_for_exit().success(), "{}", server.log());
    assert!(path.exists(), "the path is not the server's");
}

#[test]
fn several_inherited_sockets_are_served() {
    let (first, far_first) = UnixStream::pair().unwrap();
    let (second, far_second) = UnixStream::pair().unwrap();
    let mut server = start(&["--fd", "3", "--fd", "4"], [far_first.into(), far_second.into()]);
    let (_first, second) = (assert_served(first), assert_served(second));
    drop(second);
    assert!(server.wait_for_exit().success(), "{}", server.log());
}

#[test]
fn the_log_tells_as_much_as_it_is_asked_for() {
    for (level, tells) in [("off", false), ("error", false), ("warn", false), ("info", true)] {
        let (near, far) = UnixStream::pair().unwrap();
        let mut server = start(&["--fd", "3", "--log-level", level], [far.into()]);
        drop(assert_served(near));
        server.wait_for_exit();
        assert_eq!(server.log().contains("event=control-connected"), tells, "{level}");
        assert_eq!(server.log().is_empty(), !tells, "{level}");
    }
}

#[test]
fn a_log_that_cannot_be_written_holds_up_nobody() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let mut command = command(&["--fd", "3"], [far.into()]);
    let mut server = command.stderr(full).spawn().unwrap();
    let mut client = assert_served(near);
    assert!(client.list_devices().is_ok());
    drop(client);
    assert!(server.wait().unwrap().success());
}
