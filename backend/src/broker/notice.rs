// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a broker has to tell, for the log.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;

use log::Level;
use protocol::SessionError;
use protocol::extension::{AbortCause, ResetMethod};
use protocol::extension::{
    Cookie, CoordinationId, GroupEvent, MemberName, PciAddress, ResetEvent, ResetProgress,
};

use crate::reset::engine::broker::{MemberId, Verdict};

/// Something that has happened. [`Display`](fmt::Display) gives a line for the log, `key=value`.
#[derive(Debug)]
pub enum Notice {
    /// A reset that reaches into other servers begins.
    Begun {
        /// Which.
        coordination: CoordinationId,
        /// The device that it was asked for.
        target: PciAddress,
        /// The servers that have a part in it, in whatever order.
        servers: Vec<MemberName>,
    },
    /// It is over.
    Concluded {
        /// Which.
        coordination: CoordinationId,
        /// Whether it was done, or else why not.
        verdict: Verdict,
        /// Functions of which nobody has said that they are in order.
        lost: BTreeSet<PciAddress>,
        /// Servers that were gone or silent.
        missing: Vec<MemberName>,
    },
    /// A server has asked for a reset that did not even begin.
    Declined {
        /// Who asked.
        server: MemberName,
        /// Why not.
        cause: AbortCause,
    },
    /// A server is not coordinated any more: it has gone, or is not to be understood.
    Lost {
        /// Which.
        member: MemberId,
        /// Its name.
        server: MemberName,
        /// Why.
        why: SessionError,
    },
    /// A server tells of something that only concerns itself.
    Event {
        /// Which.
        member: MemberId,
        /// Its name.
        server: MemberName,
        /// What.
        event: ServerEvent,
    },
}

/// What a server tells of.
#[derive(Debug)]
pub enum ServerEvent {
    /// How a reset goes.
    Reset(ResetEvent),
    /// A device has reported an error.
    DeviceError(Cookie),
    /// The host wants a device back.
    UnplugRequest(Cookie),
    /// A reset group is available, or is not any more.
    GroupChanged(GroupEvent),
}

impl Notice {
    /// How much it matters.
    pub fn level(&self) -> Level {
        match self {
            Self::Concluded { verdict: Err(_), .. } | Self::Declined { .. } | Self::Lost { .. } => {
                Level::Warn
            }
            Self::Concluded { missing, .. } if !missing.is_empty() => Level::Warn,
            Self::Event { event, .. } => event.level(),
            Self::Begun { .. } | Self::Concluded { .. } => Level::Info,
        }
    }
}

impl ServerEvent {
    fn level(&self) -> Level {
        match self {
            Self::DeviceError(_) => Level::Warn,
            Self::UnplugRequest(_) | Self::GroupChanged(_) => Level::Info,
            Self::Reset(reset) => match reset.progress {
                ResetProgress::Begun | ResetProgress::Quiesced => Level::Debug,
                ResetProgress::Done { .. } => Level::Info,
                ResetProgress::Failed { .. } => Level::Warn,
            },
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun { coordination, target, servers } => {
                let servers = names(servers);
                let number = coordination.0;
                write!(f, "event=coordination-begun coordination={number} device={target} servers={servers}")
            }
            Self::Concluded { coordination, verdict, lost, missing } => {
                let number = coordination.0;
                match verdict {
                    Ok((_, attempts)) => {
                        write!(f, "event=coordination-done coordination={number} attempts={attempts}")?;
                    }
                    Err(cause) => {
                        write!(f, "event=coordination-failed coordination={number} reason=\"{cause}\"")?;
                    }
                }
                if !missing.is_empty() {
                    write!(f, " missing={}", names(missing))?;
                }
                if !lost.is_empty() {
                    let lost: Vec<_> = lost.iter().map(PciAddress::to_string).collect();
                    write!(f, " lost={}", lost.join(","))?;
                }
                Ok(())
            }
            Self::Declined { server, cause } => {
                write!(f, "event=coordination-declined server={} reason=\"{cause}\"", server.as_str())
            }
            Self::Lost { server, why, .. } => {
                let cause = why.source().map_or(String::new(), |cause| format!(": {cause}"));
                let why = if why.is_end() { "it is gone".into() } else { format!("{why}{cause}") };
                write!(f, "event=server-lost server={} reason=\"{why}\"", server.as_str())
            }
            Self::Event { server, event, .. } => write!(f, "{event} server={}", server.as_str()),
        }
    }
}

impl fmt::Display for ServerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(ResetEvent { reset, epoch, method, progress, affected }) => {
                let (stage, why) = match progress {
                    ResetProgress::Begun => ("reset-begun", String::new()),
                    ResetProgress::Quiesced => ("reset-quiesced", String::new()),
                    ResetProgress::Done { attempts, .. } => ("reset-done", format!(" attempts={attempts}")),
                    ResetProgress::Failed { errno, why, .. } => {
                        ("reset-failed", format!(" errno={} reason=\"{why}\"", errno.raw_os_error()))
                    }
                };
                let method = match method {
                    ResetMethod::Function => "function",
                    ResetMethod::Hot => "hot",
                };
                let cookies: Vec<_> =
                    affected.iter().map(|device| format!("{:#x}", device.cookie.0)).collect();
                let (epoch, cookies) = (epoch.0, cookies.join(","));
                write!(f, "event={stage} reset={reset} method={method} epoch={epoch} cookies={cookies}{why}")
            }
            Self::DeviceError(cookie) => write!(f, "event=device-error cookie={:#x}", cookie.0),
            Self::UnplugRequest(cookie) => write!(f, "event=unplug-request cookie={:#x}", cookie.0),
            Self::GroupChanged(GroupEvent { cookie, available, generation, .. }) => write!(
                f,
                "event=group-changed cookie={:#x} available={available} generation={}",
                cookie.0, generation.0
            ),
        }
    }
}

fn names(servers: &[MemberName]) -> String {
    let names: Vec<_> = servers.iter().map(MemberName::as_str).collect();
    names.join(",")
}
