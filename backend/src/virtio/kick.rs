// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a kick to its doorbell: by the kernel, or where it does not do that, by the relay, a thread that also passes an interrupt
//! on that several rings share.
//!
//! The relay watches eventfds and never reads them: each write to one is an event of its own (`EPOLLET`), so that a kick costs one
//! wait and one doorbell, and a client that reads its own eventfd makes nobody wait. A doorbell is rung under the lock under
//! which lines are cut: when a line is gone, so is its last doorbell.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::doorbell::Doorbell;
use super::eventfd::Eventfd;

/// Most eventfds that one wait reports; the others are reported by the next.
const MAX_EVENTS: usize = 32;
/// What the end is known by; lines have greater numbers.
const END: u64 = 0;

/// What is done when an eventfd is written to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A doorbell rings.
    Doorbell(Doorbell),
    /// These are written to.
    Calls(Vec<Eventfd>),
}

#[derive(Debug, Default)]
struct Lines {
    last: u64,
    targets: BTreeMap<u64, Target>,
}

#[derive(Debug)]
struct Switchboard {
    epoll: OwnedFd,
    /// Tells the thread to end. It is closed by the thread: epoll forgets what is closed, also that it was written to.
    end: Eventfd,
    lines: Mutex<Lines>,
}

impl Switchboard {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        // What a thread that panicked left behind is whole: lines come and go one by one.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, line: u64) {
        let mut lines = self.lines();
        let calls = match lines.targets.get(&line) {
            None => return,
            Some(Target::Calls(calls)) => calls.clone(),
            Some(Target::Doorbell(doorbell)) => {
                let device = doorbell.device();
                if let Err(error) = doorbell.ring() {
                    // Once: kicks come as the guest likes.
                    lines.targets.remove(&line);
                    log::warn!("event=doorbell-failed device={device} errno={}", error.errno.raw_os_error());
                }
                return;
            }
        };
        // A client can make such a write wait, but nobody for the lock.
        drop(lines);
        calls.iter().for_each(Eventfd::signal);
    }

    fn wait_and_serve(&self) {
        let mut room = [MaybeUninit::<Event>::uninit(); MAX_EVENTS];
        loop {
            let ready = match epoll::wait(&self.epoll, &mut room, None) {
                Ok((events, _)) => &*events,
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    log::error!("event=relay-ended errno={}", errno.raw_os_error());
                    return;
                }
            };
            for event in ready {
                match event.data.u64() {
                    END => return,
                    line => self.serve(line),
                }
            }
        }
    }
}

/// From a kick to its doorbell. When this is dropped, the doorbell rings no more.
#[derive(Debug)]
pub struct Kick {
    source: Eventfd,
    doorbell: Doorbell,
    /// Of the relay, unless the kernel rings.
    line: Option<Line>,
}

impl Kick {
    /// Has the doorbell ring whenever the kick is written to, and once at once if it was before.
    pub fn connect(kick: Eventfd, doorbell: Doorbell, relay: &Relay) -> Result<Self, Errno> {
        let line = match doorbell.ring_on(Some(&kick)) {
            Ok(()) => None,
            Err(error) => {
                let (device, errno) = (doorbell.device(), error.errno.raw_os_error());
                log::info!("event=kicks-relayed device={device} errno={errno}");
                Some(relay.connect(&kick, Target::Doorbell(doorbell.clone()))?)
            }
        };
        Ok(Self { source: kick, doorbell, line })
    }

    /// What is watched.
    pub const fn source(&self) -> &Eventfd {
        &self.source
    }

    /// What rings.
    pub const fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        if self.line.is_none()
            && let Err(error) = self.doorbell.ring_on(None)
        {
            let (device, errno) = (self.doorbell.device(), error.errno.raw_os_error());
            log::warn!("event=kick-not-cut device={device} errno={errno}");
        }
    }
}

/// The near end of the thread, which ends when this is dropped. It serves the rings of any number of devices.
#[derive(Debug)]
pub struct Relay {
    switchboard: Arc<Switchboard>,
}

impl Relay {
    /// Starts the thread, which begins with `confine`.
    pub fn start(confine: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (epoll, end) = (epoll::create(CreateFlags::CLOEXEC)?, Eventfd::new()?);
        epoll::add(&epoll, &end, EventData::new_u64(END), EventFlags::IN)?;
        let switchboard = Arc::new(Switchboard { epoll, end, lines: Mutex::default() });
        let near = Arc::clone(&switchboard);
        thread::Builder::new().name("kick".into()).spawn(move || {
            confine();
            switchboard.wait_and_serve();
        })?;
        Ok(Self { switchboard: near })
    }

