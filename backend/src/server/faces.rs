// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sockets of faces: how they are taken in, and that those of a device go with it.

use std::io;
use std::os::unix::net::UnixStream;

use protocol::extension::{Cookie, Face};

use super::peer::Peer;
use super::poller::Token;
use super::reset::vm_of;
use super::{Endpoint, Server};
use crate::device::DataFace;
use crate::face::control::ControlSession;
use crate::face::socket::FaceSocket;
use crate::face::vfio_user::VfioUserSession;
use crate::face::vhost_user::VhostUserSession;
use crate::owner::ConnectionId;
use crate::reset::engine::Occasion;

impl Server {
    /// Serves the control face. With a connected socket the process ends when its peer is gone.
    pub fn serve_control(&mut self, socket: FaceSocket) -> io::Result<()> {
        match socket {
            FaceSocket::Listening(listener) => self.watch(listener, Endpoint::ControlListener),
            FaceSocket::Connected(stream) => {
                let token = self.add_control(stream);
                self.lifelines.push(token);
                Ok(())
            }
        }
    }

    /// Serves a device on a data face. The device must not have one.
    pub fn serve_device(&mut self, cookie: Cookie, face: Face, socket: FaceSocket) -> io::Result<()> {
        match socket {
            FaceSocket::Listening(listener) => {
                self.watch(listener, |listener| Endpoint::FaceListener(cookie, face, listener))?;
                self.machine.listen(cookie);
            }
            FaceSocket::Connected(stream) => {
                self.add_client(cookie, face, stream, DataFace::ConnectedForOnce);
            }
        }
        Ok(())
    }

    /// A client of the control face.
    pub(super) fn add_control(&mut self, stream: UnixStream) -> Token {
        let token = self.new_token();
        log::info!("event=control-connected connection={}", token.0);
        let session = ControlSession::new(ConnectionId(token.0));
        self.keep_control(token, Box::new(Peer::new(&self.poller, token, stream, session)));
        token
    }

    /// One client at a time: a second one is turned away.
    pub(super) fn add_client(&mut self, cookie: Cookie, face: Face, stream: UnixStream, state: DataFace) {
        if self.machine.device(cookie).is_ok_and(|device| device.face.is_connected()) {
            return self.turn_away(cookie, face, stream);
        }
        let token = self.new_token();
        let vm = vm_of(&stream, token);
        let name = match face {
            Face::VfioUser => "vfio-user",
            Face::VhostUser => "vhost-user",
        };
        log::info!("event={name}-connected connection={} cookie={:#x} pid={}", token.0, cookie.0, vm.0);
        self.machine.connect(cookie, state, vm);
        match face {
            Face::VfioUser => {
                let peer = Peer::new(&self.poller, token, stream, VfioUserSession::new(cookie));
                self.keep_vfio_user(token, Box::new(peer));
            }
            Face::VhostUser => {
                let peer = Peer::new(&self.poller, token, stream, VhostUserSession::new(cookie));
                self.keep_vhost_user(token, Box::new(peer));
            }
        }
        self.admit(token, cookie, vm);
    }

    /// A data face has no client any more.
    pub(super) fn leave(&mut self, token: Token, cookie: Cookie) {
        self.machine.disconnect(cookie);
        self.left_views.push_back(cookie);
        let who = format!("client connection={}", token.0);
        // A device that is gone needs no reset; what comes of this one is in the log.
        let _ = self.machine.sanitize(cookie, Occasion::HandBack, who, false);
    }

    /// Data faces do not outlive their device.
    pub(super) fn close_faces_of_removed(&mut self) {
        let machine = &self.machine;
        self.endpoints.retain(|_, endpoint| match endpoint {
            Endpoint::FaceListener(cookie, ..) | Endpoint::Notice(cookie, ..) => {
                machine.device(*cookie).is_ok()
            }
            Endpoint::VfioUser(peer) => machine.device(peer.session.cookie()).is_ok(),
            Endpoint::VhostUser(peer) => machine.device(peer.session.cookie()).is_ok(),
            _ => true,
        });
        let is_frontend = |(_, endpoint): &(&Token, &Endpoint)| matches!(endpoint, Endpoint::VhostUser(_));
        let frontends: Vec<_> = self.endpoints.iter().filter(is_frontend).map(|(token, _)| *token).collect();
        self.endpoints.retain(|_, endpoint| match endpoint {
            Endpoint::ConfigChange(owner, _) | Endpoint::Backend(owner, _) => frontends.contains(owner),
            _ => true,
        });
    }
}
