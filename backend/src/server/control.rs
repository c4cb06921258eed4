// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of the control face: receive a request, hand it to the session, send the reply.

use std::os::fd::AsFd;

use protocol::extension::{Cookie, Failure as Sentences};
use protocol::{ControlReply, ControlRequest, Frame, ReceiveError, RequestNumber, VhostUserHeader};

use super::poller::Token;
use super::reset::Handout;
use super::work::Asker;
use super::{ControlPeer, Endpoint, Server};
use crate::face::control::{ControlSession, Step};
use crate::failure::Failure;
use crate::owner::ConnectionId;
use crate::reset::engine::{Access, Occasion};

/// What a request has to wait for.
enum Delay {
    /// The job in flight, or what a closed connection leaves behind.
    Job,
    /// A reset.
    Reset,
    /// A reset of the device that the request is about.
    ResetOf(Cookie),
}

impl Server {
    /// Something has come, or there is room to send.
    pub(super) fn control_ready(&mut self, token: Token, mut peer: ControlPeer) {
        match peer.receive() {
            Ok(None) => self.keep_control(token, peer),
            Ok(Some(frame)) => self.receive_control(token, peer, frame),
            Err(error) => self.break_control(token, peer, &error),
        }
    }

    fn receive_control(&mut self, token: Token, peer: ControlPeer, frame: Frame<VhostUserHeader>) {
        let header = frame.header;
        if let Err(failure) = peer.session.check_order(header.request) {
            return self.reply_control(token, peer, header, &failure.into());
        }
        match ControlRequest::parse(frame) {
            Ok(request) => self.start_control(token, peer, header, request),
            Err(error) => {
                let refused = ControlReply::Refused { errno: error.errno(), failure: error.failure() };
                self.reply_control(token, peer, header, &refused);
            }
        }
    }

    /// Carries a request out, unless it has to wait for the job in flight, or for what a closed connection leaves behind.
    pub(super) fn start_control(
        &mut self,
        token: Token,
        mut peer: ControlPeer,
        header: VhostUserHeader,
        request: ControlRequest,
    ) {
        match self.delay_of(&request) {
            Some(Delay::Job) => {
                peer.held = Some((header, request));
                self.waiting.push_back(token);
                return self.keep_control(token, peer);
            }
            Some(Delay::Reset) => return self.hold_off(token, peer, header, request),
            Some(Delay::ResetOf(cookie)) => return self.wait_for_reset(token, peer, header, request, cookie),
            None => {}
        }
        let reply = match peer.session.handle(request, &mut self.machine) {
            Ok(Step::Reply(reply)) => reply,
            Ok(Step::Job(job)) => {
                self.close_faces_of_removed();
                peer.is_served_by_job = true;
                self.submit(job, Asker::Control(token, header));
                return self.keep_control(token, peer);
            }
            Ok(Step::Reset(id)) => {
                peer.is_served_by_job = true;
                self.reset_askers.insert(id, Asker::Control(token, header));
                return self.keep_control(token, peer);
            }
            Ok(Step::Serve(cookie, face, socket)) => {
                let who = format!("connection={}", token.0);
                match self.machine.sanitize(cookie, Occasion::HandOut, who, false) {
                    Ok(id) => {
                        peer.is_served_by_job = true;
                        self.handouts.insert(id, Handout::Serve(token, header, cookie, face, socket));
                        return self.keep_control(token, peer);
                    }
                    Err(failure) => failure.into(),
                }
            }
            Ok(Step::Channel(request)) => match self.handle_channel_request(token, request) {
                Ok(()) => ControlReply::Done,
                Err(failure) => failure.into(),
            },
            Err(failure) => failure.into(),
        };
        self.reply_control(token, peer, header, &reply);
    }

