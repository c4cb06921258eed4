// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `REGION_WRITE_MULTI`, which a server need not have: one without it refuses every command here.

use crate::case::{Case, Judgement, cases, require};
use crate::region_write::{LINE, line, writable};
use crate::server::Server;
use crate::wire::{COMMAND, NO_REPLY, Payload, command, message, u64_at};

const MULTI: u16 = command::REGION_WRITE_MULTI;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        one_write_is_done_or_refused,
        several_writes_are_done_in_order,
        they_are_done_before_a_read_that_follows,
        a_count_of_0_does_nothing,
        a_count_beyond_the_payload_is_refused,
        a_count_that_wraps_around_is_refused,
        a_payload_beyond_the_count_is_not_taken_for_headers,
        a_write_of_more_than_8_bytes_is_refused,
        a_region_beyond_the_last_is_refused,
        a_write_beyond_the_end_is_refused,
        a_payload_that_is_too_short_is_refused,
    ]
}

/// One write, of up to 8 bytes.
#[derive(Clone, Copy)]
struct Write {
    offset: u64,
    region: u32,
    count: u32,
    data: u8,
}

/// A payload that says that it has `count` writes.
fn multi(count: u64, writes: &[Write]) -> Vec<u8> {
    let mut payload = Payload::default().u64(count);
    for Write { offset, region, count, data } in writes {
        payload = payload.u64(*offset).u32(*region).u32(*count).bytes(&[*data; 8]);
    }
    payload.0
}

const LINE_OF_CONFIG: Write = Write { offset: LINE, region: 7, count: 1, data: 0x66 };

/// Refused without an answer being taken for another.
fn refused(server: &Server, payload: &[u8]) -> Judgement {
    server.session()?.refused_or_ended(&message(1, MULTI, COMMAND, payload), &[])
}

fn one_write_is_done_or_refused(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let write = Write { region: config.index, ..LINE_OF_CONFIG };
    if let Some(reply) = client.settled(MULTI, &multi(1, &[write]), &[])? {
        require!(reply.payload.len() == 8 && u64_at(&reply.payload, 0)? == 1, "{:x?}", reply.payload);
        let found = line(&mut client, config)?;
        require!(found == 0x66, "{found:#x} instead of 0x66");
    }
    Ok(())
}

fn several_writes_are_done_in_order(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let writes = [1, 2, 3].map(|data| Write { region: config.index, data, ..LINE_OF_CONFIG });
    if let Some(reply) = client.settled(MULTI, &multi(3, &writes), &[])? {
        require!(u64_at(&reply.payload, 0)? == 3, "{:x?}", reply.payload);
        let found = line(&mut client, config)?;
        require!(found == 3, "{found:#x} instead of 3");
    }
    Ok(())
}

/// QEMU wants no reply to it.
fn they_are_done_before_a_read_that_follows(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let payload = |data| multi(1, &[Write { region: config.index, data, ..LINE_OF_CONFIG }]);
    let is_had = client.settled(MULTI, &payload(1), &[])?.is_some();
    client.send(&message(1, MULTI, NO_REPLY, &payload(2)), &[])?;
    let found = line(&mut client, config)?;
    require!(!is_had || found == 2, "{found:#x} instead of 2");
    Ok(())
}

/// A server may refuse it.
fn a_count_of_0_does_nothing(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let before = line(&mut client, config)?;
    client.settled(MULTI, &multi(0, &[]), &[])?;
    require!(line(&mut client, config)? == before, "something is written");
    Ok(())
}

fn a_count_beyond_the_payload_is_refused(server: &Server) -> Judgement {
    [1, 2, 100].into_iter().try_for_each(|count| refused(server, &multi(count, &[])))?;
    refused(server, &multi(2, &[LINE_OF_CONFIG]))
}

/// 24 bytes each.
fn a_count_that_wraps_around_is_refused(server: &Server) -> Judgement {
    for count in [u64::MAX, u64::MAX / 24 + 1, u64::MAX / 24 + 2, 1 << 61, 1 << 63] {
        refused(server, &multi(count, &[LINE_OF_CONFIG]))?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_beyond_the_count_is_not_taken_for_headers(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for more in [1, 16, 24, 48] {
        client.settled(MULTI, &Payload(multi(1, &[LINE_OF_CONFIG])).bytes(&vec![0; more]).0, &[])?;
    }
    Ok(())
}

fn a_write_of_more_than_8_bytes_is_refused(server: &Server) -> Judgement {
    for count in [9, 24, u32::MAX] {
        refused(server, &multi(1, &[Write { count, ..LINE_OF_CONFIG }]))?;
    }
    Ok(())
}

/// A server may count those that it did instead, which is none here.
fn none_done(server: &Server, write: Write) -> Judgement {
    let mut client = server.session()?;
    if let Some(reply) = client.settled(MULTI, &multi(1, &[write]), &[])? {
        require!(u64_at(&reply.payload, 0)? == 0, "it is done");
    }
    Ok(())
}

fn a_region_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let count = u32::try_from(server.device.regions.len()).unwrap_or(u32::MAX);
    [count, u32::MAX].into_iter().try_for_each(|region| none_done(server, Write { region, ..LINE_OF_CONFIG }))
}

fn a_write_beyond_the_end_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for (offset, count) in [(config.size, 1), (config.size - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        none_done(server, Write { offset, count, region: config.index, data: 0 })?;
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [0, 1, 7, 20, 31] {
        let mut short = multi(1, &[LINE_OF_CONFIG]);
        short.truncate(size);
        refused(server, &short)?;
    }
    Ok(())
}
