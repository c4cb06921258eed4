// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vfio-user face: one device, as a VMM's vfio-user client sees it.

use std::ops::Range;
use std::sync::Arc;

use protocol::extension::Cookie;
use protocol::vfio_user::{
    self as wire, Capabilities, DeviceInfo, DmaMap, DmaUnmap, FeatureRequest, IrqInfo, RegionAccess,
    RegionDescription, RegionInfo, RegionWrite, Reply, Request, SetIrqs, SparseMmapArea,
};
use rustix::io::Errno;
use vfio::{Access, CallError, IrqAction, IrqIndex, Region, RegionIndex};

use super::memory_batch::MemoryBatch;
use crate::address_space::ViewChange;
use crate::failure::Failure;
use crate::interrupts::{IrqChange, IrqChangeData};
use crate::job::Job;
use crate::machine::Machine;
use crate::memory::view::MAX_MAPPINGS;
use crate::memory::{GuestAddress, GuestRange, Mapping, MemoryRegion};
use crate::reset::engine::RequestId;

/// What this end of a connection can take.
const CAPABILITIES: Capabilities = Capabilities {
    max_msg_fds: Some(16),
    max_data_xfer_size: Some(1 << 20),
    pgsizes: Some(4096),
    max_dma_maps: Some(MAX_MAPPINGS as u64),
};

/// What a request leads to.
#[derive(Debug)]
pub enum Step {
    /// The answer.
    Reply(Reply),
    /// Something that takes its time, and the answer if it is done well.
    Job(Job, Reply),
    /// A change of the client's memory, which may be carried out together with those that follow, and the answer if it is
    /// done.
    Memory(ViewChange, Reply),
    /// A reset; if it is done the answer is [`Reply::Done`].
    Reset(RequestId),
}

/// What a client has said of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuestMemory {
    /// Nothing.
    Unknown,
    /// There is some that devices can reach.
    Reachable,
    /// Some was mapped without a file, and none with one.
    Private,
}

/// One client of a device.
#[derive(Debug)]
pub struct VfioUserSession {
    cookie: Cookie,
    /// `VERSION` comes first, and once.
    is_negotiated: bool,
    /// Whether the device has been made ready for this client. Until then it is told nothing about it.
    pub is_admitted: bool,
    /// Changes of its memory that are collected.
    pub batch: MemoryBatch,
    memory: GuestMemory,
}

impl VfioUserSession {
    /// A client that has just connected.
    pub fn new(cookie: Cookie) -> Self {
        let (batch, memory) = (MemoryBatch::default(), GuestMemory::Unknown);
        Self { cookie, is_negotiated: false, is_admitted: false, batch, memory }
    }

    /// The device that is served.
    pub const fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// Whether a request has to wait for any job in flight, not only for one that works on the device: it makes a job
    /// itself, or asks the kernel about the reset group, which waits for the reset or bind of a sibling.
    pub fn has_to_wait(&self, request: &Request, machine: &Machine) -> bool {
        match request {
            Request::DeviceReset
            | Request::GetInfo
            | Request::DeviceFeature(FeatureRequest::GetResetGroup { .. }) => true,
            Request::RegionWrite { access, data } => self.is_slow(access, data, machine),
            _ => false,
        }
    }

    /// Whether a request changes memory, so that it may be carried out with others of its kind.
    pub const fn is_about_memory(request: &Request) -> bool {
        matches!(request, Request::DmaMap(_) | Request::DmaUnmap(..))
    }

    /// Whether a request has to wait until the device is made ready. A reset that was asked for meanwhile is decided on at
    /// once.
    pub const fn needs_admission(request: &Request) -> bool {
        !matches!(request, Request::Version(_) | Request::DeviceReset)
    }

    /// Whether a request is about the device, so that it has to wait while that is reset.
    pub const fn is_about_device(request: &Request) -> bool {
        Self::needs_admission(request) && !Self::is_about_memory(request)
    }

