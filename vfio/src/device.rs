// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VFIO cdev, from the received descriptor to the bound device. There is no unbind: a device is released when the
//! last copy of its descriptor, in any process, is closed.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_IOEVENTFD_16, vfio_device_attach_iommufd_pt,
    vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt, vfio_device_info, vfio_device_ioeventfd,
    vfio_irq_info,
};

use crate::device_id::DeviceId;
use crate::error::{CallError, Object};
use crate::hot_reset::{self, HotReset, HotResetInfo};
use crate::hwpt::Hwpt;
use crate::ioas::Ioas;
use crate::ioctl::{self, Ioctl};
use crate::iommufd::Iommufd;
use crate::irq::{IrqIndex, IrqInfo, IrqSet};
use crate::pci_address::PciAddress;
use crate::region::{MAX_INFO_SIZE, Region, RegionIndex};
use crate::sys::{self, Array, DeviceFd};
use crate::topology::Sysfs;

/// Most regions a device is believed to have: the nine of every PCI device, and device-specific ones.
const MAX_REGIONS: u32 = 64;

/// A received descriptor that is not a PCI device's VFIO cdev.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACdev {
    /// The kernel refused to describe the descriptor.
    #[error("fstat of the descriptor failed")]
    Fstat(#[source] Errno),
    /// Some other kind of file.
    #[error("the descriptor is not the VFIO character device of a PCI function")]
    OtherFile,
    /// A character device that was none when sysfs was read for the last time.
    #[error("the descriptor was not the VFIO character device of a PCI function when sysfs was read")]
    UnknownNumber,
}

/// Why the kernel would not bind a device, as far as its errno and sysfs tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindRefusal {
    /// `EINVAL`: this open file, or another one of the same device, is bound already.
    AlreadyBound,
    /// `EINVAL`: the firmware demands a mapping of its own for the device.
    FirmwareMapping,
    /// `EBUSY`: the device's legacy group (`/dev/vfio/N`) is open.
    GroupOpen,
    /// `EPERM` without interrupt remapping: a device could forge interrupts.
    UnsafeInterrupts,
    /// `EPERM`: a kernel driver uses a function of the same IOMMU group.
    SiblingDriver {
        /// That function.
        sibling: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// `EPERM` otherwise: another iommufd or container owns the IOMMU group.
    ForeignOwner,
    /// `EAGAIN`: somebody holds the device's lock, for example an unbind that waits.
    DeviceLocked,
    /// Any other errno.
    Other,
}

/// A refused bind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device {} cannot be bound", .device)]
pub struct BindError {
    /// The device.
    pub device: PciAddress,
    /// What the errno stands for here.
    pub refusal: BindRefusal,
    /// The call and its errno.
    #[source]
    pub call: CallError,
}

/// An open VFIO cdev that is not bound to an iommufd yet: it answers nothing but the bind.
#[derive(Debug)]
pub struct UnboundDevice {
    fd: DeviceFd,
    address: PciAddress,
}

impl UnboundDevice {
    /// Accepts a descriptor after checking that it is a PCI function's VFIO cdev.
    pub fn from_fd(fd: OwnedFd, sysfs: &Sysfs) -> Result<Self, NotACdev> {
        let number =
            Sysfs::character_device(fd.as_fd()).map_err(NotACdev::Fstat)?.ok_or(NotACdev::OtherFile)?;
        let unknown = if sysfs.is_snapshot() { NotACdev::UnknownNumber } else { NotACdev::OtherFile };
        let address = sysfs.function_of_cdev(number).map_err(|_| unknown)?;
        Ok(Self { fd: DeviceFd(fd), address })
    }

    /// The function behind the descriptor.
    pub const fn address(&self) -> PciAddress {
        self.address
    }

