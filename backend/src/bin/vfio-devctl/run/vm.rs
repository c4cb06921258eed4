// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM's servers under way: one loop for their resets, their ends and ours.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::extension::{EventKinds, IoasChoice, ResetProgress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use vfio::{Ioas, Iommufd, Sysfs};
use vhost_device_vfio::broker::{MemberId, Notice, Patience, ResetBroker, ServerEvent};
use vhost_device_vfio::host::Host;

use super::handover::{self, Parcel, Task};
use super::member::{Assignment, Member, Placement};
use super::readiness::Readiness;
use super::signals::Signals;
use crate::server;
use crate::tool_error::ToolError;

/// How long a server may take to become the broker's.
const SESSION_PATIENCE: Duration = Duration::from_secs(10);
/// How long servers may take to end before they are killed.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How coordinated resets went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coordinations {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Not even begun.
    pub(crate) declined: u64,
}

/// How far we have come with ending.
#[derive(Clone, Copy, Debug)]
enum Course {
    Running,
    /// The servers were asked to end, and are killed at this time.
    Ending(Instant),
    /// They were killed.
    Killing,
}

/// A VM's servers.
#[derive(Debug)]
pub(crate) struct Vm {
    members: Vec<Member>,
    /// What was not handed over yet.
    parcels: Vec<Parcel>,
    broker: ResetBroker,
    signals: Signals,
    course: Course,
    pub(crate) coordinations: Coordinations,
    // Goes after the servers that use it.
    _ioas: Option<Ioas>,
}

impl Vm {
    /// Opens everything, and starts the servers.
    pub(crate) fn start(
        host: &Host,
        sysfs: &Sysfs,
        assignments: Vec<Assignment>,
        is_memory_shared: bool,
        command: impl Fn() -> Command,
        signals: Signals,
    ) -> Result<Self, ToolError> {
        let iommufd = server::open_iommufd(host)?;
        // A server that is alone has an address space of its own, with page tables that outlast its devices.
        let is_shared = is_memory_shared && assignments.len() > 1;
        let ioas = if is_shared { Some(allocate_ioas(&iommufd, sysfs)?) } else { None };
        let open = |device: &Placement| Ok((device.cookie, server::open_cdev(host, sysfs, device.address)?));
        let open_all = |assignment: Assignment| {
            let devices = assignment.devices.iter().map(open).collect::<Result<Vec<_>, ToolError>>()?;
            Ok((assignment, devices))
        };
        let opened = assignments.into_iter().map(open_all).collect::<Result<Vec<_>, ToolError>>()?;
        let (mut members, mut parcels) = (Vec::new(), Vec::new());
        for (assignment, devices) in opened {
            let ioas = match &ioas {
                None => IoasChoice::Allocate,
                Some(ioas) if members.is_empty() => IoasChoice::Fill(ioas.id()),
                Some(ioas) => IoasChoice::Adopt(ioas.id()),
            };
            let (member, faces) = Member::start(assignment, command())?;
            parcels.push(Parcel {
                server: member.assignment.name.clone(),
                owner: member.connect(crate::PATIENCE)?,
                broker: member.connect(SESSION_PATIENCE)?,
                iommufd: duplicate(&iommufd)?,
                ioas,
                devices,
                faces,
            });
            members.push(member);
        }
        let broker = ResetBroker::new(Patience::default());
        let (course, coordinations) = (Course::Running, Coordinations::default());
        Ok(Self { members, parcels, broker, signals, course, coordinations, _ioas: ioas })
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether we were asked to end.
    pub(crate) const fn is_asked_to_end(&self) -> bool {
        !matches!(self.course, Course::Running)
    }

    /// Hands over and serves; false if we were asked to end before that was done, and have ended.
    pub(crate) fn hand_over(&mut self) -> Result<bool, ToolError> {
        let parcels = std::mem::take(&mut self.parcels);
        let Some(parcels) = self.do_beside(|| handover::hand_over(parcels))? else { return Ok(false) };
        let mut sessions = Vec::new();
        for (member, parcel) in self.members.iter_mut().zip(parcels) {
            let Parcel { server, owner, broker, faces, .. } = parcel;
            let events = EventKinds::RESETS | EventKinds::DEVICE_ERRORS;
            let added = self.broker.add(broker, member.name(), events, Instant::now());
            member.id = Some(added.map_err(|error| ToolError::of_server(&server, error))?);
            sessions.push((server, owner, faces));
        }
        let Some(owners) = self.do_beside(|| handover::serve(sessions))? else { return Ok(false) };
        for (member, owner) in self.members.iter_mut().zip(owners) {
            member.owner = Some(owner);
        }
        Ok(true)
    }

    /// Has something done that waits for servers, and goes on with everything else meanwhile. A server that ends makes it
    /// fail.
    fn do_beside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, ToolError> + Send + 'static,
    ) -> Result<Option<T>, ToolError> {
        let task = Task::start(work).map_err(|error| ToolError::supervision(&error))?;
        while !task.is_done() {
            self.wait(&[task.as_fd()])?;
            self.look_for_ends()?;
            if self.is_asked_to_end() {
                self.run_to_the_end(|_| {})?;
                return Ok(None);
            }
        }
        task.outcome().map(Some)
    }

