// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The argument of an ioctl as the kernel sees it: the caller's bytes, read and written at the offsets of the uapi headers.

use rustix::io::Errno;

/// What the caller passed; as long as it says it is.
#[derive(Debug)]
pub(crate) struct Argument<'a>(pub(crate) &'a mut [u8]);

impl Argument<'_> {
    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The 16 bits at `offset`.
    ///
    /// # Errors
    ///
    /// `EFAULT` where the caller's bytes end before; so for all that follow.
    pub(crate) fn half(&self, offset: usize) -> Result<u16, Errno> {
        self.chunk(offset).map(u16::from_ne_bytes)
    }

    /// The 32 bits at `offset`.
    pub(crate) fn word(&self, offset: usize) -> Result<u32, Errno> {
        self.chunk(offset).map(u32::from_ne_bytes)
    }

    /// The 64 bits at `offset`.
    pub(crate) fn double(&self, offset: usize) -> Result<u64, Errno> {
        self.chunk(offset).map(u64::from_ne_bytes)
    }

    /// `length` bytes at `offset`.
    pub(crate) fn bytes(&self, offset: usize, length: usize) -> Result<&[u8], Errno> {
        self.0.get(offset..).and_then(|rest| rest.get(..length)).ok_or(Errno::FAULT)
    }

    /// Answers with 32 bits at `offset`.
    pub(crate) fn set_word(&mut self, offset: usize, value: u32) -> Result<(), Errno> {
        self.set(offset, &value.to_ne_bytes())
    }

    /// Answers with 64 bits at `offset`.
    pub(crate) fn set_double(&mut self, offset: usize, value: u64) -> Result<(), Errno> {
        self.set(offset, &value.to_ne_bytes())
    }

    /// Answers with `bytes` at `offset`.
    pub(crate) fn set(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let room = self.0.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or(Errno::FAULT).map(|room| room.copy_from_slice(bytes))
    }

    fn chunk<const N: usize>(&self, offset: usize) -> Result<[u8; N], Errno> {
        self.0.get(offset..).and_then(|rest| rest.first_chunk().copied()).ok_or(Errno::FAULT)
    }
}
