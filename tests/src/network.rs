// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user frontend of a network device with two queue pairs, and the driver of its guest. It says what QEMU does for
//! `-netdev vhost-user,queues=2`, in that order: it has the data rings only, and enables those of the pairs in use.
//!
//! At the other end of the network is 10.0.2.2, or a device that receives what it sends; either way what asks for an answer
//! comes back.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use protocol::features::{ProtocolFeatures, VirtioFeatures};
use protocol::vhost_user::{Frontend, FrontendError, Vring};

use crate::driver_ring::{DriverRing, RING_SPACE};
use crate::guest_memory::GuestMemory;
use crate::interrupt::Interrupt;
use crate::server_process::{PATIENCE, wait_until};

/// What a guest needs for it.
pub const MEMORY: u64 = 1 << 20;
/// `VERSION_1`, and vhost-user's protocol features.
pub const ONE_PAIR: VirtioFeatures = VirtioFeatures(1 << 32 | 1 << 30);
/// The same with `VIRTIO_NET_F_MQ`.
pub const TWO_PAIRS: VirtioFeatures = VirtioFeatures(ONE_PAIR.0 | 1 << 22);
/// Where rings are, one behind the other.
const RINGS: u64 = 0x1_0000;
const READY: u8 = 0xf;
/// Where a ring has its buffer.
const BUFFER: u64 = 0x1000;
const BUFFER_SIZE: u32 = 0x1000;
/// Before each packet.
const HEADER: usize = 12;
const ADDRESS: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const OWN: [u8; 4] = [10, 0, 2, 15];
const OTHER: [u8; 4] = [10, 0, 2, 2];

/// A ring with its eventfds, and a copy of each to hand over.
#[derive(Debug)]
struct Queue<'a> {
    ring: DriverRing<'a>,
    kick: Interrupt,
    call: Interrupt,
    far: [OwnedFd; 2],
}

impl<'a> Queue<'a> {
    fn new(memory: &'a GuestMemory, index: u8) -> Self {
        let ring = DriverRing::new(memory, RINGS + RING_SPACE * u64::from(index), 16);
        let ((kick, far_kick), (call, far_call)) = (Interrupt::new(), Interrupt::new());
        Self { ring, kick, call, far: [far_kick, far_call] }
    }

    fn buffer(&self) -> u64 {
        self.ring.areas()[0] + BUFFER
    }

    fn vring(&self, base: u32) -> Vring<'_> {
        let [descriptors, available, used] = self.ring.areas();
        let [kick, call] = self.far.each_ref().map(AsFd::as_fd);
        Vring { size: self.ring.size(), base, descriptors, available, used, kick, call }
    }
}

/// The frontend and its driver.
#[derive(Debug)]
pub struct Network<'a> {
    /// The connection.
    pub frontend: Frontend,
    memory: &'a GuestMemory,
    /// Receiving and sending ones by turns.
    queues: Vec<Queue<'a>>,
    /// The address of who is at the other end.
    other: [u8; 6],
}

impl<'a> Network<'a> {
    /// A frontend that has agreed on everything and described the memory, [`MEMORY`] bytes at 0.
    pub fn connect(socket: UnixStream, memory: &'a GuestMemory) -> Self {
        let mut frontend = Frontend::new(socket, PATIENCE);
        frontend.negotiate(ProtocolFeatures::OF_DEVICES).expect("features are agreed on");
        frontend.set_memory_table(&[memory.region()], &[memory.as_fd()]).expect("the memory is taken");
        Self { frontend, memory, queues: Self::queues(memory), other: [0xff; 6] }
    }

