// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A served PCI function: registers through vfio-user messages.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use protocol::vfio_user::{Capabilities, Client, ClientError, DmaMap, IrqAction, IrqData, SetIrqs};
use vfio::IrqIndex;
use vfio::config_space::command;

use crate::guest_memory::GuestMemory;
use crate::server_process::PATIENCE;

/// Region number of the config space.
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
const CAPABILITIES: u64 = 0x34;

/// A PCI function as a VMM's vfio-user client has it.
#[derive(Debug)]
pub struct PciFunction {
    /// The connection.
    pub client: Client,
}

impl PciFunction {
    /// A function whose version exchange is done.
    pub const fn new(client: Client) -> Self {
        Self { client }
    }

    /// The function at the other end of a connection.
    pub fn negotiated(stream: UnixStream) -> Self {
        let mut client = Client::new(stream, PATIENCE);
        let capabilities = Capabilities { max_msg_fds: Some(8), ..Capabilities::default() };
        client.version(&capabilities).expect("vfio-user is negotiated");
        Self::new(client)
    }

    /// Reads 4 bytes of a region.
    pub fn try_read(&mut self, region: u32, offset: u64) -> Result<u32, ClientError> {
        let mut data = [0; 4];
        self.client.region_read(region, offset, &mut data).map(|()| u32::from_le_bytes(data))
    }

    /// Reads 4 bytes of a region.
    pub fn read(&mut self, region: u32, offset: u64) -> u32 {
        self.try_read(region, offset).expect("the register can be read")
    }

    /// Writes 4 bytes of a region.
    pub fn write(&mut self, region: u32, offset: u64, value: u32) {
        self.client.region_write(region, offset, &value.to_le_bytes()).expect("the register can be written");
    }

    /// The command register.
    pub fn command(&mut self) -> u16 {
        let mut data = [0; 2];
        self.client.region_read(CONFIG, COMMAND, &mut data).expect("the command register can be read");
        u16::from_le_bytes(data)
    }

    /// Where the first capability with this id is in the config space.
    pub fn capability(&mut self, id: u8) -> u64 {
        let mut next = self.read(CONFIG, CAPABILITIES).to_le_bytes()[0];
        while next != 0 {
            let [found, following, ..] = self.read(CONFIG, next.into()).to_le_bytes();
            if found == id {
                return next.into();
            }
            next = following;
        }
        panic!("the function has no capability {id:#x}")
    }

    /// Sets the command register.
    pub fn set_command(&mut self, value: u16) {
        self.client
            .region_write(CONFIG, COMMAND, &value.to_le_bytes())
            .expect("the command register can be written");
    }

    /// Memory decoding and bus mastering on, as a guest's driver does.
    pub fn enable(&mut self) {
        self.set_command(command::MEMORY | command::BUS_MASTER);
    }

    /// Lets the device reach guest memory: these bytes of it, at their guest-physical address.
    pub fn map(&mut self, memory: &GuestMemory, part: Range<u64>) -> Result<(), ClientError> {
        self.map_with(memory, part, true)
    }

    /// The same for reading only.
    pub fn map_read_only(&mut self, memory: &GuestMemory, part: Range<u64>) -> Result<(), ClientError> {
        self.map_with(memory, part, false)
    }

    fn map_with(
        &mut self,
        memory: &GuestMemory,
        part: Range<u64>,
        is_writable: bool,
    ) -> Result<(), ClientError> {
        let offset = part.start - memory.region().guest_address;
        let file = Some(memory.as_fd().try_clone_to_owned().expect("a descriptor"));
        let (address, size) = (part.start, part.end - part.start);
        self.client.dma_map(&DmaMap { address, size, offset, is_writable, file })
    }

    /// Takes away what was mapped with just this range.
    pub fn unmap(&mut self, part: Range<u64>) -> Result<(), ClientError> {
        self.client.dma_unmap(part.start, part.end - part.start)
    }

    /// How many interrupts of this kind there are.
    pub fn irq_count(&mut self, index: IrqIndex) -> u32 {
        self.client.irq_info(index.number()).expect("the interrupts are described").count
    }

    /// Gives vectors from `start` on their eventfds.
    pub fn arm(&mut self, index: IrqIndex, start: u32, eventfds: Vec<OwnedFd>) -> Result<(), ClientError> {
        let count = u32::try_from(eventfds.len()).expect("few eventfds");
        let (index, data) = (index.number(), IrqData::Eventfds(eventfds));
        self.client.set_irqs(&SetIrqs { index, start, count, action: IrqAction::Trigger, data })
    }

    /// Takes the eventfds of vectors from `start` on away.
    pub fn take_eventfds(&mut self, index: IrqIndex, start: u32, count: u32) {
        let (index, data) = (index.number(), IrqData::Eventfds(Vec::new()));
        let change = SetIrqs { index, start, count, action: IrqAction::Trigger, data };
        self.client.set_irqs(&change).expect("the eventfds are taken away");
    }

    /// Has the kernel fire the first `count` vectors.
    pub fn fire(&mut self, index: IrqIndex, count: u32) {
        self.set_irqs(index, IrqAction::Trigger, count, IrqData::None);
    }

    /// Disables an index.
    pub fn disable(&mut self, index: IrqIndex) {
        self.set_irqs(index, IrqAction::Trigger, 0, IrqData::None);
    }

    /// Changes vectors, from vector 0 on.
    pub fn set_irqs(&mut self, index: IrqIndex, action: IrqAction, count: u32, data: IrqData) {
        let change = SetIrqs { index: index.number(), start: 0, count, action, data };
        self.client.set_irqs(&change).expect("the interrupts are set");
    }
}
