// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Another process that maps memory for our devices, with or without a limit: what it maps is charged to it.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::SealFlags;
use vfio::{Access, Ioas, Iommufd, Iova};
use vhost_device_vfio_tests::guest_memory::memfd;
use vhost_device_vfio_tests::host::Host;

use crate::answer::{EFAULT, ENOMEM, OK, answer};
use crate::check::checks;
use crate::ioas::{ALL_ADDRESSES, DEVICE_ADDRESSES, MIB, PAGE, addresses};
use crate::scene::{Scene, allocate};

const ANY_DEVICE: &[&str] = &["edu-pair", "rciep"];

checks! {
    ANY_DEVICE => memory_is_mapped_up_to_the_limit, memory_that_is_not_pinned_is_not_limited,
        memory_beyond_the_limit_shows_when_a_device_is_attached, maps_outlive_their_process_while_attached,
        maps_of_a_process_that_is_gone_need_files, memory_is_pinned_on_behalf_of_who_maps_it;
}

const REQUEST: &str = "--map";

/// What this process is asked to map.
#[derive(Debug)]
pub(crate) struct Request {
    host: Host,
    ioas: u32,
    lengths: Vec<u64>,
}

/// What the command line asks for, if this process is a mapper.
pub(crate) fn requested() -> Option<Request> {
    let mut arguments = std::env::args().skip(1);
    arguments.next().filter(|argument| argument == REQUEST)?;
    let host = Host::at(arguments.next().expect("a folder"));
    let ioas = arguments.next().expect("an id").parse().expect("a number");
    Some(Request { host, ioas, lengths: arguments.map(|length| length.parse().expect("a number")).collect() })
}

impl Request {
    /// Maps one memory after the other, from address 0 on, and says what came of each.
    pub(crate) fn serve(&self) {
        let iommufd = std::io::stdin().as_fd().try_clone_to_owned().expect("the iommufd is the input");
        let context = Arc::new(Iommufd::from_fd(iommufd, &self.host.sysfs()).expect("it is an iommufd"));
        let mut ioas = Ioas::adopt(context, self.ioas).expect("the IOAS is there");
        let mut iova = 0;
        for length in &self.lengths {
            let memory = memfd(*length, SealFlags::SHRINK);
            let mapped = answer(ioas.map_file(&memory, 0, *length, Iova(iova), Access::ReadWrite));
            println!("{mapped:?}");
            iova += length;
        }
    }
}

/// An iommufd that can be handed to another process, and the same as our context.
fn shared_context(scene: &Scene<'_>) -> (File, Arc<Iommufd>) {
    let file = scene.host.open_iommufd().expect("the iommufd can be opened");
    let copy = file.try_clone().expect("a copy").into();
    (file, Arc::new(Iommufd::from_fd(copy, &scene.sysfs()).expect("it is an iommufd")))
}

/// Has another process map, and waits until it is gone.
fn have_mapped(
    scene: &Scene<'_>,
    mut process: Command,
    iommufd: &File,
    ioas: &Ioas,
    lengths: &[u64],
) -> Vec<String> {
    process.arg(REQUEST).arg(scene.host.root()).arg(ioas.id().to_string());
    process.args(lengths.iter().map(u64::to_string));
    process.stdin(iommufd.try_clone().expect("a copy")).stderr(Stdio::inherit());
    let output = process.output().expect("the process runs");
    assert!(output.status.success(), "the mapper failed");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

fn unlimited() -> Command {
    Command::new(std::env::current_exe().expect("the path of this program"))
}

/// A process without privileges, which may pin so many bytes.
fn limited(bytes: u64) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={bytes}"));
    command.args(["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"]);
    command.arg(std::env::current_exe().expect("the path of this program"));
    command
}

fn words(answers: &[Result<(), &str>]) -> Vec<String> {
    answers.iter().map(|answer| format!("{answer:?}")).collect()
}

fn memory_is_mapped_up_to_the_limit(scene: &Scene<'_>) {
    let (iommufd, context) = shared_context(scene);
    let ioas = allocate(&context);
    let device = scene.bind(scene.first(), &context);
    device.attach_ioas(&ioas).expect("the device can be attached");
    let answers = have_mapped(scene, limited(16 * PAGE), &iommufd, &ioas, &[8 * PAGE, 8 * PAGE, PAGE]);
    scene.expect("maps of 8, 8 and 1 page with a limit of 16", answers, words(&[Ok(()), Ok(()), ENOMEM]));
}

fn memory_that_is_not_pinned_is_not_limited(scene: &Scene<'_>) {
    let (iommufd, context) = shared_context(scene);
    let ioas = allocate(&context);
    let answers = have_mapped(scene, limited(PAGE), &iommufd, &ioas, &[MIB]);
    scene.expect("a map without a device", answers, words(&[Ok(())]));
}

fn memory_beyond_the_limit_shows_when_a_device_is_attached(scene: &Scene<'_>) {
    let (iommufd, context) = shared_context(scene);
    let ioas = allocate(&context);
    drop(have_mapped(scene, limited(PAGE), &iommufd, &ioas, &[MIB]));
    let device = scene.bind(scene.first(), &context);
    // What can only be found by way of the process is gone with it, and that is found out first.
    let expected = scene.by_kernel(EFAULT, ENOMEM);
    scene.expect("ATTACH", answer(device.attach_ioas(&ioas)), expected);
    scene.expect("addresses", addresses(&ioas), ALL_ADDRESSES);
}

fn maps_outlive_their_process_while_attached(scene: &Scene<'_>) {
    let (iommufd, context) = shared_context(scene);
    let mut ioas = allocate(&context);
    let device = scene.bind(scene.first(), &context);
    device.attach_ioas(&ioas).expect("the device can be attached");
    let answers = have_mapped(scene, unlimited(), &iommufd, &ioas, &[MIB]);
    scene.expect("map", answers, words(&[Ok(())]));
    scene.expect("addresses", addresses(&ioas), DEVICE_ADDRESSES);
    scene.expect("UNMAP", answer(ioas.unmap(Iova(0), MIB)), OK);
}

fn maps_of_a_process_that_is_gone_need_files(scene: &Scene<'_>) {
    let (iommufd, context) = shared_context(scene);
    let mut ioas = allocate(&context);
    let answers = have_mapped(scene, unlimited(), &iommufd, &ioas, &[MIB]);
    scene.expect("map", answers, words(&[Ok(())]));
    let device = scene.bind(scene.first(), &context);
    scene.expect("ATTACH", answer(device.attach_ioas(&ioas)), scene.by_kernel(EFAULT, Ok(())));
    scene.expect("UNMAP", answer(ioas.unmap(Iova(0), MIB)), OK);
    scene.expect("ATTACH without it", answer(device.attach_ioas(&ioas)), OK);
}

fn memory_is_pinned_on_behalf_of_who_maps_it(scene: &Scene<'_>) {
    let (iommufd, context) = shared_context(scene);
    let ioas = allocate(&context);
    let device = scene.bind(scene.first(), &context);
    device.attach_ioas(&ioas).expect("the device can be attached");
    let before = scene.host.pinned_memory();
    let answers = have_mapped(scene, unlimited(), &iommufd, &ioas, &[MIB]);
    scene.expect("map", answers, words(&[Ok(())]));
    scene.expect("pinned on our behalf", scene.host.pinned_memory() - before, 0);
}
