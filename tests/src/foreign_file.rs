// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors of every kind that a client could hand over by mistake or on purpose.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::event::epoll::{self, CreateFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::guest_memory::memfd;

/// A descriptor that is neither an iommufd nor a VFIO device, and what it is.
#[derive(Debug)]
pub struct ForeignFile {
    /// What it is.
    pub kind: &'static str,
    /// The descriptor.
    pub file: OwnedFd,
}

impl ForeignFile {
    /// One of each kind that this machine has.
    pub fn all() -> Vec<Self> {
        let (pipe, _) = std::io::pipe().expect("a pipe");
        let (connected, _) = UnixStream::pair().expect("a socket pair");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("socket")).expect("a listening socket");
        let path_only = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let epoll = epoll::create(CreateFlags::CLOEXEC);
        let tcp = socket(AddressFamily::INET, SocketType::STREAM, None);
        let process = pidfd_open(getpid(), PidfdFlags::empty());
        let mut all = vec![
            Self::new("a file", tempfile::tempfile().expect("a file")),
            Self::new("a directory", File::open(directory.path()).expect("a directory")),
            Self::new("a mere path", path_only.expect("a path")),
            Self::new("/dev/null", File::open("/dev/null").expect("/dev/null")),
            Self::new("a pipe", pipe),
            Self::new("a connected socket", connected),
            Self::new("a listening socket", listener),
            Self::new("a datagram socket", UnixDatagram::unbound().expect("a socket")),
            Self::new("a TCP socket", tcp.expect("a socket")),
            Self::new("guest memory", memfd(4096, SealFlags::SHRINK)),
            Self::new("an eventfd", eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")),
            Self::new("an epoll instance", epoll.expect("an epoll instance")),
            Self::new("a process", process.expect("a process")),
        ];
        // Not everybody has these, or may open them.
        for kind in ["/dev/kvm", "/dev/vfio/vfio"] {
            let file = OpenOptions::new().read(true).write(true).open(kind);
            all.extend(file.ok().map(|file| Self::new(kind, file)));
        }
        all
    }

    fn new(kind: &'static str, file: impl Into<OwnedFd>) -> Self {
        Self { kind, file: file.into() }
    }
}
