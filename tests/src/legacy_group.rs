// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Another user who holds a device the legacy way: IOMMU group, container, device. Nothing of this is in crate `vfio`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use vfio::{PciAddress, ioctl};

use crate::host::Host;

/// Requests of `<linux/vfio.h>` that only groups and containers take.
mod request {
    pub(super) const SET_IOMMU: u32 = 0x3b66;
    pub(super) const GROUP_GET_STATUS: u32 = 0x3b67;
    pub(super) const GROUP_SET_CONTAINER: u32 = 0x3b68;
    pub(super) const GROUP_UNSET_CONTAINER: u32 = 0x3b69;
    pub(super) const GROUP_GET_DEVICE_FD: u32 = 0x3b6a;
}
/// The one kind of container there is on this machine.
const TYPE1_V2_IOMMU: usize = 3;
const GROUP_VIABLE: u32 = 1;
const GROUP_CONTAINER_SET: u32 = 2;
/// More rows than any set of the test machines has.
const ROWS: usize = 32;

/// What comes with a request.
#[derive(Debug)]
enum Argument<'a> {
    /// A structure.
    Bytes(&'a mut [u8]),
    /// The argument itself.
    Value(usize),
}

/// Issues a request on a group, a container or a device.
fn raw(file: impl AsFd, number: u32, argument: Argument<'_>) -> Result<u32, Errno> {
    if vfio::model::is_open_file(file.as_fd()) {
        return modelled(file.as_fd(), number, argument, &[]).map(|(value, _)| value);
    }
    // The type of ioctl's second parameter is not the same in every C library; all numbers fit.
    #[allow(clippy::cast_lossless, clippy::cast_possible_wrap)]
    let number = number as libc::Ioctl;
    let file = file.as_fd().as_raw_fd();
    let result = match argument {
        // SAFETY: the requests of this file access no memory but the structure, of which the callers give as much as its
        // length word announces, or as a structure without one has. The borrow is exclusive.
        Argument::Bytes(bytes) => unsafe { libc::ioctl(file, number, bytes.as_mut_ptr()) },
        // SAFETY: the requests that are given a value take it for no address.
        Argument::Value(value) => unsafe { libc::ioctl(file, number, value) },
    };
    u32::try_from(result)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).expect("a failed ioctl has an errno"))
}

