// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_SET_IRQS`: who is signalled, and what is no change of interrupts.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::case::{Case, Judgement, cases, not_applicable, require};
use crate::client::Client;
use crate::server::{Irq, Server};
use crate::wire::{self, COMMAND, NO_REPLY, Payload, command, irq_set, message};
use crate::witness::{Eventfd, Memory, Pipe};

const SET_IRQS: u16 = command::DEVICE_SET_IRQS;
const NONE: u32 = 1;
const BOOL: u32 = 1 << 1;
const EVENTFD: u32 = 1 << 2;
const MASK: u32 = 1 << 3;
const UNMASK: u32 = 1 << 4;
const TRIGGER: u32 = 1 << 5;
/// How long is waited for a signal that should not come. The server has answered by then.
const QUIET: Duration = Duration::from_millis(20);

pub(crate) fn cases() -> Vec<Case> {
    cases![
        an_interrupt_that_is_fired_signals_its_eventfd,
        each_interrupt_signals_its_own_eventfd,
        interrupts_with_a_boolean_are_fired_where_it_is_true,
        a_second_eventfd_takes_the_place_of_the_first,
        as_many_eventfds_as_the_server_takes_come_with_one_message,
        more_eventfds_than_one_message_takes_come_with_several,
        an_interrupt_without_a_descriptor_loses_its_eventfd,
        an_index_that_is_disabled_signals_nobody,
        an_index_is_disabled_twice,
        an_index_is_enabled_after_it_was_disabled,
        a_change_that_wants_no_reply_is_done,
        an_index_beyond_the_last_is_refused,
        a_first_interrupt_beyond_the_last_is_refused,
        a_last_interrupt_beyond_the_last_is_refused,
        a_sum_that_wraps_around_is_refused,
        four_billion_interrupts_are_refused,
        two_kinds_of_data_are_refused,
        no_kind_of_data_is_refused,
        two_actions_are_refused,
        no_action_is_refused,
        flags_that_do_not_exist_are_refused,
        booleans_for_no_interrupts_are_refused_or_nothing,
        eventfds_for_no_interrupts_are_refused_or_closed,
        fewer_booleans_than_interrupts_are_refused,
        more_booleans_than_interrupts_are_not_taken_for_headers,
        a_descriptor_without_the_flag_for_it_is_not_kept,
        fewer_eventfds_than_interrupts_are_refused_or_nothing_more,
        more_eventfds_than_interrupts_are_not_kept,
        what_is_no_eventfd_is_not_kept_by_a_refusal,
        interrupts_that_can_be_masked_are_masked_and_unmasked,
        masking_what_cannot_be_masked_is_answered,
        a_payload_that_is_too_short_is_refused,
        an_argsz_that_does_not_fit_does_no_harm,
    ]
}

fn eventfds(count: u32) -> Vec<Eventfd> {
    (0..count).map(|_| Eventfd::new()).collect()
}

fn ends(eventfds: &[Eventfd]) -> Vec<BorrowedFd<'_>> {
    eventfds.iter().map(Eventfd::as_fd).collect()
}

/// Gives each of the interrupts from `start` on its eventfd.
fn arm(client: &mut Client, index: u32, start: u32, eventfds: &[Eventfd]) -> Judgement {
    let count = u32::try_from(eventfds.len()).unwrap_or(u32::MAX);
    let reply = client.done(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, start, count), &ends(eventfds))?;
    require!(reply.payload.is_empty(), "{} bytes come with the reply", reply.payload.len());
    Ok(())
}

/// An armed index of a device that may mask itself: a level interrupt is unmasked before it is fired.
fn fire(client: &mut Client, index: u32, start: u32, count: u32) -> Judgement {
    client.done(SET_IRQS, &irq_set(NONE | TRIGGER, index, start, count), &[]).map(drop)
}

fn is_signalled(server: &Server, eventfd: &Eventfd) -> Judgement {
    require!(eventfd.is_signalled_within(server.patience()), "the eventfd is not signalled");
    Ok(())
}

fn is_quiet(eventfds: &[Eventfd]) -> Judgement {
    std::thread::sleep(QUIET);
    require!(!eventfds.iter().any(Eventfd::is_signalled), "an eventfd is signalled");
    Ok(())
}

