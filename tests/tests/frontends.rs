// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What stock VMMs say is what was recorded of them, and what the codec of the vhost-user face understands.

#![cfg(test)]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write;
use std::os::unix::net::UnixStream;
use std::thread;

use protocol::features::ProtocolFeatures;
use protocol::vhost_user::{DeviceReply, DeviceRequest, VringRequest};
use protocol::{Connection, Descriptors, Endpoint, Frame, Header, VhostUserHeader};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::SealFlags;
use vhost_device_vfio_tests::frontends::{Awaited, Guest, Memory, Message, Player, Ring, Script, StockVmm};
use vhost_device_vfio_tests::guest_memory::memfd;
use vhost_device_vfio_tests::server_process::PATIENCE;
use zerocopy::FromBytes;

/// A guest with two rings, of which `SeaBIOS` uses the first.
fn guest(size: u32, user_address: u64) -> Guest {
    let descriptors = 0x3fd_d000;
    let available = descriptors + 16 * u64::from(size);
    let ring = Ring { size, descriptors, available, used: 0x3fd_e000 };
    let memory = Memory { guest_address: 0, size: 64 << 20, user_address, offset: 0 };
    Guest {
        features: 1 << 32 | 1 << 6 | 1 << 2,
        rings: vec![Some(ring), None],
        memory: vec![memory],
        config_size: 57,
    }
}

/// A message as the recordings have it.
fn line(message: &Message) -> String {
    let flags = u32::from_ne_bytes(message.bytes[4..8].try_into().unwrap());
    let mut line = format!("{} {flags:#x} {}", message.request, message.attachments.len());
    let body = &message.bytes[12..];
    let shown = if message.awaited == Awaited::Config { &body[..12] } else { body };
    for (place, byte) in shown.iter().enumerate() {
        let space = if place == 0 { " " } else { "" };
        write!(line, "{space}{byte:02x}").unwrap();
    }
    line
}

/// Everything that was recorded: start, pause, go on, reset, quit.
fn life(mut script: Script) -> Vec<Message> {
    [
        script.connect(),
        script.start(&[0, 0]),
        script.stop(),
        script.start(&[7, 0]),
        script.stop(),
        script.reset(),
        script.start(&[0, 0]),
        script.stop(),
    ]
    .concat()
}

fn assert_recorded(recording: &str, script: Script) {
    let recorded: Vec<_> = recording.lines().filter(|line| !line.starts_with('#')).collect();
    let said: Vec<_> = life(script).iter().map(line).collect();
    assert_eq!(said, recorded);
}

fn without(features: ProtocolFeatures) -> ProtocolFeatures {
    ProtocolFeatures(ProtocolFeatures::OF_DEVICES.0 & !features.0)
}

#[test]
fn qemu_s_block_device_says_what_was_recorded() {
    let script = Script::new(StockVmm::QemuBlock, guest(128, 0), ProtocolFeatures::OF_DEVICES);
    assert_recorded(include_str!("recordings/qemu-block-gpa.txt"), script);
}

#[test]
fn qemu_s_block_device_says_what_was_recorded_with_addresses_of_its_own() {
    let left_out = ProtocolFeatures::STATUS
        | ProtocolFeatures::GPA_ADDRESSES
        | ProtocolFeatures::BACKEND_SEND_FD
        | ProtocolFeatures::HOST_NOTIFIER;
    let script = Script::new(StockVmm::QemuBlock, guest(128, 0x7f24_83ff_f000), without(left_out));
    assert_recorded(include_str!("recordings/qemu-block.txt"), script);
}

#[test]
fn qemu_s_block_device_says_what_was_recorded_with_a_table_of_memory() {
    let offered = without(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
    let script = Script::new(StockVmm::QemuBlock, guest(128, 0), offered);
    assert_recorded(include_str!("recordings/qemu-block-table.txt"), script);
}

#[test]
fn qemu_s_generic_device_says_what_was_recorded() {
    let script = Script::new(StockVmm::QemuGeneric, guest(64, 0), ProtocolFeatures::OF_DEVICES);
    assert_recorded(include_str!("recordings/qemu-generic.txt"), script);
}

#[test]
fn every_message_of_every_frontend_is_understood_and_answered_as_it_expects() {
    for vmm in [StockVmm::QemuBlock, StockVmm::QemuGeneric, StockVmm::Crosvm, StockVmm::CloudHypervisor] {
        for offered in [ProtocolFeatures::OF_DEVICES, without(ProtocolFeatures::REPLY_ACK)] {
            let script = Script::new(vmm, guest(64, 0x7f00_0000_0000), offered);
            let mut agreed = ProtocolFeatures::default();
            for message in life(script) {
                let (header, body) = VhostUserHeader::read_from_prefix(&message.bytes).unwrap();
                assert_eq!(header.body_size(Endpoint::Server), Ok(body.len()), "{message:?}");
                let descriptors =
                    message.attachments.iter().map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
                let descriptors = Descriptors::Complete(descriptors);
                let request = DeviceRequest::parse(Frame { header, body: body.to_vec(), descriptors });
                if let DeviceRequest::SetProtocolFeatures(features) = request.unwrap() {
                    agreed = features;
                }
                let is_answered = header.is_answered(agreed);
                assert_eq!(message.awaited != Awaited::Nothing, is_answered, "{vmm:?}: {message:?}");
            }
        }
    }
}

/// A backend that has everything, and knows nothing.
fn answer_everything(socket: UnixStream) {
    let mut connection = Connection::<VhostUserHeader>::new(socket, Endpoint::Server);
    let mut agreed = ProtocolFeatures::default();
    while let Ok(frame) = connection.receive_within(PATIENCE) {
        let header = frame.header;
        let reply = match DeviceRequest::parse(frame).unwrap() {
            DeviceRequest::GetConfig(access) => DeviceReply::Config { access, data: vec![0; 57] },
            DeviceRequest::Vring { queue, request: VringRequest::GetBase } => {
                DeviceReply::VringBase { queue, base: 7 }
            }
            DeviceRequest::SetProtocolFeatures(features) => {
                agreed = features;
                DeviceReply::Done
            }
            // As good as any number.
            _ => DeviceReply::Done,
        };
        if header.is_answered(agreed) {
            let (reply, body) = (VhostUserHeader::reply(header.request), reply.encode(header.request));
            connection.send_within(reply, &body, &[], PATIENCE).unwrap();
        }
    }
}

#[test]
fn every_frontend_gets_from_its_first_to_its_last_message() {
    for vmm in [StockVmm::QemuBlock, StockVmm::QemuGeneric, StockVmm::Crosvm, StockVmm::CloudHypervisor] {
        let messages = life(Script::new(vmm, guest(64, 0), ProtocolFeatures::OF_DEVICES));
        let (near, far) = UnixStream::pair().unwrap();
        let backend = thread::spawn(|| answer_everything(far));
        let memory = memfd(64 << 20, SealFlags::empty());
        let replies = Player::new(near, vec![memory], 2).play(&messages);
        let awaited = messages.iter().filter(|message| message.awaited != Awaited::Nothing);
        assert_eq!(replies.len(), awaited.count(), "{vmm:?}");
        backend.join().unwrap();
    }
}
