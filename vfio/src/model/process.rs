// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model kernel as something that runs: nodes that can be opened, files whose requests are answered one after the
//! other, orders that are carried out. One thread, so that a run with the same requests is the same run.

mod orders;
mod showing;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::process::{Pid, Signal as ProcessSignal, kill_process};

use self::orders::Unbinding;
use self::showing::shown;
use crate::model::caller::caller;
use crate::model::fault::{self, Fault, Faults};
use crate::model::kernel::{FileId, Kernel, Node};
use crate::model::open_files::OpenFiles;
use crate::model::order;
use crate::model::schedule::{Clock, Schedule};
use crate::model::sysfs::{Cdev, SysfsTree, Use};
use crate::model::system_call::{Given, Named, Return};
use crate::model::topology::{Driver, Topology};
use crate::model::wire::{self, Reply, Request};
use crate::pci_address::PciAddress;

/// How a model runs, besides what it models.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where chance comes from.
    pub seed: u64,
    /// Rules in force from the start.
    pub faults: Vec<Fault>,
    /// Time passes only when an order says so.
    pub virtual_time: bool,
}

/// The model's end of an open file.
#[derive(Debug)]
struct FileEnd {
    socket: OwnedFd,
    /// By which the other end, when somebody passes it, is known.
    peer_inode: u64,
}

/// Something to be done, now or when it is no longer hindered.
#[derive(Debug)]
enum Work {
    /// A system call, with what the fault script has for it: how long it lasts, and how it fails.
    Call {
        file: FileId,
        request: Request,
        lasts: Duration,
        errno: Option<Errno>,
    },
    Close(FileId),
}

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Process {
    kernel: Kernel,
    folder: PathBuf,
    sysfs: SysfsTree,
    nodes: BTreeMap<Node, (PathBuf, UnixListener)>,
    files: BTreeMap<FileId, FileEnd>,
    open_files: OpenFiles,
    orders: UnixListener,
    schedule: Schedule<Work>,
    unbinding: Vec<Unbinding>,
    faults: Faults,
    clock: Clock,
    /// What sysfs shows of each function.
    shown: BTreeMap<PciAddress, (Driver, Option<Cdev>)>,
    shown_uses: BTreeMap<PciAddress, Use>,
}

/// What became ready.
enum Event {
    Stop,
    Order,
    Node(Node),
    File(FileId),
    /// Of a device, for which it is a doorbell.
    Eventfd(PciAddress),
}

impl Process {
    /// Sets a machine up in an existing, empty folder.
    pub(crate) fn new(topology: Topology, settings: Settings, folder: &Path) -> io::Result<Self> {
        let kernel = Kernel::new(topology)?;
        let sysfs = SysfsTree::create(folder, kernel.topology(), |address| kernel.identity(address))?;
        std::fs::create_dir_all(folder.join("dev/vfio/devices"))?;
        let mut faults = Faults::new(settings.seed);
        settings.faults.into_iter().for_each(|fault| faults.add(fault));
        let clock =
            if settings.virtual_time { Clock::Virtual(Duration::ZERO) } else { Clock::Real(Instant::now()) };
        let unbound = kernel.drivers().into_keys().map(|address| (address, (Driver::Missing, None)));
        let mut process = Self {
            shown: unbound.collect(),
            shown_uses: BTreeMap::new(),
            open_files: OpenFiles::create(folder)?,
            orders: UnixListener::bind(order::socket(folder))?,
            folder: folder.into(),
            nodes: BTreeMap::new(),
            files: BTreeMap::new(),
            schedule: Schedule::new(),
            unbinding: Vec::new(),
            kernel,
            sysfs,
            faults,
            clock,
        };
        process.show_changes()?;
        Ok(process)
    }

    /// Answers until something arrives on `stop`, or its other end is closed.
    pub(crate) fn run(mut self, stop: &impl AsFd) -> io::Result<()> {
        loop {
            let events = self.wait(stop.as_fd())?;
            // Whatever was closed before one of these came is visible by now, and has its effect first.
            self.receive_closed()?;
            for event in events {
                match event {
                    Event::Stop => return Ok(()),
                    Event::Order => self.take_order()?,
                    Event::Node(node) => self.open(node)?,
                    Event::File(file) => self.receive(file),
                    Event::Eventfd(function) => self.kernel.hear(function),
                }
            }
            self.finish_due();
        }
    }

