// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DMA_MAP` and `DMA_UNMAP`, typed: what the device may reach of the client's memory.

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::command::Command;
use super::error::RequestError;

/// What `DMA_MAP` begins with (QEMU's vfio-user.rst, `VFIO_USER_DMA_MAP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMapPayload {
    /// Size of the structure in bytes, or more.
    pub argsz: u32,
    /// Bit 0: the device may read. Bit 1: it may write.
    pub flags: u32,
    /// Where the memory begins in the file that came along.
    pub offset: u64,
    /// Where the device finds it.
    pub address: u64,
    /// In bytes.
    pub size: u64,
}

impl DmaMapPayload {
    /// Bit 0 of the flags: the device may read.
    pub const READ: u32 = 1;
    /// Bit 1 of the flags: it may write.
    pub const WRITE: u32 = 2;
    /// Size of the structure in bytes.
    pub const SIZE: u32 = 32;
}

/// `DMA_UNMAP` and its reply (QEMU's vfio-user.rst, `VFIO_USER_DMA_UNMAP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmapPayload {
    /// Size of the structure in bytes, or more.
    pub argsz: u32,
    /// Bit 1: everything; then address and size are 0.
    pub flags: u32,
    /// Where the memory was.
    pub address: u64,
    /// In bytes.
    pub size: u64,
}

impl DmaUnmapPayload {
    /// Bit 1 of the flags: everything.
    pub const ALL: u32 = 2;
    /// Size of the structure in bytes.
    pub const SIZE: u32 = 24;
}

/// Memory that the device may read. Nothing is known yet about the file, nor about alignment and bounds.
#[derive(Debug)]
pub struct DmaMap {
    /// Where the device finds it.
    pub address: u64,
    /// In bytes.
    pub size: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Whether the device may write, too.
    pub is_writable: bool,
    /// What is behind it; `None` for something that the client has no file of.
    pub file: Option<OwnedFd>,
}

impl DmaMap {
    /// Reads the command's payload and takes the descriptor that came with it.
    pub(super) fn parse(body: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, RequestError> {
        let command = Command::DMA_MAP;
        let DmaMapPayload { argsz, flags, offset, address, size } = payload(command, body)?;
        let bad = |field, value| RequestError::Field { command, field, value };
        if argsz < DmaMapPayload::SIZE {
            return Err(bad("argsz", argsz.into()));
        }
        // What a device may write it may read: no IOMMU page table that is used here says otherwise.
        let is_writable = flags & DmaMapPayload::WRITE != 0;
        if flags & !DmaMapPayload::WRITE != DmaMapPayload::READ {
            return Err(bad("flags", flags.into()));
        }
        if size == 0 || address.checked_add(size).is_none() {
            return Err(bad("size", size));
        }
        let actual = descriptors.len();
        let mut descriptors = descriptors.into_iter();
        let file = descriptors.next();
        if descriptors.next().is_some() {
            return Err(RequestError::Descriptors { command, actual });
        }
        Ok(Self { address, size, offset, is_writable, file })
    }
}

/// What is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    /// What was mapped with just this address and size, which is not 0; the end does not wrap around.
    Range {
        /// Where the memory was.
        address: u64,
        /// In bytes.
        size: u64,
    },
    /// Everything.
    All,
}

impl DmaUnmap {
    /// Reads the command's payload; it is also the reply.
    pub(super) fn parse(body: &[u8]) -> Result<(Self, DmaUnmapPayload), RequestError> {
        let command = Command::DMA_UNMAP;
        let echo = payload(command, body)?;
        let DmaUnmapPayload { argsz, flags, address, size } = echo;
        let bad = |field, value| RequestError::Field { command, field, value };
        if argsz < DmaUnmapPayload::SIZE {
            return Err(bad("argsz", argsz.into()));
        }
        let unmap = match (flags, address, size) {
            (DmaUnmapPayload::ALL, 0, 0) => Self::All,
            (DmaUnmapPayload::ALL, ..) | (0, _, 0) => return Err(bad("size", size)),
            (0, address, size) if address.checked_add(size).is_some() => Self::Range { address, size },
            (0, ..) => return Err(bad("size", size)),
            _ => return Err(bad("flags", flags.into())),
        };
        Ok((unmap, echo))
    }
}

