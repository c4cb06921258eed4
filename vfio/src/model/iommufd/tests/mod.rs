// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The context as its users see it: by structures, ids and errnos.

mod accounting;
mod attachment;
mod ids;
mod mapping;
mod sequences;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use super::*;
use crate::ioas::Iova;

const DESTROY: u32 = 0x3b80;
const IOAS_ALLOC: u32 = 0x3b81;
const IOAS_ALLOW_IOVAS: u32 = 0x3b82;
const IOAS_COPY: u32 = 0x3b83;
const IOAS_IOVA_RANGES: u32 = 0x3b84;
const IOAS_MAP: u32 = 0x3b85;
const IOAS_UNMAP: u32 = 0x3b86;
const OPTION: u32 = 0x3b87;
const VFIO_IOAS: u32 = 0x3b88;
const HWPT_ALLOC: u32 = 0x3b89;
const GET_HW_INFO: u32 = 0x3b8a;
const HWPT_SET_DIRTY_TRACKING: u32 = 0x3b8b;
const HWPT_GET_DIRTY_BITMAP: u32 = 0x3b8c;
const HWPT_INVALIDATE: u32 = 0x3b8d;
const FAULT_QUEUE_ALLOC: u32 = 0x3b8e;
const IOAS_MAP_FILE: u32 = 0x3b8f;
const VIOMMU_ALLOC: u32 = 0x3b90;
const IOAS_CHANGE_PROCESS: u32 = 0x3b92;
const IOAS_NOIOMMU_GET_PA: u32 = 0x3b95;

const FIXED: u32 = 1;
const WRITABLE: u32 = 2;
const READABLE: u32 = 4;
const ALL_FLAGS: u32 = FIXED | WRITABLE | READABLE;

const MIB: u64 = 1 << 20;

/// A context, and one process that uses it.
#[derive(Debug)]
struct Host {
    context: Context,
    locked: LockedMemory,
    caller: Caller,
    /// What the pointer of a structure points to.
    array: Vec<u8>,
}

/// A structure as the kernel left it.
#[derive(Debug, PartialEq, Eq)]
struct Structure(Vec<u8>);

impl Structure {
    /// Words, then double words; its length is its first word.
    fn new(words: &[u32], doubles: &[u64]) -> Self {
        let length = 4 + 4 * words.len() + 8 * doubles.len();
        let words = std::iter::once(u32::try_from(length).unwrap()).chain(words.iter().copied());
        let doubles = doubles.iter().copied().flat_map(u64::to_ne_bytes);
        Self(words.flat_map(u32::to_ne_bytes).chain(doubles).collect())
    }

    fn word(&mut self, offset: usize) -> u32 {
        Argument(&mut self.0).word(offset).unwrap()
    }

    fn double(&mut self, offset: usize) -> u64 {
        Argument(&mut self.0).double(offset).unwrap()
    }
}

impl Host {
    fn new() -> Self {
        Self::with_kernel(KernelVersion::Linux7_3)
    }

    /// A machine whose process may pin 16 MiB.
    fn with_kernel(kernel: KernelVersion) -> Self {
        let caller = Caller {
            process: std::process::id().cast_signed(),
            user: 1000,
            may_pin_without_limit: false,
            may_change_accounting: false,
            memory_lock_limit: 16 * MIB,
        };
        Self { context: Context::new(kernel), locked: LockedMemory::default(), caller, array: Vec::new() }
    }

    /// An IOAS and a device of group 1 attached to it.
    fn attached() -> (Self, u32, u32) {
        let mut host = Self::new();
        let ioas = host.ioas();
        let device = host.context.add_device(Some(1));
        host.attach(device, ioas).unwrap();
        (host, ioas, device)
    }

    fn raw(
        &mut self,
        number: u32,
        structure: &mut Structure,
        file: Option<(Arc<File>, u64)>,
    ) -> Result<(), Errno> {
        let argument = &mut Argument(&mut structure.0);
        self.context.ioctl(number, argument, file, &mut self.array, &self.caller, &mut self.locked)
    }

    fn call(&mut self, number: u32, words: &[u32], doubles: &[u64]) -> Result<Structure, Errno> {
        let mut structure = Structure::new(words, doubles);
        self.raw(number, &mut structure, None).map(|()| structure)
    }

    fn ioas(&mut self) -> u32 {
        self.call(IOAS_ALLOC, &[0, 0], &[]).unwrap().word(8)
    }

