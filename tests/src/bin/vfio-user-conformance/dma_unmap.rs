// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DMA_UNMAP`: what is taken away is out of the device's reach when the reply comes.

use crate::case::{Case, Judgement, cases, not_applicable, require};
use crate::client::Client;
use crate::dma_map::{BASE, BOTH, mapped};
use crate::server::Server;
use crate::wire::{COMMAND, NO_REPLY, Payload, command, map, message, unmap};
use crate::witness::{Memory, Pipe};

const UNMAP: u16 = command::DMA_UNMAP;
/// Flag 1: everything, as in Linux.
const ALL: u32 = 2;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        what_was_mapped_is_unmapped,
        the_reply_repeats_the_command,
        the_memory_is_released_when_the_reply_comes,
        what_was_unmapped_may_be_mapped_again,
        other_memory_may_be_mapped_in_its_place,
        what_has_no_file_is_unmapped,
        what_was_never_mapped_is_refused,
        what_was_unmapped_is_refused_the_second_time,
        a_part_is_refused,
        more_than_was_mapped_is_refused,
        two_mappings_at_once_are_refused,
        a_refused_command_leaves_the_mapping,
        everything_is_unmapped_or_refused,
        everything_within_a_range_is_refused,
        no_memory_is_refused,
        memory_that_wraps_around_is_refused,
        flags_that_do_not_exist_are_answered,
        a_command_that_wants_no_reply_is_done,
        memory_is_taken_away_and_given_back_in_pieces,
        a_thousand_rounds_leave_nothing,
        room_for_less_than_the_reply_does_no_harm,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
        a_descriptor_with_it_is_not_kept,
    ]
}

/// A client that has mapped 4 pages.
fn with_four_pages(server: &Server) -> Judgement<(Client, Memory)> {
    let size = 4 * server.page();
    let (mut client, memory) = (server.session()?, Memory::new(size));
    mapped(&mut client, &map(BOTH, 0, BASE, size), &[memory.as_fd()])?;
    Ok((client, memory))
}

fn what_was_mapped_is_unmapped(server: &Server) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    client.done(UNMAP, &unmap(0, BASE, 4 * server.page()), &[]).map(drop)
}

fn the_reply_repeats_the_command(server: &Server) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    let sent = unmap(0, BASE, 4 * server.page());
    let reply = client.done(UNMAP, &sent, &[])?;
    require!(reply.payload == sent, "{:x?} instead of {sent:x?}", reply.payload);
    Ok(())
}

/// Nobody has it mapped for writing, and no device has it pinned: the kernel lets it be sealed.
fn the_memory_is_released_when_the_reply_comes(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    client.done(UNMAP, &unmap(0, BASE, 4 * server.page()), &[])?;
    require!(memory.is_released(), "something can still write to it");
    Ok(())
}

fn what_was_unmapped_may_be_mapped_again(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    for _ in 0..3 {
        client.done(UNMAP, &unmap(0, BASE, 4 * server.page()), &[])?;
        mapped(&mut client, &map(BOTH, 0, BASE, 4 * server.page()), &[memory.as_fd()])?;
    }
    Ok(())
}

fn other_memory_may_be_mapped_in_its_place(server: &Server) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    let page = server.page();
    client.done(UNMAP, &unmap(0, BASE, 4 * page), &[])?;
    let other = Memory::new(8 * page);
    mapped(&mut client, &map(BOTH, 0, BASE - page, 8 * page), &[other.as_fd()])
}

fn what_has_no_file_is_unmapped(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for _ in 0..2 {
        mapped(&mut client, &map(BOTH, 0, BASE, server.page()), &[])?;
        client.done(UNMAP, &unmap(0, BASE, server.page()), &[])?;
    }
    Ok(())
}

fn what_was_never_mapped_is_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for address in [0, BASE, 1 << 40] {
        client.refused(UNMAP, &unmap(0, address, server.page()), &[])?;
    }
    Ok(())
}

fn what_was_unmapped_is_refused_the_second_time(server: &Server) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    client.done(UNMAP, &unmap(0, BASE, 4 * server.page()), &[])?;
    client.refused(UNMAP, &unmap(0, BASE, 4 * server.page()), &[]).map(drop)
}

/// Ranges, in pages from the first that is mapped.
fn refused(server: &Server, ranges: &[(u64, u64)]) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    let page = server.page();
    for (first, pages) in ranges {
        client.refused(UNMAP, &unmap(0, BASE + first * page, pages * page), &[])?;
    }
    client.done(UNMAP, &unmap(0, BASE, 4 * page), &[]).map(drop)
}

fn a_part_is_refused(server: &Server) -> Judgement {
    refused(server, &[(0, 1), (0, 3), (1, 3), (3, 1), (1, 2)])
}

fn more_than_was_mapped_is_refused(server: &Server) -> Judgement {
    refused(server, &[(0, 5), (2, 4), (0, 100)])?;
    let (mut client, _memory) = with_four_pages(server)?;
    client.refused(UNMAP, &unmap(0, BASE - server.page(), 6 * server.page()), &[]).map(drop)
}

fn two_mappings_at_once_are_refused(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    let page = server.page();
    mapped(&mut client, &map(BOTH, 0, BASE + 4 * page, 2 * page), &[memory.as_fd()])?;
    client.refused(UNMAP, &unmap(0, BASE, 6 * page), &[])?;
    client.done(UNMAP, &unmap(0, BASE, 4 * page), &[])?;
    client.done(UNMAP, &unmap(0, BASE + 4 * page, 2 * page), &[]).map(drop)
}

