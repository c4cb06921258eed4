// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's answers as they stand in the transcript: errnos by their names, devices by their addresses.

use std::io;

use rustix::io::Errno;
use vfio::device::{BindError, BindRefusal};
use vfio::{CallError, Device, HotResetInfo, Ownership};

/// An answer with its errno's name.
pub(crate) type Answer<T> = Result<T, &'static str>;

/// What is expected of a call that returns nothing of interest.
pub(crate) const OK: Result<(), ()> = Ok(());
pub(crate) const EADDRINUSE: Answer<()> = Err("EADDRINUSE");
pub(crate) const EBUSY: Answer<()> = Err("EBUSY");
pub(crate) const EEXIST: Answer<()> = Err("EEXIST");
pub(crate) const EINVAL: Answer<()> = Err("EINVAL");
pub(crate) const EFAULT: Answer<()> = Err("EFAULT");
pub(crate) const ENOENT: Answer<()> = Err("ENOENT");
pub(crate) const ENOMEM: Answer<()> = Err("ENOMEM");
pub(crate) const EOVERFLOW: Answer<()> = Err("EOVERFLOW");

/// The expectation that a call returns something. The wrapping is for the transcript.
#[allow(clippy::unnecessary_wraps)]
pub(crate) const fn ok<T>(value: T) -> Result<T, ()> {
    Ok(value)
}

/// The expectation that it does not.
pub(crate) const fn refused<T>(why: T) -> Result<(), T> {
    Err(why)
}

/// An error that is an errno.
pub(crate) trait HasErrno {
    fn errno(&self) -> Errno;
}

impl HasErrno for Errno {
    fn errno(&self) -> Errno {
        *self
    }
}

impl HasErrno for CallError {
    fn errno(&self) -> Errno {
        self.errno
    }
}

impl HasErrno for BindError {
    fn errno(&self) -> Errno {
        self.call.errno
    }
}

impl HasErrno for io::Error {
    fn errno(&self) -> Errno {
        Errno::from_io_error(self).unwrap_or_else(|| panic!("no errno: {self}"))
    }
}

/// The answer to a call that returns nothing of interest.
pub(crate) fn answer<T, E: HasErrno>(result: Result<T, E>) -> Answer<()> {
    value(result).map(drop)
}

/// The answer to a call that returns something.
pub(crate) fn value<T, E: HasErrno>(result: Result<T, E>) -> Answer<T> {
    result.map_err(|error| name(error.errno()))
}

fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::IO => "EIO",
        Errno::BADF => "EBADF",
        Errno::AGAIN => "EAGAIN",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::FAULT => "EFAULT",
        Errno::BUSY => "EBUSY",
        Errno::EXIST => "EEXIST",
        Errno::NODEV => "ENODEV",
        Errno::INVAL => "EINVAL",
        Errno::NOTTY => "ENOTTY",
        Errno::NOSPC => "ENOSPC",
        Errno::RANGE => "ERANGE",
        Errno::PROTO => "EPROTO",
        Errno::OVERFLOW => "EOVERFLOW",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::ADDRINUSE => "EADDRINUSE",
        other => panic!("{other:?} has no name here yet"),
    }
}

/// The answer to a bind, with what crate `vfio` makes of a refusal.
pub(crate) fn bind_answer(result: Result<Device, BindError>) -> Result<(), String> {
    result.map(drop).map_err(|error| {
        let errno = name(error.errno());
        match error.refusal {
            BindRefusal::SiblingDriver { sibling, driver } => format!("{errno} {sibling} has {driver}"),
            other => format!("{errno} {other:?}"),
        }
    })
}

/// A reset set: whether it can be reset, and each function with its owner. `ours` are the devices of the asking context.
pub(crate) fn rows(info: Result<HotResetInfo, CallError>, ours: &[&Device]) -> Answer<String> {
    let info = value(info)?;
    let rows = info.functions.iter().map(|row| {
        let owner = match row.ownership {
            Ownership::Bound(id) => match ours.iter().find(|device| device.id() == id) {
                Some(device) if device.address() == row.address => "bound".into(),
                Some(device) => format!("bound as {}", device.address()),
                None => "bound by somebody".into(),
            },
            Ownership::Implied => "implied".into(),
            Ownership::NotOwned => "not owned".to_owned(),
        };
        format!("{} {owner}", row.address)
    });
    let rows: Vec<_> = rows.collect();
    Ok(format!("{}: {}", if info.all_owned { "available" } else { "blocked" }, rows.join(", ")))
}
