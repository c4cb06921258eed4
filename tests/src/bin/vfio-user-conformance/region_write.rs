// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `REGION_WRITE`. What is written is the interrupt line register, which means nothing to a device.

use crate::case::{Case, Judgement, cases, not_applicable, require};
use crate::client::Client;
use crate::server::{Region, Server};
use crate::wire::{COMMAND, NO_REPLY, Payload, access, command, message, write};
use crate::witness::Pipe;

const WRITE: u16 = command::REGION_WRITE;
/// Where the interrupt line register is in the config space.
pub(crate) const LINE: u64 = 0x3c;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        what_is_written_is_read,
        the_reply_repeats_the_command_without_its_data,
        a_dword_is_written_and_read,
        a_write_that_wants_no_reply_is_done_before_a_read_that_follows,
        a_hundred_writes_that_want_no_reply_are_done_in_order,
        writes_that_come_at_once_are_done_in_order,
        a_bad_write_that_wants_no_reply_gets_no_error,
        a_refused_write_changes_nothing,
        a_read_only_register_keeps_its_value,
        writes_that_are_not_aligned_are_answered,
        a_region_of_no_size_is_not_written,
        a_region_beyond_the_last_is_refused,
        a_write_beyond_the_end_is_refused,
        a_write_across_the_end_is_refused,
        a_sum_that_wraps_around_is_refused,
        the_largest_write_to_a_small_region_is_refused_and_drained,
        more_than_the_server_transfers_is_refused,
        less_data_than_told_is_refused,
        no_data_where_4_gib_are_told_is_refused,
        more_data_than_told_is_not_taken_for_headers,
        a_write_of_nothing_is_answered,
        a_payload_that_is_too_short_is_refused,
        data_may_come_in_pieces,
        a_descriptor_with_it_is_not_kept,
    ]
}

/// The interrupt line register.
pub(crate) fn line(client: &mut Client, config: Region) -> Judgement<u8> {
    let reply = client.ask(command::REGION_READ, &access(config.index, LINE, 1), &[])?;
    require!(reply.error.is_none(), "the interrupt line cannot be read");
    require!(reply.payload.len() == 17, "{} bytes", reply.payload.len());
    Ok(reply.payload[16])
}

/// A device whose interrupt line register keeps what is written.
pub(crate) fn writable(server: &Server) -> Judgement<(Client, Region)> {
    let config = server.config()?;
    let mut client = server.session()?;
    let before = line(&mut client, config)?;
    for value in [before ^ 0x5a, before] {
        client.ask(WRITE, &write(config.index, LINE, &[value]), &[])?;
        if line(&mut client, config)? != value {
            return not_applicable("the interrupt line register keeps nothing");
        }
    }
    Ok((client, config))
}

fn refused(server: &Server, region: u32, offset: u64, data: &[u8]) -> Judgement {
    server.session()?.refused(WRITE, &write(region, offset, data), &[]).map(drop)
}

fn what_is_written_is_read(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    for value in [0x55, 0xaa, 0, 0xff] {
        client.done(WRITE, &write(config.index, LINE, &[value]), &[])?;
        let found = line(&mut client, config)?;
        require!(found == value, "{found:#x} instead of {value:#x}");
    }
    Ok(())
}

fn the_reply_repeats_the_command_without_its_data(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let reply = client.done(WRITE, &write(config.index, LINE, &[7]), &[])?;
    require!(reply.payload == access(config.index, LINE, 1), "{:x?}", reply.payload);
    Ok(())
}

/// The registers beside the interrupt line are read only, and so keep what they have.
fn a_dword_is_written_and_read(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let read = access(config.index, LINE, 4);
    let before = client.done(command::REGION_READ, &read, &[])?.payload;
    let mut data = before[16..].to_vec();
    data[0] ^= 0x33;
    client.done(WRITE, &write(config.index, LINE, &data), &[])?;
    let after = client.done(command::REGION_READ, &read, &[])?.payload;
    require!(after[16..] == data, "{:x?} instead of {data:x?}", &after[16..]);
    Ok(())
}

fn a_write_that_wants_no_reply_is_done_before_a_read_that_follows(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    for value in [0x11, 0x22, 0x33] {
        client.send(&message(1, WRITE, NO_REPLY, &write(config.index, LINE, &[value])), &[])?;
        let found = line(&mut client, config)?;
        require!(found == value, "{found:#x} instead of {value:#x}");
    }
    Ok(())
}

fn a_hundred_writes_that_want_no_reply_are_done_in_order(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let writes = (0..100).flat_map(|value| message(1, WRITE, NO_REPLY, &write(config.index, LINE, &[value])));
    client.send(&writes.collect::<Vec<_>>(), &[])?;
    let found = line(&mut client, config)?;
    require!(found == 99, "{found} instead of 99");
    Ok(())
}

fn writes_that_come_at_once_are_done_in_order(server: &Server) -> Judgement {
    let (client, config) = writable(server)?;
    let read = message(2, command::REGION_READ, COMMAND, &access(config.index, LINE, 1));
    let pairs = (0..20).flat_map(|value| {
        [message(1, WRITE, COMMAND, &write(config.index, LINE, &[value])), read.clone()].concat()
    });
    client.send(&pairs.collect::<Vec<_>>(), &[])?;
    for value in 0..20 {
        client.reply_to(1, WRITE)?;
        let reply = client.reply_to(2, command::REGION_READ)?;
        require!(reply.payload.last() == Some(&value), "not {value} after it was written");
    }
    Ok(())
}

