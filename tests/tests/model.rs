// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Open files of the model behave as open files do, and a run of it can be repeated.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::cmsg_space;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vfio::device::BindRefusal;
use vfio::model::order::Nothing;
use vfio::model::{Fault, Order, Settings};
use vfio::{Access, Device, Errno, Ioas, Iommufd, Iova, IrqIndex, RegionIndex, UnboundDevice};
use vhost_device_vfio_tests::host::{Host, ModelledMachine};
use vhost_device_vfio_tests::server_process::wait_until;

const FIRST: &str = "0000:01:00.0";
const COMMAND: u64 = 4;
/// A register of igb that keeps what is written, and the region's place in the device's file.
const VET: u64 = 0x38;
const BAR0: u64 = 0;

fn context(host: &Host) -> Iommufd {
    Iommufd::from_fd(host.open_iommufd().unwrap().into(), &host.sysfs()).unwrap()
}

fn open(host: &Host) -> OwnedFd {
    host.open_cdev(FIRST.parse().unwrap()).unwrap().into()
}

fn bind(host: &Host, fd: OwnedFd, context: &Iommufd) -> Result<Device, BindRefusal> {
    let device = UnboundDevice::from_fd(fd, &host.sysfs()).unwrap();
    device.bind(context, &host.sysfs()).map_err(|error| error.refusal)
}

/// Whether nobody else has the device bound.
fn is_free(host: &Host) -> bool {
    bind(host, open(host), &context(host)).is_ok()
}

#[test]
fn a_copy_keeps_a_device_bound() {
    let machine = ModelledMachine::start("igb-pair");
    let host = machine.host();
    let file = open(&host);
    let copy = file.try_clone().unwrap();
    let device = bind(&host, file, &context(&host)).unwrap();
    drop(device);
    assert_eq!(bind(&host, open(&host), &context(&host)).err(), Some(BindRefusal::AlreadyBound));
    drop(copy);
    assert!(is_free(&host));
}

#[test]
fn a_descriptor_on_its_way_keeps_a_device_bound() {
    let machine = ModelledMachine::start("igb-pair");
    let host = machine.host();
    let file = open(&host);
    let (near, far) = UnixStream::pair().unwrap();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sent = [file.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
    sendmsg(&near, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    drop(bind(&host, file, &context(&host)).unwrap());
    assert!(!is_free(&host));
    drop(far);
    assert!(wait_until(|| is_free(&host)));
}

#[test]
fn threads_that_share_a_file_get_their_own_answers() {
    let machine = ModelledMachine::start("igb-pair");
    let host = machine.host();
    let device = Arc::new(bind(&host, open(&host), &context(&host)).unwrap());
    let counts = [(IrqIndex::Intx, 1), (IrqIndex::Msi, 1), (IrqIndex::Msix, 10), (IrqIndex::Req, 1)];
    let threads = counts.map(|(index, count)| {
        let device = Arc::clone(&device);
        std::thread::spawn(move || (0..200).all(|_| device.irq_info(index).unwrap().count == count))
    });
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn a_mapped_bar_is_what_is_read_and_written() {
    let machine = ModelledMachine::start("igb-pair");
    let host = machine.host();
    let file = open(&host);
    let copy = file.try_clone().unwrap();
    let device = bind(&host, file, &context(&host)).unwrap();
    device.write_region(RegionIndex::CONFIG, COMMAND, &2_u16.to_le_bytes()).unwrap();
    let (mapped, offset) = vfio::model::map(copy.as_fd(), BAR0, 4096).unwrap();
    let mapped = File::from(mapped);
    mapped.write_all_at(&0x1234_u32.to_le_bytes(), offset + VET).unwrap();
    let mut read = [0; 4];
    device.read_region(RegionIndex(0), VET, &mut read).unwrap();
    assert_eq!(u32::from_le_bytes(read), 0x1234);
}

#[test]
fn two_resets_of_a_set_that_last_are_done_one_after_the_other() {
    let rule = "call = 'VFIO_DEVICE_PCI_HOT_RESET'\ntimes = 2\ndelay = 1000";
    let faults: Vec<Fault> = vec![toml::from_str(rule).unwrap()];
    let settings = Settings { faults, virtual_time: true, ..Settings::default() };
    let machine = ModelledMachine::start_with("edu-pair", settings);
    let host = machine.host();
    let device = Arc::new(bind(&host, open(&host), &context(&host)).unwrap());
    let resets = [0, 1].map(|_| {
        let device = Arc::clone(&device);
        std::thread::spawn(move || device.hot_reset())
    });
    let finished = || resets.iter().filter(|reset| reset.is_finished()).count();
    let calls = |lasting, waiting| {
        let usage = machine.order(&Order::Inspect(Nothing {}));
        usage.contains(&format!("lasting-calls = {lasting}\nwaiting-calls = {waiting}\n"))
    };
    assert!(wait_until(|| calls(1, 1)), "one lasts, and the other waits for it");
    machine.order(&Order::Advance(1000));
    assert!(calls(1, 0), "the second takes its own second, from when the first is done");
    assert!(wait_until(|| finished() == 1));
    machine.order(&Order::Advance(1000));
    assert!(wait_until(|| finished() == 2));
    assert!(resets.into_iter().all(|reset| reset.join().unwrap().is_ok()));
}

/// Whether some of this process's memory is a file of this name.
fn is_mapped_here(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(name)
}

#[test]
fn memory_stays_mapped_for_a_kernel_that_refused_to_unmap_it() {
    let machine = ModelledMachine::of_kernel("igb-pair", "6.12");
    let mut ioas = Ioas::allocate(Arc::new(context(&machine.host()))).unwrap();
    let file = rustix::fs::memfd_create("refused-unmap", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 0x2000).unwrap();
    ioas.map_file(&file, 0, 0x2000, Iova(0), Access::ReadWrite).unwrap();
    assert_eq!(ioas.unmap(Iova(0), 0x1000).unwrap_err().errno, Errno::NOENT);
    assert!(is_mapped_here("refused-unmap"));
    ioas.unmap(Iova(0), 0x2000).unwrap();
    assert!(!is_mapped_here("refused-unmap"));
}

/// Which of a hundred calls fail by a rule of chance.
fn run(seed: u64) -> Vec<bool> {
    let rule = "call = 'VFIO_DEVICE_GET_IRQ_INFO'\ntimes = 0\npercent = 50\nerrno = 'EIO'";
    let faults: Vec<Fault> = vec![toml::from_str(rule).unwrap()];
    let machine = ModelledMachine::start_with("igb-pair", Settings { seed, faults, ..Settings::default() });
    let host = machine.host();
    let device = bind(&host, open(&host), &context(&host)).unwrap();
    let fails = |_| device.irq_info(IrqIndex::Msi).err().map(|error| error.errno) == Some(Errno::IO);
    (0..100).map(fails).collect()
}

#[test]
fn a_run_can_be_repeated_from_its_seed() {
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_machine_that_stopped_answers_nothing() {
    let machine = ModelledMachine::start("igb-pair");
    let host = machine.host();
    let context = context(&host);
    drop(machine);
    assert_eq!(context.memory_accounting().unwrap_err().errno, Errno::IO);
}
