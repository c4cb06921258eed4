// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use crate::model::argument::Argument;
use crate::model::memory_map::MemoryMap;
use crate::model::topology::*;
use rustix::io::Errno;

use std::os::fd::{BorrowedFd, OwnedFd};
#[derive(Debug)]
pub(crate) struct Function;
impl Function {
    pub(crate) fn new(_p: Part, _r: FunctionReset, _k: KernelVersion, _v: bool) -> Self {
        Self
    }
    pub(crate) fn config(&self) -> Vec<u8> {
        vec![0; 64]
    }
    pub(crate) fn vendor(&self) -> u16 {
        0
    }
    pub(crate) fn device(&self) -> u16 {
        0
    }
    pub(crate) fn class(&self) -> u32 {
        0
    }
    pub(crate) fn open(&mut self, _w: bool) {}
    pub(crate) fn close(&mut self) {}
    pub(crate) fn ioctl(
        &mut self,
        _number: u32,
        _argument: &mut Argument<'_>,
        _eventfds: Vec<Option<OwnedFd>>,
    ) -> Result<u32, Errno> {
        Ok(0)
    }
    pub(crate) fn read(&mut self, _position: u64, _data: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }
    pub(crate) fn write(
        &mut self,
        _position: u64,
        _data: &[u8],
        _memory: Option<&MemoryMap>,
    ) -> Result<usize, Errno> {
        Ok(0)
    }
    pub(crate) fn map(&self, _position: u64, _length: u64) -> Result<(BorrowedFd<'_>, u64), Errno> {
        Err(Errno::INVAL)
    }
    pub(crate) fn reset(&mut self) {}
    pub(crate) fn signal(&mut self, _index: u32) -> bool {
        false
    }
}
