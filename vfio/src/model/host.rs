// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens to the machine from outside: functions come and go, an administrator gives them other drivers, hardware
//! reports errors.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::irq::IrqIndex;
use crate::model::function::{Function, Role};
use crate::model::iommufd::Context;
use crate::model::kernel::{FileId, Kernel, Node, OpenFile};
use crate::model::pci_function::{Owner, PciFunction, Usage};
use crate::model::sysfs::{Cdev, Identity, Use};
use crate::model::topology::{Bus, Driver, Endpoint, KernelVersion, Topology};
use crate::pci_address::PciAddress;

/// First of the numbers for groups that vfio makes up; the kernel takes the next free one.
const NO_IOMMU_GROUPS: u32 = 1000;

impl Kernel {
    /// A function appears, and its driver with it.
    ///
    /// # Errors
    ///
    /// That of making the files behind its BARs.
    pub(super) fn plug(&mut self, endpoint: &Endpoint) -> Result<(), Errno> {
        let role = self.role(endpoint);
        let mut hardware = Function::new(endpoint.part, endpoint.reset, self.version(), role)?;
        if !self.topology.dynamic_msix {
            hardware.fix_vectors();
        }
        let function = PciFunction {
            hardware,
            endpoint: endpoint.clone(),
            driver: Driver::Missing,
            cdev: None,
            set: None,
            usage: Usage::Unused,
            needs_reset: false,
            is_being_unbound: false,
        };
        self.functions.insert(endpoint.address, function);
        self.set_driver(endpoint.address, endpoint.driver.clone());
        Ok(())
    }

    /// A device says in its first function whether it has more.
    fn role(&self, endpoint: &Endpoint) -> Role {
        const FUNCTION: u8 = 0b111;
        let address = endpoint.address;
        let is_first = address.devfn() & FUNCTION == 0;
        let is_sibling = |other: &Endpoint| {
            other.address != address
                && other.address.is_on_bus_of(address)
                && other.address.devfn() & !FUNCTION == address.devfn()
        };
        if endpoint.is_virtual() {
            Role::Virtual
        } else if is_first && self.topology.functions.iter().any(is_sibling) {
            Role::FirstOfSeveral
        } else {
            Role::Single
        }
    }

    /// An administrator binds a driver to a function that has none.
    ///
    /// # Errors
    ///
    /// `ENODEV` no such function; `EBUSY` it has a driver; `EINVAL`, all that `drivers_probe` says of a driver that refused:
    /// somebody owns the DMA of its IOMMU group, which a driver of the kernel would use.
    pub(crate) fn bind_driver(&mut self, address: PciAddress, driver: Driver) -> Result<(), Errno> {
        let function = self.function(address)?;
        if function.driver != Driver::Missing {
            return Err(Errno::BUSY);
        }
        if let Some(group) = function.iommu_group()
            && driver.uses_dma()
            && self.group_owner(group).is_some_and(|owner| owner != Owner::Driver)
        {
            return Err(Errno::INVAL);
        }
        self.set_driver(address, driver);
        Ok(())
    }

    fn set_driver(&mut self, address: PciAddress, driver: Driver) {
        let is_vfio = matches!(driver, Driver::Vfio(_));
        let cdev = is_vfio.then(|| self.lowest_free_cdev());
        let set = is_vfio.then(|| self.topology.device_set(address));
        if let Some(function) = self.functions.get_mut(&address) {
            function.driver = driver;
            function.cdev = cdev;
            function.set = set;
            function.needs_reset = false;
        }
    }

    fn lowest_free_cdev(&self) -> u32 {
        let is_free = |minor: &u32| self.functions.values().all(|function| function.cdev != Some(*minor));
        (0..=u32::MAX).find(is_free).unwrap_or(0)
    }

    /// An administrator takes a function's driver away. A VFIO driver asks the user for the device; the function stays
    /// locked until [`Self::finish_unbind`].
    ///
    /// # Errors
    ///
    /// `ENODEV` no such function, or it has no driver; `EAGAIN` somebody else is at it.
    pub(crate) fn begin_unbind(&mut self, address: PciAddress) -> Result<(), Errno> {
        let function = self.function_mut(address)?;
        if function.driver == Driver::Missing {
            return Err(Errno::NODEV);
        }
        if function.is_being_unbound {
            return Err(Errno::AGAIN);
        }
        function.is_being_unbound = true;
        function.hardware.signal(IrqIndex::Req.number());
        Ok(())
    }

    /// Takes the driver away if nobody has the function open any more; whether that is so.
    pub(crate) fn finish_unbind(&mut self, address: PciAddress) -> bool {
        let is_open = self.files.values().any(|file| {
            matches!(file, OpenFile::Cdev { function, .. } | OpenFile::GroupDevice(function) if *function == address)
        });
        if is_open {
            return false;
        }
        if let Some(function) = self.functions.get_mut(&address) {
            function.is_being_unbound = false;
        }
        self.set_driver(address, Driver::Missing);
        if let Some(group) = self.functions.get(&address).and_then(PciFunction::iommu_group) {
            self.forget_unused_group(group);
        }
        true
    }

    /// A function without a driver disappears.
    pub(crate) fn unplug(&mut self, address: PciAddress) {
        self.functions.remove(&address);
        self.topology.functions.retain(|endpoint| endpoint.address != address);
    }

