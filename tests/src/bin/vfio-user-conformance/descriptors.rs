// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors that come in too great numbers, too late, or for nothing: a server that keeps them runs out of them.

use std::time::Duration;

use crate::case::{Case, Judgement, cases, require};
use crate::client::{Client, MOST_DESCRIPTORS};
use crate::server::Server;
use crate::wire::{self, COMMAND, NO_REPLY, command, message};
use crate::witness::Pipe;

/// Long enough for what was sent to be received before more is sent.
const MOMENT: Duration = Duration::from_millis(5);

pub(crate) fn cases() -> Vec<Case> {
    cases![
        one_more_than_the_server_takes_are_not_kept,
        seventeen_are_not_kept,
        as_many_as_the_kernel_takes_are_not_kept,
        those_of_a_posted_write_are_not_kept,
        those_in_the_middle_of_a_header_are_not_kept,
        those_in_the_middle_of_a_payload_are_not_kept,
        those_with_the_first_and_the_last_byte_are_not_kept,
        those_of_hundreds_of_bad_messages_are_not_kept,
        those_of_a_message_that_never_ends_are_closed_with_the_connection,
        the_connection_itself_may_come,
    ]
}

fn info(id: u16) -> Vec<u8> {
    message(id, command::DEVICE_GET_INFO, COMMAND, &wire::device_info(16))
}

/// A server may refuse the command, ignore what does not belong to it, or part.
fn not_kept(server: &Server, count: usize) -> Judgement {
    for (number, payload) in [
        (command::DEVICE_GET_INFO, wire::device_info(16)),
        (command::DMA_MAP, wire::map(3, 0, 0x4000_0000, 0x1000)),
        (command::DEVICE_SET_IRQS, wire::irq_set(0x21, 0, 0, 0)),
        (command::REGION_READ, wire::access(7, 0, 4)),
        (99, vec![0; 16]),
    ] {
        let mut pipe = Pipe::new();
        let client = server.session()?;
        let bytes = message(1, number, COMMAND, &payload);
        client.settled_or_ended(&bytes, &vec![pipe.end(); count])?;
        require!(
            pipe.is_closed_within(server.patience()),
            "the server keeps {count} that came with {number}"
        );
    }
    Ok(())
}

fn one_more_than_the_server_takes_are_not_kept(server: &Server) -> Judgement {
    not_kept(server, (server.max_descriptors() + 1).min(MOST_DESCRIPTORS))
}

fn seventeen_are_not_kept(server: &Server) -> Judgement {
    not_kept(server, 17)
}

fn as_many_as_the_kernel_takes_are_not_kept(server: &Server) -> Judgement {
    not_kept(server, MOST_DESCRIPTORS)
}

fn those_of_a_posted_write_are_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let client = server.session()?;
    let bytes = message(1, command::REGION_WRITE, NO_REPLY, &wire::write(7, 0x3c, &[1]));
    client.try_send(&bytes, &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}

/// Sends a command in two pieces, each with a descriptor where it says so.
fn late(server: &Server, place: usize, with_the_first_byte: bool) -> Judgement {
    let (mut early, mut late) = (Pipe::new(), Pipe::new());
    let client = server.session()?;
    let command = info(1);
    let (first, rest) = command.split_at(place);
    client.try_send(first, if with_the_first_byte { vec![early.end()] } else { Vec::new() }.as_slice())?;
    std::thread::sleep(MOMENT);
    client.settled_or_ended(rest, &[late.end()])?;
    let are_closed = early.is_closed_within(server.patience()) && late.is_closed_within(server.patience());
    require!(are_closed, "the server keeps what came at byte {place}");
    Ok(())
}

fn those_in_the_middle_of_a_header_are_not_kept(server: &Server) -> Judgement {
    [1, 8, 15].into_iter().try_for_each(|place| late(server, place, false))
}

fn those_in_the_middle_of_a_payload_are_not_kept(server: &Server) -> Judgement {
    [16, 17, 31].into_iter().try_for_each(|place| late(server, place, false))
}

fn those_with_the_first_and_the_last_byte_are_not_kept(server: &Server) -> Judgement {
    [8, 16, 31].into_iter().try_for_each(|place| late(server, place, true))
}

/// Sends one, whatever comes of it; a new connection where the server has ended the last.
fn bad_message(server: &Server, client: &mut Client, pipe: &Pipe) -> Judgement {
    let bytes = message(1, command::DEVICE_GET_INFO, COMMAND, &[0; 7]);
    if !client.try_send(&bytes, &[pipe.end(); 8])? || matches!(client.receive()?, crate::client::Answer::End)
    {
        *client = server.session()?;
    }
    Ok(())
}

fn those_of_hundreds_of_bad_messages_are_not_kept(server: &Server) -> Judgement {
    let (mut client, mut pipe) = (server.session()?, Pipe::new());
    for _ in 0..300 {
        bad_message(server, &mut client, &pipe)?;
    }
    require!(pipe.is_closed_within(server.patience()), "the server keeps some of 2400");
    Ok(())
}

fn those_of_a_message_that_never_ends_are_closed_with_the_connection(server: &Server) -> Judgement {
    for length in [1, 16, 20] {
        let mut pipe = Pipe::new();
        let client = server.session()?;
        client.send(info(1).get(..length).unwrap_or_default(), &[pipe.end()])?;
        client.abandon();
        require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    }
    Ok(())
}

/// A server that keeps it never sees its end.
fn the_connection_itself_may_come(server: &Server) -> Judgement {
    let client = server.session()?;
    client.settled_or_ended(&info(1), &[client.as_fd()])
}
