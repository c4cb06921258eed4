// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions that a hot reset hits together, and who has them: servers with their broker, or this process, which does bare
//! what they do. Only one can have them at a time.

use std::sync::Arc;
use std::time::Duration;

use vfio::{ConfigSpace, Device, HotReset, Ioas, Iommufd, PciAddress, UnboundDevice};
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::server_process::wait_until;

use crate::contest::timed;
use crate::processor::own_time;
use crate::served_vm::ServedVm;

/// Who has the functions.
#[derive(Debug)]
enum Owner {
    Nobody,
    Servers(ServedVm),
    Us(OwnDevices),
}

/// The functions of a reset set.
#[derive(Debug)]
pub(crate) struct ResetSet {
    host: Host,
    functions: Vec<PciAddress>,
    /// How many servers share them.
    servers: usize,
    server_binary: &'static str,
    owner: Owner,
}

impl ResetSet {
    /// A set that nobody has yet.
    pub(crate) fn new(
        host: &Host,
        functions: Vec<PciAddress>,
        servers: usize,
        server_binary: &'static str,
    ) -> Self {
        Self { host: host.clone(), functions, servers, server_binary, owner: Owner::Nobody }
    }

    /// The servers. If another has the functions, they get them first.
    pub(crate) fn served(&mut self) -> &mut ServedVm {
        if !matches!(self.owner, Owner::Servers(_)) {
            self.owner = Owner::Nobody;
            let vm = ServedVm::start(&self.host, self.server_binary, &self.functions, self.servers);
            self.owner = Owner::Servers(vm);
        }
        match &mut self.owner {
            Owner::Servers(vm) => vm,
            _ => unreachable!("they have just got them"),
        }
    }

    /// The same for this process.
    pub(crate) fn bare(&mut self) -> &OwnDevices {
        if !matches!(self.owner, Owner::Us(_)) {
            self.owner = Owner::Nobody;
            self.owner = Owner::Us(OwnDevices::open(&self.host, &self.functions));
        }
        match &self.owner {
            Owner::Us(devices) => devices,
            _ => unreachable!("it has just got them"),
        }
    }
}

/// Devices in this process, in the state that a server has them in.
#[derive(Debug)]
pub(crate) struct OwnDevices {
    devices: Vec<Device>,
    _ioas: Ioas,
}

impl OwnDevices {
    fn open(host: &Host, functions: &[PciAddress]) -> Self {
        let iommufd = host.open_iommufd().expect("an iommufd");
        let iommufd = Arc::new(Iommufd::from_fd(iommufd.into(), &host.sysfs()).expect("an iommufd"));
        let ioas = Ioas::allocate(Arc::clone(&iommufd)).expect("an address space");
        let devices = functions.iter().map(|function| {
            let device = bind(host, *function, &iommufd);
            device.attach_ioas(&ioas).expect("the device is attached");
            device
        });
        Self { devices: devices.collect(), _ioas: ioas }
    }

    /// What has to be done in any case for a hot reset of all: ask for the set, quiesce, reset, restore.
    pub(crate) fn hot_reset(&self) -> Duration {
        let first = self.devices.first().expect("a device");
        timed(|| {
            assert!(first.hot_reset_info().expect("the set").all_owned, "somebody else's function");
            self.devices.iter().for_each(quiesce);
            assert_eq!(first.hot_reset(), Ok(HotReset::Done));
            self.devices.iter().for_each(restore);
        })
    }

    /// The same in time of the processor that this process had.
    pub(crate) fn cost_of_hot_reset(&self) -> Duration {
        let before = own_time();
        self.hot_reset();
        own_time().saturating_sub(before)
    }

    /// The same for a function reset of each, one after the other.
    pub(crate) fn function_resets(&self) -> Duration {
        timed(|| {
            for device in &self.devices {
                quiesce(device);
                device.reset().expect("the function is reset");
                restore(device);
            }
        })
    }
}

/// Binds the function. Whoever had it may not be quite gone.
fn bind(host: &Host, function: PciAddress, iommufd: &Iommufd) -> Device {
    let sysfs = host.sysfs();
    let mut bound = None;
    wait_until(|| {
        let file = host.open_cdev(function).expect("the device's node");
        let device = UnboundDevice::from_fd(file.into(), &sysfs).expect("a VFIO device");
        bound = device.bind(iommufd, &sysfs).ok();
        bound.is_some()
    });
    bound.expect("the device can be bound")
}

fn quiesce(device: &Device) {
    let config_space = ConfigSpace::new(device);
    config_space.disable_command().expect("the command register");
    config_space.power_on().expect("the power state");
    config_space.disable_command().expect("the command register");
}

fn restore(device: &Device) {
    let config_space = ConfigSpace::new(device);
    config_space.clear_bars().expect("the BARs");
    config_space.disable_command().expect("the command register");
}
