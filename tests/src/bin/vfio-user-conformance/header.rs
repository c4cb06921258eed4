// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header of every message, and how messages come one behind the other.

use std::time::Duration;

use crate::case::{Case, Judgement, cases, fault, require};
use crate::client::Answer;
use crate::server::Server;
use crate::wire::{self, COMMAND, ERROR, HEADER, NO_REPLY, Payload, REPLY, command, header, message};

/// Long enough for what was sent to be received before more is sent.
const MOMENT: Duration = Duration::from_millis(5);
const INFO: u16 = command::DEVICE_GET_INFO;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        a_size_below_that_of_the_header_is_refused,
        a_message_of_4_gib_is_not_waited_for,
        a_message_beyond_all_limits_is_not_waited_for,
        types_that_do_not_exist_are_refused,
        a_reply_that_nobody_asked_for_is_not_answered,
        an_error_that_nobody_asked_for_is_not_answered,
        a_command_with_the_error_bit_does_no_harm,
        a_command_with_reserved_bits_does_no_harm,
        the_errno_of_a_command_is_ignored,
        a_header_may_come_in_two_halves,
        a_command_may_come_byte_by_byte,
        a_payload_may_come_in_pieces,
        commands_may_come_in_pieces_that_are_none,
        a_replys_header_comes_in_one_piece,
        commands_that_come_at_once_are_answered_in_order,
        good_and_bad_commands_that_come_at_once_are_answered_in_order,
        ids_may_repeat,
        every_id_is_echoed,
        a_command_that_wants_no_reply_gets_none,
        a_bad_command_that_wants_no_reply_gets_no_error,
        an_unknown_command_that_wants_no_reply_gets_no_error,
        a_command_without_its_payload_is_refused,
        a_command_with_half_its_payload_is_refused,
        no_bytes_of_text_are_a_message,
        a_client_that_reads_late_misses_nothing,
        a_client_that_asks_and_will_ask_no_more_is_answered_or_parted_from,
    ]
}

fn info(id: u16) -> Vec<u8> {
    message(id, INFO, COMMAND, &wire::device_info(16))
}

fn a_size_below_that_of_the_header_is_refused(server: &Server) -> Judgement {
    for size in [0, 1, 8, 15] {
        server.session()?.refused_or_ended(&header(1, INFO, size, COMMAND), &[])?;
    }
    Ok(())
}

fn a_message_of_4_gib_is_not_waited_for(server: &Server) -> Judgement {
    for number in [INFO, command::REGION_WRITE, command::DEVICE_SET_IRQS, 99] {
        server.session()?.refused_or_ended(&header(1, number, u32::MAX, COMMAND), &[])?;
    }
    Ok(())
}

/// 64 MiB is more than any client here may send with a message, and more than a server should hold for one.
fn a_message_beyond_all_limits_is_not_waited_for(server: &Server) -> Judgement {
    let size = u32::try_from(server.max_data()).unwrap_or(u32::MAX).saturating_add(64 << 20);
    server.session()?.refused_or_ended(&header(1, command::REGION_WRITE, size, COMMAND), &[])
}

fn types_that_do_not_exist_are_refused(server: &Server) -> Judgement {
    for kind in [2, 3, 7, 8, 15] {
        server.session()?.refused_or_ended(&message(1, INFO, kind, &wire::device_info(16)), &[])?;
    }
    Ok(())
}

/// Sends one message that is no command, and a command: the first has no answer but an error, the second has one or the
/// connection is at its end.
fn not_answered(server: &Server, flags: u32) -> Judgement {
    let client = server.session()?;
    let unasked = message(1, INFO, flags, &[]);
    client.try_send(&[unasked, info(2)].concat(), &[])?;
    loop {
        match client.receive()? {
            Answer::Reply(reply) if reply.id == 1 => require!(reply.error.is_some(), "it is answered"),
            Answer::Reply(_) | Answer::End => return Ok(()),
        }
    }
}

fn a_reply_that_nobody_asked_for_is_not_answered(server: &Server) -> Judgement {
    not_answered(server, REPLY)
}

fn an_error_that_nobody_asked_for_is_not_answered(server: &Server) -> Judgement {
    not_answered(server, REPLY | ERROR)
}

