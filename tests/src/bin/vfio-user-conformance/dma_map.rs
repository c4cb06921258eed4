// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DMA_MAP`: what a device may be told to reach.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use crate::case::{Case, Judgement, cases, fault, require};
use crate::client::Client;
use crate::server::Server;
use crate::wire::{self, COMMAND, NO_REPLY, Payload, command, map, message, unmap};
use crate::witness::{Eventfd, Memory, Pipe};

const MAP: u16 = command::DMA_MAP;
/// Flag 0: the device may read.
const READ: u32 = 1;
/// Flag 1: it may write.
const WRITE: u32 = 2;
pub(crate) const BOTH: u32 = READ | WRITE;
/// Where memory is mapped.
pub(crate) const BASE: u64 = 0x4000_0000;
/// EEXIST.
const EXISTS: u32 = 17;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        memory_with_a_file_is_mapped,
        memory_without_a_file_is_mapped,
        the_reply_is_a_header,
        memory_is_mapped_before_anything_is_asked,
        a_rom_without_a_file_is_mapped,
        memory_is_mapped_for_reading_only,
        a_file_that_is_open_for_reading_is_mapped_for_reading,
        a_file_that_is_open_for_reading_is_not_mapped_for_writing_by_a_refusal,
        memory_may_begin_anywhere_in_its_file,
        memory_may_be_at_0_and_above_4_gib,
        ranges_beside_each_other_are_mapped,
        one_file_is_behind_many_ranges,
        the_same_again_is_there_already,
        what_overlaps_is_there_already,
        what_has_no_file_is_there_already_as_well,
        a_refused_mapping_leaves_the_first,
        a_mapping_that_wants_no_reply_is_made,
        mappings_that_come_at_once_are_answered_in_order,
        no_memory_is_refused,
        memory_that_wraps_around_is_refused,
        memory_that_is_not_whole_pages_is_refused,
        memory_beyond_the_end_of_its_file_is_not_kept_by_a_refusal,
        an_offset_that_wraps_around_is_refused,
        nothing_allowed_is_answered,
        flags_that_do_not_exist_are_answered,
        a_pipe_is_no_memory,
        a_directory_is_no_memory,
        an_eventfd_is_no_memory,
        two_files_are_not_kept,
        sixteen_files_are_not_kept,
        an_argsz_that_is_too_small_does_no_harm,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
    ]
}

/// Maps what can be mapped.
pub(crate) fn mapped(client: &mut Client, payload: &[u8], files: &[BorrowedFd<'_>]) -> Judgement {
    let reply = client.done(MAP, payload, files)?;
    require!(reply.payload.is_empty(), "{} bytes come with the reply", reply.payload.len());
    Ok(())
}

fn memory_with_a_file_is_mapped(server: &Server) -> Judgement {
    let size = 16 * server.page();
    let memory = Memory::new(size);
    mapped(&mut server.session()?, &map(BOTH, 0, BASE, size), &[memory.as_fd()])
}

fn memory_without_a_file_is_mapped(server: &Server) -> Judgement {
    mapped(&mut server.session()?, &map(BOTH, 0, BASE, server.page()), &[])
}

fn the_reply_is_a_header(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    let reply = server.session()?.ask(MAP, &map(BOTH, 0, BASE, server.page()), &[memory.as_fd()])?;
    require!(reply.payload.is_empty() && reply.descriptors.is_empty(), "{} bytes", reply.payload.len());
    Ok(())
}

/// QEMU does it in this order.
fn memory_is_mapped_before_anything_is_asked(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    let mut client = server.session()?;
    let reply = client.ask(MAP, &map(BOTH, 0, BASE, server.page()), &[memory.as_fd()])?;
    require!(reply.error.is_none(), "it is refused");
    client.done(command::DEVICE_GET_INFO, &wire::device_info(16), &[]).map(drop)
}

fn a_rom_without_a_file_is_mapped(server: &Server) -> Judgement {
    mapped(&mut server.session()?, &map(READ, 0, 0xffc0_0000, 0x40_0000), &[])
}

fn memory_is_mapped_for_reading_only(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    mapped(&mut server.session()?, &map(READ, 0, BASE, server.page()), &[memory.as_fd()])
}

fn a_file_that_is_open_for_reading_is_mapped_for_reading(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    mapped(&mut server.session()?, &map(READ, 0, BASE, server.page()), &[memory.for_reading().as_fd()])
}

/// A server may find out when it writes.
fn a_file_that_is_open_for_reading_is_not_mapped_for_writing_by_a_refusal(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    let mut client = server.session()?;
    let payload = map(BOTH, 0, BASE, server.page());
    if client.settled(MAP, &payload, &[memory.for_reading().as_fd()])?.is_none() {
        mapped(&mut client, &payload, &[memory.as_fd()])?;
    }
    Ok(())
}

fn memory_may_begin_anywhere_in_its_file(server: &Server) -> Judgement {
    let page = server.page();
    let memory = Memory::new(8 * page);
    mapped(&mut server.session()?, &map(BOTH, 7 * page, BASE, page), &[memory.as_fd()])
}

fn memory_may_be_at_0_and_above_4_gib(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(2 * page));
    mapped(&mut client, &map(BOTH, 0, 0, page), &[memory.as_fd()])?;
    mapped(&mut client, &map(BOTH, page, 0x1_0000_0000, page), &[memory.as_fd()])
}