fn payload<T: FromBytes>(command: Command, body: &[u8]) -> Result<T, RequestError> {
    T::read_from_bytes(body).map_err(|_| RequestError::Size {
        command,
        expected: size_of::<T>(),
        actual: body.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: DmaMapPayload = DmaMapPayload {
        argsz: DmaMapPayload::SIZE,
        flags: DmaMapPayload::READ | DmaMapPayload::WRITE,
        offset: 0x3000,
        address: 0x10_0000,
        size: 0x2000,
    };
    const UNMAP: DmaUnmapPayload =
        DmaUnmapPayload { argsz: DmaUnmapPayload::SIZE, flags: 0, address: 0x10_0000, size: 0x2000 };

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn map(payload: DmaMapPayload, descriptors: Vec<OwnedFd>) -> Result<DmaMap, RequestError> {
        DmaMap::parse(payload.as_bytes(), descriptors)
    }

    #[test]
    fn memory_comes_with_its_file_or_without() {
        let DmaMap { address, size, offset, is_writable, file } = map(MAP, vec![null()]).unwrap();
        assert_eq!((address, size, offset, is_writable), (0x10_0000, 0x2000, 0x3000, true));
        assert!(file.is_some());
        let read_only = map(DmaMapPayload { flags: DmaMapPayload::READ, ..MAP }, vec![]).unwrap();
        assert!(!read_only.is_writable && read_only.file.is_none());
    }

    #[test]
    fn memory_with_two_files_is_refused() {
        let error = map(MAP, vec![null(), null()]).unwrap_err();
        assert_eq!(error, RequestError::Descriptors { command: Command::DMA_MAP, actual: 2 });
    }

    #[test]
    fn mappings_without_sense_are_refused() {
        let field = |payload| match map(payload, vec![]) {
            Err(RequestError::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(DmaMapPayload { argsz: 31, ..MAP }), "argsz");
        for flags in [0, DmaMapPayload::WRITE, 4, 7, 0x8000_0003] {
            assert_eq!(field(DmaMapPayload { flags, ..MAP }), "flags");
        }
        assert_eq!(field(DmaMapPayload { size: 0, ..MAP }), "size");
        assert_eq!(field(DmaMapPayload { address: u64::MAX - 0xfff, ..MAP }), "size");
        for length in [0, 31, 33] {
            let body = [MAP.as_bytes(), &[0]].concat();
            let error = DmaMap::parse(&body[..length], vec![]).unwrap_err();
            assert!(matches!(error, RequestError::Size { expected: 32, .. }));
        }
    }

    #[test]
    fn a_range_or_everything_is_taken_away() {
        let parse = |payload: DmaUnmapPayload| DmaUnmap::parse(payload.as_bytes());
        assert_eq!(parse(UNMAP), Ok((DmaUnmap::Range { address: 0x10_0000, size: 0x2000 }, UNMAP)));
        let all = DmaUnmapPayload { flags: DmaUnmapPayload::ALL, address: 0, size: 0, ..UNMAP };
        assert_eq!(parse(all), Ok((DmaUnmap::All, all)));
        for bad in [
            DmaUnmapPayload { argsz: 23, ..UNMAP },
            DmaUnmapPayload { flags: 1, ..UNMAP },
            DmaUnmapPayload { flags: 4, ..UNMAP },
            DmaUnmapPayload { flags: DmaUnmapPayload::ALL, ..UNMAP },
            DmaUnmapPayload { size: 0, ..UNMAP },
            DmaUnmapPayload { address: u64::MAX, ..UNMAP },
        ] {
            assert!(matches!(parse(bad), Err(RequestError::Field { .. })), "{bad:?}");
        }
    }
}