/// The same on a file of the model, which is sent the descriptors that the argument names.
fn modelled(
    file: BorrowedFd<'_>,
    number: u32,
    argument: Argument<'_>,
    named: &[BorrowedFd<'_>],
) -> Result<(u32, Option<OwnedFd>), Errno> {
    match argument {
        Argument::Bytes(bytes) => vfio::model::ioctl(file, number, bytes, named),
        Argument::Value(value) => {
            let value = u32::try_from(value).expect("a small value");
            vfio::model::ioctl(file, number, &mut value.to_ne_bytes(), named)
        }
    }
}

/// Issues a request whose argument names descriptors.
fn raw_with(file: impl AsFd, number: u32, bytes: &mut [u8], named: &[BorrowedFd<'_>]) -> Result<u32, Errno> {
    if vfio::model::is_open_file(file.as_fd()) {
        return modelled(file.as_fd(), number, Argument::Bytes(bytes), named).map(|(value, _)| value);
    }
    raw(file, number, Argument::Bytes(bytes))
}

/// What a group says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// No kernel driver uses a function of it.
    pub is_viable: bool,
    /// It is in a container.
    pub has_container: bool,
}

/// An open `/dev/vfio/N`.
#[derive(Debug)]
pub struct LegacyGroup {
    file: File,
}

impl LegacyGroup {
    /// Opens a group.
    pub fn open(host: &Host, group: u32) -> io::Result<Self> {
        host.open_group(group).map(|file| Self { file })
    }

    /// `VFIO_GROUP_GET_STATUS`.
    pub fn status(&self) -> Result<GroupStatus, Errno> {
        let mut argument = words(&[8, 0]);
        raw(&self.file, request::GROUP_GET_STATUS, Argument::Bytes(&mut argument))?;
        let flags = word(&argument, 4);
        Ok(GroupStatus {
            is_viable: flags & GROUP_VIABLE != 0,
            has_container: flags & GROUP_CONTAINER_SET != 0,
        })
    }

    /// Puts the group into a container, or what stands for one.
    pub fn set_container(&self, container: impl AsFd) -> Result<(), Errno> {
        let mut argument = container.as_fd().as_raw_fd().to_ne_bytes();
        raw_with(&self.file, request::GROUP_SET_CONTAINER, &mut argument, &[container.as_fd()]).map(drop)
    }

    /// Takes the group out of its container.
    pub fn unset_container(&self) -> Result<(), Errno> {
        raw(&self.file, request::GROUP_UNSET_CONTAINER, Argument::Value(0)).map(drop)
    }

    /// Opens a device of the group.
    pub fn device(&self, name: &str) -> Result<LegacyDevice, Errno> {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        if vfio::model::is_open_file(self.file.as_fd()) {
            let argument = Argument::Bytes(&mut name);
            let (_, fd) = modelled(self.file.as_fd(), request::GROUP_GET_DEVICE_FD, argument, &[])?;
            return Ok(LegacyDevice { fd: fd.expect("the model gives a descriptor") });
        }
        let number = raw(&self.file, request::GROUP_GET_DEVICE_FD, Argument::Bytes(&mut name))?;
        let number = i32::try_from(number).expect("a descriptor's number");
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(LegacyDevice { fd: unsafe { OwnedFd::from_raw_fd(number) } })
    }
}

impl AsFd for LegacyGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// An open `/dev/vfio/vfio`.
#[derive(Debug)]
pub struct Container {
    file: File,
}

impl Container {
    /// Opens a fresh one.
    pub fn open(host: &Host) -> io::Result<Self> {
        host.open_container().map(|file| Self { file })
    }

    /// `VFIO_SET_IOMMU`, possible once a group is in it.
    pub fn set_iommu(&self) -> Result<(), Errno> {
        raw(&self.file, request::SET_IOMMU, Argument::Value(TYPE1_V2_IOMMU)).map(drop)
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A group, its container and a device of it: all that a program without cdevs holds.
#[derive(Debug)]
pub struct LegacyUser {
    /// The device.
    pub device: LegacyDevice,
    /// The group.
    pub group: LegacyGroup,
    /// The container.
    pub container: Container,
}

impl LegacyUser {
    /// Takes a function and its group.
    pub fn open(host: &Host, group: u32, function: &str) -> Self {
        let container = Container::open(host).expect("a container");
        let group = LegacyGroup::open(host, group).expect("the group");
        group.set_container(&container).expect("the group is viable");
        container.set_iommu().expect("an IOMMU");
        let device = group.device(function).expect("the device");
        Self { device, group, container }
    }
}

/// A device that came out of a group.
#[derive(Debug)]
pub struct LegacyDevice {
    fd: OwnedFd,
}

/// The answer of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` for such a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyHotResetInfo {
    /// As the kernel set them.
    pub flags: u32,
    /// Each affected function and its IOMMU group.
    pub functions: Vec<(PciAddress, u32)>,
}

impl LegacyDevice {
    /// Asks for the reset set.
    pub fn hot_reset_info(&self) -> Result<LegacyHotResetInfo, Errno> {
        const HEADER: usize = 12;
        const ROW: usize = 8;
        let mut argument = vec![0; HEADER + ROW * ROWS];
        let length = u32::try_from(argument.len()).expect("a short argument");
        argument[..4].copy_from_slice(&length.to_ne_bytes());
        let number = ioctl::DEVICE_GET_PCI_HOT_RESET_INFO.number;
        raw(&self.fd, number, Argument::Bytes(&mut argument))?;
        let count = usize::try_from(word(&argument, 8)).expect("a small count");
        let rows = argument[HEADER..].chunks_exact(ROW).take(count).map(|row| {
            let segment = u16::from_ne_bytes([row[4], row[5]]);
            (PciAddress::from_devfn(segment, row[6], row[7]), word(row, 0))
        });
        Ok(LegacyHotResetInfo { flags: word(&argument, 4), functions: rows.collect() })
    }

    /// Resets the set, naming the groups that prove its ownership.
    pub fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let count = u32::try_from(groups.len()).expect("few groups");
        let mut argument = words(&[12 + 4 * count, 0, count]);
        argument.extend(groups.iter().flat_map(|group| group.as_raw_fd().to_ne_bytes()));
        raw_with(&self.fd, ioctl::DEVICE_PCI_HOT_RESET.number, &mut argument, groups).map(drop)
    }

    /// `VFIO_DEVICE_RESET`.
    pub fn reset(&self) -> Result<(), Errno> {
        raw(&self.fd, ioctl::DEVICE_RESET.number, Argument::Value(0)).map(drop)
    }

    /// Binds the device to an iommufd as if it were a cdev.
    pub fn bind(&self, iommufd: impl AsFd) -> Result<(), Errno> {
        let mut argument = words(&[16, 0, 0, 0]);
        argument[8..12].copy_from_slice(&iommufd.as_fd().as_raw_fd().to_ne_bytes());
        let named = [iommufd.as_fd()];
        raw_with(&self.fd, ioctl::DEVICE_BIND_IOMMUFD.number, &mut argument, &named).map(drop)
    }

    /// Attaches the device to an IOAS as if it were a cdev.
    pub fn attach(&self, ioas: u32) -> Result<(), Errno> {
        let mut argument = words(&[12, 0, ioas]);
        raw(&self.fd, ioctl::DEVICE_ATTACH_IOMMUFD_PT.number, Argument::Bytes(&mut argument)).map(drop)
    }
}

impl AsFd for LegacyDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}
