// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices reach the server, and it knows what it got.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;

use command_fds::{CommandFdExt, FdMapping};
use protocol::ControlClient;
use protocol::extension::{Cookie, DeviceFlags, Face, IoasChoice, ResetMethod};
use protocol::vfio_user::{Capabilities, Client};
use vfio::config_space::command;
use vfio::{Access, Ioas, Iommufd, Iova};
use vhost_device_vfio_tests::edu::Edu;
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::host::Host;
use vhost_device_vfio_tests::node;
use vhost_device_vfio_tests::pci_function::PciFunction;
use vhost_device_vfio_tests::server_process::{PATIENCE, ServerProcess, server_binary, wait_until};
use vhost_device_vfio_tests::vmm::{Vmm, refusal};

use super::{FIRST, SECOND, dma};

/// Edu says its version and 0xed.
const IDENTIFICATION: u32 = 0x0100_00ed;

pub(crate) fn the_server_works_with_an_empty_dev() {
    let mut vmm = Vmm::with_server(ServerProcess::start_without_dev());
    vmm.add(1, FIRST).unwrap();
    vmm.add(2, SECOND).unwrap();
    for cookie in [1, 2] {
        let mut function = vmm.open(cookie);
        function.enable();
        assert_eq!(Edu::new(&mut function).identification(), IDENTIFICATION);
    }
}

/// A server with these arguments besides that inherits a device, its client, and the device as its VMM sees it.
fn with_inherited_device(arguments: &[&str]) -> (ServerProcess, ControlClient, PciFunction) {
    let (control, far_control) = UnixStream::pair().unwrap();
    let (face, far_face) = UnixStream::pair().unwrap();
    let mut command = Command::new(server_binary());
    command.args(Host::current().arguments()).args(arguments);
    command.args(["--fd", "3", "--iommufd-fd", "4", "--device-fd", "7=5", "--vfio-user-fd", "7=6"]);
    let inherited = [far_control.into(), node::iommufd().into(), node::cdev(FIRST).into(), far_face.into()];
    let mappings = (3..).zip(inherited).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    let server = ServerProcess::spawn(command);
    let mut control = ControlClient::new(control, PATIENCE);
    control.negotiate().unwrap();
    let mut client = Client::new(face, PATIENCE);
    client.version(&Capabilities::default()).unwrap();
    (server, control, PciFunction::new(client))
}

pub(crate) fn an_inherited_device_is_served() {
    let (_server, mut control, mut function) = with_inherited_device(&[]);
    assert_eq!(control.device_info(Cookie(7)).unwrap().address.to_string(), FIRST);
    function.enable();
    assert_eq!(Edu::new(&mut function).identification(), IDENTIFICATION);
}

/// With the narrowest filters that there are: a call that they lack kills the server.
pub(crate) fn a_server_of_fixed_devices_works_without_sysfs() {
    let (_server, mut control, mut function) = with_inherited_device(&["--fixed-devices", "--sysfs", "off"]);
    let refused = refusal(control.add_device(Cookie(8), node::cdev(SECOND)));
    assert_eq!(refused.0, "devices-fixed");
    let memory = GuestMemory::new(0, 3 << 20);
    control.set_memory_table(&[memory.region()], &[memory.as_fd()]).unwrap();
    function.enable();
    assert!(dma::copy_arrives(&mut Edu::new(&mut function), &memory));
    function.set_command(0);
    let report = control.reset(Cookie(7), Some(ResetMethod::Hot), None).unwrap();
    assert_eq!(report.affected, [Cookie(7)]);
    function.enable();
    assert!(dma::copy_arrives(&mut Edu::new(&mut function), &memory));
    control.set_memory_table(&[], &[]).unwrap();
    control.remove_device(Cookie(7)).unwrap_err();
}

