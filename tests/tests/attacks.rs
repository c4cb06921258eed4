// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a server that was taken over cannot do. tests/src/bin/attacker starts as the server does, and tries it; with
//! `--no-capture` (cargo test: `--nocapture`) the tests print every attempt and what came of it.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use sandbox::Thread;
use vhost_device_vfio_tests::server_process::binary;

/// What the process has open at this number when it starts, and nobody names.
const UNNAMED: i32 = 30;

/// A process that the attacker could reach, if it were not for the sandbox.
struct Sibling(Child);

impl Drop for Sibling {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of the attacker's.
#[derive(Debug)]
struct Tried {
    group: String,
    name: String,
    outcome: String,
}

/// What came of everything that was tried on a thread of that kind.
fn attack(thread: Thread, confinement: &str) -> Vec<Tried> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let sibling = Sibling(Command::new("sleep").arg("600").spawn().unwrap());
    let mut command = Command::new(binary("attacker"));
    command.args([thread.name(), confinement]).arg(file.path());
    command.arg(sibling.0.id().to_string()).arg(listener.local_addr().unwrap().port().to_string());
    // The policy as it is where there is no model.
    command.env("VHOST_DEVICE_VFIO_WITHOUT", "model").stdin(Stdio::null());
    let unnamed = FdMapping { parent_fd: file.reopen().unwrap().into(), child_fd: UNNAMED };
    command.fd_mappings(vec![unnamed]).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let tried = text.lines().map(|line| {
        let [group, name, outcome] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        println!("{}, {confinement}: {group}: {name}: {outcome}", thread.name());
        Tried { group: group.into(), name: name.into(), outcome: outcome.into() }
    });
    tried.collect()
}

/// Whether it is as it should be, with the filters in force.
fn is_as_expected(Tried { group, name, outcome }: &Tried) -> bool {
    match group.as_str() {
        "entered" => true,
        "allowed" => outcome == "done",
        // EBADF: nothing is there.
        "inherited" => outcome == "errno 9",
        // ENOTTY: by the file, not by the filter.
        "on no device" => outcome == "errno 25",
        // Without that gate, it is no system call: SIGSEGV.
        "other tables" if name.starts_with("i386") => ["signal 31", "signal 11"].contains(&outcome.as_str()),
        // SIGSYS.
        _ => outcome == "signal 31",
    }
}

fn expect_refusals(thread: Thread) {
    let tried = attack(thread, "full");
    let unexpected: Vec<_> = tried.iter().filter(|tried| !is_as_expected(tried)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    let count = |group: &str| tried.iter().filter(|tried| tried.group == group).count();
    let swept = count("every call") + count("every request");
    assert!(count("every call") > 400 && count("every request") > 20, "{swept} calls and requests");
    assert!(tried.len() - swept > 200, "{} attempts", tried.len() - swept);
    assert!(count("allowed") > 0 && count("inherited") > 0);
    let has_requests = sandbox::policy::REQUESTS.iter().any(|request| request.threads.contains(&thread));
    assert_eq!(count("on no device") > 0, has_requests);
}

#[test]
fn the_loop_can_do_nothing_but_its_work() {
    expect_refusals(Thread::Loop);
}

#[test]
fn the_worker_can_do_nothing_but_its_work() {
    expect_refusals(Thread::Worker);
}

#[test]
fn a_thread_that_resets_can_do_nothing_but_its_work() {
    expect_refusals(Thread::Reset);
}

#[test]
fn the_thread_that_passes_kicks_on_can_do_nothing_but_its_work() {
    expect_refusals(Thread::Kick);
}

/// What refuses is not a filter, but says EPERM, ENOENT, EACCES or EROFS.
const REFUSALS: [&str; 4] = ["errno 1", "errno 2", "errno 13", "errno 30"];

#[test]
fn files_programs_siblings_and_the_network_are_out_of_reach_without_filters_too() {
    let tried = attack(Thread::Loop, "no-filter");
    let [entered, attempts @ ..] = tried.as_slice() else { panic!("nothing was tried") };
    assert!(attempts.len() > 20, "{} attempts", attempts.len());
    // Signals are held back by Landlock alone, and not by every kernel's.
    let has_all_of_landlock = entered.outcome == "FullyEnforced";
    let expected = attempts.iter().filter(|tried| has_all_of_landlock || tried.name != "signal to a sibling");
    let possible: Vec<_> = expected.filter(|tried| !REFUSALS.contains(&tried.outcome.as_str())).collect();
    assert!(possible.is_empty(), "{possible:?}");
}

#[test]
fn without_a_sandbox_the_same_attempts_succeed() {
    let tried = attack(Thread::Loop, "none");
    assert!(tried.len() > 8, "{} attempts", tried.len());
    let refused: Vec<_> = tried.iter().filter(|tried| tried.outcome != "done").collect();
    assert!(refused.is_empty(), "{refused:?}");
}