fn refused(server: &Server, payload: &[u8]) -> Judgement {
    server.session()?.refused(SET_IRQS, payload, &[]).map(drop)
}

fn an_interrupt_that_is_fired_signals_its_eventfd(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    arm(&mut client, index, 0, &eventfds)?;
    is_quiet(&eventfds)?;
    fire(&mut client, index, 0, 1)?;
    is_signalled(server, &eventfds[0])
}

fn each_interrupt_signals_its_own_eventfd(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq_of(2)?;
    let (mut client, eventfds) = (server.session()?, eventfds(2));
    for (start, eventfd) in (0..).zip([&eventfds[..1], &eventfds[1..]]) {
        if start == 0 && server.max_descriptors() >= 2 {
            arm(&mut client, index, 0, &eventfds)?;
        } else if server.max_descriptors() < 2 {
            arm(&mut client, index, start, eventfd)?;
        }
    }
    fire(&mut client, index, 1, 1)?;
    is_signalled(server, &eventfds[1])?;
    is_quiet(&eventfds[..1])
}

fn interrupts_with_a_boolean_are_fired_where_it_is_true(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq_of(2)?;
    if server.max_descriptors() < 2 {
        return not_applicable("the server takes one descriptor with a message");
    }
    let (mut client, eventfds) = (server.session()?, eventfds(2));
    arm(&mut client, index, 0, &eventfds)?;
    let payload = Payload(wire::words([22, BOOL | TRIGGER, index, 0, 2])).bytes(&[0, 1]).0;
    client.done(SET_IRQS, &payload, &[])?;
    is_signalled(server, &eventfds[1])?;
    is_quiet(&eventfds[..1])
}

fn a_second_eventfd_takes_the_place_of_the_first(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, eventfds) = (server.session()?, eventfds(2));
    arm(&mut client, index, 0, &eventfds[..1])?;
    arm(&mut client, index, 0, &eventfds[1..])?;
    fire(&mut client, index, 0, 1)?;
    is_signalled(server, &eventfds[1])?;
    is_quiet(&eventfds[..1])
}

fn as_many_eventfds_as_the_server_takes_come_with_one_message(server: &Server) -> Judgement {
    let Irq { index, count, .. } = server.irq()?;
    let count = count.min(u32::try_from(server.max_descriptors()).unwrap_or(u32::MAX));
    let (mut client, eventfds) = (server.session()?, eventfds(count));
    arm(&mut client, index, 0, &eventfds)?;
    fire(&mut client, index, 0, count)?;
    eventfds.iter().try_for_each(|eventfd| is_signalled(server, eventfd))
}

/// QEMU splits what does not fit.
fn more_eventfds_than_one_message_takes_come_with_several(server: &Server) -> Judgement {
    let room = u32::try_from(server.max_descriptors()).unwrap_or(u32::MAX);
    let Irq { index, .. } = server.irq_of(room.saturating_add(1))?;
    let (mut client, eventfds) = (server.session()?, eventfds(room + 1));
    let (first, rest) = eventfds.split_at(server.max_descriptors());
    arm(&mut client, index, 0, first)?;
    arm(&mut client, index, room, rest)?;
    fire(&mut client, index, room, 1)?;
    is_signalled(server, &rest[0])?;
    fire(&mut client, index, 0, 1)?;
    is_signalled(server, &first[0])
}

/// Whether the interrupt can be fired without an eventfd is the server's choice.
fn an_interrupt_without_a_descriptor_loses_its_eventfd(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    arm(&mut client, index, 0, &eventfds)?;
    client.done(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, 0, 1), &[])?;
    client.settled(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 1), &[])?;
    is_quiet(&eventfds)
}

/// As above.
fn an_index_that_is_disabled_signals_nobody(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    arm(&mut client, index, 0, &eventfds)?;
    client.done(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 0), &[])?;
    client.settled(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 1), &[])?;
    is_quiet(&eventfds)
}

/// The second time there is nothing to disable, which a server may say.
fn an_index_is_disabled_twice(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let mut client = server.session()?;
    arm(&mut client, index, 0, &eventfds(1))?;
    client.done(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 0), &[])?;
    client.settled(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 0), &[]).map(drop)
}

