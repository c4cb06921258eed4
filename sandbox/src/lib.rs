// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server gives up before it reads a byte from a peer.
//!
//! The order of start-up is fixed: parse the command line → take the inherited descriptors → open sysfs →
//! [`enter`] → first byte. What is entered so far is `no_new_privs`; the system-call filter, Landlock and namespaces
//! belong at the same place.

pub mod inherited_fds;

pub use inherited_fds::{InheritedFdError, InheritedFds};
use rustix::io::Errno;

/// The kernel refused a step into the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    #[error("no_new_privs cannot be set")]
    NoNewPrivileges(#[source] Errno),
}

/// Enters the sandbox. There is no way back.
pub fn enter() -> Result<(), SandboxError> {
    rustix::thread::set_no_new_privs(true).map_err(SandboxError::NoNewPrivileges)
}

#[cfg(test)]
mod tests {
    #[test]
    fn inside_no_privilege_can_be_gained_by_exec() {
        super::enter().unwrap();
        assert!(rustix::thread::no_new_privs().unwrap());
    }
}
