// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers of one VM, and the broker of their resets in this process.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocol::ControlClient;
use protocol::extension::{Cookie, EventKinds, IoasChoice, MemberName, ResetMethod};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vfio::{Ioas, Iommufd, PciAddress};
use vhost_device_vfio::broker::{Notice, Patience, ResetBroker};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, binary, wait_until};

use crate::contest::timed;
use crate::processor::{own_time, time_of_threads};

/// The server as it is released.
pub(crate) const SERVER: &str = "vhost-device-vfio";
/// The threads of a server that ask the kernel for a reset's sake.
const ASKING_THREAD: &str = "reset";

/// What a reset takes of processors' time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// For the calls, and for what little the threads do that issue them.
    pub(crate) calls: Duration,
    /// For everything else: the servers' loops, the broker, and whoever asks.
    pub(crate) rest: Duration,
}

/// The servers.
#[derive(Debug)]
pub(crate) struct ServedVm {
    /// Each with its owner's session and the cookies of its devices.
    servers: Vec<(ServerProcess, ControlClient, Vec<Cookie>)>,
    broker: BrokerThread,
    _ioas: Ioas,
    _folder: TempDir,
}

impl ServedVm {
    /// Starts so many servers, and hands each its share of the functions over.
    pub(crate) fn start(host: &Host, name: &str, functions: &[PciAddress], count: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let iommufd = host.open_iommufd().expect("an iommufd");
        let duplicate = || iommufd.try_clone().expect("a second descriptor");
        let ours = Iommufd::from_fd(duplicate().into(), &host.sysfs()).expect("an iommufd");
        let ioas = Ioas::allocate(Arc::new(ours)).expect("an address space");
        let mut broker = ResetBroker::new(Patience::default());
        let mut servers = Vec::new();
        let shares = functions.chunks(functions.len().div_ceil(count));
        for (number, share) in shares.enumerate() {
            let path = folder.path().join(number.to_string());
            let server = start_server(host, name, &path);
            let mut owner = connect(&path);
            let fills = if number == 0 { IoasChoice::Fill(ioas.id()) } else { IoasChoice::Adopt(ioas.id()) };
            owner.set_iommufd(duplicate(), fills).expect("the iommufd is taken");
            let cookies: Vec<_> = (1..).map(Cookie).take(share.len()).collect();
            for (cookie, function) in cookies.iter().zip(share) {
                hand_over(host, &mut owner, *cookie, *function);
            }
            let member = MemberName::new(&number.to_string());
            broker.add(connect(&path), member, EventKinds::RESETS, Instant::now()).expect("a member");
            servers.push((server, owner, cookies));
        }
        assert_eq!(servers.len(), count, "a share for each server");
        Self { servers, broker: BrokerThread::start(broker), _ioas: ioas, _folder: folder }
    }

    /// The servers' process ids.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        self.servers.iter().map(|(server, ..)| server.id())
    }

    /// Maps guest memory for all devices.
    pub(crate) fn map(&mut self, memory: &GuestMemory) {
        let (_, owner, _) = self.servers.first_mut().expect("a server");
        owner.set_memory_table(&[memory.region()], &[memory.as_fd()]).expect("the table is mapped");
    }

    /// Asks the first server for a hot reset of the set, and waits until every server has its devices in order again.
    pub(crate) fn hot_reset(&mut self) -> Duration {
        let count = self.servers.len();
        let (_, owner, cookies) = self.servers.first_mut().expect("a server");
        timed(|| {
            let report = owner.reset(cookies[0], Some(ResetMethod::Hot), None).expect("the set is reset");
            assert_eq!(&report.affected, cookies);
            if count > 1 {
                self.broker.wait_for_end();
            }
        })
    }

    /// The same in time of processors: that of the threads that ask the kernel, and that of all the rest.
    pub(crate) fn cost_of_hot_reset(&mut self) -> Cost {
        let time = |vm: &Self, asks: bool| {
            let time = |(server, ..): &(ServerProcess, _, _)| {
                time_of_threads(server.id(), |name| (name == ASKING_THREAD) == asks)
            };
            vm.servers.iter().map(time).sum::<Duration>()
        };
        let (calls, others) = (time(self, true), time(self, false));
        let own = own_time();
        self.hot_reset();
        let own = own_time().saturating_sub(own);
        Cost {
            calls: time(self, true).saturating_sub(calls),
            rest: own + time(self, false).saturating_sub(others),
        }
    }

    /// Asks for a reset of each function alone, one after the other.
    pub(crate) fn function_resets(&mut self) -> Duration {
        timed(|| self.servers.iter_mut().for_each(reset_functions))
    }

    /// The same of all servers at once.
    pub(crate) fn function_resets_at_once(&mut self) -> Duration {
        timed(|| {
            std::thread::scope(|scope| {
                for server in &mut self.servers {
                    scope.spawn(|| reset_functions(server));
                }
            });
        })
    }
}