    fn queues(memory: &'a GuestMemory) -> Vec<Queue<'a>> {
        let mut queues: Vec<_> = (0..4).map(|index| Queue::new(memory, index)).collect();
        for receiving in queues.iter_mut().step_by(2) {
            let buffer = (receiving.buffer(), BUFFER_SIZE, true);
            receiving.ring.offer(&[buffer]);
        }
        queues
    }

    /// The guest's driver has begun anew: its rings are empty.
    pub fn begin_anew(&mut self) {
        self.queues = Self::queues(self.memory);
    }

    /// Starts both pairs, of which so many are enabled. `bases`: where the rings begin.
    pub fn start(
        &mut self,
        features: VirtioFeatures,
        enabled: u8,
        bases: [u32; 4],
    ) -> Result<(), FrontendError> {
        let pairs = if features == TWO_PAIRS { 2 } else { 1 };
        for pair in 0..pairs {
            if pair < enabled {
                self.enable(pair, true)?;
            }
            self.frontend.set_features(features)?;
            for index in [2 * pair, 2 * pair + 1] {
                let base = bases[usize::from(index)];
                self.frontend.start_vring(index, &self.queues[usize::from(index)].vring(base))?;
            }
        }
        self.frontend.set_status(READY)
    }

    /// Has a pair used, or not.
    pub fn enable(&mut self, pair: u8, is_enabled: bool) -> Result<(), FrontendError> {
        self.frontend.set_vring_enable(2 * pair, is_enabled)?;
        self.frontend.set_vring_enable(2 * pair + 1, is_enabled)
    }

    /// Stops both pairs. Where each ring stands.
    pub fn stop(&mut self) -> [u32; 4] {
        let bases = [0, 1, 2, 3].map(|ring| self.frontend.stop_vring(ring).expect("the ring stops"));
        self.frontend.set_status(0).expect("the status is taken");
        bases
    }

    /// Sends by a pair. Nobody waits for it.
    pub fn send(&mut self, pair: u8, frame: &[u8]) {
        let sending = &mut self.queues[usize::from(2 * pair + 1)];
        let packet = [&[0; HEADER], frame].concat();
        self.memory.write(sending.buffer(), &packet);
        let length = u32::try_from(packet.len()).expect("a short frame");
        let buffer = (sending.buffer(), length, false);
        sending.ring.offer(&[buffer]);
        sending.kick.signal();
    }

    /// Whether what was sent by a pair is away.
    pub fn is_sent(&self, pair: u8) -> bool {
        self.queues[usize::from(2 * pair + 1)].ring.is_done()
    }

    /// The next frame that has come by a pair, if one has.
    pub fn take(&mut self, pair: u8) -> Option<Vec<u8>> {
        let receiving = &mut self.queues[usize::from(2 * pair)];
        if !receiving.ring.is_done() {
            return None;
        }
        assert!(receiving.call.fires(), "no interrupt arrives");
        let packet = self.memory.read(receiving.buffer(), usize::try_from(BUFFER_SIZE).expect("a size"));
        let buffer = (receiving.buffer(), BUFFER_SIZE, true);
        receiving.ring.offer(&[buffer]);
        receiving.kick.signal();
        Some(packet[HEADER..].to_vec())
    }

    /// Whether a frame with this in it has come by a pair.
    pub fn has_received(&mut self, pair: u8, mark: &[u8]) -> bool {
        std::iter::from_fn(|| self.take(pair)).any(|frame| has(&frame, mark))
    }

    /// Whether a frame with this in it comes by a pair. Others that come are none of ours.
    pub fn receives(&mut self, pair: u8, mark: &[u8]) -> bool {
        wait_until(|| self.take(pair).is_some_and(|frame| has(&frame, mark)))
    }

    /// Asks by the first pair who is at the other end.
    pub fn find_other(&mut self) {
        while self.take(0).is_some() {}
        let request = [&[0, 1, 8, 0, 6, 4, 0, 1], ADDRESS.as_slice(), &OWN, &[0; 6], &OTHER].concat();
        self.send(0, &frame([0xff; 6], 0x0806, &request));
        let mut answer = None;
        // Both ends are in the question as in the answer.
        let is_answer = |frame: &Vec<u8>| frame[12..14] == [8, 6] && has(frame, &OWN) && has(frame, &OTHER);
        assert!(wait_until(|| {
            answer = self.take(0).filter(is_answer);
            answer.is_some()
        }));
        self.other.copy_from_slice(&answer.expect("an answer")[6..12]);
    }

    /// Sends an echo request by a pair.
    pub fn ask(&mut self, pair: u8, mark: &[u8]) {
        let request = frame(self.other, 0x0800, &echo_request(mark));
        self.send(pair, &request);
    }

    /// Sends an echo request by a pair, and sees the answer come by it: the second, as a tap device goes by what has come before.
    pub fn expect_works(&mut self, pair: u8, mark: &[u8]) {
        for _ in 0..2 {
            // What comes while there is no buffer may be lost.
            while self.take(pair).is_some() {}
            self.ask(pair, mark);
            assert!(wait_until(|| self.is_sent(pair)), "nothing goes by pair {pair}");
        }
        assert!(self.receives(pair, mark), "nothing comes by pair {pair}");
    }
}

fn has(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|part| part == mark)
}

fn frame(to: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut frame = [to, ADDRESS].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(content);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An ICMP echo request in an IPv4 packet, with an even number of bytes in it.
fn echo_request(mark: &[u8]) -> Vec<u8> {
    let mut message = [&[8, 0, 0, 0, 0, 1, 0, 1], mark].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let length = u8::try_from(20 + message.len()).expect("a short mark");
    let mut header = [&[0x45, 0, 0, length, 0, 0, 0, 0, 64, 1, 0, 0], OWN.as_slice(), &OTHER].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [header, message].concat()
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(data: &[u8]) -> [u8; 2] {
    let mut sum: u32 = data.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("16 bits")).to_be_bytes()
}
