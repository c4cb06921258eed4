// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of clients whose device has a client: each is told so in answer to its first message, and parted from.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use protocol::extension::{Cookie, Face};
use protocol::vfio_user::VfioUserHeader;
use protocol::{Connection, Endpoint as End};
use rustix::io::Errno;

use super::peer::MESSAGE_DEADLINE;
use super::poller::{Interest, Token, Watched};
use super::{Endpoint, Server};
use crate::failure::Failure;

/// Most clients that are waited for to say something. One more finds its connection closed.
const MAX_WAITING: usize = 8;

/// A client that is not served.
#[derive(Debug)]
pub(super) struct TurnedAway {
    connection: Watched<Connection<VfioUserHeader>>,
    errno: Errno,
    /// When it must have sent its first message.
    pub(super) deadline: Instant,
}

impl Server {
    /// Turns a client away whose device has one.
    pub(super) fn turn_away(&mut self, cookie: Cookie, face: Face, stream: UnixStream) {
        let failure = Failure::second_client(cookie.0);
        log::warn!("event=second-client-refused cookie={:#x} reason=\"{failure}\"", cookie.0);
        let is_waiting = |endpoint: &&Endpoint| matches!(endpoint, Endpoint::TurnedAway(_));
        if face == Face::VhostUser {
            // It has no message for it: the end of the connection says so.
            return;
        }
        if self.endpoints.values().filter(is_waiting).count() >= MAX_WAITING {
            return;
        }
        let token = self.new_token();
        let connection = self.poller.watched(Connection::new(stream, End::Server), token);
        let mut client =
            TurnedAway { connection, errno: failure.errno, deadline: Instant::now() + MESSAGE_DEADLINE };
        match client.connection.watch_for(Interest::Read) {
            Ok(()) => drop(self.endpoints.insert(token, Endpoint::TurnedAway(Box::new(client)))),
            Err(errno) => log::error!("event=watch-failed errno={}", errno.raw_os_error()),
        }
    }

    /// Something of its first message has come, or its end.
    pub(super) fn turned_away_ready(&mut self, token: Token, mut client: Box<TurnedAway>) {
        let connection = &mut client.connection.source;
        match connection.receive() {
            Ok(None) => drop(self.endpoints.insert(token, Endpoint::TurnedAway(client))),
            Ok(Some(frame)) if !frame.header.wants_no_reply() => {
                // Who does not take it is told by the end of the connection.
                let _ = connection.send(frame.header.error_reply(client.errno), &[], &[]);
            }
            Ok(Some(_)) | Err(_) => {}
        }
    }
}
