// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM says, and in which order.

use protocol::RequestNumber;
use protocol::features::ProtocolFeatures;

use super::{Attachment, Awaited, Guest, Memory, Message, Ring, StockVmm};
use crate::raw_client;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, which every frontend adds to what the driver has chosen.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Flags of a request that wants no acknowledgement.
const PLAIN: u32 = 0x1;
/// Virtio's device status.
const FEATURES_OK: u64 = 8;
const DRIVER_OK: u64 = 0xf;

/// 32 bits each.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// 64 bits each.
fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn index(queue: usize) -> u32 {
    u32::try_from(queue).expect("a few rings")
}

/// A VMM with a guest, and how far it has come.
#[derive(Debug)]
pub struct Script {
    vmm: StockVmm,
    guest: Guest,
    agreed: ProtocolFeatures,
    /// QEMU adds a piece of memory once.
    has_memory: bool,
    /// What QEMU reads before it writes.
    status: u64,
    /// Cloud Hypervisor wants everything acknowledged from some time on.
    wants_all: bool,
    messages: Vec<Message>,
}

impl Script {
    /// A VMM that has said nothing yet to a server that offers `offered`.
    pub fn new(vmm: StockVmm, guest: Guest, offered: ProtocolFeatures) -> Self {
        let agreed = ProtocolFeatures(offered.0 & vmm.wanted().0);
        let messages = Vec::new();
        Self { vmm, guest, agreed, has_memory: false, status: 0, wants_all: false, messages }
    }

    /// The device is made: before the guest runs.
    pub fn connect(&mut self) -> Vec<Message> {
        if self.vmm.is_qemu() {
            self.connect_qemu();
        } else {
            self.connect_other();
        }
        std::mem::take(&mut self.messages)
    }

    /// The guest's driver is ready, or the VM goes on. `bases`: where each ring begins.
    pub fn start(&mut self, bases: &[u32]) -> Vec<Message> {
        match self.vmm {
            StockVmm::QemuBlock => self.start_block(bases),
            StockVmm::QemuGeneric => self.start_generic(bases),
            StockVmm::Crosvm => self.start_crosvm(bases),
            StockVmm::CloudHypervisor => self.start_cloud_hypervisor(bases),
        }
        std::mem::take(&mut self.messages)
    }

    /// The VM pauses, or the guest resets its device.
    pub fn stop(&mut self) -> Vec<Message> {
        let (all, used) = (self.all(), self.used());
        match self.vmm {
            StockVmm::Crosvm => {
                for (queue, _) in used {
                    self.say(RequestNumber::SET_VRING_ENABLE, words(&[index(queue), 0]));
                    self.say(RequestNumber::GET_VRING_BASE, words(&[index(queue), 0]));
                }
            }
            StockVmm::CloudHypervisor => {
                for (queue, _) in used {
                    self.say(RequestNumber::SET_VRING_ENABLE, words(&[index(queue), 0]));
                }
            }
            StockVmm::QemuBlock | StockVmm::QemuGeneric => {
                for queue in all {
                    self.say(RequestNumber::SET_VRING_ENABLE, words(&[index(queue), 0]));
                }
                for (queue, _) in used {
                    self.say(RequestNumber::GET_VRING_BASE, words(&[index(queue), 0]));
                }
                if self.vmm == StockVmm::QemuBlock && self.has(ProtocolFeatures::STATUS) {
                    self.set_status(0);
                }
            }
        }
        std::mem::take(&mut self.messages)
    }

    /// The VM is reset: what comes behind [`Self::stop`], before the driver is ready again.
    pub fn reset(&mut self) -> Vec<Message> {
        if self.vmm == StockVmm::QemuBlock && self.has(ProtocolFeatures::RESET_DEVICE) {
            for _ in 0..3 {
                self.say(RequestNumber::RESET_DEVICE, vec![]);
            }
        }
        std::mem::take(&mut self.messages)
    }

    fn connect_qemu(&mut self) {
        self.say(RequestNumber::GET_FEATURES, vec![]);
        self.say(RequestNumber::GET_PROTOCOL_FEATURES, vec![]);
        self.say(RequestNumber::SET_PROTOCOL_FEATURES, longs(&[self.agreed.0]));
        self.say(RequestNumber::GET_QUEUE_NUM, vec![]);
        if self.has(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.say(RequestNumber::GET_MAX_MEM_SLOTS, vec![]);
        }
        self.open_channel();
        self.say(RequestNumber::SET_OWNER, vec![]);
        self.say(RequestNumber::GET_FEATURES, vec![]);
        for queue in self.all() {
            self.call(queue);
            let body = longs(&[index(queue).into()]);
            self.attach(RequestNumber::SET_VRING_ERR, body, vec![Attachment::Error(queue)]);
        }
        if self.vmm == StockVmm::QemuBlock {
            self.read_config(0);
            if self.has(ProtocolFeatures::RESET_DEVICE) {
                self.say(RequestNumber::RESET_DEVICE, vec![]);
                self.say(RequestNumber::RESET_DEVICE, vec![]);
            }
        }
    }

