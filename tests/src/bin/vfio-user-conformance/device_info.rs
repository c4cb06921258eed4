// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_GET_INFO`.

use crate::case::{Case, Judgement, cases, fault, not_applicable, require};
use crate::client::{Client, Reply};
use crate::server::{IS_PCI, Server};
use crate::wire::{self, COMMAND, Payload, command, message, u32_at, words};
use crate::witness::Pipe;

const INFO: u16 = command::DEVICE_GET_INFO;
/// Size of the reply in bytes.
const SIZE: u32 = 16;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        the_reply_has_16_bytes,
        the_device_is_described_alike_each_time,
        it_is_of_one_kind,
        a_pci_device_has_the_regions_that_qemu_asks_for,
        a_pci_device_has_the_interrupts_that_qemu_asks_for,
        there_are_no_more_regions_and_interrupts_than_qemu_takes,
        room_for_more_than_the_reply_is_fine,
        cloud_hypervisors_count_with_the_header_is_fine,
        without_room_for_the_reply_it_is_not_sent,
        a_payload_that_is_too_short_is_refused,
        a_payload_that_is_too_long_is_not_taken_for_headers,
        fields_that_should_be_zero_change_nothing,
        a_descriptor_with_it_is_not_kept,
    ]
}

/// What there is room for.
fn info(client: &mut Client, argsz: u32) -> Judgement<Reply> {
    let reply = client.done(INFO, &wire::device_info(argsz), &[])?;
    require!(reply.payload.len() == 16, "{} bytes", reply.payload.len());
    require!(u32_at(&reply.payload, 0)? == SIZE, "it says that it has {} bytes", u32_at(&reply.payload, 0)?);
    Ok(reply)
}

fn the_reply_has_16_bytes(server: &Server) -> Judgement {
    info(&mut server.session()?, SIZE).map(drop)
}

fn the_device_is_described_alike_each_time(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let first = info(&mut client, SIZE)?.payload;
    require!(info(&mut client, SIZE)?.payload == first, "the second time otherwise");
    drop(client);
    require!(info(&mut server.session()?, SIZE)?.payload == first, "to the next client otherwise");
    Ok(())
}

/// Platform, AMBA, CCW, AP, FSL and CDX devices are no PCI devices.
fn it_is_of_one_kind(server: &Server) -> Judgement {
    let kind = server.device.flags & 0x1fe & !(1 << 7);
    require!(kind.count_ones() <= 1, "flags {:#x}", server.device.flags);
    Ok(())
}

fn is_pci(server: &Server) -> Judgement {
    if server.device.flags & IS_PCI == 0 {
        return not_applicable("it is no PCI device");
    }
    Ok(())
}

/// The BARs, the ROM and the config space.
fn a_pci_device_has_the_regions_that_qemu_asks_for(server: &Server) -> Judgement {
    is_pci(server)?;
    require!(server.device.regions.len() >= 8, "{} regions", server.device.regions.len());
    Ok(())
}

/// `INTx`, MSI and MSI-X.
fn a_pci_device_has_the_interrupts_that_qemu_asks_for(server: &Server) -> Judgement {
    is_pci(server)?;
    require!(server.device.irqs.len() >= 3, "{} interrupt indexes", server.device.irqs.len());
    Ok(())
}

fn there_are_no_more_regions_and_interrupts_than_qemu_takes(server: &Server) -> Judgement {
    let (regions, irqs) = (server.device.regions.len(), server.device.irqs.len());
    require!(regions <= 100 && irqs <= 50, "{regions} regions and {irqs} interrupt indexes");
    Ok(())
}

fn room_for_more_than_the_reply_is_fine(server: &Server) -> Judgement {
    let mut client = server.session()?;
    [17, 24, 4096, u32::MAX].into_iter().try_for_each(|argsz| info(&mut client, argsz).map(drop))
}

fn cloud_hypervisors_count_with_the_header_is_fine(server: &Server) -> Judgement {
    info(&mut server.session()?, 32).map(drop)
}

/// A server may refuse, or say how much room it takes.
fn without_room_for_the_reply_it_is_not_sent(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for argsz in [0, 1, 4, 15] {
        if let Some(reply) = client.settled(INFO, &wire::device_info(argsz), &[])? {
            require!(u32_at(&reply.payload, 0)? == SIZE, "it does not say how much room it takes");
        }
    }
    Ok(())
}

fn a_payload_that_is_too_short_is_refused(server: &Server) -> Judgement {
    for size in [1, 4, 12, 15] {
        let payload = wire::device_info(16);
        let Some(short) = payload.get(..size) else { return fault("a test of nothing") };
        server.session()?.refused_or_ended(&message(1, INFO, COMMAND, short), &[])?;
    }
    Ok(())
}

/// A server may ignore the rest, or refuse the command.
fn a_payload_that_is_too_long_is_not_taken_for_headers(server: &Server) -> Judgement {
    let mut client = server.session()?;
    for size in [17, 32, 64, 1000] {
        let long = Payload(wire::device_info(16)).bytes(&vec![0; size - 16]).0;
        client.settled(INFO, &long, &[])?;
    }
    Ok(())
}

/// A server may refuse it.
fn fields_that_should_be_zero_change_nothing(server: &Server) -> Judgement {
    let mut client = server.session()?;
    let expected = info(&mut client, SIZE)?.payload;
    if let Some(reply) = client.settled(INFO, &words([16, u32::MAX, u32::MAX, u32::MAX]), &[])? {
        require!(reply.payload == expected, "the device is described otherwise");
    }
    Ok(())
}

fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let mut client = server.session()?;
    client.settled(INFO, &wire::device_info(16), &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