    /// A function appears while the machine runs.
    ///
    /// # Errors
    ///
    /// `EEXIST` where there is one; `ENODEV` where no bus leads.
    pub(crate) fn hotplug(&mut self, endpoint: &Endpoint) -> Result<(), Errno> {
        let is_there = self.topology.bridge(endpoint.address).is_some();
        if is_there || self.functions.contains_key(&endpoint.address) {
            return Err(Errno::EXIST);
        }
        if !Bus::of(endpoint.address).is_root() && self.topology.parent_bridge(endpoint.address).is_none() {
            return Err(Errno::NODEV);
        }
        self.topology.functions.push(endpoint.clone());
        self.topology.functions.sort_by_key(|endpoint| (endpoint.is_virtual(), endpoint.address));
        self.plug(endpoint)
    }

    /// Hardware reports an error, or the host wants the device back. Whether somebody listens.
    pub(crate) fn signal(&mut self, address: PciAddress, index: IrqIndex) -> Result<bool, Errno> {
        Ok(self.function_mut(address)?.hardware.signal(index.number()))
    }

    pub(crate) const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Who drives each function, and with which cdev: what sysfs shows.
    pub(crate) fn drivers(&self) -> BTreeMap<PciAddress, (Driver, Option<Cdev>)> {
        let state = |function: &PciFunction| {
            // An unbind takes the link away first.
            let driver = if function.is_being_unbound { Driver::Missing } else { function.driver.clone() };
            (driver, self.cdev(function))
        };
        self.functions.iter().map(|(address, function)| (*address, state(function))).collect()
    }

    /// How each function is used, as far as sysfs shows it. Drivers of the kernel switch on what they drive; VFIO's do when
    /// somebody opens it.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (PciAddress, Use)> {
        self.functions.iter().map(|(address, function)| {
            let is_enabled = function.is_open() || function.driver.uses_dma();
            (*address, Use { driver: function.driver.name().map(ToOwned::to_owned), is_enabled })
        })
    }

    fn cdev(&self, function: &PciFunction) -> Option<Cdev> {
        let minor = function.cdev.filter(|_| function.is_registered())?;
        let number = self.has_node(function).then(|| Node::Cdev(minor).number());
        let prefix = if function.iommu_group().is_none() && number.is_some() { "noiommu-" } else { "" };
        Some(Cdev { name: format!("{prefix}vfio{minor}"), number })
    }

    /// Whether a function's cdev can be opened: without an IOMMU from 7.3 on only.
    pub(super) fn has_node(&self, function: &PciFunction) -> bool {
        function.iommu_group().is_some() || self.version() == KernelVersion::Linux7_3
    }

    /// Whether there is no IOMMU for a function.
    pub(crate) fn is_without_iommu(&self, address: PciAddress) -> bool {
        self.functions.get(&address).is_some_and(|function| function.iommu_group().is_none())
    }

    /// The group that vfio makes up for a function without an IOMMU while it drives it.
    pub(crate) fn no_iommu_group(&self, address: PciAddress) -> Option<u32> {
        let function = self.functions.get(&address)?;
        function.cdev.filter(|_| function.iommu_group().is_none()).map(|minor| NO_IOMMU_GROUPS + minor)
    }

    /// A node's name below `/dev`.
    pub(crate) fn node_name(&self, node: Node) -> String {
        match node {
            Node::Iommufd => "iommu".into(),
            Node::Container => "vfio/vfio".into(),
            Node::Group(group) => format!("vfio/{group}"),
            Node::Cdev(minor) => {
                let function = self.functions.values().find(|function| function.cdev == Some(minor));
                let cdev = function.and_then(|function| self.cdev(function));
                format!("vfio/devices/{}", cdev.map_or_else(|| format!("vfio{minor}"), |cdev| cdev.name))
            }
        }
    }

    /// Where `/proc` says that the descriptors of an open file lead.
    pub(crate) fn link_of(&self, file: FileId) -> String {
        let node = match self.files.get(&file) {
            Some(OpenFile::Iommufd(_)) => Node::Iommufd,
            Some(OpenFile::Container(_)) => Node::Container,
            Some(OpenFile::Group(group)) => Node::Group(*group),
            Some(OpenFile::Cdev { minor, .. }) => Node::Cdev(*minor),
            Some(OpenFile::GroupDevice(_)) => return "anon_inode:[vfio-device]".into(),
            Some(OpenFile::FormerGroup) | None => return String::new(),
        };
        format!("/dev/{}", self.node_name(node))
    }

    /// What a function shows of itself.
    pub(crate) fn identity(&self, address: PciAddress) -> Identity {
        let hardware = self.functions.get(&address).map(|function| &function.hardware);
        hardware.map_or_else(Identity::default, |hardware| Identity {
            vendor: hardware.vendor(),
            device: hardware.device(),
            class: hardware.class(),
            config: hardware.config(),
        })
    }

    /// What is in use, for whoever looks for what was left behind; and what is pinned of what each process mapped.
    pub(crate) fn usage(&self) -> String {
        let open = self.functions.values().filter(|function| function.is_open()).count();
        let mapped: u64 = self.contexts.values().map(Context::mapped_bytes).sum();
        let mut lines = vec![
            format!("files = {}\n", self.files.len()),
            format!("contexts = {}\n", self.contexts.len()),
            format!("open-devices = {open}\n"),
            format!("mapped-bytes = {mapped}\n"),
        ];
        let pinned = self.locked.bytes_of_processes().into_iter();
        lines.extend(pinned.map(|(process, bytes)| format!("pinned-bytes-of-{process} = {bytes}\n")));
        lines.concat()
    }
}
