// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request that was encoded beforehand and a reply that is not decoded: a round trip has no client's work in it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use protocol::extension::{Cookie, ReplyStatus, ResetGroupReply, ResetGroupRequest};
use protocol::vfio_user::{Command, RegionAccess, VfioUserHeader};
use protocol::{Endpoint, Header, RequestNumber, VhostUserHeader};
use zerocopy::IntoBytes;

use crate::contest::timed;

/// Region number of the config space.
const CONFIG: u32 = 7;

/// A request and the size of its reply.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) request: Vec<u8>,
    pub(crate) reply: usize,
}

impl Exchange {
    fn new<H: Header>(header: H, body: &[u8], body_of_reply: usize) -> Self {
        let size = u32::try_from(body.len()).expect("a short body");
        let request = [header.with_body_size(size).as_bytes(), body].concat();
        Self { request, reply: size_of::<H>() + body_of_reply }
    }

    /// `GET_FEATURES`: the protocol and nothing else. It may come first on a connection.
    pub(crate) fn features() -> Self {
        let header = VhostUserHeader::request(RequestNumber::GET_FEATURES, false);
        Self::new(header, &[], size_of::<u64>())
    }

    /// `GET_RESET_GROUP` without rows.
    pub(crate) fn reset_group_header(cookie: Cookie) -> Self {
        let header = VhostUserHeader::request(RequestNumber::GET_RESET_GROUP, false);
        let body = ResetGroupRequest { cookie, first_row: 0, max_rows: 0 };
        Self::new(header, body.as_bytes(), size_of::<ReplyStatus>() + size_of::<ResetGroupReply>())
    }

    /// `REGION_READ` of the 4 bytes at the beginning of the config space.
    pub(crate) fn config_space_read() -> Self {
        let header = VfioUserHeader::command(1, Command::REGION_READ);
        let access = RegionAccess { offset: 0, region: CONFIG, count: 4 };
        Self::new(header, access.as_bytes(), size_of::<RegionAccess>() + 4)
    }

    /// One exchange. The socket blocks, and the reply comes in one piece.
    pub(crate) fn run(&self, mut socket: &UnixStream, reply: &mut [u8]) {
        socket.write_all(&self.request).expect("the request is taken");
        receive(socket, reply);
    }

    /// One exchange with whoever is at the other end of `socket`, timed.
    pub(crate) fn lap<'a>(&'a self, socket: &'a UnixStream) -> impl FnMut() -> Duration + 'a {
        let mut reply = vec![0; self.reply];
        move || timed(|| self.run(socket, &mut reply))
    }

    /// Sees to it that the server does what is asked: the time of a refusal would tell nothing.
    pub(crate) fn check_reply<H: Header>(&self, socket: &UnixStream) {
        let mut reply = vec![0; self.reply];
        self.run(socket, &mut reply);
        let (header, body) = H::read_from_prefix(&reply).expect("a header");
        assert_eq!(header.body_size(Endpoint::Client), Ok(body.len()), "{header:?}");
    }
}

/// The reply to a request that was sent.
pub(crate) fn receive(mut socket: &UnixStream, reply: &mut [u8]) {
    socket.read_exact(reply).expect("the reply comes");
}
