// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of the vhost-user face: receive a request, hand it to the session, send the reply.

use std::sync::Arc;

use protocol::extension::{Cookie, Failure as Sentences};
use protocol::vhost_user::{DeviceReply, DeviceRequest};
use protocol::{Frame, ReceiveError, VhostUserHeader};

use super::poller::Token;
use super::work::Asker;
use super::{Endpoint, Server, VhostUserPeer};
use crate::address_space::ViewChange;
use crate::face::vhost_user::{Step, VhostUserSession};
use crate::failure::Failure;
use crate::machine::Answer;
use crate::memory::{Mapping, TableChange};
use crate::reset::engine::Access;

impl Server {
    /// Something has come, or there is room to send.
    pub(super) fn vhost_user_ready(&mut self, token: Token, mut peer: VhostUserPeer) {
        match peer.receive() {
            Ok(None) => self.keep_vhost_user(token, peer),
            Ok(Some(frame)) => self.receive_vhost_user(token, peer, frame),
            Err(error) => self.close_vhost_user(token, &peer, &error),
        }
    }

    fn receive_vhost_user(&mut self, token: Token, mut peer: VhostUserPeer, frame: Frame<VhostUserHeader>) {
        let header = frame.header;
        let described = DeviceRequest::described_vring(&frame);
        match DeviceRequest::parse(frame) {
            Ok(request) => self.start_vhost_user(token, peer, header, request),
            Err(error) => {
                let failure = Failure::vhost_user(&error);
                if let Some(ring) = described {
                    peer.session.refuse_ring(ring, failure.clone());
                }
                self.reply_vhost_user(token, peer, header, Err(failure));
            }
        }
    }

    /// Has the device taken for a client that was let in, or carries on with what it has asked for.
    pub(super) fn resume_vhost_user(&mut self, token: Token, mut peer: VhostUserPeer) {
        if peer.session.is_admitted && !peer.session.is_open() {
            return self.take_drive(token, peer);
        }
        match peer.held.take() {
            Some((header, request)) => self.start_vhost_user(token, peer, header, request),
            None => self.keep_vhost_user(token, peer),
        }
    }

    fn take_drive(&mut self, token: Token, mut peer: VhostUserPeer) {
        if self.in_flight.is_some() {
            self.waiting.push_back(token);
            return self.keep_vhost_user(token, peer);
        }
        match self.machine.take_drive(peer.session.cookie(), Arc::clone(&self.relay)) {
            Ok(job) => {
                peer.is_served_by_job = true;
                self.submit(job, Asker::Opening(token));
                self.keep_vhost_user(token, peer);
            }
            Err(failure) => {
                self.endpoints.insert(token, Endpoint::VhostUser(peer));
                self.turn_out(token, &failure);
            }
        }
    }

    /// Carries a request out, unless it has to wait.
    fn start_vhost_user(
        &mut self,
        token: Token,
        mut peer: VhostUserPeer,
        header: VhostUserHeader,
        request: DeviceRequest,
    ) {
        let cookie = peer.session.cookie();
        if !peer.session.is_open() {
            // It is on its way.
            peer.held = Some((header, request));
            return self.keep_vhost_user(token, peer);
        }
        let is_held = self.machine.is_held(cookie);
        if is_held || self.in_flight.is_some() && VhostUserSession::has_to_wait(&request) {
            peer.held = Some((header, request));
            self.waiting.push_back(token);
            return self.keep_vhost_user(token, peer);
        }
        let access = self.machine.access(cookie);
        if access == Access::HeldOff {
            peer.held = Some((header, request));
            self.held_off.push(token);
            return self.keep_vhost_user(token, peer);
        }
        if let Some(failure) = self.machine.refuse_access(cookie, access) {
            return self.reply_vhost_user(token, peer, header, Err(failure));
        }
        match peer.session.handle(request) {
            Ok(Step::Reply(reply)) => self.reply_vhost_user(token, peer, header, Ok(reply)),
            Ok(Step::Drive(drive, actions, reply)) => {
                let job = self.machine.drive_device(cookie, drive, actions);
                peer.is_served_by_job = true;
                self.submit(job, Asker::VhostUser(token, header, reply));
                self.keep_vhost_user(token, peer);
            }
            Ok(Step::Memory(changes)) => self.change_memory(token, peer, header, changes),
            Ok(Step::Channel(socket)) => {
                let outcome = self.open_backend_channel(token, socket);
                self.hand_out_doorbells(token, &mut peer.session);
                self.reply_vhost_user(token, peer, header, outcome.map(|()| DeviceReply::Done));
            }
            Err(failure) => self.reply_vhost_user(token, peer, header, Err(failure)),
        }
    }

    fn change_memory(
        &mut self,
        token: Token,
        mut peer: VhostUserPeer,
        header: VhostUserHeader,
        changes: Vec<TableChange>,
    ) {
        if changes.is_empty() {
            return self.reply_vhost_user(token, peer, header, Ok(DeviceReply::Done));
        }
        let views = changes.iter().map(|change| match change {
            TableChange::Add(region, _) => ViewChange::Map(Mapping::Backed(region.clone())),
            TableChange::Remove(range) => ViewChange::Unmap(*range),
        });
        match self.machine.change_view(peer.session.cookie(), views.collect()) {
            Ok(job) => {
                peer.is_served_by_job = true;
                self.submit(job, Asker::FrontendMemory(token, header, changes));
                self.keep_vhost_user(token, peer);
            }
            Err(failure) => self.reply_vhost_user(token, peer, header, Err(failure)),
        }
    }