/// The bit means nothing in a command: a server may ignore it, refuse it, or part.
fn a_command_with_the_error_bit_does_no_harm(server: &Server) -> Judgement {
    server.session()?.settled_or_ended(&message(1, INFO, ERROR, &wire::device_info(16)), &[])
}

/// As above.
fn a_command_with_reserved_bits_does_no_harm(server: &Server) -> Judgement {
    for bit in [6, 7, 16, 31] {
        server.session()?.settled_or_ended(&message(1, INFO, 1 << bit, &wire::device_info(16)), &[])?;
    }
    Ok(())
}

fn the_errno_of_a_command_is_ignored(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let header = Payload::default().u16(1).u16(INFO).u32(32).u32(COMMAND).u32(22).0;
    client.send(&[header, wire::device_info(16)].concat(), &[])?;
    let reply = client.reply_to(1, INFO)?;
    require!(reply.error.is_none(), "it is refused");
    client.expect_in_step()
}

/// Sends the pieces one after the other.
fn in_pieces<'a>(server: &Server, pieces: impl IntoIterator<Item = &'a [u8]>, ids: &[u16]) -> Judgement {
    let mut client = server.session()?;
    for piece in pieces {
        client.send(piece, &[])?;
        std::thread::sleep(MOMENT);
    }
    for id in ids {
        let reply = client.reply_to(*id, INFO)?;
        require!(reply.error.is_none(), "command {id} is refused");
    }
    client.expect_in_step()
}

/// It is a stream: what a client writes with one call need not arrive with one.
fn a_header_may_come_in_two_halves(server: &Server) -> Judgement {
    let command = info(1);
    let (first, rest) = command.split_at(8);
    let (second, payload) = rest.split_at(8);
    in_pieces(server, [first, second, payload], &[1])
}

fn a_command_may_come_byte_by_byte(server: &Server) -> Judgement {
    in_pieces(server, info(1).chunks(1), &[1])
}

fn a_payload_may_come_in_pieces(server: &Server) -> Judgement {
    let command = info(1);
    let (header, payload) = command.split_at(HEADER);
    in_pieces(server, std::iter::once(header).chain(payload.chunks(3)), &[1])
}

fn commands_may_come_in_pieces_that_are_none(server: &Server) -> Judgement {
    let commands: Vec<_> = (1..=5).flat_map(info).collect();
    in_pieces(server, commands.chunks(37), &[1, 2, 3, 4, 5])
}

/// QEMU reads 16 bytes and gives up if there are fewer.
fn a_replys_header_comes_in_one_piece(server: &Server) -> Judgement {
    let client = server.session()?;
    client.send(&info(1), &[])?;
    let size = client.receive_piece()?;
    require!(size >= HEADER, "the first {size} bytes come alone");
    Ok(())
}

fn commands_that_come_at_once_are_answered_in_order(server: &Server) -> Judgement {
    let mut client = server.session()?;
    client.send(&(1..=100).flat_map(info).collect::<Vec<_>>(), &[])?;
    for id in 1..=100 {
        client.reply_to(id, INFO)?;
    }
    client.expect_in_step()
}

fn good_and_bad_commands_that_come_at_once_are_answered_in_order(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let commands = [
        (INFO, wire::device_info(16), false),
        (command::REGION_READ, wire::access(u32::MAX, 0, 4), true),
        (command::DEVICE_GET_IRQ_INFO, wire::irq_info(16, 0), false),
        (99, vec![0; 40], true),
        (command::DMA_UNMAP, wire::unmap(0, 0x7000_0000, 0x1000), true),
        (command::DEVICE_GET_REGION_INFO, wire::region_info(32, 0), false),
        (command::DEVICE_SET_IRQS, wire::irq_set(0x21, u32::MAX, 0, 1), true),
    ];
    let bytes = commands.iter().flat_map(|(number, payload, _)| message(5, *number, COMMAND, payload));
    client.send(&bytes.collect::<Vec<_>>().repeat(10), &[])?;
    for (number, _, is_bad) in commands.iter().cycle().take(70) {
        let reply = client.reply_to(5, *number)?;
        require!(reply.error.is_some() == *is_bad, "command {number}: {:?}", reply.error);
    }
    client.expect_in_step()
}

