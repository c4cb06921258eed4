// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a client hands over, by mistake or on purpose.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};

use super::world::World;

/// A descriptor that a client can have.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Descriptor {
    /// One of two contexts.
    Iommufd(u8),
    /// A function, just opened.
    Cdev(u8),
    /// A function that stays open here.
    KeptCdev(u8),
    /// That one, once more.
    SameCdev,
    /// The legacy group of a function.
    Group(u8),
    /// The legacy container.
    Container,
    /// Guest memory, which may shrink or not.
    Memory(u8),
    Eventfd,
    /// One end of a socket pair, whose other end is closed.
    Socket,
    TcpSocket,
    Null,
    Folder,
}

impl Descriptor {
    /// The descriptor, where there is such a thing.
    pub(super) fn get(self, world: &mut World) -> Option<OwnedFd> {
        match self {
            Self::Iommufd(which) => world.iommufd(which),
            Self::Cdev(which) => world.open_cdev(which),
            Self::KeptCdev(which) => world.keep_cdev(which),
            Self::SameCdev => world.kept_cdev(),
            Self::Group(which) => world.open_group(which).map(OwnedFd::from),
            Self::Container => world.host.open_container().ok().map(OwnedFd::from),
            Self::Memory(which) => Some(world.memory(which)),
            Self::Eventfd => eventfd(0, EventfdFlags::CLOEXEC).ok(),
            Self::Socket => UnixStream::pair().ok().map(|(end, _)| end.into()),
            Self::TcpSocket => TcpListener::bind("127.0.0.1:0").ok().map(OwnedFd::from),
            Self::Null => File::open("/dev/null").ok().map(OwnedFd::from),
            Self::Folder => File::open(world.host.root()).ok().map(OwnedFd::from),
        }
    }
}