    fn wait(&self, stop: BorrowedFd<'_>) -> io::Result<Vec<Event>> {
        let nodes = self.nodes.iter().map(|(node, (_, listener))| (Event::Node(*node), listener.as_fd()));
        let files = self.files.iter().map(|(file, end)| (Event::File(*file), end.socket.as_fd()));
        let eventfds = self.kernel.listening().map(|(function, fd)| (Event::Eventfd(function), fd));
        let fixed = [(Event::Stop, stop), (Event::Order, self.orders.as_fd())];
        let (events, fds): (Vec<_>, Vec<_>) =
            fixed.into_iter().chain(nodes).chain(files).chain(eventfds).unzip();
        let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = match (&self.clock, self.schedule.next_due()) {
            (Clock::Real(_), Some(due)) => Timespec::try_from(due.saturating_sub(self.clock.now())).ok(),
            // Only an order makes virtual time pass.
            _ => None,
        };
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(events.into_iter().zip(ready).filter(|(_, is_ready)| *is_ready).map(|(event, _)| event).collect())
    }

    /// Somebody opens a node.
    fn open(&mut self, node: Node) -> io::Result<()> {
        let Some((_, listener)) = self.nodes.get(&node) else { return Ok(()) };
        let (stream, _) = listener.accept()?;
        let struck = self.faults.strike("open", None).and_then(|fault| fault.errno);
        let opened = struck.map_or_else(|| self.kernel.open(node), |name| Err(name.0));
        let reply = match opened.and_then(|file| self.install(file)) {
            Ok(end) => Reply { outcome: Ok(0), data: Vec::new(), descriptor: Some(end) },
            Err(errno) => Reply::failed(errno),
        };
        wire::send_reply(stream.as_fd(), &reply);
        Ok(())
    }

    /// Makes the two ends of a file, and returns the user's.
    fn install(&mut self, file: FileId) -> Result<OwnedFd, Errno> {
        let ends = wire::pair().and_then(|(near, far)| {
            set_socket_passcred(&near, true)?;
            let peer_inode = fstat(&far)?.st_ino;
            Ok((FileEnd { socket: near, peer_inode }, far))
        });
        let (end, far) = ends
            .and_then(|(end, far)| {
                self.show_open_file(file, end.peer_inode)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                Ok((end, far))
            })
            .inspect_err(|_| self.kernel.close(file))?;
        self.files.insert(file, end);
        Ok(far)
    }

    /// A request came on a file, or its last copy was closed.
    fn receive(&mut self, file: FileId) {
        let Some(end) = self.files.get(&file) else { return };
        match wire::receive_request(end.socket.as_fd()) {
            Ok(Some(request)) => self.meet_fault(file, request),
            Ok(None) => {
                if let Some(end) = self.files.remove(&file) {
                    shown(self.open_files.remove(end.peer_inode));
                }
                self.start(Work::Close(file));
            }
            // What is no request is nobody's to answer.
            Err(_) => {}
        }
    }

    /// Takes in what is left on files whose last copy was closed.
    fn receive_closed(&mut self) -> io::Result<()> {
        let (files, mut fds): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .map(|(file, end)| (*file, PollFd::new(&end.socket, PollFlags::empty())))
            .unzip();
        poll(&mut fds, Some(&Timespec::default()))?;
        let is_closed: Vec<_> = fds.iter().map(|fd| fd.revents().contains(PollFlags::HUP)).collect();
        for (file, _) in files.into_iter().zip(is_closed).filter(|(_, is_closed)| *is_closed) {
            while self.files.contains_key(&file) {
                self.receive(file);
            }
        }
        Ok(())
    }