    /// Binds the device to `iommufd` and learns what it consists of. The kernel resets the function on the way.
    ///
    /// # Errors
    ///
    /// [`BindError`] for the bind itself, or one that wraps the first question the bound device failed to answer.
    pub fn bind(self, iommufd: &Iommufd, sysfs: &Sysfs) -> Result<Device, BindError> {
        let mut argument =
            vfio_device_bind_iommufd { iommufd: iommufd.fd().as_fd().as_raw_fd(), ..Default::default() };
        let device = self.address;
        let bound = sys::call(&self.fd, &mut argument).map_err(|errno| BindError {
            device,
            refusal: refusal(device, errno, sysfs),
            call: CallError { call: ioctl::DEVICE_BIND_IOMMUFD.name, object: Object::Device(device), errno },
        });
        bound?;
        Device::describe(self.fd, self.address, DeviceId(argument.out_devid)).map_err(|call| BindError {
            device,
            refusal: BindRefusal::Other,
            call,
        })
    }
}

fn refusal(device: PciAddress, errno: Errno, sysfs: &Sysfs) -> BindRefusal {
    match errno {
        Errno::INVAL if sysfs.has_firmware_mapping(device) => BindRefusal::FirmwareMapping,
        Errno::INVAL => BindRefusal::AlreadyBound,
        Errno::BUSY => BindRefusal::GroupOpen,
        Errno::AGAIN => BindRefusal::DeviceLocked,
        Errno::PERM => {
            if let Some((sibling, driver)) = sibling_with_kernel_driver(device, sysfs) {
                BindRefusal::SiblingDriver { sibling, driver }
            } else if !sysfs.interrupts_allow_binding() {
                BindRefusal::UnsafeInterrupts
            } else if sysfs.is_snapshot() {
                // A sibling may have got a driver since.
                BindRefusal::Other
            } else {
                BindRefusal::ForeignOwner
            }
        }
        _ => BindRefusal::Other,
    }
}

/// A function of the group whose kernel driver claims the group's DMA.
fn sibling_with_kernel_driver(device: PciAddress, sysfs: &Sysfs) -> Option<(PciAddress, String)> {
    let siblings = sysfs.group_siblings(device).unwrap_or_default();
    siblings
        .into_iter()
        .find_map(|sibling| Some((sibling, sysfs.function(sibling).ok()?.driver.claimant()?.to_owned())))
}

/// What a bound device consists of (`struct vfio_device_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Whether `VFIO_DEVICE_RESET` works: the function reset that the kernel tried at the bind succeeded.
    pub has_function_reset: bool,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
}

/// A device bound to an iommufd.
pub struct Device {
    fd: DeviceFd,
    address: PciAddress,
    id: DeviceId,
    info: DeviceInfo,
    regions: Vec<Region>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("address", &self.address).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Device {
    fn describe(fd: DeviceFd, address: PciAddress, id: DeviceId) -> Result<Self, CallError> {
        let error =
            |call: Ioctl, errno| CallError { call: call.name, object: Object::Device(address), errno };
        let mut kernel = vfio_device_info::default();
        sys::call(&fd, &mut kernel).map_err(|errno| error(ioctl::DEVICE_GET_INFO, errno))?;
        if kernel.flags & VFIO_DEVICE_FLAGS_PCI == 0 || kernel.num_regions > MAX_REGIONS {
            return Err(error(ioctl::DEVICE_GET_INFO, Errno::PROTO));
        }
        let info = DeviceInfo {
            has_function_reset: kernel.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            regions: kernel.num_regions,
            irqs: kernel.num_irqs,
        };
        let regions = (0..info.regions).map(|index| region(&fd, index)).collect::<Result<_, _>>();
        let regions = regions.map_err(|errno| error(ioctl::DEVICE_GET_REGION_INFO, errno))?;
        Ok(Self { fd, address, id, info, regions })
    }

    /// Where the device is.
    pub const fn address(&self) -> PciAddress {
        self.address
    }

    /// The id that rows of [`HotResetInfo`] name it by.
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// What the device consists of.
    pub const fn info(&self) -> DeviceInfo {
        self.info
    }

    /// A region; `None` beyond [`DeviceInfo::regions`].
    pub fn region(&self, index: RegionIndex) -> Option<&Region> {
        self.regions.get(usize::try_from(index.0).ok()?)
    }

    /// The device's file, for whoever shall have all of its power.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What the kernel says about an interrupt index.
    ///
    /// # Errors
    ///
    /// `EINVAL` where the device has no such index.
    pub fn irq_info(&self, index: IrqIndex) -> Result<IrqInfo, CallError> {
        let mut argument = vfio_irq_info { index: index.number(), ..Default::default() };
        sys::call(&self.fd, &mut argument).map_err(|errno| self.error(ioctl::DEVICE_GET_IRQ_INFO, errno))?;
        Ok(IrqInfo::from_kernel(&argument))
    }

    /// Arms, disarms, masks, unmasks or fires vectors.
    ///
    /// # Errors
    ///
    /// `ENOSPC` where the device has fewer vectors than asked for (the kernel then returns their number and enables
    /// none); otherwise the kernel's errno.
    pub fn set_irqs(&self, set: &IrqSet<'_>) -> Result<(), CallError> {
        let outcome = set
            .encode()
            .and_then(|mut argument| sys::call_with_array(&self.fd, Array::IrqSet, &mut argument));
        match outcome {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.error(ioctl::DEVICE_SET_IRQS, Errno::NOSPC)),
            Err(errno) => Err(self.error(ioctl::DEVICE_SET_IRQS, errno)),
        }
    }

