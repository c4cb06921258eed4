// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls on a kernel in the same process, without descriptors: the form in which its own rules are tested.

use rustix::io::Errno;

use crate::ioctl::{self, Ioctl};
use crate::model::iommufd::Caller;
use crate::model::kernel::{FileId, Kernel, Node};
use crate::model::system_call::{Given, Named, Return};
use crate::model::topology::{Driver, Topology};
use crate::model::wire::Call;
use crate::pci_address::PciAddress;

/// Requests of the legacy interface that tests issue as other users do.
pub(super) mod legacy {
    pub(crate) const SET_IOMMU: u32 = 0x3b66;
    pub(crate) const SET_CONTAINER: u32 = 0x3b68;
    pub(crate) const GET_DEVICE_FD: u32 = 0x3b6a;
}

/// A row of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`: who, and the kernel's number for whose.
pub(super) type Row = (PciAddress, u32);

/// A kernel and its only user.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) kernel: Kernel,
}

/// A user that nothing limits.
const CALLER: Caller = Caller {
    process: 1,
    user: 0,
    may_pin_without_limit: true,
    may_change_accounting: true,
    memory_lock_limit: u64::MAX,
};

impl Direct {
    pub(super) fn new(topology: &str) -> Self {
        Self { kernel: Kernel::new(Topology::parse(topology).unwrap()).unwrap() }
    }

    pub(super) fn iommufd(&mut self) -> FileId {
        self.kernel.open(Node::Iommufd).unwrap()
    }

    pub(super) fn cdev(&mut self, address: &str) -> FileId {
        let minor = self.kernel.functions[&address.parse().unwrap()].cdev.unwrap();
        self.kernel.open(Node::Cdev(minor)).unwrap()
    }

    pub(super) fn group(&mut self, address: &str) -> Result<FileId, Errno> {
        let group = self.kernel.functions[&address.parse().unwrap()].iommu_group().unwrap();
        self.kernel.open(Node::Group(group))
    }

    pub(super) fn bind_driver(&mut self, address: &str, driver: &str) {
        let address = address.parse().unwrap();
        if self.kernel.functions[&address].driver != Driver::Missing {
            self.kernel.begin_unbind(address).unwrap();
            assert!(self.kernel.finish_unbind(address));
        }
        self.kernel.bind_driver(address, Driver::from_name(driver).unwrap()).unwrap();
    }

    pub(super) fn ioctl(&mut self, file: FileId, number: u32, data: Vec<u8>, named: Vec<FileId>) -> Return {
        let named = named.into_iter().map(Named::File).collect();
        self.kernel.call(file, Call::Ioctl(number), data, named, &CALLER)
    }

    /// Opens the function's cdev and binds it; its file, and its id in the context.
    pub(super) fn bind(&mut self, address: &str, iommufd: FileId) -> Result<(FileId, u32), Errno> {
        let file = self.cdev(address);
        self.bind_file(file, iommufd).map(|id| (file, id))
    }

    pub(super) fn bind_file(&mut self, file: FileId, iommufd: FileId) -> Result<u32, Errno> {
        let Return { outcome, data, .. } =
            self.ioctl(file, ioctl::DEVICE_BIND_IOMMUFD.number, words(&[16, 0, 3, 0]), vec![iommufd]);
        outcome.map(|_| word(&data, 12))
    }

    /// Opens a function by way of its group: over a container or a context. The group's file and the device's.
    pub(super) fn open_by_group(&mut self, address: &str, backing: FileId) -> (FileId, FileId) {
        let group = self.group(address).unwrap();
        self.ioctl(group, legacy::SET_CONTAINER, vec![0; 4], vec![backing]).outcome.unwrap();
        // Of a context this is no request, and says so.
        let _ = self.ioctl(backing, legacy::SET_IOMMU, words(&[3]), vec![]);
        let name = [address.as_bytes(), &[0]].concat();
        let answer = self.ioctl(group, legacy::GET_DEVICE_FD, name, vec![]);
        let Some(Given::File(device)) = answer.given else { panic!("{answer:?}") };
        (group, device)
    }

    /// The flags and rows of the reset set.
    pub(super) fn info(&mut self, file: FileId) -> Result<(u32, Vec<Row>), Errno> {
        let mut data = words(&[1024]);
        data.resize(1024, 0);
        let Return { outcome, data, .. } =
            self.ioctl(file, ioctl::DEVICE_GET_PCI_HOT_RESET_INFO.number, data, vec![]);
        outcome?;
        let count = usize::try_from(word(&data, 8)).unwrap();
        let row = |place| {
            let start = 12 + 8 * place;
            let segment = u16::from_ne_bytes([data[start + 4], data[start + 5]]);
            (PciAddress::from_devfn(segment, data[start + 6], data[start + 7]), word(&data, start))
        };
        Ok((word(&data, 4), (0..count).map(row).collect()))
    }

    pub(super) fn hot_reset(&mut self, file: FileId) -> Result<u32, Errno> {
        self.plain(file, ioctl::DEVICE_PCI_HOT_RESET, &[12, 0, 0])
    }

    pub(super) fn plain(&mut self, file: FileId, ioctl: Ioctl, argument: &[u32]) -> Result<u32, Errno> {
        self.ioctl(file, ioctl.number, words(argument), vec![]).outcome
    }
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_ne_bytes).collect()
}

fn word(data: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap())
}