fn reset_functions((_, owner, cookies): &mut (ServerProcess, ControlClient, Vec<Cookie>)) {
    for cookie in cookies {
        owner.reset(*cookie, Some(ResetMethod::Function), None).expect("the function is reset");
    }
}

/// Devices are not reset before somebody asks for it, so that what is measured is what was asked for.
fn start_server(host: &Host, name: &str, path: &Path) -> ServerProcess {
    let mut command = Command::new(binary(name));
    command.args(host.arguments()).args(["--sanitize", "off", "--socket-path"]).arg(path);
    let server = ServerProcess::spawn(command);
    assert!(wait_until(|| UnixStream::connect(path).is_ok()), "nobody listens: {}", server.log());
    server
}

fn connect(path: &Path) -> ControlClient {
    let mut client = ControlClient::new(UnixStream::connect(path).expect("it listens"), PATIENCE);
    client.negotiate().expect("the extension is negotiated");
    client
}

/// Whoever had the function may not be quite gone.
fn hand_over(host: &Host, owner: &mut ControlClient, cookie: Cookie, function: PciAddress) {
    let mut added = None;
    wait_until(|| {
        let device = host.open_cdev(function).expect("the device's node");
        added = Some(owner.add_device(cookie, device));
        matches!(added, Some(Ok(_)))
    });
    added.expect("tried").expect("the device is taken");
}

/// A broker that watches its sockets.
#[derive(Debug)]
struct BrokerThread {
    /// Something for each coordinated reset that is over for everybody.
    ends: Receiver<()>,
    /// Whose end ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl BrokerThread {
    fn start(mut broker: ResetBroker) -> Self {
        let (stop, stopped) = UnixStream::pair().expect("a socket pair");
        let (sender, ends) = channel();
        let thread = std::thread::spawn(move || {
            while wait(&broker, &stopped) {
                for notice in broker.process(Instant::now()) {
                    if let Notice::Concluded { verdict, .. } = notice {
                        verdict.expect("the set is reset");
                        sender.send(()).expect("it is waited for");
                    }
                }
            }
        });
        Self { ends, stop: Some(stop), thread: Some(thread) }
    }

    fn wait_for_end(&self) {
        self.ends.recv_timeout(PATIENCE).expect("the reset is over for everybody");
    }
}

/// Waits until the broker has something to do; false when it is not needed any more.
fn wait(broker: &ResetBroker, stopped: &UnixStream) -> bool {
    let of_broker = broker.descriptors().map(|(fd, events)| PollFd::from_borrowed_fd(fd, events));
    let mut watched = vec![PollFd::new(stopped, PollFlags::IN)];
    watched.extend(of_broker);
    let rest = broker.wakes_at().map(|at| at.saturating_duration_since(Instant::now()));
    let timeout = rest.map(|rest| Timespec::try_from(rest).expect("a short time"));
    poll(&mut watched, timeout.as_ref()).expect("the sockets are watched");
    watched[0].revents().is_empty()
}

impl Drop for BrokerThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
