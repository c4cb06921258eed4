// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The least that can answer: a process that waits in `read` for as many bytes as a request has, does at most the one call
//! that the request is about, and writes as many bytes as the reply has.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use command_fds::{CommandFdExt, FdMapping};
use sandbox::InheritedFds;
use vfio::{Device, Iommufd, Sysfs, UnboundDevice};

use crate::exchange::Exchange;

/// First argument of this program when it is to be an echo.
pub(crate) const ARGUMENT: &str = "--echo";
/// Number of the first descriptor that an echo inherits, its socket.
const SOCKET: i32 = 3;
/// Where vfio-pci has the config space in a device's file.
const CONFIG_SPACE: u64 = 7 << 40;

/// The call between request and reply.
#[derive(Debug)]
pub(crate) enum Work {
    /// None.
    Nothing,
    /// Reads 4 bytes of the config space of this device, which somebody has bound.
    ReadConfigSpace(File),
    /// Asks for the reset group of this device, which the echo binds to the iommufd beforehand.
    AskResetGroup { iommufd: File, device: File },
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::ReadConfigSpace(_) => "read-config-space",
            Self::AskResetGroup { .. } => "ask-reset-group",
        }
    }

    fn into_fds(self) -> Vec<OwnedFd> {
        match self {
            Self::Nothing => Vec::new(),
            Self::ReadConfigSpace(device) => vec![device.into()],
            Self::AskResetGroup { iommufd, device } => vec![iommufd.into(), device.into()],
        }
    }
}

/// A running echo. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    child: Child,
    /// The near end of its socket.
    pub(crate) socket: UnixStream,
}

impl Echo {
    /// Starts an echo for this exchange, and waits for its first answer.
    pub(crate) fn start(exchange: &Exchange, work: Work) -> Self {
        let (socket, far) = UnixStream::pair().expect("a socket pair");
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        command.args([ARGUMENT, work.name()]);
        command.args([exchange.request.len(), exchange.reply].map(|size| size.to_string()));
        let fds = std::iter::once(far.into()).chain(work.into_fds());
        let mappings = (SOCKET..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).expect("numbers that differ");
        let child = command.spawn().expect("the echo starts");
        exchange.run(&socket, &mut vec![0; exchange.reply]);
        Self { child, socket }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads 4 bytes of the config space.
pub(crate) fn read_config_space(device: &File) -> [u8; 4] {
    let mut data = [0; 4];
    device.read_exact_at(&mut data, CONFIG_SPACE).expect("the config space can be read");
    data
}

/// The process that [`Echo::start`] starts.
pub(crate) fn serve(arguments: &[String]) {
    let [work, request, reply] = arguments else { panic!("{arguments:?} is no echo") };
    let [request, reply] = [request, reply].map(|size| vec![0; size.parse().expect("a size")]);
    let mut inherited = InheritedFds::default();
    let mut fds = (SOCKET..).map(|number| inherited.take(number).expect("an inherited descriptor"));
    let mut next = || fds.next().expect("a number");
    let socket = next().into();
    match work.as_str() {
        "nothing" => answer(socket, request, reply, |_| ()),
        "read-config-space" => {
            let device = next().into();
            answer(socket, request, reply, |reply| {
                *reply.last_chunk_mut().expect("room for the data") = read_config_space(&device);
            });
        }
        "ask-reset-group" => {
            let (iommufd, device) = (next(), next());
            let (_iommufd, device) = bind(iommufd, device);
            answer(socket, request, reply, |_| {
                assert!(
                    device.hot_reset_info().expect("the reset group").all_owned,
                    "somebody else's function"
                );
            });
        }
        other => panic!("`{other}` is no work"),
    }
}

fn bind(iommufd: OwnedFd, device: OwnedFd) -> (Iommufd, Device) {
    let sysfs = Sysfs::open().expect("sysfs");
    let iommufd = Iommufd::from_fd(iommufd, &sysfs).expect("an iommufd");
    let device = UnboundDevice::from_fd(device, &sysfs).expect("a VFIO device");
    let device = device.bind(&iommufd, &sysfs).expect("the device can be bound");
    (iommufd, device)
}

/// Answers until the peer is gone.
fn answer(mut socket: UnixStream, mut request: Vec<u8>, mut reply: Vec<u8>, mut work: impl FnMut(&mut [u8])) {
    while socket.read_exact(&mut request).is_ok() {
        work(&mut reply);
        if socket.write_all(&reply).is_err() {
            break;
        }
    }
}