    /// Carries a request out, or begins to.
    ///
    /// # Errors
    ///
    /// A failure whose errno is the reply.
    pub fn handle(&mut self, request: Request, machine: &mut Machine) -> Result<Step, Failure> {
        if matches!(request, Request::Version(_)) == self.is_negotiated {
            return Err(Failure::version_comes_first());
        }
        Ok(Step::Reply(match request {
            Request::Version(proposal) => {
                self.is_negotiated = true;
                Reply::Version(proposal.reply(&CAPABILITIES))
            }
            Request::DmaMap(map) => return self.map(map).map(|change| Step::Memory(change, Reply::Done)),
            Request::DmaUnmap(unmap, echo) => {
                return unmapped(unmap).map(|change| Step::Memory(change, Reply::DmaUnmap(echo)));
            }
            Request::GetInfo => self.device_info(machine)?,
            Request::GetRegionInfo { index, argsz } => self.region_info(index, argsz, machine)?,
            Request::GetRegionIoFds { index } => self.region_io_fds(index, machine)?,
            Request::GetIrqInfo { index } => self.irq_info(index, machine)?,
            Request::SetIrqs(set) => self.set_irqs(set, machine)?,
            Request::RegionRead(access) => self.read(access, machine)?,
            Request::RegionWrite { access, data } if self.is_slow(&access, &data, machine) => {
                machine.note_write(self.cookie, RegionIndex(access.region), access.offset, &data);
                let job = machine.write_slow_register(self.cookie, access.offset, data)?;
                return Ok(Step::Job(job, Reply::RegionWrite(access)));
            }
            Request::RegionWrite { access, data } => self.write(access, &data, machine)?,
            Request::RegionWriteMulti(writes) => self.write_all(&writes, machine)?,
            Request::DeviceFeature(feature) => self.feature(feature, machine)?,
            Request::DeviceReset => {
                return machine.reset_for_client(self.cookie).map(Step::Reset);
            }
        }))
    }

    /// What the device may reach from now on. Something without a file is remembered only: a ROM, or another device's memory.
    fn map(&mut self, map: DmaMap) -> Result<ViewChange, Failure> {
        let DmaMap { address, size, offset, is_writable, file } = map;
        let address = GuestAddress(address);
        let access = if is_writable { Access::ReadWrite } else { Access::Read };
        if file.is_some() {
            self.memory = GuestMemory::Reachable;
        } else if is_writable && self.memory == GuestMemory::Unknown {
            self.memory = GuestMemory::Private;
        }
        let mapping = match file.map(|file| MemoryRegion::new(address, size, offset, file, access)) {
            Some(region) => Mapping::Backed(region?),
            None => Mapping::Unbacked(guest_range(address, size)?),
        };
        Ok(ViewChange::Map(mapping))
    }

    /// A device without the guest's memory would do nothing but harm, and a client hears of a mapping that failed too late:
    /// it is told here, before it has the device.
    fn device_info(&self, machine: &Machine) -> Result<Reply, Failure> {
        if self.memory == GuestMemory::Private && !machine.has_memory_table() {
            return Err(Failure::memory_is_private());
        }
        let info = machine.device(self.cookie)?.device.info();
        let reset = if machine.has_reset(self.cookie)? { DeviceInfo::RESET } else { 0 };
        Ok(Reply::Info(DeviceInfo {
            argsz: DeviceInfo::SIZE,
            flags: DeviceInfo::PCI | reset,
            num_regions: info.regions,
            num_irqs: info.irqs,
        }))
    }

    fn region_info(&self, index: u32, room: u32, machine: &mut Machine) -> Result<Reply, Failure> {
        let exposed = machine.expose(self.cookie, RegionIndex(index))?;
        let region = self.region(index, machine)?;
        let mut info = RegionInfo {
            argsz: RegionInfo::SIZE,
            flags: region.flags & (RegionInfo::READ | RegionInfo::WRITE),
            index,
            cap_offset: 0,
            size: region.size,
            offset: 0,
        };
        let (mut areas, mut file) = (Vec::new(), None);
        if let Some(exposed) = exposed {
            info.flags |= RegionInfo::MMAP;
            info.offset = region.offset;
            file = Some(exposed.file);
            if !matches!(exposed.areas.as_slice(), [whole] if *whole == (0..region.size)) {
                areas = exposed.areas.into_iter().map(area).collect();
            }
        }
        Ok(Reply::RegionInfo { description: RegionDescription { info, areas, file }, room })
    }

    fn region_io_fds(&self, index: u32, machine: &Machine) -> Result<Reply, Failure> {
        // A write to an eventfd in place of a register would be out of our sight, and of that of a reset.
        self.region(index, machine).map(|_| Reply::RegionIoFds { index })
    }

