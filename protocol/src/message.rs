// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request in vhost-user framing as the parsers of the control face and of the vhost-user face take it apart.

use std::os::fd::OwnedFd;

use zerocopy::FromBytes;

use crate::frame::{Descriptors, Frame};
use crate::header::VhostUserHeader;
use crate::request_error::RequestError;
use crate::request_number::RequestNumber;
use crate::vhost_user::{
    BackedRegion, MAX_TABLE_REGIONS, MemoryRegion, MemoryTableHeader, SingleMemoryRegion,
};

/// A request of known number whose descriptors are as many as it may have.
pub(crate) struct Message {
    pub(crate) request: RequestNumber,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Message {
    /// Takes over a frame. `allowed` tells how many descriptors (least, most) may come with a request, and `None` of one that
    /// the face does not have.
    pub(crate) fn new(
        frame: Frame<VhostUserHeader>,
        allowed: fn(RequestNumber) -> Option<(usize, usize)>,
    ) -> Result<Self, RequestError> {
        let request = frame.header.request;
        let Descriptors::Complete(descriptors) = frame.descriptors else {
            return Err(RequestError::TooManyDescriptors { request });
        };
        let (least, most) = allowed(request).ok_or(RequestError::Unknown { request })?;
        if !(least..=most).contains(&descriptors.len()) {
            return Err(RequestError::Descriptors { request, expected: most, actual: descriptors.len() });
        }
        Ok(Self { request, body: frame.body, descriptors })
    }

    /// The regions of `SET_MEM_TABLE`, each with its file.
    pub(crate) fn memory_table(&mut self) -> Result<Vec<BackedRegion>, RequestError> {
        const HEADER: usize = size_of::<MemoryTableHeader>();
        const REGION: usize = size_of::<MemoryRegion>();

        let (MemoryTableHeader { count: number, .. }, regions) =
            MemoryTableHeader::read_from_prefix(&self.body).map_err(|_| self.bad_size(HEADER))?;
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        self.check(count <= MAX_TABLE_REGIONS, "count", number)?;
        if regions.len() != count * REGION {
            return Err(self.bad_size(HEADER + count * REGION));
        }
        if self.descriptors.len() != count {
            let actual = self.descriptors.len();
            return Err(RequestError::Descriptors { request: self.request, expected: count, actual });
        }
        let mut table = Vec::with_capacity(count);
        for region in regions.chunks(REGION) {
            let region = MemoryRegion::read_from_bytes(region).map_err(|_| self.bad_size(HEADER + REGION))?;
            self.check_region(region)?;
            table.push(region);
        }
        let files = std::mem::take(&mut self.descriptors);
        Ok(table.into_iter().zip(files).map(|(region, file)| BackedRegion { region, file }).collect())
    }

    /// The region of `ADD_MEM_REG` with its file.
    pub(crate) fn backed_region(&mut self) -> Result<BackedRegion, RequestError> {
        let region = self.region()?;
        Ok(BackedRegion { region, file: self.descriptor()? })
    }

    /// The region of `REM_MEM_REG`.
    pub(crate) fn region(&self) -> Result<MemoryRegion, RequestError> {
        let SingleMemoryRegion { region, .. } = self.payload()?;
        self.check_region(region)?;
        Ok(region)
    }

    /// The body as a `T`, which it must fill exactly.
    pub(crate) fn payload<T: FromBytes>(&self) -> Result<T, RequestError> {
        T::read_from_bytes(&self.body).map_err(|_| self.bad_size(size_of::<T>()))
    }

    /// `request`, which has no body.
    pub(crate) fn empty<Request>(&self, request: Request) -> Result<Request, RequestError> {
        self.check_empty().map(|()| request)
    }

    fn check_empty(&self) -> Result<(), RequestError> {
        if self.body.is_empty() { Ok(()) } else { Err(self.bad_size(0)) }
    }

    /// The one descriptor that came with a request without a body.
    pub(crate) fn lone_descriptor(&mut self) -> Result<OwnedFd, RequestError> {
        self.check_empty()?;
        self.descriptor()
    }

    /// The one descriptor that came.
    pub(crate) fn descriptor(&mut self) -> Result<OwnedFd, RequestError> {
        let request = self.request;
        self.descriptors.pop().ok_or(RequestError::Descriptors { request, expected: 1, actual: 0 })
    }

    /// An error about `field` unless its value is good.
    pub(crate) fn check(
        &self,
        good: bool,
        field: &'static str,
        value: impl Into<u64>,
    ) -> Result<(), RequestError> {
        if good { Ok(()) } else { Err(self.bad_field(field, value)) }
    }

    fn check_region(&self, region: MemoryRegion) -> Result<(), RequestError> {
        let request = self.request;
        if region.is_valid() { Ok(()) } else { Err(RequestError::Region { request, region }) }
    }

    /// The error about a field with a value without meaning.
    pub(crate) fn bad_field(&self, field: &'static str, value: impl Into<u64>) -> RequestError {
        RequestError::Field { request: self.request, field, value: value.into() }
    }

    /// The error about a body that should have `expected` bytes.
    pub(crate) fn bad_size(&self, expected: usize) -> RequestError {
        RequestError::Size { request: self.request, expected, actual: self.body.len() }
    }
}