    /// Reads `data.len()` bytes of a region.
    ///
    /// # Errors
    ///
    /// `EINVAL` outside the region or where it cannot be read; `EIO` while memory decoding is off, and for a short read.
    pub fn read_region(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), CallError> {
        self.access(index, offset, data.len(), Region::is_readable)
            .and_then(|position| sys::read(&self.fd, data, position))
            .and_then(|count| if count == data.len() { Ok(()) } else { Err(Errno::IO) })
            .map_err(|errno| CallError { call: "pread", object: Object::Device(self.address), errno })
    }

    /// Writes `data` to a region.
    ///
    /// # Errors
    ///
    /// As [`Self::read_region`].
    pub fn write_region(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), CallError> {
        self.access(index, offset, data.len(), Region::is_writable)
            .and_then(|position| sys::write(&self.fd, data, position))
            .and_then(|count| if count == data.len() { Ok(()) } else { Err(Errno::IO) })
            .map_err(|errno| CallError { call: "pwrite", object: Object::Device(self.address), errno })
    }

    /// Has the kernel write `data` to a BAR whenever `eventfd` is signalled, and at once if it was before; not any more with
    /// `None`. It takes what the eventfd counts, and writes nothing while memory decoding is off.
    ///
    /// # Errors
    ///
    /// `EEXIST` there is an eventfd for this write; `ENODEV` there is none to take away; `EINVAL` outside the BARs and over
    /// the table of MSI-X; `ENOSPC` from 1000 on.
    pub fn write_on_eventfd(
        &self,
        index: RegionIndex,
        offset: u64,
        data: u16,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), CallError> {
        let call = |offset| {
            let mut argument = vfio_device_ioeventfd {
                flags: VFIO_DEVICE_IOEVENTFD_16,
                offset,
                data: data.into(),
                fd: eventfd.map_or(-1, |eventfd| eventfd.as_raw_fd()),
                ..Default::default()
            };
            sys::call(&self.fd, &mut argument).map(drop)
        };
        self.access(index, offset, size_of_val(&data), Region::is_writable)
            .and_then(call)
            .map_err(|errno| self.error(ioctl::DEVICE_IOEVENTFD, errno))
    }

    /// The position in the device's file of an access that is within bounds and allowed.
    fn access(
        &self,
        index: RegionIndex,
        offset: u64,
        count: usize,
        allowed: fn(&Region) -> bool,
    ) -> Result<u64, Errno> {
        let count = u64::try_from(count).map_err(|_| Errno::INVAL)?;
        let region = self.region(index).ok_or(Errno::INVAL)?;
        if !allowed(region) || !region.contains(offset, count) {
            return Err(Errno::INVAL);
        }
        region.offset.checked_add(offset).ok_or(Errno::INVAL)
    }

    /// Attaches the device to an IOAS, over a page table that the kernel makes and shares between all who attach so.
    ///
    /// # Errors
    ///
    /// As [`Self::attach`].
    pub fn attach_ioas(&self, ioas: &Ioas) -> Result<(), CallError> {
        self.attach_object(ioas.id())
    }