    fn connect_other(&mut self) {
        self.say(RequestNumber::SET_OWNER, vec![]);
        self.say(RequestNumber::GET_FEATURES, vec![]);
        self.say(RequestNumber::GET_PROTOCOL_FEATURES, vec![]);
        self.say(RequestNumber::SET_PROTOCOL_FEATURES, longs(&[self.agreed.0]));
        if self.vmm == StockVmm::Crosvm {
            self.open_channel();
        }
        self.wants_all = self.vmm == StockVmm::CloudHypervisor && self.has(ProtocolFeatures::REPLY_ACK);
        self.say(RequestNumber::GET_QUEUE_NUM, vec![]);
        self.read_config(1);
    }

    fn start_block(&mut self, bases: &[u32]) {
        self.agree_with_status();
        for queue in self.all() {
            self.call(queue);
        }
        self.agree_with_status();
        self.describe_memory();
        for (queue, ring) in self.used() {
            self.describe_ring(queue, ring, bases[queue]);
            self.kick(queue);
        }
        self.enable_all();
        if self.has(ProtocolFeatures::STATUS) {
            self.say(RequestNumber::GET_STATUS, vec![]);
            self.set_status(DRIVER_OK);
        }
    }

    fn start_generic(&mut self, bases: &[u32]) {
        self.agree_with_status();
        self.describe_memory();
        for (queue, ring) in self.used() {
            self.describe_ring(queue, ring, bases[queue]);
            self.kick(queue);
            self.call(queue);
        }
        // It never sets DRIVER_OK.
        self.enable_all();
        for queue in self.all() {
            self.call(queue);
        }
    }

    fn start_crosvm(&mut self, bases: &[u32]) {
        self.agree();
        self.describe_memory_in_a_table();
        for (queue, ring) in self.used() {
            self.say(RequestNumber::SET_VRING_NUM, words(&[index(queue), ring.size]));
            self.place_ring(queue, ring, 0);
            self.say(RequestNumber::SET_VRING_BASE, words(&[index(queue), bases[queue]]));
            self.call(queue);
            self.kick(queue);
            self.say(RequestNumber::SET_VRING_ENABLE, words(&[index(queue), 1]));
        }
    }

    fn start_cloud_hypervisor(&mut self, bases: &[u32]) {
        self.agree();
        self.describe_memory_in_a_table();
        for (queue, ring) in self.used() {
            self.say(RequestNumber::SET_VRING_NUM, words(&[index(queue), ring.size]));
        }
        for (queue, ring) in self.used() {
            self.place_ring(queue, ring, 0);
            self.say(RequestNumber::SET_VRING_BASE, words(&[index(queue), bases[queue]]));
            self.call(queue);
            self.kick(queue);
        }
        for (queue, _) in self.used() {
            self.say(RequestNumber::SET_VRING_ENABLE, words(&[index(queue), 1]));
        }
        self.open_channel();
    }

    fn agree(&mut self) {
        self.say(RequestNumber::SET_FEATURES, longs(&[self.guest.features | PROTOCOL_FEATURES]));
    }

    /// As QEMU does it: a status that is there already is not set again.
    fn agree_with_status(&mut self) {
        self.agree();
        if self.has(ProtocolFeatures::STATUS) {
            self.say(RequestNumber::GET_STATUS, vec![]);
            if self.status & FEATURES_OK == 0 {
                self.set_status(self.status | FEATURES_OK);
            }
        }
    }

    fn set_status(&mut self, status: u64) {
        self.status = status;
        self.say(RequestNumber::SET_STATUS, longs(&[status]));
    }

    fn read_config(&mut self, flags: u32) {
        let size = self.guest.config_size;
        let mut body = words(&[0, size, flags]);
        body.resize(12 + usize::try_from(size).expect("a small space"), 0);
        self.say(RequestNumber::GET_CONFIG, body);
    }

    fn open_channel(&mut self) {
        if self.has(ProtocolFeatures::BACKEND_REQ) {
            self.attach(RequestNumber::SET_BACKEND_REQ_FD, vec![], vec![Attachment::Channel]);
        }
    }

    /// As QEMU does it: piece by piece when a device starts for the first time, or a table each time.
    fn describe_memory(&mut self) {
        if !self.has(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return self.describe_memory_in_a_table();
        }
        if std::mem::replace(&mut self.has_memory, true) {
            return;
        }
        for (piece, memory) in self.guest.memory.clone().into_iter().enumerate() {
            let body = [longs(&[0]), self.region(memory)].concat();
            self.attach(RequestNumber::ADD_MEM_REG, body, vec![Attachment::Memory(piece)]);
        }
    }