fn a_refused_command_leaves_the_mapping(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    let page = server.page();
    client.refused(UNMAP, &unmap(0, BASE, page), &[])?;
    client.refused(command::DMA_MAP, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
    client.done(UNMAP, &unmap(0, BASE, 4 * page), &[])?;
    require!(memory.is_released(), "something can still write to it");
    Ok(())
}

/// The flag is not in the specification: a server may have it. Where it has, everything is gone.
fn everything_is_unmapped_or_refused(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    let page = server.page();
    mapped(&mut client, &map(BOTH, 0, 0x1_0000_0000, page), &[memory.as_fd()])?;
    if client.settled(UNMAP, &unmap(ALL, 0, 0), &[])?.is_none() {
        return not_applicable("the server does not unmap everything at once");
    }
    require!(memory.is_released(), "something can still write to it");
    let other = Memory::new(page);
    mapped(&mut client, &map(BOTH, 0, BASE, page), &[other.as_fd()])?;
    mapped(&mut client, &map(BOTH, 0, 0x1_0000_0000, page), &[other.as_fd()])
}

/// As in Linux; a server that ignores the flag may do what the rest says.
fn everything_within_a_range_is_refused(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    let page = server.page();
    client.refused(UNMAP, &unmap(ALL, BASE, page), &[])?;
    let errno = client.refused(command::DMA_MAP, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
    require!(errno == 17, "errno {errno} instead of EEXIST");
    Ok(())
}

fn no_memory_is_refused(server: &Server) -> Judgement {
    refused(server, &[(0, 0), (4, 0)])
}

fn memory_that_wraps_around_is_refused(server: &Server) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    let page = server.page();
    for (address, size) in
        [(0_u64.wrapping_sub(page), 2 * page), (BASE, 0_u64.wrapping_sub(page)), (1 << 63, 1 << 63)]
    {
        client.refused(UNMAP, &unmap(0, address, size), &[])?;
    }
    client.done(UNMAP, &unmap(0, BASE, 4 * page), &[]).map(drop)
}

/// They are unused in this version, which a server may take for ignored.
fn flags_that_do_not_exist_are_answered(server: &Server) -> Judgement {
    for flags in [1, 4, 1 << 31] {
        let (mut client, _memory) = with_four_pages(server)?;
        client.settled(UNMAP, &unmap(flags, BASE, 4 * server.page()), &[])?;
    }
    Ok(())
}

fn a_command_that_wants_no_reply_is_done(server: &Server) -> Judgement {
    let (mut client, memory) = with_four_pages(server)?;
    let size = 4 * server.page();
    client.send(&message(1, UNMAP, NO_REPLY, &unmap(0, BASE, size)), &[])?;
    mapped(&mut client, &map(BOTH, 0, BASE, size), &[memory.as_fd()])
}

/// As QEMU does it, several times while firmware runs. It waits for the last reply only.
fn memory_is_taken_away_and_given_back_in_pieces(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = with_four_pages(server)?;
    let ways = [[(0, 4)].as_slice(), &[(0, 1), (1, 2), (3, 1)], &[(0, 3), (3, 1)], &[(0, 4)]];
    for (taken, given) in ways.iter().zip(&ways[1..]) {
        for (first, pages) in *taken {
            client.send(&message(1, UNMAP, COMMAND, &unmap(0, BASE + first * page, pages * page)), &[])?;
        }
        for (first, pages) in *given {
            let payload = map(BOTH, first * page, BASE + first * page, pages * page);
            client.send(&message(2, command::DMA_MAP, COMMAND, &payload), &[memory.as_fd()])?;
        }
        for _ in *taken {
            require!(client.reply_to(1, UNMAP)?.error.is_none(), "a part cannot be taken away");
        }
        for _ in *given {
            require!(client.reply_to(2, command::DMA_MAP)?.error.is_none(), "a part cannot be given back");
        }
    }
    client.expect_in_step()
}

fn a_thousand_rounds_leave_nothing(server: &Server) -> Judgement {
    let (mut client, memory) = (server.session()?, Memory::new(server.page()));
    for _ in 0..1000 {
        let mapped = client.ask(command::DMA_MAP, &map(BOTH, 0, BASE, server.page()), &[memory.as_fd()])?;
        let unmapped = client.ask(UNMAP, &unmap(0, BASE, server.page()), &[])?;
        require!(mapped.error.is_none() && unmapped.error.is_none(), "{mapped:?}, {unmapped:?}");
    }
    require!(memory.is_released(), "something can still write to it");
    Ok(())
}

/// A server may refuse it, or ignore `argsz`.
fn room_for_less_than_the_reply_does_no_harm(server: &Server) -> Judgement {
    for argsz in [0, 8, 23] {
        let (mut client, _memory) = with_four_pages(server)?;
        let payload = Payload::default().u32(argsz).u32(0).u64(BASE).u64(4 * server.page()).0;
        client.settled(UNMAP, &payload, &[])?;
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 16, 23] {
        let (client, _memory) = with_four_pages(server)?;
        let mut short = unmap(0, BASE, 4 * server.page());
        short.truncate(size);
        client.refused_or_ended(&message(1, UNMAP, COMMAND, &short), &[])?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    for more in [1, 16, 24, 1000] {
        let (mut client, _memory) = with_four_pages(server)?;
        client.settled(UNMAP, &Payload(unmap(0, BASE, 4 * server.page())).bytes(&vec![0; more]).0, &[])?;
    }
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let (mut client, _memory) = with_four_pages(server)?;
    let mut pipe = Pipe::new();
    client.settled(UNMAP, &unmap(0, BASE, 4 * server.page()), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
