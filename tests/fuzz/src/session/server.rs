// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The server, with its loop on a thread of this process: all that the program does but the sandbox.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use crate::patience::PATIENCE;
use vhost_device_vfio::control_memory::ControlMemory;
use vhost_device_vfio::face::socket::FaceSocket;
use vhost_device_vfio::machine::Machine as ServedMachine;
use vhost_device_vfio::policy::Policies;

use super::machine::Machine;

/// A server that runs.
pub(crate) struct Server {
    /// Whose end ends it.
    signal: UnixStream,
    ended: Receiver<io::Result<()>>,
    thread: JoinHandle<()>,
}

/// Where it listens.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("control")
}

impl Server {
    /// Starts it. With `is_inherited` it gets a client at birth, with which it ends.
    pub(crate) fn start(
        machine: &Machine,
        is_inherited: bool,
        policies: Policies,
    ) -> (Self, Option<UnixStream>) {
        let host = machine.machine.host();
        let control_memory = ControlMemory::new().expect("memory for control rings");
        let vm = ServedMachine::new(host.sysfs(), policies, control_memory);
        let mut server = vhost_device_vfio::server::Server::new(vm, None).expect("the server starts");
        let (signal, signalled) = UnixStream::pair().expect("a socket pair");
        server.end_on(signalled).expect("the signal is watched");
        let mut serve = |socket| {
            let socket = FaceSocket::from_fd(socket).expect("a unix stream");
            server.serve_control(socket).expect("the socket is served");
        };
        let listener = UnixListener::bind(socket(host.root())).expect("a free path");
        serve(listener.into());
        let first = is_inherited.then(|| {
            let (near, far) = UnixStream::pair().expect("a socket pair");
            serve(far.into());
            near
        });
        let (ends, ended) = channel();
        let run = move || ends.send(server.run()).expect("somebody waits for the end");
        let thread = thread::Builder::new().name("server".into()).spawn(run).expect("a thread");
        (Self { signal, ended, thread }, first)
    }

    /// Has it end.
    pub(crate) fn end(self) {
        drop(self.signal);
        let outcome = self.ended.recv_timeout(PATIENCE).expect("the server ends");
        outcome.expect("the server ends well");
        self.thread.join().expect("the thread ends");
    }
}