fn ids_may_repeat(server: &Server) -> Judgement {
    let mut client = server.session()?;
    client.send(&info(9).repeat(3), &[])?;
    for _ in 0..3 {
        client.reply_to(9, INFO)?;
    }
    client.send(&info(9), &[])?;
    client.reply_to(9, INFO)?;
    client.expect_in_step()
}

fn every_id_is_echoed(server: &Server) -> Judgement {
    let client = server.session()?;
    for id in [0, 1, 0x7fff, 0x8000, u16::MAX] {
        client.send(&info(id), &[])?;
        client.reply_to(id, INFO)?;
    }
    Ok(())
}

/// What comes next is the answer to the next command.
fn unanswered(server: &Server, number: u16, payload: &[u8]) -> Judgement {
    let mut client = server.session()?;
    for _ in 0..3 {
        client.send(&message(1, number, NO_REPLY, payload), &[])?;
    }
    client.expect_in_step()
}

fn a_command_that_wants_no_reply_gets_none(server: &Server) -> Judgement {
    unanswered(server, INFO, &wire::device_info(16))?;
    unanswered(server, command::REGION_READ, &wire::access(7, 0, 4))
}

fn a_bad_command_that_wants_no_reply_gets_no_error(server: &Server) -> Judgement {
    unanswered(server, command::REGION_READ, &wire::access(u32::MAX, 0, 4))?;
    unanswered(server, command::DEVICE_GET_REGION_INFO, &wire::region_info(32, u32::MAX))
}

fn an_unknown_command_that_wants_no_reply_gets_no_error(server: &Server) -> Judgement {
    unanswered(server, 99, &[0; 16])
}

/// Those that have a payload.
fn commands_with_payload() -> [(u16, usize); 9] {
    [
        (INFO, 16),
        (command::DEVICE_GET_REGION_INFO, 32),
        (command::DEVICE_GET_REGION_IO_FDS, 16),
        (command::DEVICE_GET_IRQ_INFO, 16),
        (command::DEVICE_SET_IRQS, 20),
        (command::REGION_READ, 16),
        (command::REGION_WRITE, 16),
        (command::DMA_MAP, 32),
        (command::DMA_UNMAP, 24),
    ]
}

fn a_command_without_its_payload_is_refused(server: &Server) -> Judgement {
    for (number, _) in commands_with_payload() {
        server.session()?.refused_or_ended(&message(1, number, COMMAND, &[]), &[])?;
    }
    Ok(())
}

fn a_command_with_half_its_payload_is_refused(server: &Server) -> Judgement {
    for (number, size) in commands_with_payload() {
        let half = Payload::default().u32(64).bytes(&vec![0; size / 2 - 4]).0;
        server.session()?.refused_or_ended(&message(1, number, COMMAND, &half), &[])?;
    }
    Ok(())
}

fn no_bytes_of_text_are_a_message(server: &Server) -> Judgement {
    let client = server.session()?;
    client.finish_after(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    match client.receive()? {
        Answer::Reply(reply) if reply.error.is_none() => fault("it is carried out"),
        _ => Ok(()),
    }
}

/// 500 replies fit no socket's buffer along with the commands: a server must be able to wait for its client.
fn a_client_that_reads_late_misses_nothing(server: &Server) -> Judgement {
    let config = server.config()?;
    let mut client = server.session()?;
    let read = message(3, command::REGION_READ, COMMAND, &wire::access(config.index, 0, 256));
    client.send(&read.repeat(500), &[])?;
    std::thread::sleep(MOMENT);
    for _ in 0..500 {
        let reply = client.reply_to(3, command::REGION_READ)?;
        require!(reply.payload.len() == 16 + 256, "{} bytes", reply.payload.len());
    }
    client.expect_in_step()
}

fn a_client_that_asks_and_will_ask_no_more_is_answered_or_parted_from(server: &Server) -> Judgement {
    let client = server.session()?;
    client.finish_after(&info(1))?;
    if let Answer::Reply(reply) = client.receive()? {
        require!((reply.id, reply.command) == (1, INFO), "a reply to something else");
        require!(matches!(client.receive()?, Answer::End), "another reply");
    }
    Ok(())
}
