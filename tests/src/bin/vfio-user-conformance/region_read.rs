// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `REGION_READ`.

use crate::case::{Case, Judgement, cases, fault, not_applicable, require};
use crate::client::Client;
use crate::server::{Region, Server};
use crate::wire::{COMMAND, Payload, access, command, message};
use crate::witness::Pipe;

const READ: u16 = command::REGION_READ;
const MIB: u32 = 1 << 20;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        the_config_space_is_read_at_once,
        the_config_space_is_the_same_byte_by_byte,
        the_config_space_is_the_same_in_words_and_dwords,
        the_device_has_a_vendor,
        the_last_byte_of_a_region_is_read,
        reads_that_are_not_aligned_are_answered,
        every_region_is_read_or_refused,
        a_region_of_no_size_is_not_read,
        a_region_beyond_the_last_is_refused,
        a_read_beyond_the_end_is_refused,
        a_read_across_the_end_is_refused,
        a_sum_that_wraps_around_is_refused,
        the_largest_read_of_a_small_region_is_refused,
        more_than_the_server_transfers_is_refused,
        four_gib_are_refused,
        a_read_of_nothing_is_answered_with_nothing,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
        a_descriptor_with_it_is_not_kept,
        a_thousand_refused_reads_are_answered,
    ]
}

/// Reads what can be read.
fn read(client: &mut Client, region: u32, offset: u64, count: u32) -> Judgement<Vec<u8>> {
    let request = access(region, offset, count);
    let reply = client.ask(READ, &request, &[])?;
    require!(reply.error.is_none(), "{count} bytes at {offset:#x} of region {region} are refused");
    let Some((echo, data)) = reply.payload.split_at_checked(request.len()) else {
        return fault("a reply without offset, region and count");
    };
    require!(echo == request, "offset, region and count are not those of the command");
    require!(u32::try_from(data.len()) == Ok(count), "{} bytes instead of {count}", data.len());
    Ok(data.to_vec())
}

fn refused(server: &Server, region: u32, offset: u64, count: u32) -> Judgement {
    server.session()?.refused(READ, &access(region, offset, count), &[]).map(drop)
}

/// Its size for one that is known to be small.
fn size_of(config: Region) -> u32 {
    u32::try_from(config.size).unwrap_or(4096).min(4096)
}

fn the_config_space_is_read_at_once(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    read(&mut client, config.index, 0, 256)?;
    read(&mut client, config.index, 0, size_of(config)).map(drop)
}

fn in_parts(server: &Server, sizes: &[u32]) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    let whole = read(&mut client, config.index, 0, 64)?;
    for size in sizes {
        let mut parts = Vec::new();
        for offset in (0..64).step_by(usize::try_from(*size).unwrap_or(1)) {
            parts.extend(read(&mut client, config.index, offset, *size)?);
        }
        require!(parts == whole, "otherwise by {size}");
    }
    Ok(())
}

fn the_config_space_is_the_same_byte_by_byte(server: &Server) -> Judgement {
    in_parts(server, &[1])
}

fn the_config_space_is_the_same_in_words_and_dwords(server: &Server) -> Judgement {
    in_parts(server, &[2, 4])
}

fn the_device_has_a_vendor(server: &Server) -> Judgement {
    let config = server.config()?;
    let vendor = read(&mut server.session()?, config.index, 0, 2)?;
    require!(vendor != [0xff, 0xff] && vendor != [0, 0], "{vendor:x?}");
    Ok(())
}

fn the_last_byte_of_a_region_is_read(server: &Server) -> Judgement {
    let config = server.config()?;
    read(&mut server.session()?, config.index, config.size - 1, 1).map(drop)
}

/// A server may refuse them.
fn reads_that_are_not_aligned_are_answered(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    for (offset, count) in [(1, 2), (1, 4), (3, 2), (2, 4), (5, 8), (7, 3), (0, 3), (0, 5)] {
        client.settled(READ, &access(config.index, offset, count), &[])?;
    }
    Ok(())
}