fn an_index_is_enabled_after_it_was_disabled(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    for _ in 0..3 {
        arm(&mut client, index, 0, &eventfds)?;
        fire(&mut client, index, 0, 1)?;
        is_signalled(server, &eventfds[0])?;
        client.done(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 0), &[])?;
    }
    Ok(())
}

fn a_change_that_wants_no_reply_is_done(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    let bytes = message(1, SET_IRQS, NO_REPLY, &irq_set(EVENTFD | TRIGGER, index, 0, 1));
    client.send(&bytes, &ends(&eventfds))?;
    fire(&mut client, index, 0, 1)?;
    is_signalled(server, &eventfds[0])
}

fn an_index_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let count = u32::try_from(server.device.irqs.len()).unwrap_or(u32::MAX);
    for index in [count, count + 1, 0x7fff_ffff, u32::MAX] {
        refused(server, &irq_set(NONE | TRIGGER, index, 0, 1))?;
    }
    Ok(())
}

fn a_first_interrupt_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let Irq { index, count, .. } = server.irq()?;
    for start in [count, count + 1, u32::MAX - 1] {
        refused(server, &irq_set(EVENTFD | TRIGGER, index, start, 1))?;
    }
    Ok(())
}

fn a_last_interrupt_beyond_the_last_is_refused(server: &Server) -> Judgement {
    let Irq { index, count, .. } = server.irq()?;
    for (start, count) in [(0, count + 1), (count - 1, 2), (0, 0xffff)] {
        refused(server, &irq_set(EVENTFD | TRIGGER, index, start, count))?;
    }
    Ok(())
}

fn a_sum_that_wraps_around_is_refused(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    for (start, count) in [(u32::MAX, 1), (u32::MAX, 2), (2, u32::MAX), (0x8000_0000, 0x8000_0000)] {
        for flags in [EVENTFD | TRIGGER, NONE | TRIGGER, NONE | MASK] {
            refused(server, &irq_set(flags, index, start, count))?;
        }
    }
    Ok(())
}

fn four_billion_interrupts_are_refused(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    for flags in [EVENTFD | TRIGGER, NONE | TRIGGER, BOOL | TRIGGER] {
        refused(server, &irq_set(flags, index, 0, u32::MAX))?;
    }
    Ok(())
}

fn flags_are_refused(server: &Server, flags: &[u32]) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    flags.iter().try_for_each(|flags| refused(server, &irq_set(*flags, index, 0, 1)))
}

fn two_kinds_of_data_are_refused(server: &Server) -> Judgement {
    flags_are_refused(
        server,
        &[NONE | EVENTFD | TRIGGER, NONE | BOOL | TRIGGER, NONE | BOOL | EVENTFD | TRIGGER],
    )
}

fn no_kind_of_data_is_refused(server: &Server) -> Judgement {
    flags_are_refused(server, &[TRIGGER, MASK, UNMASK])
}

fn two_actions_are_refused(server: &Server) -> Judgement {
    flags_are_refused(server, &[NONE | MASK | UNMASK, NONE | MASK | TRIGGER, NONE | MASK | UNMASK | TRIGGER])
}

fn no_action_is_refused(server: &Server) -> Judgement {
    flags_are_refused(server, &[0, NONE, EVENTFD])
}

fn flags_that_do_not_exist_are_refused(server: &Server) -> Judgement {
    flags_are_refused(server, &[NONE | TRIGGER | 1 << 6, NONE | TRIGGER | 1 << 31, u32::MAX])
}

fn booleans_for_no_interrupts_are_refused_or_nothing(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    server.session()?.settled(SET_IRQS, &irq_set(BOOL | TRIGGER, index, 0, 0), &[]).map(drop)
}

fn eventfds_for_no_interrupts_are_refused_or_closed(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let mut client = server.session()?;
    let mut pipe = Pipe::new();
    client.settled(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, 0, 0), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}

fn fewer_booleans_than_interrupts_are_refused(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    refused(server, &wire::words([21, BOOL | TRIGGER, index, 0, 1]))
}

/// A server may ignore the rest, or refuse the command.
fn more_booleans_than_interrupts_are_not_taken_for_headers(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let mut client = server.session()?;
    for count in [2, 16, 48, 1000] {
        let payload = Payload(wire::words([21, BOOL | TRIGGER, index, 0, 1])).bytes(&vec![0; count]).0;
        client.settled(SET_IRQS, &payload, &[])?;
    }
    Ok(())
}

