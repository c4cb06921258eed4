// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_FEATURE`, which a server need not have: one without it refuses every command here.

use crate::case::{Case, Judgement, cases, require};
use crate::server::Server;
use crate::wire::{COMMAND, Payload, command, message, words};
use crate::witness::Pipe;

const FEATURE: u16 = command::DEVICE_FEATURE;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
/// A feature that nobody has.
const UNKNOWN: u32 = 0xfffe;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        an_unknown_feature_is_not_there,
        an_unknown_feature_is_not_told,
        an_unknown_feature_is_not_set,
        every_feature_of_linux_is_probed_and_answered_once,
        neither_told_nor_set_is_refused,
        told_and_set_at_once_is_refused,
        flags_that_do_not_exist_are_refused,
        without_room_for_itself_it_is_answered,
        a_payload_that_is_too_short_is_refused,
        a_descriptor_with_it_is_not_kept,
    ]
}

fn refused(server: &Server, flags: u32) -> Judgement {
    let mut client = server.session()?;
    client.refused(FEATURE, &words([8, flags]), &[])?;
    client.refused(FEATURE, &Payload(words([40, flags])).bytes(&[0; 32]).0, &[]).map(drop)
}

fn an_unknown_feature_is_not_there(server: &Server) -> Judgement {
    for access in [GET, SET, GET | SET] {
        refused(server, PROBE | access | UNKNOWN)?;
    }
    Ok(())
}

fn an_unknown_feature_is_not_told(server: &Server) -> Judgement {
    refused(server, GET | UNKNOWN)
}

fn an_unknown_feature_is_not_set(server: &Server) -> Judgement {
    refused(server, SET | UNKNOWN)
}

/// Migration, dirty pages, and what else there is by now.
fn every_feature_of_linux_is_probed_and_answered_once(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for feature in 0..20 {
        client.settled(FEATURE, &words([8, PROBE | GET | feature]), &[])?;
        client.settled(FEATURE, &words([8, PROBE | SET | feature]), &[])?;
    }
    Ok(())
}

fn neither_told_nor_set_is_refused(server: &Server) -> Judgement {
    refused(server, UNKNOWN)
}

fn told_and_set_at_once_is_refused(server: &Server) -> Judgement {
    refused(server, GET | SET | UNKNOWN)
}

fn flags_that_do_not_exist_are_refused(server: &Server) -> Judgement {
    refused(server, PROBE | GET | 1 << 19 | UNKNOWN)?;
    refused(server, u32::MAX)
}

/// A server may refuse it, or ignore `argsz`.
fn without_room_for_itself_it_is_answered(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for argsz in [0, 4, 7] {
        client.settled(FEATURE, &words([argsz, PROBE | GET]), &[])?;
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [0, 1, 4, 7] {
        let mut short = words([8, PROBE | GET]);
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, FEATURE, COMMAND, &short), &[])?;
    }
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let mut client = server.session()?;
    client.settled(FEATURE, &words([8, PROBE | GET | UNKNOWN]), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
