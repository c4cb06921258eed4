// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A session: what clients, a host and a hostile kernel do to the real server on a modelled machine. Nothing may panic or
//! wait for ever, and in the end nothing is left: no descriptor, no thread, no device, no mapping.

mod channel_message;
mod control_message;
mod data_message;
mod descriptor;
pub(crate) mod flaw;
mod liar;
pub(crate) mod logger;
pub(crate) mod machine;
pub(crate) mod peer;
pub(crate) mod server;
mod world;

use crate::patience::wait_until;
use arbitrary::Arbitrary;
use vhost_device_vfio::policy::Policies;

use self::liar::Lie;
use self::machine::Setup;
use self::server::Server;
use self::world::{Step, World};
use crate::process;

/// Most steps: longer sessions show nothing that two short ones do not.
const MAX_STEPS: usize = 48;

/// What happens.
#[derive(Arbitrary, Debug)]
pub struct Session {
    setup: Setup,
    /// The server is started with one end of a socket pair, and ends when the first client goes.
    is_inherited: bool,
    /// The server is told to end while everybody is still there.
    ends_first: bool,
    /// What functions that are handed over say that is not so.
    lies: Vec<Lie>,
    steps: Vec<Step>,
}

/// Plays it.
pub fn play(session: &Session) {
    let Session { setup, is_inherited, ends_first, lies, steps } = session;
    logger::start();
    let left = Left::now();
    let machine = setup.start();
    let (server, first) = Server::start(&machine, *is_inherited, Policies::default());
    let without_clients = process::open_files();
    let mut world = World::new(&machine, first, lies);
    for step in steps.iter().take(MAX_STEPS) {
        world.take(step);
    }
    if *ends_first {
        server.end();
        world.leave();
    } else {
        // The machine, which is in this process too, listens at more nodes or at fewer.
        let are_nodes_the_same = !world.has_changed_nodes;
        world.leave();
        machine.wait_until_unused();
        if !is_inherited && are_nodes_the_same {
            let is_free = wait_until(|| process::open_files() == without_clients);
            let now = process::open_files();
            assert!(is_free, "{now} descriptors instead of {without_clients} in a server without clients");
        }
        server.end();
    }
    machine.wait_until_unused();
    drop(machine);
    left.wait_for();
}

/// What there is of this process that a session could leave behind.
pub(crate) struct Left {
    open_files: usize,
    threads: usize,
}

impl Left {
    pub(crate) fn now() -> Self {
        Self { open_files: process::open_files(), threads: process::threads() }
    }

    pub(crate) fn wait_for(&self) {
        let Self { open_files, threads } = *self;
        let is_done = wait_until(|| process::open_files() == open_files && process::threads() == threads);
        let (files_now, threads_now) = (process::open_files(), process::threads());
        assert!(
            is_done,
            "descriptors: {files_now} instead of {open_files}; threads: {threads_now} instead of {threads}"
        );
        assert_eq!(process::mappings_of_guest_memory(), 0, "guest memory stays mapped");
    }
}
