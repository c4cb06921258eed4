// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is tried.

use std::ffi::CString;
use std::fmt;

use rustix::io::Errno;

/// What an attempt is made on.
#[derive(Debug)]
pub(crate) struct Target {
    /// A file outside that whoever started the process may write.
    pub(crate) file: CString,
    /// A process outside, of the same user.
    pub(crate) process: libc::pid_t,
    /// A port on which it listens.
    pub(crate) port: u16,
}

/// Whether the attempt is refused without system-call filters as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecondLine {
    /// It is not.
    None,
    /// By what the process lost besides.
    Refuses,
    /// By that, and without any sandbox it succeeds: it is a real attempt, and does no harm.
    RefusesWhatIsPossible,
}

type Make = Box<dyn Fn(&Target) -> Result<(), Errno> + Send + Sync>;

/// Something that a server that was taken over might try.
pub(crate) struct Attempt {
    /// What it belongs to.
    pub(crate) group: &'static str,
    /// What it is called in the list.
    pub(crate) name: &'static str,
    /// What refuses it besides the filter.
    pub(crate) second_line: SecondLine,
    /// Makes it.
    pub(crate) make: Make,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Attempt")
            .field("group", &self.group)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A system call as it is.
pub(crate) fn raw(number: libc::c_long, arguments: &[libc::c_long]) -> Result<libc::c_long, Errno> {
    let mut values = [0; 6];
    for (value, argument) in values.iter_mut().zip(arguments) {
        *value = *argument;
    }
    let [first, second, third, fourth, fifth, sixth] = values;
    // SAFETY: it is refused, or touches nothing of this process but what its arguments point to, which lives as long as the
    // call. The process is one that may be lost.
    let result = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A call by the gate of 32-bit programs, where numbers mean other calls; with whatever stands in the registers.
#[cfg(target_arch = "x86_64")]
pub(crate) fn by_old_gate(number: libc::c_long) -> Result<(), Errno> {
    let mut result = number;
    // SAFETY: the gate keeps all registers but these. The process is one that may be lost.
    unsafe {
        std::arch::asm!(
            "int 0x80", inlateout("rax") result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    };
    if result < 0 { Err(Errno::INVAL) } else { Ok(()) }
}