    fn region<'a>(&self, index: u32, machine: &'a Machine) -> Result<&'a Region, Failure> {
        let device = &machine.device(self.cookie)?.device;
        device.region(RegionIndex(index)).ok_or_else(|| Failure::no_such_region(index))
    }

    fn feature(&self, feature: FeatureRequest, machine: &Machine) -> Result<Reply, Failure> {
        match feature {
            FeatureRequest::ProbeResetGroup { flags } => Ok(Reply::FeatureProbed { flags }),
            FeatureRequest::GetResetGroup { first_row, max_rows } => {
                machine.reset_group(self.cookie, first_row, max_rows).map(Reply::ResetGroup)
            }
        }
    }

    fn irq_info(&self, index: u32, machine: &Machine) -> Result<Reply, Failure> {
        let info = machine.device(self.cookie)?.device.irq_info(irq_index(index)?);
        // The kernel knows the index and says that the device has none of it.
        let (flags, count) = match info {
            Ok(info) => (info.flags, info.count),
            Err(CallError { errno: Errno::INVAL, .. }) => (0, 0),
            Err(error) => return Err(Failure::device_call(error)),
        };
        Ok(Reply::IrqInfo(IrqInfo { argsz: IrqInfo::SIZE, flags, index, count }))
    }

    fn set_irqs(&self, set: SetIrqs, machine: &mut Machine) -> Result<Reply, Failure> {
        let index = irq_index(set.index)?;
        let action = match set.action {
            wire::IrqAction::Mask => IrqAction::Mask,
            wire::IrqAction::Unmask => IrqAction::Unmask,
            wire::IrqAction::Trigger => IrqAction::Trigger,
        };
        let data = match set.data {
            wire::IrqData::None => IrqChangeData::None(set.count),
            wire::IrqData::Bools(values) => IrqChangeData::Bools(values.into_iter().map(u8::from).collect()),
            // Without descriptors each of the vectors loses its eventfd.
            wire::IrqData::Eventfds(fds) if fds.is_empty() => {
                IrqChangeData::Eventfds((0..set.count).map(|_| None).collect())
            }
            wire::IrqData::Eventfds(fds) => {
                IrqChangeData::Eventfds(fds.into_iter().map(|fd| Some(Arc::new(fd))).collect())
            }
        };
        machine.set_irqs(self.cookie, IrqChange { index, start: set.start, action, data })?;
        Ok(Reply::Done)
    }

    fn read(&self, access: RegionAccess, machine: &Machine) -> Result<Reply, Failure> {
        let device = &machine.device(self.cookie)?.device;
        let index = RegionIndex(access.region);
        let count = usize::try_from(access.count).map_err(|_| Failure::no_such_region(access.region))?;
        // The region is known to be as long before a buffer is taken for it.
        if !device.region(index).is_some_and(|region| region.contains(access.offset, access.count.into())) {
            return Err(Failure::no_such_region(access.region));
        }
        let mut data = vec![0; count];
        device.read_region(index, access.offset, &mut data).map_err(Failure::device_call)?;
        Ok(Reply::RegionRead { access, data })
    }

    /// Whether the kernel takes its time over a write: a guest resets its function through the config space.
    fn is_slow(&self, access: &RegionAccess, data: &[u8], machine: &Machine) -> bool {
        let region = RegionIndex(access.region);
        machine
            .device(self.cookie)
            .is_ok_and(|device| device.is_slow_to_write(region, access.offset, data.len()))
    }

    fn write(&self, access: RegionAccess, data: &[u8], machine: &mut Machine) -> Result<Reply, Failure> {
        let device = &machine.device(self.cookie)?.device;
        let region = RegionIndex(access.region);
        device.write_region(region, access.offset, data).map_err(Failure::device_call)?;
        machine.note_write(self.cookie, region, access.offset, data);
        Ok(Reply::RegionWrite(access))
    }

    /// Does several writes, in order, up to the first that the kernel refuses. Where one of them cannot be done here, none is.
    fn write_all(&self, writes: &[RegionWrite], machine: &mut Machine) -> Result<Reply, Failure> {
        for write in writes {
            let access = write.access();
            let region = self.region(access.region, machine)?;
            if !region.is_writable() || !region.contains(access.offset, access.count.into()) {
                return Err(Failure::no_such_region(access.region));
            }
            if self.is_slow(&access, write.bytes(), machine) {
                return Err(Failure::slow_write_among_others(access.offset));
            }
        }
        let mut done = 0;
        for write in writes {
            match self.write(write.access(), write.bytes(), machine) {
                Ok(_) => done += 1,
                Err(failure) if done == 0 => return Err(failure),
                Err(_) => break,
            }
        }
        Ok(Reply::RegionWriteMulti(done))
    }
}

fn area(range: Range<u64>) -> SparseMmapArea {
    SparseMmapArea { offset: range.start, size: range.end - range.start }
}

fn unmapped(unmap: DmaUnmap) -> Result<ViewChange, Failure> {
    match unmap {
        DmaUnmap::Range { address, size } => guest_range(GuestAddress(address), size).map(ViewChange::Unmap),
        DmaUnmap::All => Ok(ViewChange::Clear),
    }
}

fn guest_range(address: GuestAddress, size: u64) -> Result<GuestRange, Failure> {
    GuestRange::new(address, size).ok_or_else(|| Failure::region_unaligned(address.0, 1))
}

fn irq_index(number: u32) -> Result<IrqIndex, Failure> {
    IrqIndex::from_number(number).ok_or_else(|| Failure::no_such_irq(number))
}