/// A BAR may be off, and the ROM without an image.
fn every_region_is_read_or_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for Region { index, size, .. } in &server.device.regions {
        for count in [1, 2, 4, 8] {
            if let Some(reply) = client.settled(READ, &access(*index, 0, count), &[])? {
                require!(u64::from(count) <= *size, "{count} bytes of region {index}, which has {size}");
                require!(reply.payload.len() == 16 + count as usize, "{} bytes", reply.payload.len());
            }
        }
    }
    Ok(())
}

fn a_region_of_no_size_is_not_read(server: &Server) -> Judgement {
    let mut empty = server.device.regions.iter().filter(|region| region.size == 0).peekable();
    if empty.peek().is_none() {
        return not_applicable("every region has a size");
    }
    empty.try_for_each(|region| refused(server, region.index, 0, 4))
}

fn a_region_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let count = u32::try_from(server.device.regions.len()).unwrap_or(u32::MAX);
    for index in [count, count + 1, 0x7fff_ffff, u32::MAX] {
        refused(server, index, 0, 4)?;
    }
    Ok(())
}

fn a_read_beyond_the_end_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for offset in [config.size, config.size + 4, 1 << 32, 1 << 63] {
        refused(server, config.index, offset, 4)?;
    }
    Ok(())
}

fn a_read_across_the_end_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for (before, count) in [(1, 2), (2, 4), (4, 8), (config.size, size_of(config) + 1)] {
        refused(server, config.index, config.size - before, count)?;
    }
    Ok(())
}

fn a_sum_that_wraps_around_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    for (offset, count) in
        [(u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 3, 4), (u64::MAX - 3, 8), (u64::MAX - 63, 128)]
    {
        refused(server, config.index, offset, count)?;
    }
    Ok(())
}

fn the_largest_read_of_a_small_region_is_refused(server: &Server) -> Judgement {
    let config = server.config()?;
    let most = u32::try_from(server.max_data()).unwrap_or(u32::MAX);
    for count in [most, most.min(MIB)] {
        refused(server, config.index, 0, count)?;
    }
    Ok(())
}

fn more_than_the_server_transfers_is_refused(server: &Server) -> Judgement {
    let large = server.device.regions.iter().max_by_key(|region| region.size);
    let Some(region) = large else { return not_applicable("the device has no region") };
    let beyond = u32::try_from(server.max_data().saturating_add(1)).unwrap_or(u32::MAX);
    let bytes = message(1, READ, COMMAND, &access(region.index, 0, beyond));
    server.session()?.refused_or_ended(&bytes, &[])
}

fn four_gib_are_refused(server: &Server) -> Judgement {
    for region in &server.device.regions {
        let bytes = message(1, READ, COMMAND, &access(region.index, 0, u32::MAX));
        server.session()?.refused_or_ended(&bytes, &[])?;
    }
    Ok(())
}

/// A server may refuse it.
fn a_read_of_nothing_is_answered_with_nothing(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    if let Some(reply) = client.settled(READ, &access(config.index, 0, 0), &[])? {
        require!(reply.payload.len() == 16, "{} bytes", reply.payload.len());
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 12, 15] {
        let mut short = access(7, 0, 4);
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, READ, COMMAND, &short), &[])?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for more in [1, 16, 48, 4096] {
        let long = Payload(access(7, 0, 4)).bytes(&vec![0; more]).0;
        client.settled(READ, &long, &[])?;
    }
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let mut client = server.session()?;
    client.settled(READ, &access(7, 0, 4), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}

fn a_thousand_refused_reads_are_answered(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    for _ in 0..1000 {
        let reply = client.ask(READ, &access(config.index, config.size, MIB), &[])?;
        require!(reply.error.is_some(), "one of them is carried out");
    }
    client.expect_in_step()
}
