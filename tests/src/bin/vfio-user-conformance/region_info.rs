// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_GET_REGION_INFO`, with capabilities and the file of what can be mapped.

use crate::case::{Case, Judgement, cases, fault, not_applicable, require};
use crate::client::{Client, Reply};
use crate::server::{Region, Server};
use crate::wire::{self, COMMAND, Payload, command, message, u16_at, u32_at, u64_at};
use crate::witness::Pipe;

const REGION_INFO: u16 = command::DEVICE_GET_REGION_INFO;
/// Size of the description without capabilities, in bytes.
const SIZE: usize = 32;
/// Room for any capabilities.
const ROOMY: u32 = 4096;
/// Id of the capability that tells what of the region can be mapped.
const SPARSE_MMAP: u16 = 1;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        every_region_is_described,
        a_region_is_described_alike_each_time,
        a_region_beyond_the_last_is_refused,
        the_config_space_is_one,
        the_reply_has_the_size_that_it_says,
        capabilities_without_room_are_left_out_and_their_size_is_told,
        capabilities_are_a_list_within_the_reply,
        a_region_that_can_be_mapped_comes_with_a_file,
        a_region_that_cannot_be_mapped_comes_without,
        areas_that_can_be_mapped_are_whole_pages_of_the_region,
        areas_that_can_be_mapped_do_not_overlap,
        a_region_of_no_size_offers_nothing,
        without_room_for_the_reply_it_is_not_sent,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
        fields_that_should_be_zero_change_nothing,
        a_descriptor_with_it_is_not_kept,
    ]
}

fn count(server: &Server) -> u32 {
    u32::try_from(server.device.regions.len()).unwrap_or(u32::MAX)
}

/// A description whose fixed part is as it should be.
fn info(client: &mut Client, argsz: u32, index: u32) -> Judgement<Reply> {
    let reply = client.done(REGION_INFO, &wire::region_info(argsz, index), &[])?;
    let room = usize::try_from(argsz).unwrap_or(usize::MAX);
    require!((SIZE..=room.max(SIZE)).contains(&reply.payload.len()), "{} bytes", reply.payload.len());
    let told = u32_at(&reply.payload, 8)?;
    require!(told == index, "region {told} instead of {index}");
    Ok(reply)
}

fn each(server: &Server, argsz: u32, mut judge: impl FnMut(u32, &Reply) -> Judgement) -> Judgement {
    let mut client = server.session()?;
    (0..count(server)).try_for_each(|index| judge(index, &info(&mut client, argsz, index)?))
}

fn flags(reply: &Reply) -> Judgement<u32> {
    u32_at(&reply.payload, 4)
}

fn every_region_is_described(server: &Server) -> Judgement {
    each(server, 32, |_, _| Ok(()))
}

fn a_region_is_described_alike_each_time(server: &Server) -> Judgement {
    let mut first = Vec::new();
    for _ in 0..2 {
        each(server, ROOMY, |_, reply| {
            first.push(reply.payload.clone());
            Ok(())
        })?;
    }
    let (once, twice) = first.split_at(first.len() / 2);
    require!(once == twice, "the second time otherwise");
    Ok(())
}

fn a_region_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for index in [count(server), count(server) + 1, 0x7fff_ffff, u32::MAX] {
        client.refused(REGION_INFO, &wire::region_info(32, index), &[])?;
    }
    Ok(())
}

fn the_config_space_is_one(server: &Server) -> Judgement {
    let config = server.config()?;
    require!([256, 4096].contains(&config.size), "it has {} bytes", config.size);
    let access = Region::READ | Region::WRITE;
    require!(config.flags & access == access, "flags {:#x}", config.flags);
    Ok(())
}

fn the_reply_has_the_size_that_it_says(server: &Server) -> Judgement {
    each(server, ROOMY, |index, reply| {
        let told = u32_at(&reply.payload, 0)?;
        require!(usize::try_from(told) == Ok(reply.payload.len()), "region {index}: {told} bytes");
        Ok(())
    })
}

/// Region by region: a description with room for all of it, and one without.
fn capabilities_without_room_are_left_out_and_their_size_is_told(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for index in 0..count(server) {
        let (whole, short) = (info(&mut client, ROOMY, index)?, info(&mut client, 32, index)?);
        require!(short.payload.len() == SIZE, "{} bytes where there is room for 32", short.payload.len());
        let told = u32_at(&short.payload, 0)?;
        require!(usize::try_from(told) == Ok(whole.payload.len()), "region {index}: {told} bytes");
    }
    Ok(())
}

/// One entry of the list.
struct Capability {
    id: u16,
    offset: usize,
}

/// The list; empty where there is none.
fn capabilities(payload: &[u8]) -> Judgement<Vec<Capability>> {
    let (flags, first) = (u32_at(payload, 4)?, u32_at(payload, 12)?);
    if flags & Region::CAPS == 0 {
        return Ok(Vec::new());
    }
    let (mut found, mut next) = (Vec::new(), usize::try_from(first).unwrap_or(usize::MAX));
    let mut last = 0;
    while next != 0 {
        require!(next >= SIZE && next + 8 <= payload.len(), "a capability at {next} of {}", payload.len());
        require!(next > last, "a list that leads back to {next}");
        last = next;
        found.push(Capability { id: u16_at(payload, next)?, offset: next });
        next = usize::try_from(u32_at(payload, next + 4)?).unwrap_or(usize::MAX);
    }
    require!(!found.is_empty(), "the flag of capabilities without any");
    Ok(found)
}

