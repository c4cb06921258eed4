// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second client while a device has one. A server may say that it is busy, part from it, or let it wait until the first has
//! gone; it does not serve both.

use std::time::Duration;

use crate::case::{Case, Judgement, cases, fault, require};
use crate::client::{Answer, Client};
use crate::dma_map::{BASE, BOTH, mapped};
use crate::server::{QEMU, Server};
use crate::wire::{self, COMMAND, command, irq_set, map, message};
use crate::witness::{Eventfd, Memory};

/// How long a second client waits before it is taken for one that the server lets wait.
const SHORT: Duration = Duration::from_millis(200);

pub(crate) fn cases() -> Vec<Case> {
    cases![
        a_second_client_is_not_served,
        a_second_client_does_not_touch_the_firsts_interrupts,
        a_second_client_does_not_touch_the_firsts_memory,
        ten_more_clients_do_the_first_no_harm,
        second_clients_that_say_nothing_do_no_harm,
        a_client_that_comes_when_the_first_has_gone_is_served,
    ]
}

/// Connects beside another client and says hello.
fn second(server: &Server) -> Judgement<Client> {
    let client = server.connect()?;
    client.set_patience(SHORT)?;
    client.try_send(&message(1, command::VERSION, COMMAND, &wire::version(0, QEMU)), &[])?;
    if client.waits()? {
        return Ok(client);
    }
    match client.receive()? {
        Answer::Reply(reply) if reply.error.is_none() => fault("two clients have the device"),
        _ => Ok(client),
    }
}

fn a_second_client_is_not_served(server: &Server) -> Judgement {
    let mut first = server.session()?;
    let second = second(server)?;
    first.expect_in_step()?;
    second.abandon();
    first.expect_in_step()
}

fn a_second_client_does_not_touch_the_firsts_interrupts(server: &Server) -> Judgement {
    let (irq, eventfd) = (server.irq()?, Eventfd::new());
    let mut first = server.session()?;
    first.done(command::DEVICE_SET_IRQS, &irq_set(0x24, irq.index, 0, 1), &[eventfd.as_fd()])?;
    second(server)?.abandon();
    first.done(command::DEVICE_SET_IRQS, &irq_set(0x21, irq.index, 0, 1), &[])?;
    require!(eventfd.is_signalled_within(server.patience()), "the first client's eventfd is not signalled");
    Ok(())
}

fn a_second_client_does_not_touch_the_firsts_memory(server: &Server) -> Judgement {
    let (mut first, page) = (server.session()?, server.page());
    let memory = Memory::new(page);
    mapped(&mut first, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
    second(server)?.abandon();
    first.refused(command::DMA_MAP, &map(BOTH, 0, BASE, page), &[memory.as_fd()])?;
    first.done(command::DMA_UNMAP, &wire::unmap(0, BASE, page), &[]).map(drop)
}

fn ten_more_clients_do_the_first_no_harm(server: &Server) -> Judgement {
    let mut first = server.session()?;
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(second(server)?);
        first.expect_in_step()?;
    }
    others.into_iter().for_each(Client::abandon);
    first.expect_in_step()
}

fn second_clients_that_say_nothing_do_no_harm(server: &Server) -> Judgement {
    let mut first = server.session()?;
    let silent: Vec<_> = (0..5).map(|_| server.connect()).collect::<Judgement<_>>()?;
    first.expect_in_step()?;
    silent.into_iter().for_each(Client::abandon);
    first.expect_in_step()
}

fn a_client_that_comes_when_the_first_has_gone_is_served(server: &Server) -> Judgement {
    for _ in 0..3 {
        let first = server.session()?;
        second(server)?.abandon();
        drop(first);
        server.session()?.expect_in_step()?;
    }
    Ok(())
}
