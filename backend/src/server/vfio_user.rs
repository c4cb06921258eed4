// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of the vfio-user face: receive a command, hand it to the session, send the reply.

use std::time::Instant;

use protocol::extension::Failure as Sentences;
use protocol::vfio_user::{Reply, Request, VfioUserHeader};
use protocol::{Frame, ReceiveError, SendError};

use super::poller::Token;
use super::work::Asker;
use super::{Endpoint, Server, VfioUserPeer};
use crate::face::vfio_user::{Step, VfioUserSession};
use crate::failure::Failure;
use crate::reset::engine::Access;

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
            Err(error) => self.refuse_vfio_user(token, peer, header, Failure::vfio_user(&error)),
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
        if !peer.session.batch.is_empty() && !VfioUserSession::is_about_memory(&request) {
            // In their order.
            peer.held = Some((header, request));
            return self.close_batch(token, peer);
        }
        let is_held = self.machine.is_held(cookie);
        if is_held || self.in_flight.is_some() && peer.session.has_to_wait(&request, &self.machine) {
            peer.held = Some((header, request));
            self.waiting.push_back(token);
            return self.keep_vfio_user(token, peer);
        }
        let access = self.machine.access(cookie);
        let is_about_device = VfioUserSession::is_about_device(&request);
        if is_about_device && access == Access::HeldOff
            || VfioUserSession::needs_admission(&request) && !peer.session.is_admitted
        {
            peer.held = Some((header, request));
            self.held_off.push(token);
            return self.keep_vfio_user(token, peer);
        }
        if is_about_device && let Some(failure) = self.machine.refuse_access(cookie, access) {
            return self.reply_vfio_user(token, peer, header, Err(failure));
        }
        match peer.session.handle(request, &mut self.machine) {
            Ok(Step::Reply(reply)) => self.reply_vfio_user(token, peer, header, Ok(reply)),
            Ok(Step::Job(job, reply)) => {
                peer.is_served_by_job = true;
                self.submit(job, Asker::VfioUser(token, header, reply));
                self.keep_vfio_user(token, peer);
            }
            Ok(Step::Memory(change, reply)) => {
                peer.session.batch.push(header, change, reply);
                if peer.session.batch.is_full() {
                    return self.close_batch(token, peer);
                }
                self.keep_vfio_user(token, peer);
            }
            Ok(Step::Reset(id)) => {
                peer.is_served_by_job = true;
                self.reset_askers.insert(id, Asker::VfioUser(token, header, Reply::Done));
                self.keep_vfio_user(token, peer);
            }
            Err(failure) => self.refuse_vfio_user(token, peer, header, failure),
        }
    }

    /// Refuses a command, behind those that are collected.
    fn refuse_vfio_user(
        &mut self,
        token: Token,
        mut peer: VfioUserPeer,
        header: VfioUserHeader,
        failure: Failure,
    ) {
        if peer.session.batch.is_empty() {
            return self.reply_vfio_user(token, peer, header, Err(failure));
        }
        peer.session.batch.push_refused(header, failure);
        self.close_batch(token, peer);
    }

    /// Nothing more is added to the changes of this client's memory: they are carried out when it is their turn.
    fn close_batch(&mut self, token: Token, mut peer: VfioUserPeer) {
        peer.session.batch.close();
        peer.is_served_by_job = true;
        self.waiting.push_back(token);
        self.keep_vfio_user(token, peer);
    }

    /// Closes the collections of changes to which nothing was added just now and for which nothing more is waited.
    pub(super) fn close_due_batches(&mut self, served: &[Token]) {
        let now = Instant::now();
        let is_due = |(token, endpoint): &(&Token, &Endpoint)| match endpoint {
            Endpoint::VfioUser(peer) => {
                !served.contains(token) && peer.session.batch.due().is_some_and(|due| due <= now)
            }
            _ => false,
        };
        let due: Vec<_> = self.endpoints.iter().filter(is_due).map(|(token, _)| *token).collect();
        for token in due {
            if let Some(Endpoint::VfioUser(peer)) = self.endpoints.remove(&token) {
                self.close_batch(token, peer);
            }
        }
    }

    /// Has the collected changes of a client's memory carried out.
    pub(super) fn carry_out_batch(&mut self, token: Token, mut peer: VfioUserPeer) {
        let (changes, answers) = peer.session.batch.take();
        match self.machine.change_view(peer.session.cookie(), changes) {
            Ok(job) => {
                self.submit(job, Asker::Memory(token, answers));
                self.keep_vfio_user(token, peer);
            }
            Err(failure) => self.reply_to_batch(token, peer, answers.refused(&failure)),
        }
    }

    /// Answers the commands of a batch, and goes on with what came behind them.
    pub(super) fn reply_to_batch(
        &mut self,
        token: Token,
        mut peer: VfioUserPeer,
        answers: impl Iterator<Item = (VfioUserHeader, Result<Reply, Failure>)>,
    ) {
        peer.is_served_by_job = false;
        for (header, outcome) in answers {
            if answer(token, &mut peer, header, outcome).is_err() {
                return self.close_vfio_user(token, &peer, &ReceiveError::Closed);
            }
        }
        match peer.held.take() {
            Some((header, request)) => self.start_vfio_user(token, peer, header, request),
            None => self.keep_vfio_user(token, peer),
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
        if answer(token, &mut peer, header, outcome).is_err() {
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
        self.leave(token, cookie);
    }
}

fn answer(
    token: Token,
    peer: &mut VfioUserPeer,
    header: VfioUserHeader,
    outcome: Result<Reply, Failure>,
) -> Result<(), SendError> {
    if let Err(failure) = &outcome
        && let Some(number) = peer.refusals.note()
    {
        log::warn!(
            "event=refused connection={} number={number} command={} reason=\"{failure}\"",
            token.0,
            header.command
        );
    }
    match outcome {
        _ if header.wants_no_reply() => Ok(()),
        Ok(reply) => peer.send(header.reply(), &reply.encode(), reply.descriptor().as_slice()),
        Err(failure) => peer.send(header.error_reply(failure.errno), &[], &[]),
    }
}