fn a_descriptor_without_the_flag_for_it_is_not_kept(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let mut client = server.session()?;
    let mut pipe = Pipe::new();
    client.settled(SET_IRQS, &irq_set(NONE | TRIGGER, index, 0, 0), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}

/// A server may refuse, or take the missing ones for none: they must not be those of another message.
fn fewer_eventfds_than_interrupts_are_refused_or_nothing_more(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq_of(2)?;
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    client.settled(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, 0, 2), &ends(&eventfds))?;
    client.settled(SET_IRQS, &irq_set(NONE | TRIGGER, index, 1, 1), &[])?;
    is_quiet(&eventfds)
}

/// A server may refuse, or close those that belong to no interrupt.
fn more_eventfds_than_interrupts_are_not_kept(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    if server.max_descriptors() < 2 {
        return not_applicable("the server takes one descriptor with a message");
    }
    let (mut client, eventfd) = (server.session()?, Eventfd::new());
    let mut pipe = Pipe::new();
    let descriptors = [eventfd.as_fd(), pipe.end()];
    client.settled(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, 0, 1), &descriptors)?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}

/// A server that writes the signals by itself may take anything.
fn what_is_no_eventfd_is_not_kept_by_a_refusal(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, memory) = (server.session()?, Memory::new(4096));
    client.settled(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, 0, 1), &[memory.as_fd()])?;
    let mut pipe = Pipe::new();
    let is_taken = client.settled(SET_IRQS, &irq_set(EVENTFD | TRIGGER, index, 0, 1), &[pipe.end()])?;
    require!(
        is_taken.is_some() || pipe.is_closed_within(server.patience()),
        "the server refuses a descriptor and keeps it"
    );
    Ok(())
}

fn interrupts_that_can_be_masked_are_masked_and_unmasked(server: &Server) -> Judgement {
    let is_usable = |irq: &&Irq| irq.index < 3 && irq.count > 0 && irq.flags & Irq::MASKABLE != 0;
    let Some(irq) = server.device.irqs.iter().find(is_usable) else {
        return not_applicable("the device has no interrupt that can be masked");
    };
    let (mut client, eventfds) = (server.session()?, eventfds(1));
    arm(&mut client, irq.index, 0, &eventfds)?;
    for action in [MASK, UNMASK, MASK, MASK, UNMASK, UNMASK] {
        client.done(SET_IRQS, &irq_set(NONE | action, irq.index, 0, 1), &[])?;
    }
    fire(&mut client, irq.index, 0, 1)?;
    is_signalled(server, &eventfds[0])
}

fn masking_what_cannot_be_masked_is_answered(server: &Server) -> Judgement {
    let Some(irq) = server.device.irqs.iter().find(|irq| irq.count > 0 && irq.flags & Irq::MASKABLE == 0)
    else {
        return not_applicable("the device has no interrupt that cannot be masked");
    };
    let mut client = server.session()?;
    for action in [MASK, UNMASK] {
        client.settled(SET_IRQS, &irq_set(NONE | action, irq.index, 0, 1), &[])?;
        let eventfd = Eventfd::new();
        client.settled(SET_IRQS, &irq_set(EVENTFD | action, irq.index, 0, 1), &[eventfd.as_fd()])?;
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 8, 16, 19] {
        let mut short = irq_set(NONE | TRIGGER, 0, 0, 0);
        short.truncate(size);
        server.session()?.refused_or_ended(&message(1, SET_IRQS, COMMAND, &short), &[])?;
    }
    Ok(())
}

/// The size of the payload is told by the header, too: a server may ignore `argsz`.
fn an_argsz_that_does_not_fit_does_no_harm(server: &Server) -> Judgement {
    let Irq { index, .. } = server.irq()?;
    let (mut client, memory) = (server.session()?, Eventfd::new());
    for argsz in [0, 19, 21, u32::MAX] {
        let payload = wire::words([argsz, EVENTFD | TRIGGER, index, 0, 1]);
        client.settled(SET_IRQS, &payload, &[memory.as_fd().as_fd()])?;
    }
    Ok(())
}
