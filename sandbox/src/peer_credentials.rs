// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who is at the other end of a socket.

use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Who made a connection, or the pair that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process; `None` for one that cannot be seen from here, as it is of another namespace of process ids.
    pub pid: Option<NonZeroU32>,
    /// Its user.
    pub uid: u32,
}

impl PeerCredentials {
    /// Asks the kernel (`SO_PEERCRED`). Not by rustix, whose type has no room for a process that cannot be seen.
    pub fn of(socket: impl AsFd) -> Result<Self, Errno> {
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut size = libc::socklen_t::try_from(size_of_val(&credentials)).map_err(|_| Errno::INVAL)?;
        // SAFETY: the kernel writes at most `size` bytes, to a structure of plain integers that is as large.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                std::ptr::from_mut(&mut credentials).cast(),
                &raw mut size,
            )
        };
        if result != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOTSOCK));
        }
        let pid = u32::try_from(credentials.pid).ok().and_then(NonZeroU32::new);
        Ok(Self { pid, uid: credentials.uid })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_end_of_a_pair_of_ours_is_this_process() {
        let (near, _far) = UnixStream::pair().unwrap();
        let peer = PeerCredentials::of(&near).unwrap();
        assert_eq!(peer.pid.map(NonZeroU32::get), Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    }

    #[test]
    fn what_is_no_socket_has_no_peer() {
        assert_eq!(PeerCredentials::of(std::fs::File::open("/dev/null").unwrap()), Err(Errno::NOTSOCK));
    }
}