pub(crate) fn devices_are_described() {
    let mut vmm = Vmm::start();
    let first = vmm.add(1, FIRST).unwrap();
    let second = vmm.add(2, SECOND).unwrap();
    assert_eq!((first.vendor, first.device, first.regions, first.irqs), (0x1234, 0x11e8, 9, 5));
    assert_eq!(first.address.to_string(), FIRST);
    assert_eq!(first.driver.as_str(), "vfio-pci");
    assert!(!first.flags.contains(DeviceFlags::FUNCTION_RESET), "edu has no reset of its own");
    assert_eq!(first.iommu_group, second.iommu_group);
    assert_eq!(vmm.control.list_devices().unwrap(), [Cookie(1), Cookie(2)]);
}

pub(crate) fn a_listening_face_takes_one_client_after_the_other() {
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("face");
    vmm.control.serve(Cookie(1), Face::VfioUser, UnixListener::bind(&path).unwrap()).unwrap();
    for _ in 0..2 {
        let connected = || {
            let mut client = Client::new(UnixStream::connect(&path).unwrap(), PATIENCE);
            client.version(&Capabilities::default()).ok().map(|_| PciFunction::new(client))
        };
        // The client before may still be on its way out.
        let mut function = None;
        assert!(wait_until(|| {
            function = connected();
            function.is_some()
        }));
        let mut function = function.unwrap();
        assert_eq!(function.command() & command::BUS_MASTER, 0, "the client before left a quiet device");
        assert!(connected().is_none(), "there is one client at a time");
        function.enable();
        assert_eq!(Edu::new(&mut function).identification(), IDENTIFICATION);
    }
}

/// A VMM that maps its memory itself, and has the server adopt the address space.
fn mapped_by_the_vmm(access: Access) -> (Ioas, GuestMemory, Vmm) {
    let iommufd = node::iommufd();
    let ours = Iommufd::from_fd(iommufd.try_clone().unwrap().into(), &Host::current().sysfs()).unwrap();
    let mut ioas = Ioas::allocate(Arc::new(ours)).unwrap();
    let memory = GuestMemory::new(0, 1 << 20);
    let file = memory.as_fd().try_clone_to_owned().unwrap();
    ioas.map_file(&file, 0, 1 << 20, Iova(0), access).unwrap();
    let mut vmm = Vmm::with_address_space(ServerProcess::start(), iommufd, IoasChoice::Adopt(ioas.id()));
    vmm.add(1, FIRST).unwrap();
    (ioas, memory, vmm)
}

/// Whether the device can copy within the memory.
fn copy_arrives(vmm: &mut Vmm, memory: &GuestMemory) -> bool {
    let mut function = vmm.open(1);
    function.enable();
    memory.write(0, b"mapped elsewhere");
    Edu::new(&mut function).copy(0, 0x1000, 16);
    memory.read(0x1000, 16) == b"mapped elsewhere"
}

pub(crate) fn an_adopted_address_space_is_left_to_its_owner() {
    let (ioas, memory, mut vmm) = mapped_by_the_vmm(Access::ReadWrite);
    assert!(copy_arrives(&mut vmm, &memory));
    assert_eq!(refusal(vmm.map(&memory)).0, "memory-is-adopted");
    drop(vmm);
    ioas.iova_ranges().expect("the address space outlives the server");
}

pub(crate) fn a_device_cannot_write_memory_that_is_mapped_for_reading() {
    let (_ioas, memory, mut vmm) = mapped_by_the_vmm(Access::Read);
    assert!(!copy_arrives(&mut vmm, &memory));
    assert_eq!(memory.read(0x1000, 16), [0; 16], "memory is as it was");
}

pub(crate) fn a_listener_that_its_owner_kept_can_be_handed_over_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("face");
    let listener = UnixListener::bind(&path).unwrap();
    let mut vmm = Vmm::start();
    for _ in 0..2 {
        vmm.add(1, FIRST).unwrap();
        vmm.control.serve(Cookie(1), Face::VfioUser, &listener).unwrap();
        let mut client = Client::new(UnixStream::connect(&path).unwrap(), PATIENCE);
        client.version(&Capabilities::default()).unwrap();
        vmm.control.remove_device(Cookie(1)).unwrap();
    }
}
