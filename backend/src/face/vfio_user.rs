// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vfio-user face: one device, as a VMM's vfio-user client sees it.

use std::sync::Arc;

use protocol::extension::Cookie;
use protocol::vfio_user::{
    self as wire, Capabilities, DeviceInfo, IrqInfo, RegionAccess, RegionInfo, Reply, Request, SetIrqs,
};
use rustix::io::Errno;
use vfio::{CallError, IrqAction, IrqIndex, RegionIndex};

use crate::failure::Failure;
use crate::interrupts::{IrqChange, IrqChangeData};
use crate::job::Job;
use crate::machine::Machine;
use crate::reset::engine::RequestId;

/// What this end of a connection can take.
const CAPABILITIES: Capabilities = Capabilities {
    max_msg_fds: Some(16),
    max_data_xfer_size: Some(1 << 20),
    pgsizes: Some(4096),
    max_dma_maps: None,
};

/// What a request leads to.
#[derive(Debug)]
pub enum Step {
    /// The answer.
    Reply(Reply),
    /// Something that takes its time, and the answer if it is done well.
    Job(Job, Reply),
    /// A reset; if it is done the answer is [`Reply::Done`].
    Reset(RequestId),
}

/// One client of a device.
#[derive(Debug)]
pub struct VfioUserSession {
    cookie: Cookie,
    /// `VERSION` comes first, and once.
    is_negotiated: bool,
    /// Whether the device has been made ready for this client. Until then it is told nothing about it.
    pub is_admitted: bool,
}

impl VfioUserSession {
    /// A client that has just connected.
    pub const fn new(cookie: Cookie) -> Self {
        Self { cookie, is_negotiated: false, is_admitted: false }
    }

    /// The device that is served.
    pub const fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// Whether a request has to wait for any job in flight, not only for one that works on the device: it makes a job
    /// itself, or asks the kernel about the reset group, which waits for the reset or bind of a sibling.
    pub fn has_to_wait(&self, request: &Request, machine: &Machine) -> bool {
        match request {
            Request::DeviceReset | Request::GetInfo => true,
            Request::RegionWrite { access, data } => self.is_slow(access, data, machine),
            _ => false,
        }
    }

    /// Whether a request is about the device, so that it has to wait while that is made ready or reset. A reset that was
    /// asked for meanwhile is decided on at once.
    pub const fn is_about_device(request: &Request) -> bool {
        !matches!(request, Request::Version(_) | Request::DeviceReset)
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
            Request::GetInfo => self.device_info(machine)?,
            Request::GetRegionInfo { index, .. } => self.region_info(index, machine)?,
            Request::GetIrqInfo { index } => self.irq_info(index, machine)?,
            Request::SetIrqs(set) => self.set_irqs(set, machine)?,
            Request::RegionRead(access) => self.read(access, machine)?,
            Request::RegionWrite { access, data } if self.is_slow(&access, &data, machine) => {
                machine.note_write(self.cookie, RegionIndex(access.region), access.offset, &data);
                let job = machine.write_slow_register(self.cookie, access.offset, data)?;
                return Ok(Step::Job(job, Reply::RegionWrite(access)));
            }
            Request::RegionWrite { access, data } => self.write(access, &data, machine)?,
            Request::DeviceReset => {
                return machine.reset_for_client(self.cookie).map(Step::Reset);
            }
        }))
    }

    fn device_info(&self, machine: &Machine) -> Result<Reply, Failure> {
        let info = machine.device(self.cookie)?.device.info();
        let reset = if machine.has_reset(self.cookie)? { DeviceInfo::RESET } else { 0 };
        Ok(Reply::Info(DeviceInfo {
            argsz: DeviceInfo::SIZE,
            flags: DeviceInfo::PCI | reset,
            num_regions: info.regions,
            num_irqs: info.irqs,
        }))
    }

    fn region_info(&self, index: u32, machine: &Machine) -> Result<Reply, Failure> {
        let device = &machine.device(self.cookie)?.device;
        let region = device.region(RegionIndex(index)).ok_or_else(|| Failure::no_such_region(index))?;
        // Every access is a message: nothing can be mapped, and so there is no descriptor and no sparse area.
        Ok(Reply::RegionInfo(RegionInfo {
            argsz: RegionInfo::SIZE,
            flags: region.flags & (RegionInfo::READ | RegionInfo::WRITE),
            index,
            cap_offset: 0,
            size: region.size,
            offset: 0,
        }))
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
}

fn irq_index(number: u32) -> Result<IrqIndex, Failure> {
    IrqIndex::from_number(number).ok_or_else(|| Failure::no_such_irq(number))
}