    fn describe_memory_in_a_table(&mut self) {
        let memory = self.guest.memory.clone();
        let mut body = words(&[index(memory.len()), 0]);
        body.extend(memory.iter().flat_map(|memory| self.region(*memory)));
        let files = (0..memory.len()).map(Attachment::Memory).collect();
        self.attach(RequestNumber::SET_MEM_TABLE, body, files);
    }

    fn region(&self, memory: Memory) -> Vec<u8> {
        let Memory { guest_address, size, offset, .. } = memory;
        longs(&[guest_address, size, self.user_address(guest_address), offset])
    }

    /// As QEMU does it, up to the eventfds.
    fn describe_ring(&mut self, queue: usize, ring: Ring, base: u32) {
        self.say(RequestNumber::SET_VRING_NUM, words(&[index(queue), ring.size]));
        self.say(RequestNumber::SET_VRING_BASE, words(&[index(queue), base]));
        self.place_ring(queue, ring, ring.used);
    }

    fn place_ring(&mut self, queue: usize, ring: Ring, log: u64) {
        let [descriptors, used, available] =
            [ring.descriptors, ring.used, ring.available].map(|address| self.user_address(address));
        let body = [words(&[index(queue), 0]), longs(&[descriptors, used, available, log])].concat();
        self.say(RequestNumber::SET_VRING_ADDR, body);
    }

    fn kick(&mut self, queue: usize) {
        let body = longs(&[index(queue).into()]);
        self.attach(RequestNumber::SET_VRING_KICK, body, vec![Attachment::Kick(queue)]);
    }

    fn call(&mut self, queue: usize) {
        let body = longs(&[index(queue).into()]);
        self.attach(RequestNumber::SET_VRING_CALL, body, vec![Attachment::Call(queue)]);
    }

    /// As QEMU does it: also rings that the driver does not use.
    fn enable_all(&mut self) {
        for queue in self.all() {
            self.say(RequestNumber::SET_VRING_ENABLE, words(&[index(queue), 1]));
        }
    }

    fn all(&self) -> std::ops::Range<usize> {
        0..self.guest.rings.len()
    }

    fn used(&self) -> Vec<(usize, Ring)> {
        let rings = self.guest.rings.iter().enumerate();
        rings.filter_map(|(queue, ring)| Some((queue, (*ring)?))).collect()
    }

    /// Where the VMM says that something of the guest is.
    fn user_address(&self, address: u64) -> u64 {
        if self.has(ProtocolFeatures::GPA_ADDRESSES) {
            return address;
        }
        let memory = self
            .guest
            .memory
            .iter()
            .find(|memory| (memory.guest_address..memory.guest_address + memory.size).contains(&address));
        let memory = memory.expect("the guest's own memory");
        memory.user_address + (address - memory.guest_address)
    }

    fn has(&self, features: ProtocolFeatures) -> bool {
        self.agreed.contains(features)
    }

    fn say(&mut self, request: RequestNumber, body: Vec<u8>) {
        self.attach(request, body, vec![]);
    }

    fn attach(&mut self, request: RequestNumber, body: Vec<u8>, attachments: Vec<Attachment>) {
        let needs_reply = match self.vmm {
            StockVmm::Crosvm => false,
            StockVmm::CloudHypervisor => self.wants_all,
            StockVmm::QemuBlock | StockVmm::QemuGeneric => {
                self.has(ProtocolFeatures::REPLY_ACK) && is_acknowledged_by_qemu(request)
            }
        };
        let awaited = match request {
            RequestNumber::GET_CONFIG => Awaited::Config,
            RequestNumber::GET_VRING_BASE => Awaited::Base,
            RequestNumber::GET_FEATURES
            | RequestNumber::GET_PROTOCOL_FEATURES
            | RequestNumber::GET_QUEUE_NUM
            | RequestNumber::GET_MAX_MEM_SLOTS
            | RequestNumber::GET_STATUS => Awaited::Number,
            _ if needs_reply => Awaited::Acknowledgement,
            _ => Awaited::Nothing,
        };
        let flags = if needs_reply { raw_client::REQUEST } else { PLAIN };
        let mut bytes = raw_client::header(request, flags, index(body.len()));
        bytes.extend(body);
        self.messages.push(Message { request, bytes, attachments, awaited });
    }
}

/// Whether QEMU wants an acknowledgement of it.
fn is_acknowledged_by_qemu(request: RequestNumber) -> bool {
    matches!(
        request,
        RequestNumber::SET_BACKEND_REQ_FD
            | RequestNumber::SET_MEM_TABLE
            | RequestNumber::ADD_MEM_REG
            | RequestNumber::SET_VRING_KICK
            | RequestNumber::SET_VRING_CALL
            | RequestNumber::SET_VRING_ERR
            | RequestNumber::SET_VRING_ENABLE
    )
}
