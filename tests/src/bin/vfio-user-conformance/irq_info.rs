// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_GET_IRQ_INFO`.

use crate::case::{Case, Judgement, cases, require};
use crate::client::Client;
use crate::server::{IS_PCI, Irq, Server};
use crate::wire::{self, COMMAND, Payload, command, message, u32_at, words};

const IRQ_INFO: u16 = command::DEVICE_GET_IRQ_INFO;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        every_index_is_described,
        an_index_is_described_alike_each_time,
        an_index_beyond_the_last_is_refused,
        interrupts_come_through_eventfds,
        what_masks_itself_can_be_masked,
        a_pci_device_has_no_more_interrupts_than_there_can_be,
        room_for_more_than_the_reply_is_fine,
        without_room_for_the_reply_it_is_not_sent,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
        fields_that_should_be_zero_change_nothing,
    ]
}

fn count(server: &Server) -> u32 {
    u32::try_from(server.device.irqs.len()).unwrap_or(u32::MAX)
}

fn info(client: &mut Client, argsz: u32, index: u32) -> Judgement<Vec<u8>> {
    let reply = client.done(IRQ_INFO, &wire::irq_info(argsz, index), &[])?.payload;
    require!(reply.len() == 16, "{} bytes", reply.len());
    let (argsz, flags, told) = (u32_at(&reply, 0)?, u32_at(&reply, 4)?, u32_at(&reply, 8)?);
    require!(argsz == 16, "it says that it has {argsz} bytes");
    require!(flags & !0xf == 0, "flags {flags:#x}");
    require!(told == index, "index {told} instead of {index}");
    Ok(reply)
}

fn every_index_is_described(server: &Server) -> Judgement {
    let mut client = server.session()?;
    (0..count(server)).try_for_each(|index| info(&mut client, 16, index).map(drop))
}

fn an_index_is_described_alike_each_time(server: &Server) -> Judgement {
    let (mut client, mut again) = (server.session()?, Vec::new());
    for index in 0..count(server) {
        again.push(info(&mut client, 16, index)?);
    }
    for (index, expected) in (0..count(server)).zip(again) {
        require!(info(&mut client, 16, index)? == expected, "index {index} is described otherwise");
    }
    Ok(())
}

fn an_index_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for index in [count(server), count(server) + 1, 0x7fff_ffff, u32::MAX] {
        client.refused(IRQ_INFO, &wire::irq_info(16, index), &[])?;
    }
    Ok(())
}

fn interrupts_come_through_eventfds(server: &Server) -> Judgement {
    for Irq { index, flags, .. } in server.device.irqs.iter().filter(|irq| irq.count > 0) {
        require!(flags & Irq::EVENTFD != 0, "those of index {index} do not");
    }
    Ok(())
}

fn what_masks_itself_can_be_masked(server: &Server) -> Judgement {
    for Irq { index, flags, .. } in &server.device.irqs {
        require!(flags & 4 == 0 || flags & Irq::MASKABLE != 0, "flags {flags:#x} of index {index}");
    }
    Ok(())
}

fn a_pci_device_has_no_more_interrupts_than_there_can_be(server: &Server) -> Judgement {
    if server.device.flags & IS_PCI != 0 {
        for (irq, most) in server.device.irqs.iter().zip([1, 32, 2048, 1, 1]) {
            require!(irq.count <= most, "{} of index {}", irq.count, irq.index);
        }
    }
    Ok(())
}

fn room_for_more_than_the_reply_is_fine(server: &Server) -> Judgement {
    let mut client = server.session()?;
    [17, 32, 4096, u32::MAX].into_iter().try_for_each(|argsz| info(&mut client, argsz, 0).map(drop))
}

/// A server may refuse, or say how much room it takes.
fn without_room_for_the_reply_it_is_not_sent(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for argsz in [0, 1, 15] {
        if let Some(reply) = client.settled(IRQ_INFO, &wire::irq_info(argsz, 0), &[])? {
            require!(u32_at(&reply.payload, 0)? == 16, "it does not say how much room it takes");
        }
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 12, 15] {
        let mut short = wire::irq_info(16, 0);
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, IRQ_INFO, COMMAND, &short), &[])?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for more in [1, 16, 48, 1000] {
        let long = Payload(wire::irq_info(16, 0)).bytes(&vec![0; more]).0;
        client.settled(IRQ_INFO, &long, &[])?;
    }
    Ok(())
}

/// A server may refuse it.
fn fields_that_should_be_zero_change_nothing(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let expected = info(&mut client, 16, 0)?;
    if let Some(reply) = client.settled(IRQ_INFO, &words([16, u32::MAX, 0, u32::MAX]), &[])? {
        require!(reply.payload == expected, "the index is described otherwise");
    }
    Ok(())
}
