// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that go at any time. Each case ends like all others: the next client is served.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::case::{Case, Judgement, cases, require};
use crate::dma_map::{BASE, BOTH, mapped};
use crate::server::Server;
use crate::wire::{self, COMMAND, NO_REPLY, command, irq_set, map, message};
use crate::witness::{Eventfd, Memory};

/// How long is waited for a signal that should not come.
const QUIET: Duration = Duration::from_millis(20);
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
const EVENTFD: u32 = 0x24;
/// `VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER`.
const FIRE: u32 = 0x21;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        a_client_may_say_nothing,
        a_client_may_go_in_the_middle_of_a_header,
        a_client_may_go_in_the_middle_of_a_payload,
        a_client_may_go_in_the_middle_of_version,
        a_client_may_go_without_reading_a_reply,
        a_client_may_go_without_reading_many_replies,
        a_client_may_go_right_after_it_asked_for_a_reset,
        a_client_may_go_behind_a_reset_and_more,
        a_client_may_go_right_after_it_asked_for_memory,
        a_client_may_go_right_after_posted_writes,
        a_client_may_go_while_a_large_write_is_under_way,
        fifty_clients_may_come_and_go,
        memory_of_a_client_that_is_gone_is_released,
        memory_of_a_client_that_is_gone_is_in_nobodys_way,
        interrupts_of_a_client_that_is_gone_are_off,
        the_next_client_is_in_no_session,
    ]
}

fn info(id: u16) -> Vec<u8> {
    message(id, command::DEVICE_GET_INFO, COMMAND, &wire::device_info(16))
}

/// A client that has said hello, sends this, and goes at once. The next one must be served.
fn sends_and_goes(server: &Server, bytes: &[u8]) -> Judgement {
    let client = server.session()?;
    client.try_send(bytes, &[])?;
    client.abandon();
    server.session()?.expect_in_step()
}

fn a_client_may_say_nothing(server: &Server) -> Judgement {
    for _ in 0..5 {
        server.connect()?.abandon();
    }
    server.session()?.expect_in_step()
}

fn a_client_may_go_in_the_middle_of_a_header(server: &Server) -> Judgement {
    (1..16).step_by(5).try_for_each(|length| sends_and_goes(server, &info(1)[..length]))
}

fn a_client_may_go_in_the_middle_of_a_payload(server: &Server) -> Judgement {
    (16..32).step_by(5).try_for_each(|length| sends_and_goes(server, &info(1)[..length]))
}

fn a_client_may_go_in_the_middle_of_version(server: &Server) -> Judgement {
    let version = message(1, command::VERSION, COMMAND, &wire::version(0, crate::server::QEMU));
    for length in [1, 15, 16, 18, 40, version.len() - 1, version.len()] {
        let client = server.connect()?;
        client.try_send(&version[..length], &[])?;
        client.abandon();
    }
    server.session()?.expect_in_step()
}

fn a_client_may_go_without_reading_a_reply(server: &Server) -> Judgement {
    sends_and_goes(server, &info(1))
}

fn a_client_may_go_without_reading_many_replies(server: &Server) -> Judgement {
    sends_and_goes(server, &(0..200).flat_map(info).collect::<Vec<_>>())
}

fn a_client_may_go_right_after_it_asked_for_a_reset(server: &Server) -> Judgement {
    for _ in 0..5 {
        sends_and_goes(server, &message(1, command::DEVICE_RESET, COMMAND, &[]))?;
    }
    Ok(())
}

fn a_client_may_go_behind_a_reset_and_more(server: &Server) -> Judgement {
    let reset = message(1, command::DEVICE_RESET, COMMAND, &[]);
    sends_and_goes(server, &[reset.clone(), info(2), reset, info(3)[..20].to_vec()].concat())
}

fn a_client_may_go_right_after_it_asked_for_memory(server: &Server) -> Judgement {
    let size = 64 * server.page();
    for _ in 0..5 {
        let (client, memory) = (server.session()?, Memory::new(size));
        client.send(&message(1, command::DMA_MAP, COMMAND, &map(BOTH, 0, BASE, size)), &[memory.as_fd()])?;
        client.abandon();
        is_released(server, &memory)?;
    }
    Ok(())
}

fn a_client_may_go_right_after_posted_writes(server: &Server) -> Judgement {
    sends_and_goes(
        server,
        &message(1, command::REGION_WRITE, NO_REPLY, &wire::write(7, 0x3c, &[1])).repeat(50),
    )
}

fn a_client_may_go_while_a_large_write_is_under_way(server: &Server) -> Judgement {
    let size = usize::try_from(server.max_data().min(1 << 20)).unwrap_or(1 << 20);
    let write = message(1, command::REGION_WRITE, COMMAND, &wire::write(7, 0, &vec![0; size]));
    sends_and_goes(server, &write[..size / 2])
}

fn fifty_clients_may_come_and_go(server: &Server) -> Judgement {
    (0..50).try_for_each(|_| server.session()?.expect_in_step())
}

fn is_released(server: &Server, memory: &Memory) -> Judgement {
    let deadline = Instant::now() + server.patience();
    while !memory.is_released() {
        require!(Instant::now() < deadline, "something can still write to the memory");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn memory_of_a_client_that_is_gone_is_released(server: &Server) -> Judgement {
    let size = 16 * server.page();
    let (mut client, memory) = (server.session()?, Memory::new(size));
    mapped(&mut client, &map(BOTH, 0, BASE, size), &[memory.as_fd()])?;
    client.abandon();
    is_released(server, &memory)
}

fn memory_of_a_client_that_is_gone_is_in_nobodys_way(server: &Server) -> Judgement {
    let size = 16 * server.page();
    for _ in 0..3 {
        let (mut client, memory) = (server.session()?, Memory::new(size));
        mapped(&mut client, &map(BOTH, 0, BASE, size), &[memory.as_fd()])?;
        mapped(&mut client, &map(BOTH, 0, BASE + size, server.page()), &[])?;
        client.abandon();
    }
    Ok(())
}

/// Whether an interrupt without an eventfd can be fired is the server's choice.
fn interrupts_of_a_client_that_is_gone_are_off(server: &Server) -> Judgement {
    let (irq, eventfd) = (server.irq()?, Eventfd::new());
    let mut client = server.session()?;
    let arm = irq_set(EVENTFD, irq.index, 0, 1);
    client.done(command::DEVICE_SET_IRQS, &arm, &[eventfd.as_fd().as_fd()])?;
    client.abandon();
    let mut next = server.session()?;
    next.settled(command::DEVICE_SET_IRQS, &irq_set(FIRE, irq.index, 0, 1), &[])?;
    std::thread::sleep(QUIET);
    require!(!eventfd.is_signalled(), "the eventfd of the client before is signalled");
    let own = Eventfd::new();
    next.done(command::DEVICE_SET_IRQS, &arm, &[own.as_fd()])?;
    next.done(command::DEVICE_SET_IRQS, &irq_set(FIRE, irq.index, 0, 1), &[])?;
    require!(own.is_signalled_within(server.patience()), "its own eventfd is not signalled");
    require!(!eventfd.is_signalled(), "the eventfd of the client before is signalled");
    Ok(())
}

/// What was agreed with one client is not agreed with the next.
fn the_next_client_is_in_no_session(server: &Server) -> Judgement {
    server.session()?.abandon();
    server.session()?.expect_in_step()?;
    server.connect()?.refused_or_ended(&info(1), &[])
}