    /// Attaches the device to a page table, replacing the one it is attached to: atomically, and for every function of
    /// its IOMMU group.
    ///
    /// # Errors
    ///
    /// `EINVAL` the page table is not of this device's kind, or the group is attached to another one for the first
    /// time; `EADDRINUSE` a mapping collides with a reserved range of the device.
    pub fn attach(&self, hwpt: &Hwpt) -> Result<(), CallError> {
        self.attach_object(hwpt.id())
    }

    fn attach_object(&self, id: u32) -> Result<(), CallError> {
        let mut argument = vfio_device_attach_iommufd_pt { pt_id: id, ..Default::default() };
        sys::call(&self.fd, &mut argument)
            .map(drop)
            .map_err(|errno| self.error(ioctl::DEVICE_ATTACH_IOMMUFD_PT, errno))
    }

    /// Detaches the device: no DMA of it arrives any more.
    pub fn detach(&self) -> Result<(), CallError> {
        let mut argument = vfio_device_detach_iommufd_pt::default();
        sys::call(&self.fd, &mut argument)
            .map(drop)
            .map_err(|errno| self.error(ioctl::DEVICE_DETACH_IOMMUFD_PT, errno))
    }

    /// Resets this function alone (`VFIO_DEVICE_RESET`).
    ///
    /// # Errors
    ///
    /// `EINVAL` where [`DeviceInfo::has_function_reset`] is false; `EAGAIN` somebody holds the device's lock.
    pub fn reset(&self) -> Result<(), CallError> {
        sys::reset(&self.fd).map_err(|errno| self.error(ioctl::DEVICE_RESET, errno))
    }

    /// The functions a hot reset of this device hits, at this moment.
    ///
    /// # Errors
    ///
    /// `ENODEV` there is neither a slot nor a bus reset for it; `EAGAIN` the set kept changing while it was asked for.
    pub fn hot_reset_info(&self) -> Result<HotResetInfo, CallError> {
        hot_reset::info(&self.fd).map_err(|errno| self.error(ioctl::DEVICE_GET_PCI_HOT_RESET_INFO, errno))
    }

    /// Resets every function of [`Self::hot_reset_info`]. Uninterruptible, and may take a minute.
    ///
    /// # Errors
    ///
    /// `EINVAL` an affected function is not ours; `ENODEV` no such reset; `EBUSY` somebody is accessing an affected
    /// device, `EAGAIN` holds its lock: worth another try. Nothing was reset then; with any other errno it may have been.
    pub fn hot_reset(&self) -> Result<HotReset, CallError> {
        hot_reset::execute(&self.fd).map_err(|errno| self.error(ioctl::DEVICE_PCI_HOT_RESET, errno))
    }

    const fn error(&self, ioctl: Ioctl, errno: Errno) -> CallError {
        CallError { call: ioctl.name, object: Object::Device(self.address), errno }
    }
}

/// Asks for a region and its capabilities. One that the device does not have (`EINVAL`, as VGA mostly) is empty.
fn region(fd: &DeviceFd, index: u32) -> Result<Region, Errno> {
    const FIXED: usize = 32;
    let mut buffer = vec![0; FIXED];
    loop {
        buffer.get_mut(8..12).ok_or(Errno::PROTO)?.copy_from_slice(&index.to_ne_bytes());
        match sys::call_with_array(fd, Array::RegionInfo, &mut buffer) {
            Ok(_) => {}
            Err(Errno::INVAL) => return Ok(Region::default()),
            Err(errno) => return Err(errno),
        }
        // A kernel with more to say raises argsz and leaves the capabilities out.
        let argsz = buffer.first_chunk().copied().map_or(0, u32::from_ne_bytes);
        let wanted = usize::try_from(argsz.min(MAX_INFO_SIZE)).map_err(|_| Errno::PROTO)?;
        if wanted <= buffer.len() {
            return Region::decode(&buffer).ok_or(Errno::PROTO);
        }
        buffer = vec![0; wanted];
    }
}
