// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The proof that the sandbox's policy has nothing that is not needed: takes its entries away, one at a time, and runs the
//! test that each names, which must fail. Run by hand, as docs/security.md says.
//!
//! `policy-proof` goes through what modelled kernels can show. In the test VM it goes through what only a real kernel can, for
//! the topology that the VM has. `policy-proof --threads` does so for each entry and each kind of thread, and only tells.

#![allow(clippy::expect_used)]

use std::process::{Command, ExitCode, Stdio};

use sandbox::policy::{CALLS, REQUESTS, SYSFS_CALLS, Thread, Witness};
use vhost_device_vfio_tests::server_process::binary;

/// How often a test may do without an entry until that counts: whether a thread ends before its process is a matter of luck.
const TRIES: u32 = 40;
/// Where the server looks for what it shall do without.
const WITHOUT: &str = "VHOST_DEVICE_VFIO_WITHOUT";

/// An entry of the policy.
struct Allowed {
    name: &'static str,
    threads: &'static [Thread],
    test: Witness,
}

fn policy() -> Vec<Allowed> {
    let calls = CALLS.iter().chain(SYSFS_CALLS);
    let calls = calls.map(|entry| Allowed { name: entry.name, threads: entry.threads, test: entry.test });
    let requests = REQUESTS.iter().map(|request| Allowed {
        name: request.ioctl.name,
        threads: request.threads,
        test: request.test,
    });
    calls.chain(requests).collect()
}

/// Where the tests run.
struct Place {
    /// The devices of the test VM; none outside.
    topology: Option<String>,
}

impl Place {
    fn current() -> Self {
        Self { topology: std::env::var("TESTVM_TOPOLOGY").ok() }
    }

    /// Whether the test is done without `taken`; `None` if it is none for this place.
    fn passes(&self, test: Witness, taken: &str) -> Option<bool> {
        let Witness::FirstLight { topology, kernel, needs_real_kernel, test } = test else { return None };
        let mut command = Command::new(binary("first-light"));
        match &self.topology {
            None if needs_real_kernel => return None,
            None => {
                command.env("FIRST_LIGHT_MODEL", "1");
            }
            Some(own) if !needs_real_kernel || own != topology => return None,
            Some(_) => {}
        }
        command.env("TESTVM_TOPOLOGY", topology).env("TESTVM_KERNEL", kernel).env(WITHOUT, taken);
        let output =
            command.args(["--exact", test]).stderr(Stdio::null()).output().expect("first-light runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains("running 1 test"), "there is no test `{test}` with {topology}: {printed}");
        Some(output.status.success())
    }
}

/// Whether the test never fails without `taken`.
fn does_without(place: &Place, test: Witness, taken: &str) -> bool {
    (0..TRIES).all(|_| place.passes(test, taken).expect("a test for this place"))
}

fn main() -> ExitCode {
    let place = Place::current();
    let by_thread = std::env::args().any(|argument| argument == "--threads");
    let mut unneeded = 0;
    for Allowed { name, threads, test } in policy() {
        let Some(is_good) = place.passes(test, "") else {
            if let Witness::Untestable(why) = test {
                println!("{name}: not tested: {why}");
            }
            continue;
        };
        assert!(is_good, "{name}: {test:?} fails with everything in place");
        if by_thread {
            for thread in threads {
                let taken = format!("{name}/{}", thread.name());
                let passes = does_without(&place, test, &taken);
                println!("{taken}: {}", if passes { "NOT NEEDED by this test" } else { "needed" });
            }
            continue;
        }
        let passes = does_without(&place, test, name);
        println!("{name}: {}", if passes { "NOT NEEDED" } else { "needed" });
        unneeded += u32::from(passes);
    }
    println!("{unneeded} entries whose test does without");
    if unneeded == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
