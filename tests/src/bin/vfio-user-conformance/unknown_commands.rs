// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands that do not exist, or that nobody sends to a server: one error each, and the payload is not taken for more.

use crate::case::{Case, Judgement, cases, require};
use crate::server::Server;
use crate::wire::command;
use crate::witness::Pipe;

/// Sizes of payloads. A multiple of 16 could be taken for headers.
const SIZES: [usize; 6] = [0, 1, 16, 32, 100, 4096];

pub(crate) fn cases() -> Vec<Case> {
    cases![
        command_0_is_refused,
        commands_beyond_the_last_one_are_refused,
        dma_read_is_a_servers_and_refused,
        dma_write_is_a_servers_and_refused,
        the_retired_command_14_is_answered_once,
        reading_migration_data_is_answered_once,
        writing_migration_data_is_answered_once,
        descriptors_with_an_unknown_command_are_not_kept,
        a_thousand_unknown_commands_are_refused,
    ]
}

/// Every payload is drained.
fn refused(server: &Server, number: u16) -> Judgement {
    let mut client = server.session()?;
    for size in SIZES {
        client.refused(number, &vec![0; size], &[])?;
    }
    Ok(())
}

fn answered_once(server: &Server, number: u16) -> Judgement {
    let mut client = server.session()?;
    for size in SIZES {
        client.settled(number, &vec![0; size], &[])?;
    }
    Ok(())
}

fn command_0_is_refused(server: &Server) -> Judgement {
    refused(server, 0)
}

fn commands_beyond_the_last_one_are_refused(server: &Server) -> Judgement {
    [99, 0x100, 0x7fff, u16::MAX].into_iter().try_for_each(|number| refused(server, number))
}

fn dma_read_is_a_servers_and_refused(server: &Server) -> Judgement {
    refused(server, command::DMA_READ)
}

fn dma_write_is_a_servers_and_refused(server: &Server) -> Judgement {
    refused(server, command::DMA_WRITE)
}

/// Older servers have it.
fn the_retired_command_14_is_answered_once(server: &Server) -> Judgement {
    answered_once(server, command::DIRTY_PAGES)
}

/// A server need not have it.
fn reading_migration_data_is_answered_once(server: &Server) -> Judgement {
    answered_once(server, command::MIG_DATA_READ)
}

/// As above.
fn writing_migration_data_is_answered_once(server: &Server) -> Judgement {
    answered_once(server, command::MIG_DATA_WRITE)
}

fn descriptors_with_an_unknown_command_are_not_kept(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let mut pipe = Pipe::new();
    client.refused(99, &[0; 16], &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}

fn a_thousand_unknown_commands_are_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for _ in 0..1000 {
        let reply = client.ask(99, &[0; 48], &[])?;
        require!(reply.error.is_some(), "one of them is carried out");
    }
    client.expect_in_step()
}