    fn hwpt(&mut self, device: u32, ioas: u32) -> Result<u32, Errno> {
        self.call(HWPT_ALLOC, &[0, device, ioas, 0, 0, 0, 0], &[0, 0]).map(|mut reply| reply.word(16))
    }

    fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        self.call(DESTROY, &[id], &[]).map(drop)
    }

    fn attach(&mut self, device: u32, page_table: u32) -> Result<u32, Errno> {
        self.context.attach(device, page_table, &mut self.locked)
    }

    fn detach(&mut self, device: u32) {
        self.context.detach(device, &mut self.locked);
    }

    /// Maps a part of a file, read and write, at `iova`.
    fn map(&mut self, ioas: u32, file: &Arc<File>, start: u64, length: u64, iova: u64) -> Result<u64, Errno> {
        self.map_with(ioas, file, ALL_FLAGS, start, length, iova)
    }

    fn map_with(
        &mut self,
        ioas: u32,
        file: &Arc<File>,
        flags: u32,
        start: u64,
        length: u64,
        iova: u64,
    ) -> Result<u64, Errno> {
        let mut structure = Structure::new(&[flags, ioas, 0], &[start, length, iova]);
        let file = Some((Arc::clone(file), 0));
        self.raw(IOAS_MAP_FILE, &mut structure, file).map(|()| structure.double(32))
    }

    /// Maps memory of the caller at `address`, behind which is `file` from where it says.
    fn map_process(
        &mut self,
        ioas: u32,
        file: Option<(Arc<File>, u64)>,
        address: u64,
        length: u64,
        iova: u64,
    ) -> Result<u64, Errno> {
        let mut structure = Structure::new(&[ALL_FLAGS, ioas, 0], &[address, length, iova]);
        self.raw(IOAS_MAP, &mut structure, file).map(|()| structure.double(32))
    }

    fn unmap(&mut self, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        self.call(IOAS_UNMAP, &[ioas], &[iova, length]).map(|mut reply| reply.double(16))
    }

    /// Copies, read and write, from `(ioas, iova)` to another.
    fn copy(&mut self, from: (u32, u64), to: (u32, u64), length: u64) -> Result<u64, Errno> {
        let reply = self.call(IOAS_COPY, &[ALL_FLAGS, to.0, from.0], &[length, to.1, from.1]);
        reply.map(|mut reply| reply.double(24))
    }

    fn allow(&mut self, ioas: u32, ranges: &[(u64, u64)]) -> Result<(), Errno> {
        self.array =
            ranges.iter().flat_map(|(first, last)| [*first, *last]).flat_map(u64::to_ne_bytes).collect();
        let result =
            self.call(IOAS_ALLOW_IOVAS, &[ioas, u32::try_from(ranges.len()).unwrap(), 0], &[0]).map(drop);
        self.array.clear();
        result
    }

    /// The usable ranges and their alignment.
    fn ranges(&mut self, ioas: u32) -> (Vec<(u64, u64)>, u64) {
        let mut reply = self.call(IOAS_IOVA_RANGES, &[ioas, 16, 0], &[0, 0]).unwrap();
        let ends: Vec<u64> = self.array.as_chunks().0.iter().map(|end| u64::from_ne_bytes(*end)).collect();
        self.array.clear();
        assert_eq!(reply.word(8) as usize * 2, ends.len());
        (ends.as_chunks().0.iter().map(|[first, last]| (*first, *last)).collect(), reply.double(24))
    }

    /// What the user is charged for.
    fn charge(&self) -> u64 {
        self.locked.bytes_of_user(self.caller.user)
    }
}

/// Guest memory; each page begins with its number.
fn memory(length: u64) -> Arc<File> {
    let file = File::from(rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(length).unwrap();
    for page in 0..length / PAGE {
        file.write_all_at(&page.to_ne_bytes(), page * PAGE).unwrap();
    }
    Arc::new(file)
}

/// A file of a page that is not memory, whatever the tests are run from.
fn ordinary_file() -> Arc<File> {
    let file = File::open("/sys/kernel/uevent_seqnum").unwrap();
    assert_eq!(file.metadata().unwrap().len(), PAGE);
    Arc::new(file)
}

/// The number of the page that a device finds at an address; `None` where its access faults.
fn page_at(host: &Host, device: u32, iova: u64) -> Option<u64> {
    let mut number = [0; 8];
    let memory = host.context.memory(device)?;
    memory.read(Iova(iova), &mut number).ok().map(|()| u64::from_ne_bytes(number))
}