fn capabilities_are_a_list_within_the_reply(server: &Server) -> Judgement {
    each(server, ROOMY, |_, reply| capabilities(&reply.payload).map(drop))
}

/// With a description that has room for capabilities, and with one that has none.
fn a_region_that_can_be_mapped_comes_with_a_file(server: &Server) -> Judgement {
    for argsz in [32, ROOMY] {
        each(server, argsz, |index, reply| {
            let is_mappable = flags(reply)? & Region::MMAP != 0;
            require!(!is_mappable || reply.descriptors.len() == 1, "region {index} does not");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_region_that_cannot_be_mapped_comes_without(server: &Server) -> Judgement {
    each(server, ROOMY, |index, reply| {
        let is_mappable = flags(reply)? & Region::MMAP != 0;
        require!(is_mappable || reply.descriptors.is_empty(), "region {index} has a file");
        Ok(())
    })
}

/// Offset and size of what can be mapped of a region; nothing if it is all of it, or nothing.
fn areas(payload: &[u8]) -> Judgement<Vec<(u64, u64)>> {
    let mut areas = Vec::new();
    for Capability { id, offset } in capabilities(payload)? {
        if id != SPARSE_MMAP {
            continue;
        }
        let count = usize::try_from(u32_at(payload, offset + 8)?).unwrap_or(usize::MAX);
        require!(count <= payload.len() / 16, "{count} areas");
        for number in 0..count {
            let at = offset + 16 + 16 * number;
            areas.push((u64_at(payload, at)?, u64_at(payload, at + 8)?));
        }
    }
    Ok(areas)
}

/// What can be mapped is at an offset of the file that a client can give to mmap(2).
fn areas_that_can_be_mapped_are_whole_pages_of_the_region(server: &Server) -> Judgement {
    each(server, ROOMY, |index, reply| {
        if flags(reply)? & Region::MMAP == 0 {
            return Ok(());
        }
        let (size, base) = (u64_at(&reply.payload, 16)?, u64_at(&reply.payload, 24)?);
        require!(base.is_multiple_of(4096), "region {index} is at {base:#x} of its file");
        for (offset, length) in areas(&reply.payload)? {
            let is_inside = offset.checked_add(length).is_some_and(|end| end <= size);
            require!(is_inside && length > 0, "{length:#x} from {offset:#x} on of region {index}");
            let is_whole = offset.is_multiple_of(4096) && length.is_multiple_of(4096);
            require!(is_whole, "{length:#x} from {offset:#x} on of region {index}");
        }
        Ok(())
    })
}

fn areas_that_can_be_mapped_do_not_overlap(server: &Server) -> Judgement {
    each(server, ROOMY, |index, reply| {
        let mut areas = areas(&reply.payload)?;
        areas.sort_unstable();
        let is_apart = areas.is_sorted_by(|first, next| first.0.saturating_add(first.1) <= next.0);
        require!(is_apart, "region {index}: {areas:x?}");
        Ok(())
    })
}

fn a_region_of_no_size_offers_nothing(server: &Server) -> Judgement {
    let mut empty = server.device.regions.iter().filter(|region| region.size == 0).peekable();
    if empty.peek().is_none() {
        return not_applicable("every region has a size");
    }
    for Region { index, flags, .. } in empty {
        require!(flags & Region::MMAP == 0, "region {index} can be mapped");
    }
    Ok(())
}

/// A server may refuse, or say how much room it takes.
fn without_room_for_the_reply_it_is_not_sent(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for argsz in [0, 1, 16, 31] {
        if let Some(reply) = client.settled(REGION_INFO, &wire::region_info(argsz, 0), &[])? {
            require!(u32_at(&reply.payload, 0)? >= 32, "it does not say how much room it takes");
        }
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 16, 31] {
        let payload = wire::region_info(32, 0);
        let Some(short) = payload.get(..size) else { return fault("a test of nothing") };
        server.session()?.refused_or_ended(&message(1, REGION_INFO, COMMAND, short), &[])?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for more in [1, 16, 32, 1000] {
        let long = Payload(wire::region_info(32, 0)).bytes(&vec![0; more]).0;
        client.settled(REGION_INFO, &long, &[])?;
    }
    Ok(())
}

/// A server may refuse it.
fn fields_that_should_be_zero_change_nothing(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let expected = info(&mut client, ROOMY, 0)?.payload;
    let filled =
        Payload::default().u32(ROOMY).u32(u32::MAX).u32(0).u32(u32::MAX).u64(u64::MAX).u64(u64::MAX).0;
    if let Some(reply) = client.settled(REGION_INFO, &filled, &[])? {
        require!(reply.payload == expected, "the region is described otherwise");
    }
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let mut client = server.session()?;
    client.settled(REGION_INFO, &wire::region_info(32, 0), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
