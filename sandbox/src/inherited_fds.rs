// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors that the parent process left open for us and named by number on the command line.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags};

/// Why a number on the command line is no descriptor for us.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InheritedFdError {
    /// 0, 1 and 2 are the standard streams, negative numbers nothing.
    #[error("{0} is not the number of an inherited descriptor")]
    Reserved(RawFd),
    /// The same number was named before.
    #[error("descriptor {0} is named twice")]
    Duplicate(RawFd),
    /// Nothing is open under the number.
    #[error("descriptor {0} is not open")]
    NotOpen(RawFd, #[source] Errno),
    /// Others are open, and cannot be closed: the kernel is older than 5.9.
    #[error("the descriptors that are not named cannot be closed")]
    OthersStay(#[source] Errno),
}

/// Turns numbers into owned descriptors, each once. To be used before the process has opened anything by itself.
#[derive(Debug, Default)]
pub struct InheritedFds {
    taken: BTreeSet<RawFd>,
}

impl InheritedFds {
    /// Takes the descriptor with this number, and sees to it that no child inherits it.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, InheritedFdError> {
        if number <= 2 {
            return Err(InheritedFdError::Reserved(number));
        }
        if !self.taken.insert(number) {
            return Err(InheritedFdError::Duplicate(number));
        }
        // SAFETY: the number is not negative; the borrow ends with the call, which fails if nothing is open there.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)
            .map_err(|errno| InheritedFdError::NotOpen(number, errno))?;
        // SAFETY: it is open, was taken by nobody before (`taken`), and nothing in this process owns it: the command
        // line says that the parent left it open for us.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// Closes every other descriptor but the standard streams: whoever started us may have left more open than it knows.
    pub fn close_others(self) -> Result<(), InheritedFdError> {
        let mut first = 3;
        for number in self.taken {
            close_range(first, number - 1)?;
            first = number + 1;
        }
        close_range(first, RawFd::MAX)
    }
}

/// Closes all descriptors from `first` to `last`, if that is any.
fn close_range(first: RawFd, last: RawFd) -> Result<(), InheritedFdError> {
    if last < first {
        return Ok(());
    }
    // Not every C library has a function for it.
    // SAFETY: nothing in this process owns one of them: it has opened nothing yet, and what it took was left out.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first.cast_unsigned(), last.cast_unsigned(), 0) };
    if result == 0 {
        return Ok(());
    }
    let errno = Errno::from_io_error(&std::io::Error::last_os_error());
    Err(InheritedFdError::OthersStay(errno.unwrap_or(Errno::NOSYS)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn an_open_descriptor_is_taken_once() {
        let number = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let mut inherited = InheritedFds::default();
        let taken = inherited.take(number).unwrap();
        assert_eq!(inherited.take(number).unwrap_err(), InheritedFdError::Duplicate(number));
        assert!(rustix::io::fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
    }

    #[test]
    fn the_standard_streams_are_not_for_taking() {
        assert_eq!(InheritedFds::default().take(2).unwrap_err(), InheritedFdError::Reserved(2));
        assert_eq!(InheritedFds::default().take(-1).unwrap_err(), InheritedFdError::Reserved(-1));
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        let refused = InheritedFds::default().take(100_000).unwrap_err();
        assert_eq!(refused, InheritedFdError::NotOpen(100_000, Errno::BADF));
    }
}
