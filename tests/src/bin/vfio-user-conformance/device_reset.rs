// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_RESET`. A server whose device has no reset may refuse.

use crate::case::{Case, Judgement, cases, not_applicable, require};
use crate::client::Client;
use crate::dma_map::{BASE, BOTH, mapped};
use crate::server::Server;
use crate::wire::{self, COMMAND, NO_REPLY, access, command, map, message, unmap};
use crate::witness::{Memory, Pipe};

const RESET: u16 = command::DEVICE_RESET;
/// Bit 0 of the device's flags: it can be reset.
const CAN_RESET: u32 = 1;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        a_device_that_says_so_is_reset,
        a_device_that_does_not_say_so_answers,
        the_reply_is_a_header,
        a_device_is_reset_twice,
        the_device_is_the_same_afterwards,
        memory_that_was_mapped_stays_mapped,
        bus_mastering_is_off_afterwards,
        commands_behind_it_are_answered_behind_it,
        resets_that_come_at_once_are_answered_one_by_one,
        one_that_wants_no_reply_gets_none,
        a_payload_is_refused_or_ignored,
        a_descriptor_with_it_is_not_kept,
    ]
}

/// A client of a device that can be reset.
fn resettable(server: &Server) -> Judgement<Client> {
    if server.device.flags & CAN_RESET == 0 {
        return not_applicable("the device cannot be reset");
    }
    server.session()
}

fn a_device_that_says_so_is_reset(server: &Server) -> Judgement {
    resettable(server)?.done(RESET, &[], &[]).map(drop)
}

/// Cloud Hypervisor resets just those.
fn a_device_that_does_not_say_so_answers(server: &Server) -> Judgement {
    server.session()?.settled(RESET, &[], &[]).map(drop)
}

fn the_reply_is_a_header(server: &Server) -> Judgement {
    let reply = server.session()?.ask(RESET, &[], &[])?;
    require!(reply.payload.is_empty() && reply.descriptors.is_empty(), "{} bytes", reply.payload.len());
    Ok(())
}

fn a_device_is_reset_twice(server: &Server) -> Judgement {
    let mut client = resettable(server)?;
    client.done(RESET, &[], &[])?;
    client.done(RESET, &[], &[]).map(drop)
}

fn the_device_is_the_same_afterwards(server: &Server) -> Judgement {
    let (config, mut client) = (server.config()?, resettable(server)?);
    let ids = access(config.index, 0, 4);
    let before = client.done(command::REGION_READ, &ids, &[])?.payload;
    client.done(RESET, &[], &[])?;
    let after = client.done(command::REGION_READ, &ids, &[])?.payload;
    require!(before == after, "another device");
    let info = client.done(command::DEVICE_GET_INFO, &wire::device_info(16), &[])?;
    let count = u32::try_from(server.device.regions.len()).unwrap_or(u32::MAX);
    require!(wire::u32_at(&info.payload, 8)? == count, "another number of regions");
    Ok(())
}

/// The memory is the VM's, not the device's.
fn memory_that_was_mapped_stays_mapped(server: &Server) -> Judgement {
    let (mut client, page) = (resettable(server)?, server.page());
    let memory = Memory::new(page);
    mapped(&mut client, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
    client.done(RESET, &[], &[])?;
    client.refused(command::DMA_MAP, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
    client.done(command::DMA_UNMAP, &unmap(0, BASE, page), &[]).map(drop)
}

fn bus_mastering_is_off_afterwards(server: &Server) -> Judgement {
    let (config, mut client) = (server.config()?, resettable(server)?);
    client.settled(command::REGION_WRITE, &wire::write(config.index, 4, &[6, 0]), &[])?;
    client.done(RESET, &[], &[])?;
    let reply = client.done(command::REGION_READ, &access(config.index, 4, 2), &[])?;
    require!(reply.payload[16] & 4 == 0, "the command register is {:#x}", reply.payload[16]);
    Ok(())
}

fn commands_behind_it_are_answered_behind_it(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let commands = [
        (RESET, Vec::new()),
        (command::DEVICE_GET_INFO, wire::device_info(16)),
        (command::DMA_UNMAP, unmap(0, BASE, server.page())),
        (command::DEVICE_GET_IRQ_INFO, wire::irq_info(16, 0)),
    ];
    let bytes = commands.iter().flat_map(|(number, payload)| message(1, *number, COMMAND, payload));
    client.send(&bytes.collect::<Vec<_>>(), &[])?;
    for (number, _) in commands {
        client.reply_to(1, number)?;
    }
    client.expect_in_step()
}

fn resets_that_come_at_once_are_answered_one_by_one(server: &Server) -> Judgement {
    let mut client = server.session()?;
    client.send(&(1..=4).flat_map(|id| message(id, RESET, COMMAND, &[])).collect::<Vec<_>>(), &[])?;
    for id in 1..=4 {
        client.reply_to(id, RESET)?;
    }
    client.expect_in_step()
}

fn one_that_wants_no_reply_gets_none(server: &Server) -> Judgement {
    let mut client = server.session()?;
    client.send(&message(1, RESET, NO_REPLY, &[]), &[])?;
    client.expect_in_step()
}

/// It has none.
fn a_payload_is_refused_or_ignored(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for size in [1, 4, 16, 1000] {
        client.settled(RESET, &vec![0; size], &[])?;
    }
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let mut pipe = Pipe::new();
    client.settled(RESET, &[], &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
