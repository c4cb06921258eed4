// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that the server must not let a device reach. A region is looked at before anything else is, so that no
//! iommufd is needed to see it refused; first-light has what depends on other regions and on the IOMMU.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use protocol::RequestNumber;
use protocol::vhost_user::{MemoryRegion, MemoryTableHeader, SingleMemoryRegion};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use vhost_device_vfio_tests::foreign_file::ForeignFile;
use vhost_device_vfio_tests::guest_memory::memfd;
use vhost_device_vfio_tests::raw_client::{RawClient, Refusal};
use vhost_device_vfio_tests::witnessed_server::WitnessedServer;
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
/// In pages.
const FILE: u64 = 16;
const REGION: MemoryRegion =
    MemoryRegion { guest_address: 1 << 32, size: FILE * PAGE, user_address: 1 << 20, offset: 0 };

fn sealed() -> OwnedFd {
    memfd(FILE * PAGE, SealFlags::SHRINK)
}

/// The memfd again, opened in another way.
fn reopened(file: &OwnedFd, options: &OpenOptions) -> OwnedFd {
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().into()
}

fn table(regions: &[MemoryRegion]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap();
    [MemoryTableHeader { count, reserved: 0 }.as_bytes(), regions.as_bytes()].concat()
}

/// Sends the region as a table of its own, and as an addition: both must be refused for the same reason.
fn refused_both_ways(server: &mut WitnessedServer, region: MemoryRegion, file: &OwnedFd) -> Refusal {
    let single = SingleMemoryRegion { reserved: 0, region };
    let refusals = [
        (RequestNumber::SET_MEM_TABLE, table(&[region])),
        (RequestNumber::ADD_MEM_REG, single.as_bytes().to_vec()),
    ]
    .map(|(request, body)| {
        let refused = |client: &mut RawClient| client.refused(request, &body, &[file.as_fd()]);
        server.refuses(server.negotiate(), refused)
    });
    assert_eq!(refusals[0].kind(), refusals[1].kind());
    let [refusal, _] = refusals;
    refusal
}

#[test]
fn what_is_not_memory_is_refused() {
    let mut server = WitnessedServer::start();
    for ForeignFile { kind, file } in ForeignFile::all() {
        if kind == "guest memory" {
            continue;
        }
        let refusal = refused_both_ways(&mut server, REGION, &file);
        assert_eq!(refusal.kind(), ("region-not-memory", Errno::INVAL), "{kind}");
        assert!(refusal.sentences.contains("0x100000000"), "{}", refusal.sentences);
    }
}

#[test]
fn memory_that_is_not_open_for_both_reading_and_writing_is_refused() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    for options in [File::options().read(true), File::options().write(true)] {
        let refusal = refused_both_ways(&mut server, REGION, &reopened(&memory, options));
        assert_eq!(refusal.kind(), ("region-not-writable", Errno::ACCESS), "{options:?}");
    }
}

#[test]
fn memory_that_may_shrink_is_refused() {
    let mut server = WitnessedServer::start();
    for seals in [SealFlags::empty(), SealFlags::GROW, SealFlags::SEAL] {
        let refusal = refused_both_ways(&mut server, REGION, &memfd(FILE * PAGE, seals));
        assert_eq!(refusal.kind(), ("region-not-sealed", Errno::PERM), "{seals:?}");
    }
}

#[test]
fn a_region_beyond_its_file_is_refused() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    for region in [
        MemoryRegion { size: (FILE + 1) * PAGE, ..REGION },
        MemoryRegion { offset: PAGE, ..REGION },
        MemoryRegion { offset: FILE * PAGE, size: PAGE, ..REGION },
        MemoryRegion { offset: 1 << 62, size: PAGE, ..REGION },
        MemoryRegion { offset: u64::MAX - 2 * PAGE + 1, size: PAGE, ..REGION },
    ] {
        let refusal = refused_both_ways(&mut server, region, &memory);
        assert_eq!(refusal.kind(), ("region-beyond-file", Errno::INVAL), "{region:?}");
    }
}

#[test]
fn a_region_in_an_empty_file_is_refused() {
    let mut server = WitnessedServer::start();
    let empty = memfd(0, SealFlags::SHRINK);
    let refusal = refused_both_ways(&mut server, MemoryRegion { size: PAGE, ..REGION }, &empty);
    assert_eq!(refusal.kind(), ("region-beyond-file", Errno::INVAL));
}

