// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sockets of faces: how they are taken in, and that those of a device go with it.

use std::io;
use std::os::unix::net::UnixStream;

use protocol::extension::Cookie;

use super::peer::Peer;
use super::poller::Token;
use super::reset::vm_of;
use super::{Endpoint, Server};
use crate::device::DataFace;
use crate::face::control::ControlSession;
use crate::face::socket::FaceSocket;
use crate::face::vfio_user::VfioUserSession;
use crate::owner::ConnectionId;

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

    /// Serves a device's vfio-user face. The device must not have one.
    pub fn serve_device(&mut self, cookie: Cookie, socket: FaceSocket) -> io::Result<()> {
        match socket {
            FaceSocket::Listening(listener) => {
                self.watch(listener, |listener| Endpoint::FaceListener(cookie, listener))?;
                self.machine.listen(cookie);
            }
            FaceSocket::Connected(stream) => self.add_vfio_user(cookie, stream, DataFace::ConnectedForOnce),
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
    pub(super) fn add_vfio_user(&mut self, cookie: Cookie, stream: UnixStream, face: DataFace) {
        if self.machine.device(cookie).is_ok_and(|device| device.face.is_connected()) {
            return self.turn_away(cookie, stream);
        }
        let token = self.new_token();
        let vm = vm_of(&stream, token);
        log::info!("event=vfio-user-connected connection={} cookie={:#x} pid={}", token.0, cookie.0, vm.0);
        self.machine.connect(cookie, face, vm);
        let peer = Peer::new(&self.poller, token, stream, VfioUserSession::new(cookie));
        self.keep_vfio_user(token, Box::new(peer));
        self.admit(token, cookie, vm);
    }

    /// Data faces do not outlive their device.
    pub(super) fn close_faces_of_removed(&mut self) {
        let machine = &self.machine;
        self.endpoints.retain(|_, endpoint| match endpoint {
            Endpoint::FaceListener(cookie, _) | Endpoint::Notice(cookie, ..) => {
                machine.device(*cookie).is_ok()
            }
            Endpoint::VfioUser(peer) => machine.device(peer.session.cookie()).is_ok(),
            _ => true,
        });
    }
}