fn ranges_beside_each_other_are_mapped(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(4 * page));
    for number in [1, 0, 3, 2] {
        mapped(&mut client, &map(BOTH, number * page, BASE + number * page, page), &[memory.as_fd()])?;
    }
    Ok(())
}

fn one_file_is_behind_many_ranges(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(page));
    for number in 0..200 {
        let reply = client.ask(MAP, &map(BOTH, 0, BASE + 2 * number * page, page), &[memory.as_fd()])?;
        require!(reply.error.is_none(), "the {number}th is refused");
    }
    client.expect_in_step()
}

/// Maps the middle of three parts, and then others of which each overlaps it.
fn exists(server: &Server, overlapping: &[(u64, u64)]) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(16 * page));
    mapped(&mut client, &map(BOTH, 4 * page, BASE + 4 * page, 4 * page), &[memory.as_fd()])?;
    for (first, pages) in overlapping {
        let payload = map(BOTH, first * page, BASE + first * page, pages * page);
        for files in [&[memory.as_fd()] as &[_], &[]] {
            let errno = client.refused(MAP, &payload, files)?;
            require!(errno == EXISTS, "{pages} pages from {first} on: errno {errno} instead of EEXIST");
        }
    }
    Ok(())
}

fn the_same_again_is_there_already(server: &Server) -> Judgement {
    exists(server, &[(4, 4)])
}

fn what_overlaps_is_there_already(server: &Server) -> Judgement {
    exists(server, &[(3, 2), (7, 2), (5, 1), (4, 1), (7, 1), (0, 16), (0, 5), (4, 8)])
}

fn what_has_no_file_is_there_already_as_well(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(page));
    mapped(&mut client, &map(BOTH, 0, BASE, 4 * page), &[])?;
    let errno = client.refused(MAP, &map(BOTH, 0, BASE + page, page), &[memory.as_fd()])?;
    require!(errno == EXISTS, "errno {errno} instead of EEXIST");
    Ok(())
}

fn a_refused_mapping_leaves_the_first(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(8 * page));
    mapped(&mut client, &map(BOTH, 0, BASE, 2 * page), &[memory.as_fd()])?;
    client.refused(MAP, &map(BOTH, 0, BASE + page, 4 * page), &[memory.as_fd()])?;
    mapped(&mut client, &map(BOTH, 2 * page, BASE + 2 * page, page), &[memory.as_fd()])?;
    client.done(command::DMA_UNMAP, &unmap(0, BASE, 2 * page), &[]).map(drop)
}

fn a_mapping_that_wants_no_reply_is_made(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(page));
    let payload = map(BOTH, 0, BASE, page);
    client.send(&message(1, MAP, NO_REPLY, &payload), &[memory.as_fd()])?;
    let errno = client.refused(MAP, &payload, &[memory.as_fd()])?;
    require!(errno == EXISTS, "errno {errno} instead of EEXIST");
    Ok(())
}

/// As QEMU does it. Each file comes with its own command.
fn mappings_that_come_at_once_are_answered_in_order(server: &Server) -> Judgement {
    let page = server.page();
    let (mut client, memory) = (server.session()?, Memory::new(32 * page));
    for id in 0..32_u16 {
        let payload = map(BOTH, u64::from(id) * page, BASE + u64::from(id) * page, page);
        client.send(&message(id, MAP, COMMAND, &payload), &[memory.as_fd()])?;
    }
    for id in 0..32 {
        let reply = client.reply_to(id, MAP)?;
        require!(reply.error.is_none(), "the {id}th is refused");
    }
    client.expect_in_step()
}

fn refused(server: &Server, payload: &[u8]) -> Judgement {
    let memory = Memory::new(16 * server.page());
    let mut client = server.session()?;
    client.refused(MAP, payload, &[memory.as_fd()])?;
    // Nothing of it is there.
    mapped(&mut client, &map(BOTH, 0, BASE, server.page()), &[memory.as_fd()])
}

fn no_memory_is_refused(server: &Server) -> Judgement {
    refused(server, &map(BOTH, 0, BASE, 0))
}

