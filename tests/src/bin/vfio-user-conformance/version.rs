// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VERSION`: what both ends agree on, and what nobody can agree with.

use serde_json::{Map, Value};

use crate::case::{Case, Judgement, cases, fault, require};
use crate::client::{Answer, Client, Reply};
use crate::server::{QEMU, Server, capabilities};
use crate::wire::{self, COMMAND, HEADER, NO_REPLY, Payload, command, message, u16_at, version};
use crate::witness::Pipe;

/// What Cloud Hypervisor's client says first.
const CLOUD_HYPERVISOR: &str =
    r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}"#;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        the_minor_version_is_not_above_the_clients,
        a_client_of_a_later_minor_version_is_served,
        the_reply_is_no_longer_than_qemus_command,
        nothing_is_offered_that_was_not_proposed,
        what_is_offered_has_its_type,
        qemu_can_do_with_what_is_offered,
        several_writes_in_a_message_are_not_offered_to_qemu,
        cloud_hypervisor_finds_capabilities_in_the_reply,
        a_client_without_json_is_answered,
        a_client_without_capabilities_is_served,
        a_client_with_an_empty_object_is_served,
        unknown_capabilities_are_ignored,
        unknown_names_beside_the_capabilities_are_ignored,
        white_space_in_the_json_is_nothing,
        another_major_version_is_not_agreed_to,
        json_without_nul_is_refused,
        json_without_its_last_brace_is_refused,
        json_without_a_quote_is_refused,
        json_that_is_no_object_is_refused,
        capabilities_that_are_no_object_are_refused,
        a_number_that_is_a_text_is_refused,
        a_number_below_zero_is_not_taken_for_a_large_one,
        a_size_that_is_an_array_is_refused,
        text_behind_the_json_is_refused,
        a_nul_within_the_json_is_refused,
        text_that_is_not_utf8_is_refused,
        deep_json_does_no_harm,
        long_json_does_no_harm,
        no_payload_is_refused,
        half_a_version_is_refused,
        nothing_else_comes_first,
        a_second_version_is_refused,
        the_id_is_echoed_whatever_it_is,
        the_command_may_come_byte_by_byte,
        the_next_command_may_come_with_it,
        one_that_wants_no_reply_gets_none,
        a_descriptor_with_it_is_not_kept,
    ]
}

/// A connection, and what comes of a `VERSION` with this body.
fn say(server: &Server, body: &[u8]) -> Judgement<(Client, Answer)> {
    let client = server.connect()?;
    client.try_send(&message(7, command::VERSION, COMMAND, body), &[])?;
    let answer = client.receive()?;
    Ok((client, answer))
}

/// The body of the reply to one that must be accepted.
fn accepted(server: &Server, body: &[u8]) -> Judgement<Vec<u8>> {
    let (mut client, answer) = say(server, body)?;
    match answer {
        Answer::Reply(Reply { id: 7, command: command::VERSION, error: None, payload, .. }) => {
            client.expect_in_step()?;
            Ok(payload)
        }
        other => fault(format!("{other:?} instead of an agreement")),
    }
}

fn refused(server: &Server, body: &[u8]) -> Judgement {
    let bytes = message(7, command::VERSION, COMMAND, body);
    server.connect()?.refused_or_ended(&bytes, &[])
}

fn refused_json(server: &Server, json: &str) -> Judgement {
    refused(server, &version(0, json))
}

fn offered(server: &Server, json: &str) -> Judgement<Map<String, Value>> {
    capabilities(&accepted(server, &version(1, json))?)
}

fn the_minor_version_is_not_above_the_clients(server: &Server) -> Judgement {
    for minor in [0, 1] {
        let reply = accepted(server, &version(minor, QEMU))?;
        let agreed = (u16_at(&reply, 0)?, u16_at(&reply, 2)?);
        require!(agreed.0 == 0 && agreed.1 <= minor, "{agreed:?} as the answer to 0.{minor}");
    }
    Ok(())
}

fn a_client_of_a_later_minor_version_is_served(server: &Server) -> Judgement {
    let reply = accepted(server, &version(u16::MAX, QEMU))?;
    require!(u16_at(&reply, 0)? == 0, "another major version");
    Ok(())
}

/// QEMU has room for no more than it has sent.
fn the_reply_is_no_longer_than_qemus_command(server: &Server) -> Judgement {
    let sent = version(0, QEMU);
    let reply = accepted(server, &sent)?;
    require!(reply.len() <= sent.len(), "{} bytes to one of {}", reply.len() + HEADER, sent.len() + HEADER);
    Ok(())
}

