// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What sysfs knows: which function a descriptor is, which group and driver a function has, who its siblings are.
//!
//! A [`Sysfs`] is one directory descriptor, opened once. Everything is read below it, so a sandbox needs to allow no
//! path but that; or none, where what sysfs says of VFIO cdevs at the start will do.

mod snapshot;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::snapshot::Snapshot;
use crate::pci_address::PciAddress;

/// Longest sysfs attribute that is read, in bytes.
const MAX_ATTRIBUTE: usize = 4096;
/// Most entries of a directory that are read: no PCI segment has more functions.
const MAX_ENTRIES: usize = 1 << 16;
/// The name of a group that vfio made up for a function without an IOMMU.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";
/// Elsewhere the interrupt controller itself tells devices apart, and sysfs does not say whether it does.
const MESSAGES_NEED_REMAPPING: bool = cfg!(target_arch = "x86_64");

/// The mounted sysfs, or what it once said.
#[derive(Debug)]
pub struct Sysfs {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Directory(OwnedFd),
    Snapshot(Snapshot),
}

/// What a device number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Who drives a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Nobody.
    None,
    /// A VFIO driver, with the name of the function's cdev (`vfio3`).
    Vfio {
        /// `vfio-pci` or a variant driver.
        name: String,
        /// The cdev's name below `/dev/vfio/devices`.
        device: String,
    },
    /// Any other driver.
    Kernel(String),
}

impl Driver {
    /// The kernel driver that claims the DMA of the function's IOMMU group, so that no function of the group can be bound to an
    /// iommufd. Port drivers and pci-stub do not.
    pub fn claimant(&self) -> Option<&str> {
        match self {
            Self::Kernel(name) if name != "pcieport" && name != "pci-stub" => Some(name),
            Self::Kernel(_) | Self::Vfio { .. } | Self::None => None,
        }
    }
}

/// A PCI function as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// Class code, 24 bits.
    pub class: u32,
    /// Config header type without the multi-function bit: 0 an endpoint, 1 a bridge.
    pub header_type: u8,
    /// IOMMU group; `None` where there is none.
    pub iommu_group: Option<u32>,
    /// Who drives it.
    pub driver: Driver,
    /// Whether it is an SR-IOV virtual function.
    pub is_virtual: bool,
}

impl Sysfs {
    /// Opens `/sys`.
    pub fn open() -> Result<Self, Errno> {
        Self::open_at(Path::new("/sys"))
    }

