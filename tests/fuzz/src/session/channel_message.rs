// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of the control face about the server channel, and what a broker says.

use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use protocol::RequestNumber;
use protocol::extension::{
    AbortCause, BrokerMessage, CoordinateRequest, CoordinationId, EventKinds, MemberName, Preparation,
    ResetOutcome, ResetPolicy, ResetRequestId, SubscribeRequest,
};
use zerocopy::IntoBytes;

use super::control_message::{ControlMessage, Parts};
use super::world::World;

/// A request of the control face, of whatever kind.
#[derive(Debug)]
pub(super) enum Message {
    Control(ControlMessage),
    Channel(ChannelMessage),
}

/// What chooses among the control messages, the least number for each in the corpus, chooses among these with its lower
/// digits: so the corpus from before there were these stays what it was.
impl<'a> Arbitrary<'a> for Message {
    fn arbitrary(data: &mut Unstructured<'a>) -> Result<Self> {
        let choice = data.peek_bytes(4).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default();
        if u32::from_le_bytes(choice) & 0x00ff_ffff >= 0x00d0_0000 {
            data.arbitrary().map(Self::Channel)
        } else {
            data.arbitrary().map(Self::Control)
        }
    }
}

impl Message {
    /// As [`ControlMessage::parts`].
    pub(super) fn parts(&self, world: &mut World) -> Parts {
        match self {
            Self::Control(message) => message.parts(world),
            Self::Channel(message) => message.parts(world),
        }
    }
}

/// A well-formed request.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum ChannelMessage {
    SetServerChannel { which: u8, is_kept: bool },
    Subscribe { events: u8, polls: bool },
    Coordinate,
    Broker(Word),
}

/// What a broker says.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Word {
    Prepare { coordination: u8, target: u8, functions: u8, policy: u8, tries: u8, patience: u8 },
    Grant { coordination: u8 },
    Done { coordination: u8, request: u8, is_confirmed: bool },
    Abort { coordination: u8, request: u8, cause: u8 },
}

impl ChannelMessage {
    fn parts(self, world: &mut World) -> Parts {
        type Number = RequestNumber;
        match self {
            Self::SetServerChannel { which, is_kept } => {
                (Number::SET_BACKEND_REQ_FD, vec![], vec![world.server_channel(which, is_kept)])
            }
            Self::Subscribe { events, polls } => {
                let events = EventKinds(u32::from(events) & EventKinds::ALL.0);
                let body = SubscribeRequest { events, poll_ms: polls.into() };
                (Number::SUBSCRIBE, body.as_bytes().into(), vec![])
            }
            Self::Coordinate => {
                let body = CoordinateRequest { name: MemberName::new("server") };
                (Number::COORDINATE, body.as_bytes().into(), vec![])
            }
            Self::Broker(said) => {
                let (number, body) = said.message(world).encode();
                (number, body, vec![])
            }
        }
    }
}

impl Word {
    fn message(self, world: &World) -> BrokerMessage {
        // Few, so that they meet. What is called 0 is malformed, but for what an abort answers.
        let coordination = |number: u8| CoordinationId(u64::from(number) % 4);
        let request =
            |number: u8| Some(ResetRequestId(u64::from(number) % 3)).filter(|request| request.0 != 0);
        let soon = |number: u8| Duration::from_millis(u64::from(number) % 32);
        match self {
            Self::Prepare { coordination: number, target, functions, policy, tries, patience } => {
                let policies = [ResetPolicy::Function, ResetPolicy::Group, ResetPolicy::Force];
                BrokerMessage::Prepare(Preparation {
                    coordination: coordination(number),
                    target: world.wire_address(target),
                    policy: policies[usize::from(policy) % policies.len()],
                    tries: soon(tries),
                    patience: soon(patience),
                    functions: (0..8)
                        .filter(|place| functions >> place & 1 != 0)
                        .map(|place| world.wire_address(place))
                        .collect(),
                })
            }
            Self::Grant { coordination: number } => {
                BrokerMessage::Grant { coordination: coordination(number) }
            }
            Self::Done { coordination: number, request: answered, is_confirmed } => BrokerMessage::Done {
                coordination: coordination(number),
                request: request(answered),
                outcome: if is_confirmed { ResetOutcome::Done } else { ResetOutcome::LinkUnconfirmed },
                attempts: 1,
                missing: None,
            },
            Self::Abort { coordination: number, request: answered, cause } => BrokerMessage::Abort {
                coordination: Some(coordination(number)).filter(|coordination| coordination.0 != 0),
                request: request(answered),
                cause: match cause % 3 {
                    0 => AbortCause::DeadlinePassed,
                    1 => AbortCause::UnknownHolder(world.wire_address(cause)),
                    _ => AbortCause::MemberRefused {
                        member: MemberName::new("other"),
                        device: world.wire_address(cause),
                    },
                },
            },
        }
    }
}