    /// What has to be over before the request can be carried out.
    fn delay_of(&self, request: &ControlRequest) -> Option<Delay> {
        let takes_place_of = self
            .withdrawals
            .iter()
            .find(|gone| ControlSession::needs_withdrawal_of(**gone, request, &self.machine));
        match takes_place_of {
            // That waits for a reset itself.
            Some(gone) if !self.machine.in_reset_of(*gone).is_empty() => return Some(Delay::Reset),
            None if self.in_flight.is_none() || !ControlSession::has_to_wait(request) => {}
            _ => return Some(Delay::Job),
        }
        if let ControlRequest::AddDevice { device, .. } = request
            && self.machine.is_set_in_reset(device.as_fd())
        {
            // The bind would wait in the kernel, and whatever needs the worker behind it.
            return Some(Delay::Reset);
        }
        let at_rest = ControlSession::device_at_rest(request);
        at_rest.filter(|cookie| self.machine.is_in_reset(*cookie)).map(Delay::ResetOf)
    }

    /// A request for a device that is being reset waits for that, or is refused where waiting takes too long.
    fn wait_for_reset(
        &mut self,
        token: Token,
        peer: ControlPeer,
        header: VhostUserHeader,
        request: ControlRequest,
        cookie: Cookie,
    ) {
        if let ControlRequest::RemoveDevice(_) = request {
            // Perhaps the kernel puts the reset off for who waits for this very device.
            self.machine.want_back(cookie);
        } else if self.machine.access(cookie) == Access::Busy
            && let Ok(device) = self.machine.device(cookie)
        {
            let refused = Failure::being_reset(device.function.address);
            return self.reply_control(token, peer, header, &refused.into());
        }
        self.hold_off(token, peer, header, request);
    }

    /// The request is tried again when a reset is over.
    fn hold_off(
        &mut self,
        token: Token,
        mut peer: ControlPeer,
        header: VhostUserHeader,
        request: ControlRequest,
    ) {
        peer.held = Some((header, request));
        self.held_off.push(token);
        self.keep_control(token, peer);
    }

    /// Answers a request, if it is to be answered.
    pub(super) fn reply_control(
        &mut self,
        token: Token,
        mut peer: ControlPeer,
        header: VhostUserHeader,
        reply: &ControlReply,
    ) {
        let request = header.request;
        if let ControlReply::Refused { errno, failure } = reply
            && let Some(number) = peer.refusals.note()
        {
            log::warn!(
                "event=refused connection={} number={number} request={request} errno={} reason=\"{failure}\"",
                token.0,
                errno.raw_os_error()
            );
        }
        peer.session.note(request, reply);
        let is_answered = request.is_always_answered() || peer.session.acknowledges(header.needs_reply());
        if is_answered && peer.send(VhostUserHeader::reply(request), &reply.encode(request), &[]).is_err() {
            return self.close_control(token, &peer);
        }
        self.keep_control(token, peer);
    }

    /// Puts a client back into the table, with the poller looking out for what it can do next.
    pub(super) fn keep_control(&mut self, token: Token, mut peer: ControlPeer) {
        match peer.watch() {
            Ok(()) => drop(self.endpoints.insert(token, Endpoint::Control(peer))),
            Err(errno) => {
                log::error!("event=watch-failed connection={} errno={}", token.0, errno.raw_os_error());
                self.close_control(token, &peer);
            }
        }
    }

    /// Ends a connection on which no further message can be understood, after saying why.
    pub(super) fn break_control(&mut self, token: Token, mut peer: ControlPeer, error: &ReceiveError) {
        if !matches!(error, ReceiveError::Closed) {
            let failure = Sentences::from(error);
            log::warn!("event=connection-broken connection={} reason=\"{failure}\"", token.0);
            let request = peer.partial_header().map_or(RequestNumber::NONE, |header| header.request);
            // The peer may be gone: then there is nobody to tell.
            let _ = peer.send(VhostUserHeader::reply(request), &failure.refusal(error.errno()), &[]);
        }
        self.close_control(token, &peer);
    }

    /// What a closed connection handed over is withdrawn as soon as the job in flight allows.
    fn close_control(&mut self, token: Token, peer: &ControlPeer) {
        peer.refusals.log_the_rest(token);
        log::info!("event=control-closed connection={}", token.0);
        self.close_channel(token);
        self.withdrawals.push_back(ConnectionId(token.0));
    }
}
