// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Wire types and codec of an out-of-process VFIO device server, and blocking clients for both ends' tests and for VMMs.
//!
//! Nothing here knows what a device is or asks the kernel for more than a socket: bytes and descriptors come in, typed
//! requests go out, and back. `docs/protocol.md` is the specification.
//!
//! | where | what |
//! |---|---|
//! | [`frame`], [`connection`] | the framed socket under both protocols: a header, a body, descriptors; nothing blocks |
//! | [`server_request`], [`server_channel`] | the server's own requests, and the client's end of the socket for them |
//! | [`header`], [`request_number`], [`features`] | vhost-user framing, of the control face and of the vhost-user face |
//! | [`request`], [`request_error`], [`reply`] | the control face's requests and replies, typed |
//! | [`extension`] | payloads of the VFIO extension: handover, reset groups, resets, failures |
//! | [`client`] | the control face's client |
//! | [`broker_session`] | what a client becomes that coordinates the resets of several servers; nothing blocks |
//! | [`vfio_user`] | the vfio-user data face: header, commands, replies, client |
//! | [`vhost_user`] | the vhost-user data face: payloads (those about memory the control face has, too), requests, replies, backend channel, frontend |

#![forbid(unsafe_code)]

pub mod broker_session;
pub mod client;
pub mod connection;
pub mod extension;
pub mod features;
pub mod frame;
pub mod header;
mod message;
pub mod reply;
pub mod request;
pub mod request_error;
pub mod request_number;
pub mod server_channel;
pub mod server_request;
pub mod vfio_user;
pub mod vhost_user;

pub use broker_session::{BrokerSession, SessionError};
pub use client::{ClientError, ControlClient};
pub use connection::{Connection, ReceiveError, SendError};
pub use frame::{Descriptors, Endpoint, Frame, Header};
pub use header::VhostUserHeader;
pub use reply::ControlReply;
pub use request::ControlRequest;
pub use request_error::RequestError;
pub use request_number::RequestNumber;
pub use server_channel::{ChannelError, ServerChannel};
pub use server_request::ServerRequest;
