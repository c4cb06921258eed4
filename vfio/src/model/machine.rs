// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A modelled machine in a folder.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::model::order::{self, Order};
use crate::model::process::{Process, Settings};
use crate::model::topology::Topology;

/// A machine that runs on a thread of this process, until this is dropped.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    /// Whose end ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Machine {
    /// Starts a machine in an existing, empty folder. When this returns, its nodes can be opened.
    pub fn start(topology: Topology, settings: Settings, folder: &Path) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let process = Process::new(topology, settings, folder)?;
        let thread = std::thread::Builder::new().name("model".into()).spawn(move || process.run(&stopped))?;
        Ok(Self { folder: folder.into(), stop: Some(stop), thread: Some(thread) })
    }

    /// Where it is: what stands for `/dev` and `/sys` is below.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives an order, and waits until it is carried out.
    pub fn order(&self, order: &Order) -> Result<String, Errno> {
        order::give(&self.folder, order)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && !matches!(thread.join(), Ok(Ok(())))
        {
            log::error!("event=model-failed");
        }
    }
}

/// Runs a machine in an existing, empty folder until the other end of `stop` is closed or something arrives there.
pub fn run(topology: Topology, settings: Settings, folder: &Path, stop: &impl AsFd) -> io::Result<()> {
    Process::new(topology, settings, folder)?.run(stop)
}
