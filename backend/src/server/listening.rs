// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of listening sockets: lets clients in, or turns them away.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use sandbox::PeerCredentials;

use super::poller::{Interest, Watched};
use super::{Endpoint, Server};

/// How long nobody is let in when the system lacks what that takes. Who waits would wake the loop again and again.
const PAUSE: Duration = Duration::from_secs(1);

/// Who is let in, and when.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    /// The users who may connect; empty for all who can reach the socket.
    allowed: Vec<u32>,
    /// Given up for a moment to turn a client away when the process cannot open any more files.
    spare: Option<OwnedFd>,
    /// Until when the listening sockets are not looked at.
    closed_until: Option<Instant>,
}

/// What came of looking for a client.
enum Accepted {
    Client(UnixStream),
    /// It is gone, or was turned away.
    Nobody,
    /// The system does not let anybody in at present.
    NotNow,
}

impl Doorkeeper {
    pub(super) const fn new(spare: OwnedFd) -> Self {
        Self { allowed: Vec::new(), spare: Some(spare), closed_until: None }
    }

    fn accept(&mut self, listener: &UnixListener, spare: impl Fn() -> Option<OwnedFd>) -> Accepted {
        // Whoever handed the socket over may have made it a blocking one again.
        let accepted = listener.set_nonblocking(true).and_then(|()| listener.accept());
        let error = match accepted {
            Ok((stream, _)) if self.lets_in(&stream) => return Accepted::Client(stream),
            Ok(_) => return Accepted::Nobody,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Accepted::Nobody,
            Err(error) => error,
        };
        log::warn!("event=accept-failed reason=\"{error}\"");
        match Errno::from_io_error(&error) {
            Some(Errno::CONNABORTED | Errno::INTR) => Accepted::Nobody,
            Some(Errno::MFILE) if self.spare.is_some() => {
                // Left waiting, the client would wake the loop again and again: it finds the connection closed instead.
                drop(self.spare.take());
                drop(listener.accept());
                self.spare = spare();
                Accepted::Nobody
            }
            _ => Accepted::NotNow,
        }
    }

    fn lets_in(&self, stream: &UnixStream) -> bool {
        if self.allowed.is_empty() {
            return true;
        }
        let Ok(PeerCredentials { uid, pid }) = PeerCredentials::of(stream) else { return false };
        let pid = pid.map_or(0, NonZeroU32::get);
        let is_allowed = self.allowed.contains(&uid);
        if !is_allowed {
            log::warn!(
                "event=client-refused uid={uid} pid={pid} reason=\"the user is not one of --allow-uid\""
            );
        }
        is_allowed
    }
}

impl Server {
    /// Turns away clients of listening sockets that are of no such user, if any are named.
    pub fn admit_only(&mut self, users: &[u32]) {
        self.doorkeeper.allowed = users.to_vec();
    }

    /// The next client of a listening socket, if it is still there.
    pub(super) fn accept(&mut self, listener: &mut Watched<UnixListener>) -> Option<UnixStream> {
        let worker = &self.worker;
        match self.doorkeeper.accept(&listener.source, || worker.ready().try_clone_to_owned().ok()) {
            Accepted::Client(stream) => Some(stream),
            Accepted::Nobody => None,
            Accepted::NotNow => {
                self.doorkeeper.closed_until = Some(Instant::now() + PAUSE);
                look_out(listener, Interest::Nothing);
                None
            }
        }
    }

    /// When the sockets that are not looked at shall be looked at again.
    pub(super) const fn accepts_again_at(&self) -> Option<Instant> {
        self.doorkeeper.closed_until
    }

    /// Looks at all listening sockets again, if it is time.
    pub(super) fn accept_again(&mut self) {
        if self.doorkeeper.closed_until.is_none_or(|until| until > Instant::now()) {
            return;
        }
        self.doorkeeper.closed_until = None;
        for endpoint in self.endpoints.values_mut() {
            if let Endpoint::ControlListener(listener) | Endpoint::FaceListener(_, _, listener) = endpoint {
                look_out(listener, Interest::Read);
            }
        }
    }
}

fn look_out(listener: &mut Watched<UnixListener>, interest: Interest) {
    if let Err(errno) = listener.watch_for(interest) {
        log::error!("event=watch-failed errno={}", errno.raw_os_error());
    }
}