#[test]
fn a_region_that_is_not_made_of_whole_pages_is_refused() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    for region in [
        MemoryRegion { guest_address: 1, ..REGION },
        MemoryRegion { guest_address: PAGE / 2, ..REGION },
        MemoryRegion { size: 1, ..REGION },
        MemoryRegion { size: PAGE - 1, ..REGION },
        MemoryRegion { offset: PAGE + 1, size: PAGE, ..REGION },
    ] {
        let refusal = refused_both_ways(&mut server, region, &memory);
        assert_eq!(refusal.kind(), ("region-unaligned", Errno::INVAL), "{region:?}");
    }
}

#[test]
fn a_region_that_is_empty_or_wraps_around_is_refused() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    let last_page = u64::MAX - PAGE + 1;
    for region in [
        MemoryRegion { size: 0, ..REGION },
        MemoryRegion { guest_address: last_page, ..REGION },
        MemoryRegion { user_address: last_page, ..REGION },
        MemoryRegion { offset: last_page, ..REGION },
        MemoryRegion { size: u64::MAX, ..REGION },
    ] {
        let refusal = refused_both_ways(&mut server, region, &memory);
        assert_eq!(refusal.kind(), ("malformed-memory-region", Errno::INVAL), "{region:?}");
    }
}

#[test]
fn one_bad_region_spoils_the_table() {
    let mut server = WitnessedServer::start();
    let good: Vec<_> = (0..7).map(|number| MemoryRegion { guest_address: number << 32, ..REGION }).collect();
    let bad = MemoryRegion { guest_address: 9 << 32, size: 1, ..REGION };
    let body = table(&[good.as_slice(), &[bad]].concat());
    let memory = sealed();
    let refused =
        |client: &mut RawClient| client.refused(RequestNumber::SET_MEM_TABLE, &body, &[memory.as_fd(); 8]);
    let refusal = server.refuses(server.negotiate(), refused);
    assert_eq!(refusal.kind(), ("region-unaligned", Errno::INVAL));
    assert!(refusal.sentences.contains("0x900000000"), "{}", refusal.sentences);
}

#[test]
fn a_table_with_other_than_one_file_for_each_region_is_refused() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    for (regions, files) in [(0, 1), (1, 0), (1, 2), (2, 1), (8, 7), (7, 8)] {
        let body = table(&vec![REGION; regions]);
        let files = vec![memory.as_fd(); files];
        let refused = |client: &mut RawClient| client.refused(RequestNumber::SET_MEM_TABLE, &body, &files);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), ("wrong-descriptor-count", Errno::INVAL), "{} for {regions}", files.len());
    }
}

#[test]
fn a_table_that_counts_wrong_is_refused() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    for (count, regions, id) in [
        (2, 1, "wrong-payload-size"),
        (1, 2, "wrong-payload-size"),
        (0, 1, "wrong-payload-size"),
        (9, 9, "unknown-value"),
        (u32::MAX, 1, "unknown-value"),
    ] {
        let mut body = table(&vec![REGION; regions]);
        body[..4].copy_from_slice(&count.to_ne_bytes());
        let refused =
            |client: &mut RawClient| client.refused(RequestNumber::SET_MEM_TABLE, &body, &[memory.as_fd()]);
        let refusal = server.refuses(server.negotiate(), refused);
        assert_eq!(refusal.kind(), (id, Errno::INVAL), "{count} for {regions}");
    }
}

#[test]
fn good_memory_needs_an_iommufd() {
    let mut server = WitnessedServer::start();
    let memory = sealed();
    let exact = refused_both_ways(&mut server, REGION, &memory);
    let part = MemoryRegion { offset: PAGE, size: PAGE, ..REGION };
    for refusal in [exact, refused_both_ways(&mut server, part, &memory)] {
        assert_eq!(refusal.kind(), ("iommufd-missing", Errno::NXIO));
    }
    for (request, body) in [
        (RequestNumber::SET_MEM_TABLE, table(&[])),
        (RequestNumber::REM_MEM_REG, SingleMemoryRegion { reserved: 0, region: REGION }.as_bytes().to_vec()),
    ] {
        let refusal = server.refuses(server.negotiate(), |client| client.refused(request, &body, &[]));
        assert_eq!(refusal.kind(), ("iommufd-missing", Errno::NXIO), "{request}");
    }
}

#[test]
fn a_file_sent_along_with_a_removal_is_closed() {
    let mut server = WitnessedServer::start();
    let body = SingleMemoryRegion { reserved: 0, region: REGION };
    let memory = sealed();
    let refusal = server.refuses(server.negotiate(), |client| {
        client.refused(RequestNumber::REM_MEM_REG, body.as_bytes(), &[memory.as_fd()])
    });
    assert_eq!(refusal.kind(), ("iommufd-missing", Errno::NXIO), "the file is no reason to refuse");
}