    /// Opens a tree of the same shape as `/sys`.
    pub fn open_at(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { source: Source::Directory(fs::openat(fs::CWD, root, flags, Mode::empty())?) })
    }

    /// What it says now of functions that have a VFIO cdev, and nothing else: no file is opened to ask it. What such a function
    /// is was read then; every other question is answered as if there was no such thing (`ENOENT`).
    pub fn snapshot(&self) -> Result<Self, Errno> {
        Snapshot::take(self).map(|snapshot| Self { source: Source::Snapshot(snapshot) })
    }

    /// Whether it cannot tell what has changed since it was read.
    pub const fn is_snapshot(&self) -> bool {
        matches!(self.source, Source::Snapshot(_))
    }

    /// The device number behind a character device's descriptor; `None` for any other kind of file.
    ///
    /// # Errors
    ///
    /// The errno of `fstat`.
    pub fn character_device(fd: BorrowedFd<'_>) -> Result<Option<DeviceNumber>, Errno> {
        #[cfg(feature = "model")]
        if let Some(file) = crate::model::client::ModelFile::of(fd) {
            return Ok(file.identify());
        }
        let stat = fs::fstat(fd)?;
        let is_character_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        Ok(is_character_device
            .then(|| DeviceNumber { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) }))
    }

    /// Whether a device number is `/dev/iommu`'s.
    pub fn is_iommufd(&self, number: DeviceNumber) -> bool {
        match &self.source {
            Source::Snapshot(snapshot) => snapshot.is_iommufd(number),
            Source::Directory(_) => self.device_number("class/misc/iommu/dev") == Ok(number),
        }
    }

    /// The PCI function a VFIO cdev belongs to.
    ///
    /// # Errors
    ///
    /// `ENODEV` where the number is not a VFIO cdev's, or its parent is not a PCI function.
    pub fn function_of_cdev(&self, number: DeviceNumber) -> Result<PciAddress, Errno> {
        if let Source::Snapshot(snapshot) = &self.source {
            return snapshot.function_of_cdev(number);
        }
        let directory = format!("dev/char/{}:{}", number.major, number.minor);
        let subsystem = self.link_target(&format!("{directory}/subsystem"))?;
        if subsystem != "vfio-dev" {
            return Err(Errno::NODEV);
        }
        self.link_target(&format!("{directory}/device"))?.parse().map_err(|_| Errno::NODEV)
    }

    /// Everything this crate asks sysfs about a function.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such function (any more).
    pub fn function(&self, address: PciAddress) -> Result<Function, Errno> {
        if let Source::Snapshot(snapshot) = &self.source {
            return snapshot.function(address);
        }
        let directory = format!("bus/pci/devices/{address}");
        Ok(Function {
            address,
            vendor: self.hexadecimal(&directory, "vendor")?,
            device: self.hexadecimal(&directory, "device")?,
            class: self.hexadecimal(&directory, "class")?,
            header_type: self.header_type(&directory)?,
            iommu_group: self.iommu_group(&directory)?,
            driver: self.driver(&directory)?,
            is_virtual: self.exists(&format!("{directory}/physfn")),
        })
    }

    /// The other functions of a function's IOMMU group.
    ///
    /// # Errors
    ///
    /// `ENOENT` where the function has no group.
    pub fn group_siblings(&self, address: PciAddress) -> Result<Vec<PciAddress>, Errno> {
        let members = self.directory(&format!("bus/pci/devices/{address}/iommu_group/devices"))?;
        Ok(members.iter().filter_map(|name| name.parse().ok()).filter(|member| *member != address).collect())
    }

    /// Whether a driver has switched the function on. A VFIO driver does while somebody uses the device: from when it is bound
    /// to an iommufd or opened by way of its group until it is closed. A cdev that is merely open does not count.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such function (any more).
    pub fn is_enabled(&self, address: PciAddress) -> Result<bool, Errno> {
        Ok(self.attribute(&format!("bus/pci/devices/{address}/enable"))? != "0")
    }

    /// The driver that an unbind takes from a function while it waits for the function's user: the link to it is gone already,
    /// and the cdev with it, but the kernel still names it.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such function (any more).
    pub fn departing_driver(&self, address: PciAddress) -> Result<Option<String>, Errno> {
        let directory = format!("bus/pci/devices/{address}");
        if self.exists(&format!("{directory}/driver")) {
            return Ok(None);
        }
        let properties = self.attribute(&format!("{directory}/uevent"))?;
        Ok(properties.lines().find_map(|line| line.strip_prefix("DRIVER=")).map(ToOwned::to_owned))
    }

    /// Whether no IOMMU stands behind a function, so that its group is one that vfio made up, with no other member.
    pub fn is_without_iommu(&self, address: PciAddress) -> bool {
        self.attribute(&format!("bus/pci/devices/{address}/iommu_group/name"))
            .is_ok_and(|name| name == NO_IOMMU_GROUP)
    }

    /// Whether the firmware demands that a part of memory stays reachable for the function at its own address, which
    /// makes it unfit for a VM.
    pub fn has_firmware_mapping(&self, address: PciAddress) -> bool {
        if let Source::Snapshot(snapshot) = &self.source {
            return snapshot.has_firmware_mapping(address);
        }
        let regions = self.attribute(&format!("bus/pci/devices/{address}/iommu_group/reserved_regions"));
        regions.is_ok_and(|regions| regions.lines().any(|region| region.ends_with(" direct")))
    }

    /// Whether interrupts are remapped, as the name of any interrupt controller in use shows (`IR-…`).
    pub fn has_interrupt_remapping(&self) -> bool {
        let interrupts = self.directory("kernel/irq").unwrap_or_default();
        interrupts.iter().any(|number| {
            self.attribute(&format!("kernel/irq/{number}/chip_name"))
                .is_ok_and(|name| name.starts_with("IR-"))
        })
    }

    /// Whether a device may be bound as far as its interrupts go: they are remapped where that is needed, or the kernel was
    /// told to do without.
    pub fn interrupts_allow_binding(&self) -> bool {
        if let Source::Snapshot(snapshot) = &self.source {
            return snapshot.interrupts_allow_binding();
        }
        let unsafe_ones_are_allowed = || {
            let parameter = self.attribute("module/iommufd/parameters/allow_unsafe_interrupts");
            parameter.is_ok_and(|value| value == "Y")
        };
        !MESSAGES_NEED_REMAPPING || self.has_interrupt_remapping() || unsafe_ones_are_allowed()
    }

    fn driver(&self, directory: &str) -> Result<Driver, Errno> {
        let name = match self.link_target(&format!("{directory}/driver")) {
            Ok(name) => name,
            Err(Errno::NOENT) => return Ok(Driver::None),
            Err(errno) => return Err(errno),
        };
        let cdevs = self.directory(&format!("{directory}/vfio-dev")).unwrap_or_default();
        Ok(match cdevs.into_iter().next() {
            Some(device) => Driver::Vfio { name, device },
            None => Driver::Kernel(name),
        })
    }

    fn iommu_group(&self, directory: &str) -> Result<Option<u32>, Errno> {
        match self.link_target(&format!("{directory}/iommu_group")) {
            Ok(group) => group.parse().map(Some).map_err(|_| Errno::INVAL),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Byte 0x0e of the config header, which sysfs shows to everybody.
    fn header_type(&self, directory: &str) -> Result<u8, Errno> {
        let file = self.open_file(&format!("{directory}/config"))?;
        let mut byte = [0];
        match rustix::io::pread(&file, &mut byte, 0x0e)? {
            1 => Ok(byte[0] & 0x7f),
            _ => Err(Errno::IO),
        }
    }

    /// A number as sysfs writes it (`511:3`).
    fn device_number(&self, path: &str) -> Result<DeviceNumber, Errno> {
        let text = self.attribute(path)?;
        let (major, minor) = text.split_once(':').ok_or(Errno::INVAL)?;
        let number = |text: &str| text.parse().map_err(|_| Errno::INVAL);
        Ok(DeviceNumber { major: number(major)?, minor: number(minor)? })
    }

    fn hexadecimal<T: TryFrom<u32>>(&self, directory: &str, name: &str) -> Result<T, Errno> {
        let text = self.attribute(&format!("{directory}/{name}"))?;
        let digits = text.strip_prefix("0x").ok_or(Errno::INVAL)?;
        let value = u32::from_str_radix(digits, 16).map_err(|_| Errno::INVAL)?;
        value.try_into().map_err(|_| Errno::INVAL)
    }

    pub(crate) fn attribute(&self, path: &str) -> Result<String, Errno> {
        let file = self.open_file(path)?;
        let mut bytes = [0; MAX_ATTRIBUTE];
        let length = rustix::io::read(&file, &mut bytes)?;
        let text =
            bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(Errno::INVAL)?;
        Ok(text.trim_end().to_owned())
    }

    pub(crate) fn link_target(&self, path: &str) -> Result<String, Errno> {
        let target = self.link(path)?;
        Ok(target.rsplit('/').next().unwrap_or(&target).to_owned())
    }

    /// What a link says, with the whole path.
    pub(crate) fn link(&self, path: &str) -> Result<String, Errno> {
        let target = fs::readlinkat(self.root()?, path, Vec::new())?;
        target.into_string().map_err(|_| Errno::INVAL)
    }

    pub(crate) fn directory(&self, path: &str) -> Result<Vec<String>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::openat(self.root()?, path, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in fs::Dir::new(directory)?.take(MAX_ENTRIES) {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.root().and_then(|root| fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW)).is_ok()
    }

    fn open_file(&self, path: &str) -> Result<OwnedFd, Errno> {
        fs::openat(self.root()?, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// What everything is read below. There is nothing below a snapshot.
    fn root(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.source {
            Source::Directory(root) => Ok(root.as_fd()),
            Source::Snapshot(_) => Err(Errno::NOENT),
        }
    }
}

#[cfg(test)]
mod tests;
