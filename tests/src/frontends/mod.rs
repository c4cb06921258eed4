// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What stock VMMs say on the vhost-user face, message by message: recorded from QEMU 11.1.3, read in the sources of crosvm and
//! Cloud Hypervisor.
//!
//! The bytes are written down here without the codec, so that a fault of the codec cannot hide behind the same fault.

mod player;
mod script;

use protocol::RequestNumber;
use protocol::features::ProtocolFeatures;

pub use self::player::Player;
pub use self::script::Script;

/// The VMMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockVmm {
    /// `vhost-user-blk-pci` of QEMU.
    QemuBlock,
    /// `vhost-user-test-device-pci` of QEMU, which stands for any virtio device.
    QemuGeneric,
    /// `--vhost-user` of crosvm.
    Crosvm,
    /// `--generic-vhost-user` of Cloud Hypervisor.
    CloudHypervisor,
}

impl StockVmm {
    /// The protocol features that it agrees on, of those that matter here.
    fn wanted(self) -> ProtocolFeatures {
        let bits: &[u32] = match self {
            Self::QemuBlock | Self::QemuGeneric => &[0, 3, 5, 9, 10, 11, 13, 15, 16, 21],
            Self::Crosvm => &[0, 3, 5, 9],
            Self::CloudHypervisor => &[0, 3, 5, 9, 15],
        };
        ProtocolFeatures(bits.iter().map(|bit| 1 << bit).sum())
    }

    fn is_qemu(self) -> bool {
        matches!(self, Self::QemuBlock | Self::QemuGeneric)
    }
}

/// A piece of the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Guest physical address.
    pub guest_address: u64,
    /// In bytes.
    pub size: u64,
    /// Where the VMM has it.
    pub user_address: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// A ring as the driver has set it up, at guest physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// How many descriptors it has.
    pub size: u32,
    /// Where the descriptors are.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
}

/// What the guest has.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The virtio features that the driver has chosen.
    pub features: u64,
    /// The device's rings; `None`: the driver does not use it.
    pub rings: Vec<Option<Ring>>,
    /// All of it, each piece with a file.
    pub memory: Vec<Memory>,
    /// How much of the configuration space the VMM reads, in bytes.
    pub config_size: u32,
}

/// What a message's descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The file of a piece of memory.
    Memory(usize),
    /// What the guest notifies a ring with.
    Kick(usize),
    /// What a ring interrupts the guest with.
    Call(usize),
    /// What a ring tells an error with.
    Error(usize),
    /// The backend's end of the backend channel.
    Channel,
}

/// What the VMM waits for before it says anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Nothing.
    Nothing,
    /// 8 bytes, 0.
    Acknowledgement,
    /// 8 bytes.
    Number,
    /// The request's payload with other bytes behind the first 12.
    Config,
    /// The ring's index and its base.
    Base,
}

/// One message.
#[derive(Clone, Debug)]
pub struct Message {
    /// What is asked.
    pub request: RequestNumber,
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// What comes along.
    pub attachments: Vec<Attachment>,
    /// What is answered.
    pub awaited: Awaited,
}
