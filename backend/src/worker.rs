// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads for calls that may take long, so that the loop never waits for the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

/// Something that may block. It owns what it works on; what is still needed comes back with the outcome.
pub trait Work: Send + 'static {
    /// What came of it.
    type Outcome: Send + 'static;

    /// Does it, on the thread of a worker.
    fn carry_out(self) -> Self::Outcome;
}

/// The near end of some threads, each of which does one piece of work after the other. They end when this is dropped and
/// their last work is done.
#[derive(Debug)]
pub struct Worker<W: Work> {
    threads: Vec<Sender<W>>,
    outcomes: Receiver<W::Outcome>,
    ready: Arc<OwnedFd>,
}

impl<W: Work> Worker<W> {
    /// Starts so many threads, all of this name. Each begins with `confine`.
    pub fn start(name: &str, count: usize, confine: impl Fn() + Clone + Send + 'static) -> io::Result<Self> {
        let ready = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (outgoing, outcomes) = channel();
        let start = |_| start_thread(name, confine.clone(), outgoing.clone(), Arc::clone(&ready));
        Ok(Self { threads: (0..count).map(start).collect::<Result<_, _>>()?, outcomes, ready })
    }

    /// Hands work to one of the threads, numbered from 0.
    ///
    /// # Errors
    ///
    /// There is no such thread, or it is gone, which only a bug could bring about.
    pub fn submit(&self, thread: usize, work: W) -> io::Result<()> {
        let thread = self.threads.get(thread).and_then(|thread| thread.send(work).ok());
        thread.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// What came of work that is done, if there is any.
    pub fn outcome(&self) -> Option<W::Outcome> {
        self.outcomes.try_recv().ok().or_else(|| {
            // Not readable is all right: the channel tells, also of what came before the read.
            let _ = rustix::io::read(&*self.ready, &mut [0; 8]);
            self.outcomes.try_recv().ok()
        })
    }

    /// Waits for what comes of the next work that is done.
    pub fn wait(&self) -> Option<W::Outcome> {
        self.outcomes.recv().ok()
    }

    /// Readable when work is done.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

fn start_thread<W: Work>(
    name: &str,
    confine: impl FnOnce() + Send + 'static,
    outgoing: Sender<W::Outcome>,
    ready: Arc<OwnedFd>,
) -> io::Result<Sender<W>> {
    let (work, incoming) = channel::<W>();
    thread::Builder::new().name(name.into()).spawn(move || {
        confine();
        for work in incoming {
            if outgoing.send(work.carry_out()).is_err()
                || rustix::io::write(&*ready, &1_u64.to_ne_bytes()).is_err()
            {
                break;
            }
        }
    })?;
    Ok(work)
}