    /// What the fault script has for a request comes first.
    fn meet_fault(&mut self, file: FileId, request: Request) {
        let function = self.kernel.function_behind(file);
        let Some(fault) = self.faults.strike(fault::name(request.call), function) else {
            return self.start(Work::Call { file, request, lasts: Duration::ZERO, errno: None });
        };
        if fault.kill
            && let Some(process) = Pid::from_raw(request.sender.process)
        {
            // It may be gone by itself.
            let _ = kill_process(process, ProcessSignal::KILL);
        }
        if let Some(function) = fault.remove {
            // A fault script that removes what is not there has no effect.
            let _ = self.unbind(function, true, None);
        }
        if let Some(bind) = &fault.bind {
            let _ = orders::driver(&bind.driver)
                .and_then(|driver| self.kernel.bind_driver(bind.function, driver));
            self.changed();
        }
        let (lasts, errno) = (fault.duration(), fault.errno.map(|name| name.0));
        self.start(Work::Call { file, request, lasts, errno });
    }

    fn note_busy(&mut self) {
        self.kernel.busy = self.schedule.busy().collect();
    }

    /// Does something, unless it has to wait.
    fn start(&mut self, work: Work) {
        let needed = match &work {
            Work::Call { file, request, .. } => self.kernel.locks_needed(*file, request.call),
            Work::Close(file) => self.kernel.locks_of_close(*file),
        };
        match work {
            work if self.schedule.is_blocked(&needed) => self.schedule.wait(needed, work),
            Work::Call { file, request, lasts, errno } if !lasts.is_zero() => {
                self.let_last(file, request, lasts, errno);
            }
            work => self.carry_out(work),
        }
    }

    /// Begins with a call that lasts. One that the kernel would refuse at once does not take its time first.
    fn let_last(&mut self, file: FileId, request: Request, lasts: Duration, errno: Option<Errno>) {
        let refused = self.kernel.check_before(file, request.call, &request.data);
        if let (Err(refusal), None) = (refused, errno) {
            return wire::send_reply(request.reply_to.as_fd(), &Reply::failed(refusal));
        }
        let held = self.kernel.locks_held(file, request.call);
        let due = self.clock.now() + lasts;
        self.schedule.run(due, held, Work::Call { file, request, lasts: Duration::ZERO, errno });
        self.note_busy();
    }

    fn carry_out(&mut self, work: Work) {
        match work {
            Work::Call { request, errno: Some(errno), .. } => {
                wire::send_reply(request.reply_to.as_fd(), &Reply::failed(errno));
            }
            Work::Call { file, request, errno: None, .. } => self.answer(file, request),
            Work::Close(file) => {
                self.kernel.close(file);
                shown(self.show_uses());
                self.finish_unbinding();
            }
        }
    }

    fn answer(&mut self, file: FileId, mut request: Request) {
        let named = self.take_named(std::mem::take(&mut request.descriptors));
        let caller = caller(request.sender);
        let Return { outcome, data, given } =
            self.kernel.call(file, request.call, request.data, named, &caller);
        shown(self.show_uses());
        let mut reply = Reply { outcome, data, descriptor: None };
        match given {
            Some(Given::Descriptor(descriptor)) => reply.descriptor = Some(descriptor),
            Some(Given::File(file)) => match self.install(file) {
                Ok(end) => reply.descriptor = Some(end),
                Err(errno) => reply = Reply::failed(errno),
            },
            None => {}
        }
        wire::send_reply(request.reply_to.as_fd(), &reply);
    }

    /// The descriptors of a request: our own files are known by the inode of their other end.
    fn take_named(&self, descriptors: Vec<OwnedFd>) -> Vec<Named> {
        descriptors
            .into_iter()
            .map(|descriptor| {
                self.file_of(descriptor.as_fd()).map_or(Named::Foreign(descriptor), Named::File)
            })
            .collect()
    }

    fn file_of(&self, descriptor: BorrowedFd<'_>) -> Option<FileId> {
        let inode = fstat(descriptor).ok()?.st_ino;
        self.files.iter().find(|(_, end)| end.peer_inode == inode).map(|(file, _)| *file)
    }

    /// Ends what is due, and lets those try who waited for it.
    fn finish_due(&mut self) {
        while let Some(work) = self.schedule.finish(self.clock.now()) {
            self.note_busy();
            self.carry_out(work);
            for work in self.schedule.take_waiting() {
                self.start(work);
            }
        }
    }
}
