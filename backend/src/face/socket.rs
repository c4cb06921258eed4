// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A socket that was handed over for a face: somebody is at its other end, or will be.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};

use crate::failure::Failure;

/// A unix stream socket of a face.
#[derive(Debug)]
pub enum FaceSocket {
    /// Clients connect to it, one after the other.
    Listening(UnixListener),
    /// One client is connected to it.
    Connected(UnixStream),
}

impl FaceSocket {
    /// Finds out what was handed over. The socket does not block from now on.
    ///
    /// # Errors
    ///
    /// It is no unix stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Failure> {
        let refused = |_| Failure::not_a_unix_stream();
        if socket_domain(&fd).map_err(refused)? != AddressFamily::UNIX
            || socket_type(&fd).map_err(refused)? != SocketType::STREAM
        {
            return Err(Failure::not_a_unix_stream());
        }
        let is_listening = socket_acceptconn(&fd).map_err(refused)?;
        if !is_listening {
            // One that is neither has no peer.
            getpeername(&fd).map_err(refused)?;
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(refused)?;
        Ok(if is_listening { Self::Listening(fd.into()) } else { Self::Connected(fd.into()) })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn one_end_of_a_pair_is_connected() {
        let (end, _other) = UnixStream::pair().unwrap();
        assert!(matches!(FaceSocket::from_fd(end.into()), Ok(FaceSocket::Connected(_))));
    }

    #[test]
    fn a_bound_socket_is_listening() {
        let directory = std::env::temp_dir().join(format!("face-socket-{}", std::process::id()));
        let listener = UnixListener::bind(&directory).unwrap();
        std::fs::remove_file(directory).unwrap();
        assert!(matches!(FaceSocket::from_fd(listener.into()), Ok(FaceSocket::Listening(_))));
    }

    #[test]
    fn anything_else_is_refused() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let unconnected = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        for fd in [OwnedFd::from(tcp), OwnedFd::from(file), unconnected] {
            assert_eq!(FaceSocket::from_fd(fd).unwrap_err().id(), "not-a-unix-stream");
        }
    }
}
