// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of resets: has steps carried out, gives answers, and lets go on what was held off.

use std::os::unix::net::UnixStream;

use protocol::extension::{Cookie, EventKinds, Face};
use protocol::{ControlReply, ReceiveError, ServerRequest, VhostUserHeader};
use sandbox::PeerCredentials;

use super::poller::Token;
use super::{Endpoint, Server};
use crate::face::socket::FaceSocket;
use crate::failure::Failure;
use crate::machine::{Answer, Effect};
use crate::notice::NoticeKind;
use crate::reset::engine::{Occasion, Vm};

/// What waits for a device to be sanitized.
#[derive(Debug)]
pub(super) enum Handout {
    /// A control client wants the device served on this socket.
    Serve(Token, VhostUserHeader, Cookie, Face, FaceSocket),
    /// A client has come to the data face.
    Admission(Token),
}

/// The VM of a client: all that one process is connected to is of one. Where the kernel does not tell, each is of its own.
pub(super) fn vm_of(stream: &UnixStream, connection: Token) -> Vm {
    // Beyond all process ids.
    const UNSEEN: u64 = 1 << 32;
    let pid = PeerCredentials::of(stream).ok().and_then(|peer| peer.pid);
    Vm(pid.map_or(UNSEEN + connection.0, |pid| pid.get().into()))
}

impl Server {
    /// Carries out what the machine wants done, until it wants nothing more.
    pub(super) fn carry_out_effects(&mut self) {
        loop {
            let effects = self.machine.take_effects();
            if effects.is_empty() {
                return;
            }
            let mut steps = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Step(step) => steps.push(step),
                    effect => self.carry_out(effect),
                }
            }
            if let Err(error) = self.reset_threads.submit(steps) {
                log::error!("event=worker-lost reason=\"{error}\"");
                self.is_terminated = true;
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Step(_) => {}
            Effect::Answer(id, result) => {
                if let Some(asker) = self.reset_askers.remove(&id) {
                    self.deliver(asker, result.map(Answer::Reset));
                }
            }
            Effect::Sanitized(id, verdict) => {
                if let Some(handout) = self.handouts.remove(&id) {
                    self.hand_out(handout, verdict);
                }
            }
            Effect::AccessChanged => {
                for token in std::mem::take(&mut self.held_off) {
                    self.resume(token);
                }
            }
            Effect::RingsLost(cookie) => self.lose_rings(cookie),
            Effect::TellBroker(message) => self.tell_broker(message),
            Effect::Event(kind, event) => self.publish(kind, &event),
        }
    }

    /// A device is ready to be served, or must not be.
    fn hand_out(&mut self, handout: Handout, verdict: Result<(), Failure>) {
        match handout {
            Handout::Serve(token, header, cookie, face, socket) => {
                // Meanwhile it may have been removed, or given to somebody else.
                let granted = verdict.and_then(|()| self.machine.unserved(cookie).map(drop));
                let served = granted.and_then(|()| {
                    self.serve_device(cookie, face, socket).map_err(|error| Failure::face_not_set_up(&error))
                });
                let reply = served.map_or_else(ControlReply::from, |()| ControlReply::Done);
                if let Some(Endpoint::Control(mut peer)) = self.endpoints.remove(&token) {
                    peer.is_served_by_job = false;
                    self.reply_control(token, peer, header, &reply);
                }
            }
            Handout::Admission(token) => match (self.endpoints.get_mut(&token), verdict) {
                (Some(Endpoint::VfioUser(peer)), Ok(())) => {
                    peer.session.is_admitted = true;
                    self.resume(token);
                }
                (Some(Endpoint::VhostUser(peer)), Ok(())) => {
                    peer.session.is_admitted = true;
                    self.resume(token);
                }
                (Some(_), Err(failure)) => self.turn_out(token, &failure),
                _ => {}
            },
        }
    }

    /// The device is not for this client.
    pub(super) fn turn_out(&mut self, token: Token, failure: &Failure) {
        log::error!("event=not-admitted connection={} reason=\"{failure}\"", token.0);
        match self.endpoints.remove(&token) {
            Some(Endpoint::VfioUser(peer)) => self.close_vfio_user(token, &peer, &ReceiveError::Closed),
            Some(Endpoint::VhostUser(peer)) => self.close_vhost_user(token, &peer, &ReceiveError::Closed),
            _ => {}
        }
    }

    /// Gives the device to a new client, once it is sanitized.
    pub(super) fn admit(&mut self, token: Token, cookie: Cookie, vm: Vm) {
        let who = format!("client connection={} pid={}", token.0, vm.0);
        match self.machine.sanitize(cookie, Occasion::HandOut, who, true) {
            Ok(id) => drop(self.handouts.insert(id, Handout::Admission(token))),
            Err(failure) => log::error!("event=not-admitted connection={} reason=\"{failure}\"", token.0),
        }
    }

    /// Has the loop look out for what the kernel tells of a device.
    pub(super) fn watch_notices(&mut self, cookie: Cookie) {
        let Ok(device) = self.machine.device(cookie) else { return };
        for notice in device.notices.clone() {
            let endpoint = |eventfd| Endpoint::Notice(cookie, notice.kind, eventfd);
            if let Err(error) = self.watch(notice.eventfd, endpoint) {
                log::error!("event=watch-failed cookie={:#x} reason=\"{error}\"", cookie.0);
            }
        }
    }

    pub(super) fn tell_notice(&mut self, cookie: Cookie, kind: NoticeKind) {
        let Ok(device) = self.machine.device(cookie) else { return };
        let address = device.function.address;
        let (kind, event) = match kind {
            NoticeKind::Error => {
                log::error!("event=device-error device={address} cookie={:#x}", cookie.0);
                (EventKinds::DEVICE_ERRORS, ServerRequest::DeviceError(cookie))
            }
            NoticeKind::Unplug => {
                log::warn!("event=unplug-requested device={address} cookie={:#x}", cookie.0);
                (EventKinds::UNPLUG_REQUESTS, ServerRequest::UnplugRequest(cookie))
            }
        };
        self.publish(kind, &event);
    }
}