    /// Has something done whenever `source` is written to, and once at once if it was before.
    pub fn connect(&self, source: &Eventfd, target: Target) -> Result<Line, Errno> {
        let mut lines = self.switchboard.lines();
        let number = lines.last + 1;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.switchboard.epoll, source, EventData::new_u64(number), flags)?;
        lines.last = number;
        lines.targets.insert(number, target);
        drop(lines);
        Ok(Line { switchboard: Arc::clone(&self.switchboard), number, source: source.clone() })
    }
}

impl Drop for Relay {
    /// Nobody waits for the end: a client could delay it.
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.switchboard.end, &1_u64.to_ne_bytes());
    }
}

/// From an eventfd to what is done for it. When this is dropped, nothing is done any more.
#[derive(Debug)]
pub struct Line {
    switchboard: Arc<Switchboard>,
    number: u64,
    source: Eventfd,
}

impl Line {
    /// What is watched.
    pub const fn source(&self) -> &Eventfd {
        &self.source
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut lines = self.switchboard.lines();
        lines.targets.remove(&self.number);
        // It is there and open; there is nothing to do about a kernel that says otherwise.
        let _ = epoll::delete(&self.switchboard.epoll, &self.source);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// Waits until it has been written to, and takes that.
    fn arrives(eventfd: &Eventfd) -> bool {
        let time = Timespec { tv_sec: 20, tv_nsec: 0 };
        poll(&mut [PollFd::new(eventfd, PollFlags::IN)], Some(&time)) == Ok(1)
            && rustix::io::read(eventfd, &mut [0; 8]).is_ok()
    }

    fn calls<const N: usize>() -> [Eventfd; N] {
        [(); N].map(|()| Eventfd::new().unwrap())
    }

    #[test]
    fn everybody_on_a_shared_line_hears_of_each_write() {
        let relay = Relay::start(|| {}).unwrap();
        let [source, first, second] = calls();
        let _line = relay.connect(&source, Target::Calls(vec![first.clone(), second.clone()])).unwrap();
        for _ in 0..3 {
            source.signal();
            assert!(arrives(&first) && arrives(&second));
        }
    }

    #[test]
    fn what_was_written_before_is_not_lost() {
        let relay = Relay::start(|| {}).unwrap();
        let [source, call] = calls();
        source.signal();
        let _line = relay.connect(&source, Target::Calls(vec![call.clone()])).unwrap();
        assert!(arrives(&call));
    }

    #[test]
    fn a_line_that_was_cut_is_silent_and_its_eventfd_can_be_used_again() {
        let relay = Relay::start(|| {}).unwrap();
        let [source, before, after] = calls();
        drop(relay.connect(&source, Target::Calls(vec![before.clone()])).unwrap());
        let _line = relay.connect(&source, Target::Calls(vec![after.clone()])).unwrap();
        source.signal();
        assert!(arrives(&after));
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&before, PollFlags::IN)], Some(&now)), Ok(0));
    }

    #[test]
    fn one_eventfd_serves_several_rings_by_descriptors_of_its_own() {
        let relay = Relay::start(|| {}).unwrap();
        let [source, first, second] = calls();
        let copy = Eventfd::received(source.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let _one = relay.connect(&source, Target::Calls(vec![first.clone()])).unwrap();
        let _other = relay.connect(&copy, Target::Calls(vec![second.clone()])).unwrap();
        source.signal();
        assert!(arrives(&first) && arrives(&second));
    }

    #[test]
    fn the_thread_ends_with_its_near_end() {
        for _ in 0..200 {
            let relay = Relay::start(|| {}).unwrap();
            let switchboard = Arc::downgrade(&relay.switchboard);
            drop(relay);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while switchboard.strong_count() > 0 {
                assert!(std::time::Instant::now() < deadline, "the thread stays");
                thread::yield_now();
            }
        }
    }

    #[test]
    fn what_cannot_be_watched_is_refused_and_leaves_nothing() {
        let relay = Relay::start(|| {}).unwrap();
        let [source, call] = calls();
        let _line = relay.connect(&source, Target::Calls(vec![])).unwrap();
        assert_eq!(relay.connect(&source, Target::Calls(vec![call])).unwrap_err(), Errno::EXIST);
        assert_eq!(relay.switchboard.lines().targets.len(), 1);
    }
}
