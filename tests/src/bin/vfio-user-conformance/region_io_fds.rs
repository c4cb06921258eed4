// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_GET_REGION_IO_FDS`, which a server need not have: one without it refuses every command here.

use crate::case::{Case, Judgement, cases, require};
use crate::server::Server;
use crate::wire::{self, COMMAND, Payload, command, message, u32_at, u64_at};

const IO_FDS: u16 = command::DEVICE_GET_REGION_IO_FDS;
/// Size of what comes before the parts, in bytes.
const HEAD: usize = 16;
/// Size of a part in bytes.
const PART: usize = 40;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        parts_of_every_region_are_told_or_refused,
        a_region_beyond_the_last_is_refused,
        without_room_for_the_reply_it_is_not_sent,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
    ]
}

/// Each part is of the region, and has one of the descriptors that come along.
fn parts_of_every_region_are_told_or_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for region in &server.device.regions {
        let Some(reply) = client.settled(IO_FDS, &wire::irq_info(4096, region.index), &[])? else { continue };
        let index = u32_at(&reply.payload, 8)?;
        require!(index == region.index, "region {index} instead of {}", region.index);
        let count = usize::try_from(u32_at(&reply.payload, 12)?).unwrap_or(usize::MAX);
        require!(
            count <= (reply.payload.len() - HEAD) / PART,
            "{count} parts in {} bytes",
            reply.payload.len()
        );
        for part in (0..count).map(|number| HEAD + number * PART) {
            let (offset, size) = (u64_at(&reply.payload, part)?, u64_at(&reply.payload, part + 8)?);
            let is_inside = offset.checked_add(size).is_some_and(|end| end <= region.size);
            require!(is_inside, "{size:#x} bytes from {offset:#x} on of region {index}");
            let descriptor = usize::try_from(u32_at(&reply.payload, part + 16)?).unwrap_or(usize::MAX);
            require!(descriptor < reply.descriptors.len(), "descriptor {descriptor} does not come along");
        }
    }
    Ok(())
}

fn a_region_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let count = u32::try_from(server.device.regions.len()).unwrap_or(u32::MAX);
    for index in [count, count + 1, u32::MAX] {
        client.refused(IO_FDS, &wire::irq_info(4096, index), &[])?;
    }
    Ok(())
}

/// A server may refuse, or say how much room it takes.
fn without_room_for_the_reply_it_is_not_sent(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for argsz in [0, 1, 15] {
        if let Some(reply) = client.settled(IO_FDS, &wire::irq_info(argsz, 0), &[])? {
            require!(u32_at(&reply.payload, 0)? >= 16, "it does not say how much room it takes");
        }
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [0, 1, 8, 15] {
        let mut short = wire::irq_info(4096, 0);
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, IO_FDS, COMMAND, &short), &[])?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for more in [1, 16, 48] {
        client.settled(IO_FDS, &Payload(wire::irq_info(4096, 0)).bytes(&vec![0; more]).0, &[])?;
    }
    Ok(())
}