fn nothing_is_offered_that_was_not_proposed(server: &Server) -> Judgement {
    for proposed in ["max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps"] {
        let json =
            format!(r#"{{"capabilities":{{"{proposed}":16384,"a_name_that_only_makes_this_longer":true}}}}"#);
        let offered = offered(server, &json)?;
        let other = offered.keys().find(|name| *name != proposed);
        require!(other.is_none(), "{other:?} is offered where only {proposed} is proposed");
    }
    Ok(())
}

fn what_is_offered_has_its_type(server: &Server) -> Judgement {
    for name in ["max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps"] {
        let value = server.device.capabilities.get(name);
        require!(value.is_none_or(Value::is_u64), "{name} is {value:?}");
    }
    let value = server.device.capabilities.get("write_multiple");
    require!(value.is_none_or(Value::is_boolean), "write_multiple is {value:?}");
    Ok(())
}

/// QEMU gives up otherwise.
fn qemu_can_do_with_what_is_offered(server: &Server) -> Judgement {
    let value = |name, default| server.capability(name, default);
    require!(value("max_msg_fds", 1) <= 16, "more than 16 descriptors in a message");
    require!(value("max_data_xfer_size", 1 << 20) <= 64 << 20, "more than 64 MiB of data in a message");
    require!(value("max_dma_maps", 65535) <= 65535, "more than 65535 mappings");
    require!(value("pgsizes", 4096).trailing_zeros() >= 12, "pages below 4 KiB");
    Ok(())
}

/// QEMU up to 11.1 would never send anything at once any more: it takes the flag for that for the one of this.
fn several_writes_in_a_message_are_not_offered_to_qemu(server: &Server) -> Judgement {
    let value = server.device.capabilities.get("write_multiple");
    require!(value != Some(&Value::Bool(true)), "write_multiple is offered");
    Ok(())
}

/// Its client takes the object for granted.
fn cloud_hypervisor_finds_capabilities_in_the_reply(server: &Server) -> Judgement {
    let reply = accepted(server, &version(1, CLOUD_HYPERVISOR))?;
    let text = String::from_utf8_lossy(&reply);
    require!(text.contains(r#""capabilities""#), "{text} has no capabilities");
    capabilities(&reply).map(drop)
}

/// The JSON is optional, but a server may want to know more of its client.
fn a_client_without_json_is_answered(server: &Server) -> Judgement {
    let bytes = message(7, command::VERSION, COMMAND, &wire::words([0]));
    server.connect()?.settled_or_ended(&bytes, &[])
}

fn a_client_without_capabilities_is_served(server: &Server) -> Judgement {
    accepted(server, &version(1, r#"{"capabilities":{}}"#)).map(drop)
}

fn a_client_with_an_empty_object_is_served(server: &Server) -> Judgement {
    accepted(server, &version(1, "{}")).map(drop)
}

fn unknown_capabilities_are_ignored(server: &Server) -> Judgement {
    let json = r#"{"capabilities":{"max_msg_fds":8,"x-of-the-future":{"a":[1,2,{"b":null}]}}}"#;
    let offered = offered(server, json)?;
    require!(!offered.contains_key("x-of-the-future"), "it is offered back");
    Ok(())
}

fn unknown_names_beside_the_capabilities_are_ignored(server: &Server) -> Judgement {
    offered(server, r#"{"vendor":"nobody","capabilities":{"max_msg_fds":8},"z":[1,2,3]}"#).map(drop)
}

fn white_space_in_the_json_is_nothing(server: &Server) -> Judgement {
    offered(server, " {\n\t\"capabilities\" : { \"max_msg_fds\" : 8 } } ").map(drop)
}

/// A server may refuse, part, or answer with the version that was proposed if it knows that one; none knows these.
fn another_major_version_is_not_agreed_to(server: &Server) -> Judgement {
    for major in [1, 2, u16::MAX] {
        refused(server, &Payload::default().u16(major).u16(0).bytes(QEMU.as_bytes()).bytes(&[0]).0)?;
    }
    Ok(())
}

fn json_without_nul_is_refused(server: &Server) -> Judgement {
    refused(server, &Payload::default().u32(0).bytes(QEMU.as_bytes()).0)
}

fn json_without_its_last_brace_is_refused(server: &Server) -> Judgement {
    refused_json(server, r#"{"capabilities":{"max_msg_fds":8}"#)
}

fn json_without_a_quote_is_refused(server: &Server) -> Judgement {
    refused_json(server, r#"{"capabilities:{"max_msg_fds":8}}"#)
}

fn json_that_is_no_object_is_refused(server: &Server) -> Judgement {
    ["[]", "16", r#""capabilities""#, "nonsense", ""]
        .into_iter()
        .try_for_each(|json| refused_json(server, json))
}

fn capabilities_that_are_no_object_are_refused(server: &Server) -> Judgement {
    let json = [r#"{"capabilities":[]}"#, r#"{"capabilities":16}"#, r#"{"capabilities":"max_msg_fds"}"#];
    json.into_iter().try_for_each(|json| refused_json(server, json))
}

fn a_number_that_is_a_text_is_refused(server: &Server) -> Judgement {
    refused_json(server, r#"{"capabilities":{"max_msg_fds":"8"}}"#)
}

/// A server may refuse it, or take the default.
fn a_number_below_zero_is_not_taken_for_a_large_one(server: &Server) -> Judgement {
    let body = version(0, r#"{"capabilities":{"max_msg_fds":-1,"max_data_xfer_size":-1}}"#);
    let (_client, answer) = say(server, &body)?;
    let Answer::Reply(Reply { error: None, payload, .. }) = answer else { return Ok(()) };
    let offered = capabilities(&payload)?;
    let is_number = |name| offered.get(name).is_none_or(Value::is_u64);
    require!(is_number("max_msg_fds") && is_number("max_data_xfer_size"), "{offered:?}");
    Ok(())
}

fn a_size_that_is_an_array_is_refused(server: &Server) -> Judgement {
    refused_json(server, r#"{"capabilities":{"max_data_xfer_size":[1048576]}}"#)
}

fn text_behind_the_json_is_refused(server: &Server) -> Judgement {
    refused_json(server, r#"{"capabilities":{}} nonsense"#)
}

/// A server that reads up to the first NUL only does not see the rest.
fn a_nul_within_the_json_is_refused(server: &Server) -> Judgement {
    refused_json(server, "{\"capabilities\":{\"max_msg_\0fds\":8}}")
}

fn text_that_is_not_utf8_is_refused(server: &Server) -> Judgement {
    refused(server, &Payload::default().u32(0).bytes(b"{\"capabilities\":{\"\xff\xfe\xff").bytes(&[0]).0)
}

fn deep_json_does_no_harm(server: &Server) -> Judgement {
    let nested = "[".repeat(4000);
    refused_json(server, &format!(r#"{{"capabilities":{{"x":{nested}"#))
}

/// The specification has no limit, and a server may have one.
fn long_json_does_no_harm(server: &Server) -> Judgement {
    let long = format!(r#"{{"capabilities":{{"x":"{}"}}}}"#, "x".repeat(60_000));
    let bytes = message(7, command::VERSION, COMMAND, &version(0, &long));
    server.connect()?.settled_or_ended(&bytes, &[])
}

fn no_payload_is_refused(server: &Server) -> Judgement {
    refused(server, &[])
}

fn half_a_version_is_refused(server: &Server) -> Judgement {
    (1..4).try_for_each(|size| refused(server, &vec![0; size]))
}

fn nothing_else_comes_first(server: &Server) -> Judgement {
    for (number, payload) in [
        (command::DEVICE_GET_INFO, wire::device_info(16)),
        (command::DEVICE_GET_REGION_INFO, wire::region_info(32, 0)),
        (command::DEVICE_GET_IRQ_INFO, wire::irq_info(16, 0)),
        (command::REGION_READ, wire::access(7, 0, 4)),
        (command::REGION_WRITE, wire::write(7, 0x3c, &[1])),
        (command::DMA_MAP, wire::map(3, 0, 0, 0x1000)),
        (command::DEVICE_SET_IRQS, wire::irq_set(0x21, 0, 0, 0)),
        (command::DEVICE_RESET, Vec::new()),
    ] {
        server.connect()?.refused_or_ended(&message(1, number, COMMAND, &payload), &[])?;
    }
    Ok(())
}

fn a_second_version_is_refused(server: &Server) -> Judgement {
    let client = server.session()?;
    client.refused_or_ended(&message(1, command::VERSION, COMMAND, &version(1, QEMU)), &[])
}

fn the_id_is_echoed_whatever_it_is(server: &Server) -> Judgement {
    for id in [0, 1, 0x8000, u16::MAX] {
        let client = server.connect()?;
        client.send(&message(id, command::VERSION, COMMAND, &version(1, QEMU)), &[])?;
        client.reply_to(id, command::VERSION)?;
    }
    Ok(())
}

fn the_command_may_come_byte_by_byte(server: &Server) -> Judgement {
    let mut client = server.connect()?;
    for byte in message(7, command::VERSION, COMMAND, &version(1, QEMU)) {
        client.send(&[byte], &[])?;
    }
    client.reply_to(7, command::VERSION)?;
    client.expect_in_step()
}

fn the_next_command_may_come_with_it(server: &Server) -> Judgement {
    let mut client = server.connect()?;
    let first = message(7, command::VERSION, COMMAND, &version(1, QEMU));
    let second = message(8, command::DEVICE_GET_INFO, COMMAND, &wire::device_info(16));
    client.send(&[first, second].concat(), &[])?;
    client.reply_to(7, command::VERSION)?;
    client.reply_to(8, command::DEVICE_GET_INFO)?;
    client.expect_in_step()
}

fn one_that_wants_no_reply_gets_none(server: &Server) -> Judgement {
    let client = server.connect()?;
    let first = message(7, command::VERSION, NO_REPLY, &version(1, QEMU));
    let second = message(8, command::DEVICE_GET_IRQ_INFO, COMMAND, &wire::irq_info(16, 0));
    client.try_send(&[first, second].concat(), &[])?;
    match client.receive()? {
        Answer::Reply(Reply { command: command::VERSION, .. }) => fault("it is answered"),
        _ => Ok(()),
    }
}

/// A server may refuse it, or close what it did not ask for.
fn a_descriptor_with_it_is_not_kept(server: &Server) -> Judgement {
    let mut pipe = Pipe::new();
    let client = server.connect()?;
    let bytes = message(7, command::VERSION, COMMAND, &version(1, QEMU));
    client.settled_or_ended(&bytes, &[pipe.end()])?;
    require!(pipe.is_closed_within(server.patience()), "the server keeps the descriptor");
    Ok(())
}