    /// Goes on until the last server has ended.
    pub(crate) fn run(&mut self, readiness: &Readiness) -> Result<(), ToolError> {
        self.run_to_the_end(|status| readiness.tell_status(status))
    }

    fn run_to_the_end(&mut self, tell: impl Fn(&str)) -> Result<(), ToolError> {
        while self.members.iter().any(|member| member.end.is_none()) {
            self.wait(&[])?;
            for name in self.look_for_ends()? {
                tell(&format!("The server {name} has ended."));
            }
            if let Course::Ending(kill_at) = self.course
                && kill_at <= Instant::now()
            {
                log::error!("event=servers-killed reason=\"they did not end within {END_PATIENCE:?}\"");
                self.course = Course::Killing;
                self.signal_all(Signal::KILL);
            }
        }
        Ok(())
    }

    /// Waits until something happens, and does the broker's part of it.
    fn wait(&mut self, others: &[BorrowedFd<'_>]) -> Result<(), ToolError> {
        let mut watched: Vec<_> =
            self.broker.descriptors().map(|(fd, events)| PollFd::from_borrowed_fd(fd, events)).collect();
        let ours = self.signals.descriptors().into_iter().chain(others.iter().copied());
        watched.extend(ours.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let kill_at = if let Course::Ending(at) = self.course { Some(at) } else { None };
        let wakes_at = [self.broker.wakes_at(), kill_at].into_iter().flatten().min();
        let rest = wakes_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(ToolError::supervision(&errno.into())),
        }
        drop(watched);
        for notice in self.broker.process(Instant::now()) {
            self.note(&notice);
        }
        self.signals.forget_children();
        if self.signals.take_end() && !self.is_asked_to_end() {
            log::info!("event=ending");
            self.course = Course::Ending(Instant::now() + END_PATIENCE);
            self.signal_all(Signal::TERM);
        }
        Ok(())
    }

    /// The servers that have ended since the last time.
    fn look_for_ends(&mut self) -> Result<Vec<String>, ToolError> {
        let is_asked = self.is_asked_to_end();
        let mut names = Vec::new();
        for member in &mut self.members {
            if member.look_for_end(is_asked).map_err(|error| ToolError::supervision(&error))? {
                names.push(member.assignment.name.clone());
            }
        }
        Ok(names)
    }

    fn signal_all(&self, signal: Signal) {
        self.members.iter().for_each(|member| member.signal(signal));
    }

    fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::Concluded { verdict: Ok(_), .. } => self.coordinations.done += 1,
            Notice::Concluded { verdict: Err(_), .. } => self.coordinations.failed += 1,
            Notice::Declined { .. } => self.coordinations.declined += 1,
            // The server has it in its own log.
            Notice::Event { member, event, .. } => return self.count(*member, event),
            // That is what we asked for.
            Notice::Lost { .. } if self.is_asked_to_end() => return,
            Notice::Begun { .. } | Notice::Lost { .. } => {}
        }
        log::log!(notice.level(), "{notice}");
    }

    fn count(&mut self, id: MemberId, event: &ServerEvent) {
        let Some(member) = self.members.iter_mut().find(|member| member.id == Some(id)) else { return };
        match event {
            ServerEvent::Reset(reset) => match reset.progress {
                ResetProgress::Done { .. } => member.tally.resets_done += 1,
                ResetProgress::Failed { .. } => member.tally.resets_failed += 1,
                ResetProgress::Begun | ResetProgress::Quiesced => {}
            },
            ServerEvent::DeviceError(_) => member.tally.device_errors += 1,
            ServerEvent::UnplugRequest(_) | ServerEvent::GroupChanged(_) => {}
        }
    }
}

fn duplicate(iommufd: &File) -> Result<File, ToolError> {
    iommufd.try_clone().map_err(|error| ToolError::address_space(&error))
}

/// An address space that no server owns.
fn allocate_ioas(iommufd: &File, sysfs: &Sysfs) -> Result<Ioas, ToolError> {
    let iommufd = Iommufd::from_fd(duplicate(iommufd)?.into(), sysfs);
    let iommufd = iommufd.map_err(|error| ToolError::address_space(&error))?;
    Ioas::allocate(Arc::new(iommufd)).map_err(|error| ToolError::address_space(&error))
}
