// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An actor as the director has it: a child process of the same program.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use vhost_device_vfio_tests::host::Host;

use crate::actor::{Reply, Request};
use crate::channel::Channel;

/// The argument that makes the program an actor, on the machine whose root folder follows.
pub(crate) const ARGUMENT: &str = "--actor";

/// A running actor. It is killed when this is dropped, and what it had is closed then.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    channel: Channel,
}

impl Process {
    /// Starts an actor on a machine.
    pub(crate) fn start(host: &Host) -> Self {
        let (channel, far) = Channel::pair();
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        command.arg(ARGUMENT).arg(host.root()).stdin(Stdio::from(far)).stdout(Stdio::null());
        Self { child: command.spawn().expect("an actor starts"), channel }
    }

    pub(crate) fn ask(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> (Reply, Option<OwnedFd>) {
        self.channel.send(request, descriptor);
        self.channel.receive().unwrap_or_else(|| panic!("the actor died of {request:?}"))
    }
}

impl Drop for Process {
    /// By SIGKILL. The kernel closes what a process had before anybody can collect its exit status.
    fn drop(&mut self) {
        self.child.kill().expect("the actor is killed");
        self.child.wait().expect("the actor's end");
    }
}
