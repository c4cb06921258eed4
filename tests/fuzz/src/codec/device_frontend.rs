// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies of the vhost-user face, as a frontend parses them.

use std::time::Duration;

use arbitrary::Arbitrary;
use protocol::features::ProtocolFeatures;
use protocol::vhost_user::{Frontend, FrontendError};
use protocol::{ReceiveError, VhostUserHeader};

use super::device_request;
use super::stream::{Piece, Sender};

/// Longer than it can take: everything that will ever be received is there already.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most calls: nobody reads them, and they must find room.
const MAX_CALLS: usize = 16;

/// What the frontend asks for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Call {
    Negotiate,
    QueueNumber,
    MaxMemorySlots,
    StopVring(u8),
    EnableVring(u8),
    Config(u8),
    SetConfig(u8),
    Status,
    Reset,
}

/// Has a frontend call, with `bytes` as all the replies that it gets.
pub(super) fn call(calls: &[Call], pieces: &[Piece], bytes: &[u8]) {
    let (mut sender, far) = Sender::pair();
    let mut frontend = Frontend::new(far, PATIENCE);
    sender.send_all(pieces, bytes, |place, count| {
        VhostUserHeader::reply(device_request::header(place, count).request)
    });
    sender.finish_sending();
    for call in calls.iter().take(MAX_CALLS) {
        match call.make(&mut frontend) {
            Ok(()) => {}
            Err(FrontendError::Receive { source: ReceiveError::TimedOut, .. }) => panic!("{call:?} waits"),
            Err(FrontendError::Receive { .. } | FrontendError::Send { .. }) => break,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

impl Call {
    fn make(self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        match self {
            Self::Negotiate => drop(frontend.negotiate(ProtocolFeatures::OF_DEVICES)?),
            Self::QueueNumber => drop(frontend.queue_number()?),
            Self::MaxMemorySlots => drop(frontend.max_memory_slots()?),
            Self::StopVring(queue) => drop(frontend.stop_vring(queue)?),
            Self::EnableVring(queue) => frontend.set_vring_enable(queue, true)?,
            Self::Config(count) => frontend.config(0, &mut vec![0; count.into()])?,
            Self::SetConfig(count) => frontend.set_config(0, &vec![0; count.into()])?,
            Self::Status => drop(frontend.status()?),
            Self::Reset => frontend.reset_device()?,
        }
        Ok(())
    }
}