fn a_bad_write_that_wants_no_reply_gets_no_error(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for payload in [write(u32::MAX, 0, &[1; 4]), write(7, u64::MAX, &[1; 4]), write(7, 0, &[])] {
        client.send(&message(1, WRITE, NO_REPLY, &payload), &[])?;
        client.expect_in_step()?;
    }
    Ok(())
}

fn a_refused_write_changes_nothing(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    let last = access(config.index, config.size - 1, 1);
    let before = client.done(command::REGION_READ, &last, &[])?.payload;
    client.refused(WRITE, &write(config.index, config.size - 1, &[0x77, 0x77]), &[])?;
    let after = client.done(command::REGION_READ, &last, &[])?.payload;
    require!(before == after, "the last byte of the config space is another");
    Ok(())
}

/// The vendor. A server may refuse the write.
fn a_read_only_register_keeps_its_value(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    let vendor = access(config.index, 0, 2);
    let before = client.done(command::REGION_READ, &vendor, &[])?.payload;
    client.settled(WRITE, &write(config.index, 0, &[0x12, 0x34]), &[])?;
    let after = client.done(command::REGION_READ, &vendor, &[])?.payload;
    require!(before == after, "the device has another vendor");
    Ok(())
}

/// A server may refuse them.
fn writes_that_are_not_aligned_are_answered(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    for (offset, size) in [(1, 2), (3, 4), (LINE - 1, 2), (LINE, 3), (1, 8)] {
        client.settled(WRITE, &write(config.index, offset, &vec![0; size]), &[])?;
    }
    Ok(())
}

fn a_region_of_no_size_is_not_written(server: &Server) -> Judgement {
    let mut empty = server.device.regions.iter().filter(|region| region.size == 0).peekable();
    if empty.peek().is_none() {
        return not_applicable("every region has a size");
    }
    empty.try_for_each(|region| refused(server, region.index, 0, &[0; 4]))
}

fn a_region_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let count = u32::try_from(server.device.regions.len()).unwrap_or(u32::MAX);
    [count, count + 1, u32::MAX].into_iter().try_for_each(|index| refused(server, index, 0, &[0; 4]))
}

fn a_write_beyond_the_end_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for offset in [config.size, config.size + 4, 1 << 32, 1 << 63] {
        refused(server, config.index, offset, &[0; 4])?;
    }
    Ok(())
}

fn a_write_across_the_end_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for (before, size) in [(1, 2), (2, 4), (4, 8)] {
        refused(server, config.index, config.size - before, &vec![0; size])?;
    }
    Ok(())
}

fn a_sum_that_wraps_around_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for (offset, size) in [(u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 3, 4), (u64::MAX - 3, 8)] {
        refused(server, config.index, offset, &vec![0; size])?;
    }
    Ok(())
}

fn the_largest_write_to_a_small_region_is_refused_and_drained(server: &Server) -> Judgement {
    let config = server.config()?;
    let most = usize::try_from(server.max_data().min(1 << 20)).unwrap_or(1 << 20);
    refused(server, config.index, 0, &vec![0; most])
}

fn more_than_the_server_transfers_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    let beyond = usize::try_from(server.max_data().min(64 << 20)).unwrap_or(1 << 20) + 1;
    let bytes = message(1, WRITE, COMMAND, &write(config.index, 0, &vec![0; beyond]));
    server.session()?.refused_or_ended(&bytes, &[])
}

/// Sends a command that says it has `count` bytes, and has others.
fn told(server: &Server, count: u32, data: &[u8]) -> Judgement {
    let config = server.config()?;
    let payload = Payload(access(config.index, LINE, count)).bytes(data).0;
    server.session()?.refused_or_ended(&message(1, WRITE, COMMAND, &payload), &[])
}

fn less_data_than_told_is_refused(server: &Server) -> Judgement {
    told(server, 4, &[])?;
    told(server, 4, &[0; 3])?;
    told(server, 1, &[])
}

fn no_data_where_4_gib_are_told_is_refused(server: &Server) -> Judgement {
    told(server, u32::MAX, &[])?;
    told(server, u32::MAX - 15, &[0; 4])
}

/// A server may ignore the rest, or refuse the command.
fn more_data_than_told_is_not_taken_for_headers(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    for size in [2, 17, 33, 4096] {
        let payload = Payload(access(config.index, LINE, 1)).bytes(&vec![0; size]).0;
        client.settled(WRITE, &payload, &[])?;
    }
    Ok(())
}

/// A server may refuse it.
fn a_write_of_nothing_is_answered(server: &Server) -> Judgement {
    let config = server.config()?;
    server.session()?.settled(WRITE, &write(config.index, LINE, &[]), &[]).map(drop)
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 12, 15] {
        let mut short = access(7, LINE, 1);
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, WRITE, COMMAND, &short), &[])?;
    }
    Ok(())
}

fn data_may_come_in_pieces(server: &Server) -> Judgement {
    let (mut client, config) = writable(server)?;
    for byte in message(1, WRITE, COMMAND, &write(config.index, LINE, &[0x42])) {
        client.send(&[byte], &[])?;
    }
    client.reply_to(1, WRITE)?;
    let found = line(&mut client, config)?;
    require!(found == 0x42, "{found:#x} instead of 0x42");
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let mut client = server.session()?;
    client.settled(WRITE, &write(7, LINE, &[1]), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