    /// The device was taken for its client, or cannot be.
    pub(super) fn opened(&mut self, token: Token, answer: Result<Answer, Failure>) {
        let Some(Endpoint::VhostUser(mut peer)) = self.endpoints.remove(&token) else { return };
        peer.is_served_by_job = false;
        let drive = match answer {
            Ok(Answer::DriveTaken(drive)) => drive,
            Ok(_) => return self.keep_vhost_user(token, peer),
            Err(failure) => {
                self.endpoints.insert(token, Endpoint::VhostUser(peer));
                return self.turn_out(token, &failure);
            }
        };
        let config_change = drive.config_change().clone();
        let may_map_doorbells = self.machine.may_map_doorbells(peer.session.cookie(), drive.function());
        peer.session.open(drive, may_map_doorbells);
        if let Err(error) = self.watch(config_change, |eventfd| Endpoint::ConfigChange(token, eventfd)) {
            log::error!("event=watch-failed connection={} reason=\"{error}\"", token.0);
        }
        self.resume_vhost_user(token, peer);
    }

    /// What was to be done to the device is done.
    pub(super) fn driven(
        &mut self,
        token: Token,
        header: VhostUserHeader,
        reply: DeviceReply,
        answer: Result<Answer, Failure>,
    ) {
        let Some(Endpoint::VhostUser(mut peer)) = self.endpoints.remove(&token) else { return };
        peer.is_served_by_job = false;
        let outcome = answer.and_then(|answer| match answer {
            Answer::Driven(drive, outcome) => peer.session.take_back(drive, outcome),
            _ => Ok(()),
        });
        self.hand_out_doorbells(token, &mut peer.session);
        self.reply_vhost_user(token, peer, header, outcome.map(|()| reply));
    }

    /// The memory is as the frontend wants it, or cannot be.
    pub(super) fn memory_changed(
        &mut self,
        token: Token,
        header: VhostUserHeader,
        changes: Vec<TableChange>,
        answer: Result<Answer, Failure>,
    ) {
        let Some(Endpoint::VhostUser(mut peer)) = self.endpoints.remove(&token) else { return };
        peer.is_served_by_job = false;
        let outcome = answer.and_then(|answer| match answer {
            Answer::Memory(outcomes) => peer.session.memory_changed(changes, outcomes),
            _ => Ok(()),
        });
        self.reply_vhost_user(token, peer, header, outcome.map(|()| DeviceReply::Done));
    }

    /// A device was reset for somebody else's sake: its frontend has to begin anew.
    pub(super) fn lose_rings(&mut self, cookie: Cookie) {
        let Ok(device) = self.machine.device(cookie) else { return };
        let failure = Failure::virtio_was_reset(device.function.address);
        let is_its = |endpoint: &Endpoint| matches!(endpoint, Endpoint::VhostUser(peer) if peer.session.cookie() == cookie);
        let token = self.endpoints.iter().find(|(_, endpoint)| is_its(endpoint)).map(|(token, _)| *token);
        let Some((token, Endpoint::VhostUser(mut peer))) =
            token.and_then(|token| self.endpoints.remove_entry(&token))
        else {
            return;
        };
        log::warn!("event=rings-lost cookie={:#x} reason=\"{failure}\"", cookie.0);
        peer.session.forget_rings(failure);
        self.hand_out_doorbells(token, &mut peer.session);
        self.endpoints.insert(token, Endpoint::VhostUser(peer));
    }

    /// Answers a request, if it is to be answered. A frontend that cannot be told that its memory is not as it thinks is parted
    /// from.
    fn reply_vhost_user(
        &mut self,
        token: Token,
        mut peer: VhostUserPeer,
        header: VhostUserHeader,
        outcome: Result<DeviceReply, Failure>,
    ) {
        let is_answered = header.is_answered(peer.session.agreed());
        if let Err(failure) = &outcome
            && let Some(number) = peer.refusals.note()
        {
            log::warn!(
                "event=refused connection={} number={number} request={} told={is_answered} reason=\"{failure}\"",
                token.0,
                header.request
            );
        }
        let is_misled = outcome.is_err() && !is_answered && header.request.is_about_memory();
        let reply = outcome.unwrap_or_else(|failure| DeviceReply::Refused(failure.errno));
        let sent = if is_answered {
            peer.send(VhostUserHeader::reply(header.request), &reply.encode(header.request), &[])
        } else {
            Ok(())
        };
        if is_misled || sent.is_err() {
            return self.close_vhost_user(token, &peer, &ReceiveError::Closed);
        }
        self.keep_vhost_user(token, peer);
    }

    /// Puts a client back into the table, with the poller looking out for what it can do next.
    pub(super) fn keep_vhost_user(&mut self, token: Token, mut peer: VhostUserPeer) {
        match peer.watch() {
            Ok(()) => drop(self.endpoints.insert(token, Endpoint::VhostUser(peer))),
            Err(errno) => {
                log::error!("event=watch-failed connection={} errno={}", token.0, errno.raw_os_error());
                self.close_vhost_user(token, &peer, &ReceiveError::Io(errno));
            }
        }
    }

    /// The client is gone, or cannot be understood: its device is stopped, and may have another client.
    pub(super) fn close_vhost_user(&mut self, token: Token, peer: &VhostUserPeer, error: &ReceiveError) {
        let cookie = peer.session.cookie();
        if !matches!(error, ReceiveError::Closed) {
            let failure = Sentences::from(error);
            log::warn!("event=connection-broken connection={} reason=\"{failure}\"", token.0);
        }
        peer.refusals.log_the_rest(token);
        log::info!(
            "event=vhost-user-closed connection={} cookie={:#x} reason=\"{error}\"",
            token.0,
            cookie.0
        );
        self.endpoints.retain(|_, endpoint| match endpoint {
            Endpoint::ConfigChange(owner, _) | Endpoint::Backend(owner, _) => *owner != token,
            _ => true,
        });
        self.leave(token, cookie);
    }
}
