// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections as no good client makes them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use protocol::RequestNumber;
use protocol::features::ProtocolFeatures;
use rustix::fs::SealFlags;
use vhost_device_vfio_tests::guest_memory::memfd;
use vhost_device_vfio_tests::raw_client::{REQUEST, RawClient, header, message};

/// Most bytes of a message's body.
const MAX_BODY: usize = 4096;
/// `VERSION` of vfio-user, which comes first.
const VERSION: [u8; 20] = [1, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Who connects, always in the same way in every run.
pub(crate) struct Hostility {
    state: u64,
    null: File,
    memory: OwnedFd,
}

impl Hostility {
    pub(crate) fn new() -> Self {
        let null = File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
        Self { state: 0x9e37_79b9_7f4a_7c15, null, memory: memfd(1 << 16, SealFlags::SHRINK) }
    }

    /// One more connection, to the control face or to that of the device. It is closed in the end, or before.
    pub(crate) fn connect(&mut self, number: u64, control: &Path, face: &Path) {
        match number % 10 {
            0 => drop(RawClient::connect(control)),
            1 => self.send_noise(RawClient::connect(control), 12),
            2 => self.send_noise(RawClient::connect(control), 5),
            3 => self.send_noise(RawClient::connect(control), 600),
            4 => self.leave_half_a_message(RawClient::connect(control)),
            5 => self.send_too_many_descriptors(RawClient::connect(control)),
            6 => self.abuse_requests(RawClient::connect(control)),
            7 => Self::read_nothing(RawClient::connect(control)),
            8 => self.send_noise(RawClient::connect(face), 40),
            _ => self.abuse_the_device(RawClient::connect(face)),
        }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8)).flat_map(|_| self.random().to_ne_bytes()).take(length).collect()
    }

    /// Some descriptors, now of one kind and now of another.
    fn descriptors(&self, count: usize) -> Vec<BorrowedFd<'_>> {
        [self.null.as_fd(), self.memory.as_fd()].into_iter().cycle().take(count).collect()
    }

    // The server may have closed the connection whenever something is sent: that is all right.

    fn send_noise(&mut self, mut client: RawClient, length: usize) {
        let noise = self.noise(length);
        let count = usize::try_from(self.random() % 9).unwrap_or_default();
        let _ = client.try_send(&noise, &self.descriptors(count));
    }

    fn leave_half_a_message(&mut self, mut client: RawClient) {
        let body = self.noise(MAX_BODY / 2);
        let half = [header(RequestNumber::ADD_DEVICE, REQUEST, 4096), body].concat();
        let _ = client.try_send(&half, &self.descriptors(8));
    }

    fn send_too_many_descriptors(&mut self, mut client: RawClient) {
        let count = usize::try_from(self.random() % 250).unwrap_or_default();
        let _ = client.try_send(&message(RequestNumber::GET_FEATURES, &[]), &self.descriptors(count));
        let _ = client.try_send(&message(RequestNumber::GET_FEATURES, &[]), &self.descriptors(count));
    }

    /// Requests of the extension that hand over what they should not.
    fn abuse_requests(&mut self, mut client: RawClient) {
        let features = ProtocolFeatures::OFFERED.0.to_ne_bytes();
        let mut requests = vec![
            message(RequestNumber::SET_PROTOCOL_FEATURES, &features),
            message(RequestNumber::VERSION, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (request, size) in [
            (RequestNumber::SET_IOMMUFD, 8),
            (RequestNumber::ADD_DEVICE, 16),
            (RequestNumber::SERVE, 16),
            (RequestNumber::SET_MEM_TABLE, 40),
            (RequestNumber::ADD_MEM_REG, 40),
            (RequestNumber::SET_BACKEND_REQ_FD, 0),
            (RequestNumber::REMOVE_DEVICE, 8),
        ] {
            let body = self.noise(size);
            requests.push(message(request, &body));
        }
        for request in requests {
            let count = usize::from(self.random().is_multiple_of(2));
            if client.try_send(&request, &self.descriptors(count)).is_err() {
                break;
            }
        }
        // Half of them wait for what comes of it.
        if self.random().is_multiple_of(2) && client.is_open() {
            client.receive_bytes(12);
        }
    }

    /// Asks without end, until the server sends no more answers because nobody takes them.
    fn read_nothing(mut client: RawClient) {
        let requests = message(RequestNumber::GET_FEATURES, &[]).repeat(64);
        for _ in 0..16 {
            if client.try_send(&requests, &[]).is_err() {
                break;
            }
        }
    }

    /// Commands of vfio-user, each with any body and some descriptors.
    fn abuse_the_device(&mut self, mut client: RawClient) {
        if client.try_send(&VERSION, &[]).is_err() {
            return;
        }
        for _ in 0..8 {
            let command = self.random() % 20;
            let length = usize::try_from(self.random() % 64).unwrap_or_default();
            let body = self.noise(length);
            let size = u32::try_from(16 + length).unwrap_or_default();
            let words = [(u32::try_from(command).unwrap_or_default() << 16) | 2, size, 0, 0];
            let bytes = [words.map(u32::to_ne_bytes).concat(), body].concat();
            let count = usize::try_from(self.random() % 4).unwrap_or_default();
            if client.try_send(&bytes, &self.descriptors(count)).is_err() {
                return;
            }
        }
    }
}
