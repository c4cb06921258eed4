// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file behind the disk. Data goes between it and guest memory without a copy on the way.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use thiserror::Error;
use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use crate::buffer::Buffer;

/// The unit of addresses and lengths on a disk, in bytes.
pub(crate) const SECTOR: u64 = 512;

/// Why a disk was not read or written.
#[derive(Debug, Error)]
pub(crate) enum AccessError {
    /// It is not a number of whole sectors.
    #[error("{0} bytes are not whole sectors")]
    Fraction(u64),
    /// It does not end inside the disk.
    #[error("{length} bytes from sector {sector} on are not on the disk")]
    OutOfBounds {
        /// Where it begins.
        sector: u64,
        /// How long it is, in bytes.
        length: u64,
    },
    /// Between the file and guest memory.
    #[error("data cannot be moved: {0}")]
    Data(#[from] GuestMemoryError),
    /// The file's own.
    #[error("the image fails: {0}")]
    File(#[from] io::Error),
}

/// An open disk image. It has a position of its own, so each ring has one of them.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    sectors: u64,
}

impl Image {
    /// Opens a file for reading and writing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        // A block device has its size nowhere else.
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        Ok(Self { file, sectors })
    }

    /// How many whole sectors there are.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Fills the buffer with what is on the disk from this sector on.
    pub(crate) fn read(
        &mut self,
        sector: u64,
        buffer: &Buffer,
        memory: &GuestMemoryMmap,
    ) -> Result<(), AccessError> {
        self.seek(sector, buffer.length())?;
        Ok(buffer.fill(memory, &mut self.file)?)
    }

    /// Writes what is in the buffer to the disk from this sector on.
    pub(crate) fn write(
        &mut self,
        sector: u64,
        buffer: &Buffer,
        memory: &GuestMemoryMmap,
    ) -> Result<(), AccessError> {
        self.seek(sector, buffer.length())?;
        Ok(buffer.drain(memory, &mut self.file)?)
    }

    /// Has everything that was written reach the medium.
    pub(crate) fn flush(&self) -> Result<(), AccessError> {
        Ok(self.file.sync_data()?)
    }

    /// Goes where an access begins that ends on the disk.
    fn seek(&mut self, sector: u64, length: u64) -> Result<(), AccessError> {
        if !length.is_multiple_of(SECTOR) {
            return Err(AccessError::Fraction(length));
        }
        let end = sector.checked_add(length / SECTOR);
        if end.is_none_or(|end| end > self.sectors) {
            return Err(AccessError::OutOfBounds { sector, length });
        }
        self.file.seek(SeekFrom::Start(sector * SECTOR))?;
        Ok(())
    }
}