fn memory_that_wraps_around_is_refused(server: &Server) -> Judgement {
    let page = server.page();
    for (address, size) in
        [(0_u64.wrapping_sub(page), 2 * page), (1 << 63, 1 << 63 | page), (BASE, 0_u64.wrapping_sub(page))]
    {
        refused(server, &map(BOTH, 0, address, size))?;
        server.session()?.refused(MAP, &map(BOTH, 0, address, size), &[])?;
    }
    Ok(())
}

fn memory_that_is_not_whole_pages_is_refused(server: &Server) -> Judgement {
    let page = server.page();
    for (offset, address, size) in
        [(0, BASE + 1, page), (0, BASE, page + 1), (1, BASE, page), (0, BASE, 1), (512, BASE + 512, page)]
    {
        refused(server, &map(BOTH, offset, address, size))?;
    }
    Ok(())
}

/// A server that only maps it with mmap(2) may find out when it uses it.
fn memory_beyond_the_end_of_its_file_is_not_kept_by_a_refusal(server: &Server) -> Judgement {
    let page = server.page();
    for (offset, size) in [(0, 5 * page), (4 * page, page), (3 * page, 2 * page)] {
        let (mut client, memory) = (server.session()?, Memory::new(4 * page));
        if client.settled(MAP, &map(BOTH, offset, BASE, size), &[memory.as_fd()])?.is_none() {
            mapped(&mut client, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
        }
    }
    Ok(())
}

fn an_offset_that_wraps_around_is_refused(server: &Server) -> Judgement {
    let page = server.page();
    for offset in [0_u64.wrapping_sub(page), 1 << 63] {
        refused(server, &map(BOTH, offset, BASE, 2 * page))?;
    }
    Ok(())
}

/// To do nothing with memory is no use, and a server may refuse it.
fn nothing_allowed_is_answered(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    server.session()?.settled(MAP, &map(0, 0, BASE, server.page()), &[memory.as_fd()]).map(drop)
}

/// Drafts have had more flags.
fn flags_that_do_not_exist_are_answered(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    for flags in [BOTH | 4, BOTH | 8, BOTH | 1 << 31, u32::MAX] {
        server.session()?.settled(MAP, &map(flags, 0, BASE, server.page()), &[memory.as_fd()])?;
    }
    Ok(())
}

/// What cannot be mapped is refused and closed.
fn no_memory(server: &Server, file: BorrowedFd<'_>) -> Judgement {
    let mut client = server.session()?;
    client.refused(MAP, &map(BOTH, 0, BASE, server.page()), &[file])?;
    mapped(&mut client, &map(BOTH, 0, BASE, server.page()), &[Memory::new(server.page()).as_fd()])
}

fn a_pipe_is_no_memory(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    no_memory(server, pipe.end())?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps it");
    Ok(())
}

fn a_directory_is_no_memory(server: &Server) -> Judgement {
    match File::open("/") {
        Ok(directory) => no_memory(server, directory.as_fd()),
        Err(error) => fault(format!("the root directory: {error}")),
    }
}

fn an_eventfd_is_no_memory(server: &Server) -> Judgement {
    no_memory(server, Eventfd::new().as_fd())
}

/// A server may refuse, or take the first and close the others.
fn not_kept(server: &Server, count: usize) -> Judgement {
    let (mut client, memory) = (server.session()?, Memory::new(server.page()));
    let mut pipe = Pipe::new();
    let mut files = vec![pipe.end(); count];
    files[0] = memory.as_fd();
    let id = client.new_id();
    client.settled_or_ended(&message(id, MAP, COMMAND, &map(BOTH, 0, BASE, server.page())), &files)?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps more than one descriptor");
    Ok(())
}

fn two_files_are_not_kept(server: &Server) -> Judgement {
    not_kept(server, 2)
}

fn sixteen_files_are_not_kept(server: &Server) -> Judgement {
    not_kept(server, 16)
}

/// A server may ignore it: the size of the payload is told by the header, too.
fn an_argsz_that_is_too_small_does_no_harm(server: &Server) -> Judgement {
    let memory = Memory::new(server.page());
    for argsz in [0, 16, 31] {
        let payload = Payload::default().u32(argsz).u32(BOTH).u64(0).u64(BASE).u64(server.page()).0;
        server.session()?.settled(MAP, &payload, &[memory.as_fd()])?;
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 24, 31] {
        let mut pipe = Pipe::new();
        let mut short = map(BOTH, 0, BASE, server.page());
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, MAP, COMMAND, &short), &[pipe.end()])?;
        require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    for more in [1, 16, 32, 1000] {
        let long = Payload(map(BOTH, 0, BASE, server.page())).bytes(&vec![0; more]).0;
        server.session()?.settled(MAP, &long, &[])?;
    }
    Ok(())
}
