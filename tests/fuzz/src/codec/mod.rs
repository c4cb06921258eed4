// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The receive side of all protocols. What can be parsed must be what is encoded, and nothing may panic, outlive the
//! connection or be larger than the protocol allows.

mod control_client;
mod control_request;
mod device_frontend;
mod device_request;
mod server_request;
mod stream;
mod vfio_user_client;
mod vfio_user_request;

use arbitrary::Arbitrary;

use self::stream::Piece;
use crate::process;

/// What comes in, and where.
#[derive(Arbitrary, Debug)]
pub struct Input<'a> {
    receiver: Receiver,
    /// How the bytes are cut; what is left comes as the last piece.
    pieces: Vec<Piece>,
    bytes: &'a [u8],
}

/// Who receives it.
#[derive(Arbitrary, Debug)]
enum Receiver {
    ControlServer,
    ServerChannel,
    VfioUserServer,
    ControlClient { is_negotiated: bool, calls: Vec<control_client::Call> },
    VfioUserClient { calls: Vec<vfio_user_client::Call> },
    VhostUserServer,
    VhostUserFrontend { calls: Vec<device_frontend::Call> },
}

/// Has it received.
pub fn receive(input: &Input<'_>) {
    let Input { receiver, pieces, bytes } = input;
    let before = process::open_files();
    match receiver {
        Receiver::ControlServer => {
            stream::receive(pieces, bytes, control_request::header, control_request::parse);
        }
        Receiver::ServerChannel => {
            stream::receive(pieces, bytes, server_request::header, server_request::parse);
        }
        Receiver::VfioUserServer => {
            stream::receive(pieces, bytes, vfio_user_request::header, vfio_user_request::parse);
        }
        Receiver::ControlClient { is_negotiated, calls } => {
            control_client::call(*is_negotiated, calls, pieces, bytes);
        }
        Receiver::VfioUserClient { calls } => vfio_user_client::call(calls, pieces, bytes),
        Receiver::VhostUserServer => {
            stream::receive(pieces, bytes, device_request::header, device_request::parse);
        }
        Receiver::VhostUserFrontend { calls } => device_frontend::call(calls, pieces, bytes),
    }
    assert_eq!(process::open_files(), before, "descriptors stayed open");
}
