// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that are what they seem, and files that are not.

use rustix::fs::SealFlags;
use vfio::{Iommufd, UnboundDevice};
use vhost_device_vfio_tests::guest_memory::memfd;

use crate::answer::{OK, bind_answer, refused};
use crate::check::checks;
use crate::machine::EACH_PLACE;
use crate::scene::Scene;

checks! {
    EACH_PLACE => a_device_file_can_be_opened_many_times, a_copy_of_a_device_file_is_one;
    &["edu-pair", "edu-noremap"] => an_iommufd_is_no_device_file, a_device_file_is_no_iommufd;
    &["edu-pair"] => a_group_is_neither, a_container_is_neither, memory_is_neither;
}

fn a_device_file_can_be_opened_many_times(scene: &Scene<'_>) {
    let files: Vec<_> = (0..8).map(|_| scene.open(scene.first())).collect();
    let addresses: Vec<_> = files.iter().map(|file| file.address().to_string()).collect();
    scene.expect("functions", addresses, vec![scene.first().address; 8]);
}

fn a_copy_of_a_device_file_is_one(scene: &Scene<'_>) {
    let file = scene.open_file(scene.first());
    let copy = scene.recognize(file.try_clone().expect("a copy"));
    drop(file);
    let context = scene.context();
    scene.expect("BIND", bind_answer(copy.bind(&context, &scene.sysfs())), OK);
}

fn an_iommufd_is_no_device_file(scene: &Scene<'_>) {
    let file = scene.host.open_iommufd().expect("the iommufd").into();
    let outcome = UnboundDevice::from_fd(file, &scene.sysfs()).map(drop);
    scene.expect("from_fd", outcome, refused(vfio::device::NotACdev::OtherFile));
}

fn a_device_file_is_no_iommufd(scene: &Scene<'_>) {
    let outcome = Iommufd::from_fd(scene.open_file(scene.first()), &scene.sysfs()).map(drop);
    scene.expect("from_fd", outcome, refused(vfio::iommufd::NotAnIommufd::OtherFile));
}

fn is_neither(scene: &Scene<'_>, file: std::os::fd::OwnedFd) {
    let copy = file.try_clone().expect("a copy");
    let device = UnboundDevice::from_fd(file, &scene.sysfs()).map(drop);
    scene.expect("as a device", device, refused(vfio::device::NotACdev::OtherFile));
    let iommufd = Iommufd::from_fd(copy, &scene.sysfs()).map(drop);
    scene.expect("as an iommufd", iommufd, refused(vfio::iommufd::NotAnIommufd::OtherFile));
}

fn a_group_is_neither(scene: &Scene<'_>) {
    is_neither(scene, scene.host.open_group(scene.first().group).expect("the group").into());
}

fn a_container_is_neither(scene: &Scene<'_>) {
    is_neither(scene, scene.host.open_container().expect("a container").into());
}

fn memory_is_neither(scene: &Scene<'_>) {
    is_neither(scene, memfd(4096, SealFlags::SHRINK));
}
