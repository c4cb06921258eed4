// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server process is left with once it serves. What it then cannot do is in tests/tests/attacks.rs.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use vhost_device_vfio_tests::server_process::{ServerProcess, server_binary, wait_until};

/// A field of the server's `/proc/…/status`.
fn status(server: &ServerProcess, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

/// A server that answers, so that it is in its sandbox.
fn serving() -> ServerProcess {
    let (server, socket) = ServerProcess::start();
    server.wait_for_log("event=sandbox-entered");
    server.wait_for_log("event=control-connected");
    // It ends with its client.
    std::mem::forget(socket);
    server
}

#[test]
fn no_capability_is_left_and_none_can_be_gained() {
    let server = serving();
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&server, field), "0000000000000000", "{field}");
    }
    assert_eq!(status(&server, "NoNewPrivs"), "1");
}

#[test]
fn every_thread_has_a_filter() {
    let server = serving();
    let threads = || {
        let threads = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
        let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).unwrap();
        threads.map(|thread| status(thread.unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(threads().len(), 7, "the loop, the worker, four for resets, and one for kicks");
    // Each installs its own before its first work.
    assert!(wait_until(|| threads().iter().all(|status| status.contains("Seccomp:\t2"))), "{:?}", threads());
}

#[test]
fn the_root_is_empty_but_for_sysfs() {
    let server = serving();
    let root = fs::read_dir(format!("/proc/{}/root", server.id())).unwrap();
    let mut names: Vec<_> = root.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !["bus", "class", "dev", "devices", "kernel", "module"].contains(&name.as_str()));
    assert_eq!(names, [""; 0], "of sysfs what is needed, and nothing else");
    assert_ne!(fs::read_link(format!("/proc/{}/ns/net", server.id())).unwrap(), own_namespace("net"));
    assert_ne!(fs::read_link(format!("/proc/{}/ns/ipc", server.id())).unwrap(), own_namespace("ipc"));
}

fn own_namespace(name: &str) -> std::path::PathBuf {
    fs::read_link(format!("/proc/self/ns/{name}")).unwrap()
}

#[test]
fn no_file_can_grow_and_no_core_is_dumped() {
    let server = serving();
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let open_files = limit("Max open files");
    assert_eq!(open_files[0], open_files[1], "it cannot be raised");
    assert!(open_files[1].parse::<u32>().unwrap() <= 65_536);
}

#[test]
fn what_is_not_named_is_closed() {
    let (control, far) = UnixStream::pair().unwrap();
    let unnamed = fs::File::open("/dev/null").unwrap();
    let mut command = Command::new(server_binary());
    command.args(["--fd", "20"]);
    let mappings = [(far.into(), 20), (unnamed.try_clone().unwrap().into(), 19), (unnamed.into(), 30)];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.into()).unwrap();
    let server = ServerProcess::spawn(command);
    server.wait_for_log("event=control-connected");
    for number in [19, 30] {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", server.id()));
        assert!(!link.is_ok_and(|link| link == Path::new("/dev/null")), "{number}");
    }
    drop(control);
}

#[test]
fn the_user_and_the_group_can_be_changed() {
    let mut command = Command::new(server_binary());
    command.args(["--uid", "12345", "--gid", "23456"]);
    let (server, _socket) = ServerProcess::start_command(command);
    server.wait_for_log("event=control-connected");
    assert_eq!(status(&server, "Uid"), "12345\t12345\t12345\t12345");
    assert_eq!(status(&server, "Gid"), "23456\t23456\t23456\t23456");
    assert_eq!(status(&server, "Groups"), "");
}

#[test]
fn what_is_given_up_by_a_debugging_option_is_said() {
    let mut command = Command::new(server_binary());
    command.args(["--sandbox", "none"]);
    let (server, _socket) = ServerProcess::start_command(command);
    server.wait_for_log("event=sandbox-off");
    server.wait_for_log("event=control-connected");
    assert_eq!(status(&server, "Seccomp"), "0");
}
