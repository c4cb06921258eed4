// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server that was taken over: it starts as the server does, and then tries what it should not be able to. Says on standard
//! output what came of each attempt; tests/tests/attacks.rs judges.
//!
//! `attacker THREAD full FILE PROCESS PORT` makes every attempt, each in a child of its own, on a thread of that kind;
//! `attacker THREAD no-filter …` those that are refused without system-call filters as well, and `none` those of them that do no
//! harm, without any sandbox. FILE is one that the process could write, PROCESS the id of one that it could send a signal, PORT
//! one on which somebody listens.

#![allow(clippy::expect_used)]

mod attempt;
mod attempts;
mod child;

use std::ffi::CString;
use std::path::PathBuf;

use sandbox::policy::{CALLS, REQUESTS, SYSFS_CALLS};
use sandbox::{Confinement, Filters, Identity, InheritedFds, Scope, Thread, Violation};

use crate::attempt::{Attempt, SecondLine, Target};

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [thread, confinement, file, process, port] = arguments.as_slice() else { panic!("five arguments") };
    let thread = Thread::ALL.into_iter().find(|kind| kind.name() == thread).expect("a kind of thread");
    let target = Target {
        file: CString::new(file.as_str()).expect("a path"),
        process: process.parse().expect("a process id"),
        port: port.parse().expect("a port"),
    };
    // From here on as in the server's `serve`.
    InheritedFds::default().close_others().expect("others are closed");
    let filters = (confinement == "full").then(|| {
        let scope = Scope { sysfs: true, new_devices: true, violation: Violation::Kill };
        Filters::compile(scope).expect("the filters")
    });
    if confinement != "none" {
        let sysfs = Some(PathBuf::from("/sys"));
        let confinement = Confinement { sysfs, identity: Identity::default(), open_files: 65_536 };
        let entered = sandbox::enter(&confinement).expect("the sandbox");
        println!("entered\tnamespaces {}\t{:?}", entered.has_namespaces, entered.landlock);
    }
    let is_tried = |attempt: &Attempt| match confinement.as_str() {
        "full" => true,
        "no-filter" => attempt.second_line != SecondLine::None,
        _ => attempt.second_line == SecondLine::RefusesWhatIsPossible,
    };
    for attempt in attempts::all().iter().filter(|attempt| is_tried(attempt)) {
        let outcome = child::try_in_child(thread, filters.as_ref(), || (attempt.make)(&target));
        println!("{}\t{}\t{outcome}", attempt.group, attempt.name);
    }
    if let Some(filters) = filters {
        sweep(thread, &filters);
    }
}

/// Every call and every request that the policy has not for that kind of thread, and every request that it has, on what is
/// no device.
fn sweep(thread: Thread, filters: &Filters) {
    let is_call = |number| {
        let mut entries = CALLS.iter().chain(SYSFS_CALLS).filter(|entry| entry.call.number == number);
        entries.any(|entry| entry.threads.contains(&thread))
    };
    let is_filtered = |number: &libc::c_long| !is_call(*number) && !attempts::UNFILTERED.contains(number);
    for number in attempts::CALLS.filter(is_filtered) {
        let outcome = child::try_in_child(thread, Some(filters), || attempts::call(number));
        println!("every call\t{number}\t{outcome}");
    }
    let is_request = |number| {
        REQUESTS.iter().any(|request| request.ioctl.number == number && request.threads.contains(&thread))
    };
    for number in attempts::REQUESTS {
        let group = if is_request(number) { "on no device" } else { "every request" };
        let outcome = child::try_in_child(thread, Some(filters), || attempts::request(number));
        println!("{group}\t{number:#x}\t{outcome}");
    }
}
