// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a memory table of 1 GiB to its acknowledgement, when all of it is mapped, next to the one ioctl that maps it.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use vfio::{Access, Ioas, Iommufd, Iova, Sysfs};
use vhost_device_vfio_tests::guest_memory::GuestMemory;
use vhost_device_vfio_tests::vmm::Vmm;

use crate::FIRST;
use crate::comparison::{Comparison, Figure, Goal};
use crate::contest::{Contest, timed};
use crate::processor::OneProcessor;

const SIZE: u64 = 1 << 30;
/// A lap takes a quarter of a second in the test machine, unmapping included.
const CONTEST: Contest = Contest { rounds: 40, warm_up: 0, laps: 1 };
/// Object ids of an iommufd are given out from 1 on.
const IDS: std::ops::Range<u32> = 1..64;

/// The iommufd of a VMM, which the server has another descriptor of.
fn iommufd_of(vmm: &Vmm) -> Arc<Iommufd> {
    let copy = vmm.iommufd.try_clone().expect("a second descriptor");
    let sysfs = Sysfs::open().expect("sysfs");
    Arc::new(Iommufd::from_fd(copy.into(), &sysfs).expect("an iommufd"))
}

/// The address space that the server has made. Who holds the iommufd can map there too, so that both fill the same page
/// table for the same device.
fn address_space_in(iommufd: &Arc<Iommufd>) -> Ioas {
    let mut found = IDS.filter_map(|id| Ioas::adopt(Arc::clone(iommufd), id).ok());
    found.next().expect("the server's address space")
}

/// `SET_MEM_TABLE`, on one processor too: the ioctl's time depends on the one it runs on.
pub(crate) fn memory_table() -> Vec<Comparison> {
    let _pinned = OneProcessor::pin();
    let memory = GuestMemory::new(0, SIZE);
    // Pages that are there already: else their zeroing would be all that is measured.
    fallocate(&memory, FallocateFlags::empty(), 0, SIZE).expect("1 GiB of memory");
    let file = memory.as_fd().try_clone_to_owned().expect("a second descriptor");
    let mut vmm = Vmm::start();
    vmm.add(1, FIRST).expect("the device is taken");
    let iommufd = iommufd_of(&vmm);
    let mut ioas = address_space_in(&iommufd);
    let [server, ioctl] = CONTEST.medians([
        &mut || {
            let time = timed(|| vmm.map(&memory).expect("the table is mapped"));
            vmm.unmap_all().expect("the table is emptied");
            time
        },
        &mut || {
            let mut mapped = Ok(());
            let time = timed(|| mapped = ioas.map_file(&file, 0, SIZE, Iova(0), Access::ReadWrite));
            mapped.expect("the file is mapped");
            ioas.unmap(Iova(0), SIZE).expect("the file is unmapped");
            time
        },
    ]);
    vec![Comparison {
        figure: Figure::Time(server),
        other_name: if iommufd.has_map_file() { "MAP_FILE ioctl" } else { "mmap + MAP ioctl" }.into(),
        other: Figure::Time(ioctl),
        goal: Goal::Ratio(1.05),
    }]
}
