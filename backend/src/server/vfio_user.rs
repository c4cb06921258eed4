// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of the vfio-user face: receive a command, hand it to the session, send the reply.

use protocol::extension::Failure as Sentences;
use protocol::vfio_user::{Reply, Request, VfioUserHeader};
use protocol::{Frame, ReceiveError};

use super::poller::Token;
use super::{Asker, Endpoint, Server, VfioUserPeer};
use crate::face::vfio_user::{Step, VfioUserSession};
use crate::failure::Failure;
use crate::reset::engine::{Access, Occasion};

impl Server {
    /// Something has come, or there is room to send.
    pub(super) fn vfio_user_ready(&mut self, token: Token, mut peer: VfioUserPeer) {
        match peer.receive() {
            Ok(None) => self.keep_vfio_user(token, peer),
            Ok(Some(frame)) => self.receive_vfio_user(token, peer, frame),
            Err(error) => self.close_vfio_user(token, &peer, &error),
        }
    }

    fn receive_vfio_user(&mut self, token: Token, peer: VfioUserPeer, frame: Frame<VfioUserHeader>) {
        let header = frame.header;
        match Request::parse(frame) {
            Ok(request) => self.start_vfio_user(token, peer, header, request),
            Err(error) => self.reply_vfio_user(token, peer, header, Err(Failure::vfio_user(&error))),
        }
    }

    /// Carries a command out, unless it has to wait for the job in flight.
    pub(super) fn start_vfio_user(
        &mut self,
        token: Token,
        mut peer: VfioUserPeer,
        header: VfioUserHeader,
        request: Request,
    ) {
        let cookie = peer.session.cookie();
        let is_held = self.machine.is_held(cookie);
        if is_held || self.in_flight.is_some() && peer.session.has_to_wait(&request, &self.machine) {
            peer.held = Some((header, request));
            self.waiting.push_back(token);
            return self.keep_vfio_user(token, peer);
        }
        if VfioUserSession::is_about_device(&request) {
            let access = self.machine.access(cookie);
            if !peer.session.is_admitted || access == Access::HeldOff {
                peer.held = Some((header, request));
                self.held_off.push(token);
                return self.keep_vfio_user(token, peer);
            }
            if let Some(failure) = self.machine.refuse_access(cookie, access) {
                return self.reply_vfio_user(token, peer, header, Err(failure));
            }
        }
        match peer.session.handle(request, &mut self.machine) {
            Ok(Step::Reply(reply)) => self.reply_vfio_user(token, peer, header, Ok(reply)),
            Ok(Step::Job(job, reply)) => {
                peer.is_served_by_job = true;
                self.submit(job, Asker::VfioUser(token, header, reply));
                self.keep_vfio_user(token, peer);
            }
            Ok(Step::Reset(id)) => {
                peer.is_served_by_job = true;
                self.reset_askers.insert(id, Asker::VfioUser(token, header, Reply::Done));
                self.keep_vfio_user(token, peer);
            }
            Err(failure) => self.reply_vfio_user(token, peer, header, Err(failure)),
        }
    }

    /// Answers a command, unless its sender does not want that.
    pub(super) fn reply_vfio_user(
        &mut self,
        token: Token,
        mut peer: VfioUserPeer,
        header: VfioUserHeader,
        outcome: Result<Reply, Failure>,
    ) {
        if let Err(failure) = &outcome
            && let Some(number) = peer.refusals.note()
        {
            log::warn!(
                "event=refused connection={} number={number} command={} reason=\"{failure}\"",
                token.0,
                header.command
            );
        }
        let sent = match outcome {
            _ if header.wants_no_reply() => Ok(()),
            Ok(reply) => peer.send(header.reply(), &reply.encode(), reply.descriptor().as_slice()),
            Err(failure) => peer.send(header.error_reply(failure.errno), &[], &[]),
        };
        if sent.is_err() {
            return self.close_vfio_user(token, &peer, &ReceiveError::Closed);
        }
        self.keep_vfio_user(token, peer);
    }

    /// Puts a client back into the table, with the poller looking out for what it can do next.
    pub(super) fn keep_vfio_user(&mut self, token: Token, mut peer: VfioUserPeer) {
        match peer.watch() {
            Ok(()) => drop(self.endpoints.insert(token, Endpoint::VfioUser(peer))),
            Err(errno) => {
                log::error!("event=watch-failed connection={} errno={}", token.0, errno.raw_os_error());
                self.close_vfio_user(token, &peer, &ReceiveError::Io(errno));
            }
        }
    }

    /// The client is gone, or cannot be understood: its device is stopped, and may have another client.
    pub(super) fn close_vfio_user(&mut self, token: Token, peer: &VfioUserPeer, error: &ReceiveError) {
        let cookie = peer.session.cookie();
        if !matches!(error, ReceiveError::Closed) {
            // The protocol has no message for it: the log is where the reason can be found.
            let failure = Sentences::from(error);
            log::warn!("event=connection-broken connection={} reason=\"{failure}\"", token.0);
        }
        peer.refusals.log_the_rest(token);
        log::info!("event=vfio-user-closed connection={} cookie={:#x} reason=\"{error}\"", token.0, cookie.0);
        self.machine.disconnect(cookie);
        let who = format!("client connection={}", token.0);
        // A device that is gone needs no reset; what comes of this one is in the log.
        let _ = self.machine.sanitize(cookie, Occasion::HandBack, who, false);
    }
}
