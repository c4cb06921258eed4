// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The heap, which must need no system call that the filters forbid.

use crate::SandboxError;

/// Lets all threads have the heap of the process instead of one each. The process must have one thread.
///
/// glibc asks `/proc/sys/vm/overcommit_memory` before it makes the heap of a thread smaller. No filter lets a thread open that:
/// whoever had a thread take and give back some 128 KiB would end the server.
#[cfg(target_env = "gnu")]
pub(crate) fn share() -> Result<(), SandboxError> {
    // SAFETY: there is one thread, and the call sets a number.
    match unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } {
        0 => Err(SandboxError::step("share the heap")(rustix::io::Errno::INVAL)),
        _ => Ok(()),
    }
}

/// Other C libraries have one heap.
#[cfg(not(target_env = "gnu"))]
pub(crate) const fn share() -> Result<(), SandboxError> {
    Ok(())
}
