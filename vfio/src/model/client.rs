// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process's side of the model: system calls on its open files, and opening them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_type};

use crate::model::wire::{self, Call, MAX_DATA, Reply};
use crate::sys;
use crate::topology::DeviceNumber;

/// An open file of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelFile<'a>(BorrowedFd<'a>);

impl<'a> ModelFile<'a> {
    /// The descriptor as a file of the model; `None` where it is of the kernel's.
    pub(crate) fn of(fd: BorrowedFd<'a>) -> Option<Self> {
        let stat = fstat(fd).ok()?;
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        (is_socket && socket_type(fd) == Ok(SocketType::SEQPACKET)).then_some(Self(fd))
    }

    /// Which character device the file is; `None` where the model does not know, or the peer is no model and says nothing.
    pub(crate) fn identify(self) -> Option<DeviceNumber> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let (near, far) = wire::pair().ok()?;
        set_socket_timeout(&near, Timeout::Recv, Some(PATIENCE)).ok()?;
        wire::send_request(self.0, Call::Identify, &[], far.as_fd(), &[]).ok()?;
        drop(far);
        let reply = wire::receive_reply(near.as_fd()).ok()?;
        let (numbers, _) = reply.data.as_chunks();
        let [major, minor] = *numbers else { return None };
        reply.outcome.ok()?;
        Some(DeviceNumber { major: u32::from_ne_bytes(major), minor: u32::from_ne_bytes(minor) })
    }

    /// An ioctl whose argument is `argument`, followed by `more` that the kernel would find by other ways. What the kernel
    /// writes beyond the argument is returned beside the ioctl's value.
    pub(crate) fn ioctl(
        self,
        number: u32,
        argument: &mut [u8],
        more: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> (Result<u32, Errno>, Vec<u8>) {
        if let Err(errno) = sys::show_to_filters(self.0, number) {
            return (Err(errno), Vec::new());
        }
        let data = [argument as &[u8], more].concat();
        let Reply { outcome, data, .. } = match self.call(Call::Ioctl(number), &data, descriptors) {
            Ok(reply) => reply,
            Err(errno) => return (Err(errno), Vec::new()),
        };
        let (written, beyond) = data.split_at_checked(argument.len()).unwrap_or((&[], &[]));
        if !written.is_empty() {
            argument.copy_from_slice(written);
        }
        (outcome, beyond.to_vec())
    }

    /// `pread`.
    pub(crate) fn read(self, data: &mut [u8], position: u64) -> Result<usize, Errno> {
        let mut done = 0;
        for part in data.chunks_mut(MAX_DATA) {
            let call = Call::Read(position + done as u64, part.len() as u64);
            let reply = self.call(call, &[], &[])?;
            let count = match reply.outcome {
                Ok(_) => reply.data.len().min(part.len()),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => 0,
            };
            part.iter_mut().zip(reply.data).for_each(|(byte, read)| *byte = read);
            done += count;
            if count < part.len() {
                break;
            }
        }
        Ok(done)
    }

    /// `pwrite`.
    pub(crate) fn write(self, data: &[u8], position: u64) -> Result<usize, Errno> {
        let mut done = 0;
        for part in data.chunks(MAX_DATA) {
            let reply = self.call(Call::Write(position + done as u64), part, &[])?;
            match reply.outcome {
                Ok(count) => done += usize::try_from(count).unwrap_or(0),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// `mmap`: the file behind a range of a region, and where in it.
    pub(crate) fn map(self, position: u64, length: u64) -> Result<(OwnedFd, u64), Errno> {
        let Reply { outcome, data, descriptor } = self.call(Call::Map(position, length), &[], &[])?;
        outcome?;
        let offset = data.first_chunk().copied().map(u64::from_ne_bytes).ok_or(Errno::PROTO)?;
        Ok((descriptor.ok_or(Errno::PROTO)?, offset))
    }

    fn call(self, call: Call, data: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<Reply, Errno> {
        let (near, far) = wire::pair()?;
        wire::send_request(self.0, call, data, far.as_fd(), descriptors).map_err(|errno| match errno {
            Errno::PIPE | Errno::CONNRESET => Errno::IO,
            errno => errno,
        })?;
        drop(far);
        wire::receive_reply(near.as_fd())
    }
}

/// Whether a descriptor is an open file of a model.
pub fn is_open_file(fd: BorrowedFd<'_>) -> bool {
    ModelFile::of(fd).is_some()
}

/// `mmap` of a range of a device's file: the plain file behind it, and where in that.
///
/// # Errors
///
/// `EINVAL` where the range cannot be mapped; `ENOTTY` where the descriptor is none of the model's.
pub fn map(fd: BorrowedFd<'_>, position: u64, length: u64) -> Result<(OwnedFd, u64), Errno> {
    ModelFile::of(fd).ok_or(Errno::NOTTY)?.map(position, length)
}

/// `pread` on a file of the model, as others do who hold a copy of it.
///
/// # Errors
///
/// The modelled kernel's errno; `ENOTTY` where the descriptor is none of the model's.
pub fn read(fd: BorrowedFd<'_>, data: &mut [u8], position: u64) -> Result<usize, Errno> {
    ModelFile::of(fd).ok_or(Errno::NOTTY)?.read(data, position)
}

/// An ioctl on a file of the model by its number and bytes, for what the rest of the crate never asks: what other users of
/// a device do.
///
/// # Errors
///
/// The modelled kernel's errno; `ENOTTY` where the descriptor is none of the model's.
pub fn ioctl(
    fd: BorrowedFd<'_>,
    number: u32,
    argument: &mut [u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(u32, Option<OwnedFd>), Errno> {
    let file = ModelFile::of(fd).ok_or(Errno::NOTTY)?;
    let Reply { outcome, data, descriptor } = file.call(Call::Ioctl(number), argument, descriptors)?;
    argument.iter_mut().zip(data).for_each(|(byte, written)| *byte = written);
    outcome.map(|value| (value, descriptor))
}

/// Opens a node of a modelled `/dev`.
///
/// # Errors
///
/// `ENOENT` where there is no such node; otherwise what the modelled kernel's `open` says.
pub fn open(node: &Path) -> Result<OwnedFd, Errno> {
    let socket = UnixStream::connect(node).map_err(|error| match Errno::from_io_error(&error) {
        // The node of a device that is gone, or of a model that has ended.
        Some(Errno::CONNREFUSED) | None => Errno::NODEV,
        Some(errno) => errno,
    })?;
    let reply = wire::receive_reply(socket.as_fd())?;
    reply.outcome?;
    reply.descriptor.ok_or(Errno::PROTO)
}
