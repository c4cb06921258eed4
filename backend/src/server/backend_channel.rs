// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of a vhost-user frontend's channel for requests to it: changes of the configuration, and doorbells.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use protocol::ReceiveError;
use protocol::features::ProtocolFeatures;
use protocol::vhost_user::{BackendChannel, BackendRequestNumber, ChannelError, NotifierArea};
use rustix::io::Errno;

use super::poller::{Interest, Token, Watched};
use super::{Endpoint, Server};
use crate::face::socket::FaceSocket;
use crate::face::vhost_user::VhostUserSession;
use crate::failure::Failure;
use crate::virtio::Eventfd;

impl Server {
    /// A frontend's socket for requests to it replaces the one before.
    pub(super) fn open_backend_channel(&mut self, token: Token, socket: OwnedFd) -> Result<(), Failure> {
        let FaceSocket::Connected(stream) = FaceSocket::from_fd(socket)? else {
            return Err(Failure::not_a_unix_stream());
        };
        self.endpoints
            .retain(|_, endpoint| !matches!(endpoint, Endpoint::Backend(owner, _) if *owner == token));
        let channel = BackendChannel::new(stream);
        self.watch(channel, |channel| Endpoint::Backend(token, channel))
            .map_err(|error| Failure::face_not_set_up(&error))
    }

    /// There is something to receive from a frontend's channel, or room to send.
    pub(super) fn backend_ready(&mut self, token: Token, owner: Token, mut channel: Watched<BackendChannel>) {
        let flushed = channel.source.flush().map_err(|_| ChannelError::Receive(ReceiveError::Closed));
        match flushed.and_then(|()| channel.source.receive()) {
            Ok(acknowledged) => {
                if let Some((BackendRequestNumber::VRING_HOST_NOTIFIER, false)) = acknowledged {
                    log::info!("event=doorbell-not-mapped connection={}", owner.0);
                }
                self.keep_backend(token, owner, channel);
            }
            Err(error) => {
                log::info!("event=backend-channel-closed connection={} reason=\"{error}\"", owner.0);
            }
        }
    }

    fn keep_backend(&mut self, token: Token, owner: Token, mut channel: Watched<BackendChannel>) {
        if watch_next(&mut channel).is_ok() {
            self.endpoints.insert(token, Endpoint::Backend(owner, channel));
        }
    }

    /// A device says that its configuration has changed, or that it has stopped.
    pub(super) fn config_changed(&mut self, token: Token, owner: Token, eventfd: Watched<Eventfd>) {
        // Whatever it counts is one thing to tell.
        let _ = rustix::io::read(&eventfd.source, &mut [0; 8]);
        self.endpoints.insert(token, Endpoint::ConfigChange(owner, eventfd));
        if let Some(Endpoint::VhostUser(peer)) = self.endpoints.get_mut(&owner)
            && let Some(failure) = peer.session.stopped_by_itself()
        {
            log::error!("event=rings-lost connection={} reason=\"{failure}\"", owner.0);
            peer.session.lose(failure);
        }
        if let Some(channel) = channel_of(&mut self.endpoints, owner) {
            // A frontend that does not read has been told often enough.
            let _ = channel.source.config_changed();
            let _ = watch_next(channel);
        }
    }

    /// Gives a frontend the doorbells of its rings that have begun to run, and takes those of others away.
    pub(super) fn hand_out_doorbells(&mut self, token: Token, session: &mut VhostUserSession) {
        let Some(channel) = channel_of(&mut self.endpoints, token) else { return };
        let has_replies = session.agreed().contains(ProtocolFeatures::REPLY_ACK);
        for (ring, page) in session.doorbell_changes() {
            let lent = page.map(|page| self.machine.lend_doorbell(session.cookie(), page)).transpose();
            let area = match &lent {
                Ok(lent) => lent.as_ref().map(NotifierArea::borrowed),
                Err(failure) => {
                    log::warn!("event=doorbell-not-given connection={} reason=\"{failure}\"", token.0);
                    break;
                }
            };
            // QEMU refuses to forget what it has forgotten with the ring.
            let needs_reply = has_replies && area.is_some();
            if channel.source.set_host_notifier(ring, area.as_ref(), needs_reply).is_err() {
                // It does not read, and so its guest kicks as ever.
                break;
            }
            session.note_doorbell(ring, page.is_some());
        }
        // What cannot be watched is not told anything more.
        let _ = watch_next(channel);
    }
}

fn channel_of(
    endpoints: &mut BTreeMap<Token, Endpoint>,
    frontend: Token,
) -> Option<&mut Watched<BackendChannel>> {
    endpoints.values_mut().find_map(|endpoint| match endpoint {
        Endpoint::Backend(owner, channel) if *owner == frontend => Some(channel),
        _ => None,
    })
}

/// Has the poller look out for what can be done next: send the rest, or receive.
fn watch_next(channel: &mut Watched<BackendChannel>) -> Result<(), Errno> {
    channel.watch_for(if channel.source.has_unsent() { Interest::Write } else { Interest::Read })
}
