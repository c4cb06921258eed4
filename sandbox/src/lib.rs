// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the server gives up before it reads a byte from a peer.
//!
//! The order of start-up is fixed: parse the command line → take the inherited descriptors, and close all others →
//! [`enter`] the sandbox → open sysfs, or what is left of it → start the threads, each of which installs its [filter](Filters)
//! → install the loop's → first byte. There is no way back from any of these.
//!
//! [`policy`] is the whole policy, as data.

mod files;
mod heap;
pub mod inherited_fds;
mod limits;
pub mod peer_credentials;
pub mod policy;
pub mod privileges;
pub mod seccomp;
pub mod tables;

use std::path::{Path, PathBuf};

pub use inherited_fds::{InheritedFdError, InheritedFds};
use landlock::RulesetStatus;
use rustix::io::Errno;

pub use self::peer_credentials::PeerCredentials;
pub use self::policy::Thread;
pub use self::privileges::Identity;
pub use self::seccomp::{FilterError, Filters, Scope, Violation};

/// The kernel refused a step into the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step that everybody may take, or that was asked for.
    #[error("cannot {step}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// Why it could not.
        #[source]
        errno: Errno,
    },
    /// The rules are not what the kernel takes.
    #[error("cannot restrict the file system by Landlock")]
    Landlock(#[from] landlock::RulesetError),
}

impl SandboxError {
    fn step(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Step { step, errno }
    }
}

/// What the process shall be left with.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Where sysfs is, if it shall be read.
    pub sysfs: Option<PathBuf>,
    /// Who the process shall be.
    pub identity: Identity,
    /// How many files it may have open.
    pub open_files: u64,
}

/// What became of the steps that depend on the kernel and on who started the process.
#[derive(Debug)]
pub struct Entered {
    /// Where sysfs is now; `None` if it is not to be read, because it could not be confined to reading it.
    pub sysfs: Option<PathBuf>,
    /// Whether the process has namespaces of its own, and an empty root.
    pub has_namespaces: bool,
    /// How much Landlock does.
    pub landlock: RulesetStatus,
}

/// Enters the sandbox, but for the system-call filters. The process must have one thread.
pub fn enter(confinement: &Confinement) -> Result<Entered, SandboxError> {
    heap::share()?;
    let wanted = confinement.sysfs.as_deref().filter(|sysfs| files::exists(sysfs));
    let has_namespaces = files::leave_namespaces()?;
    if has_namespaces {
        files::enter_empty_root(wanted)?;
    }
    let within = if has_namespaces { wanted.map(|_| Path::new("/")) } else { wanted };
    limits::set(confinement.open_files)?;
    privileges::drop_all(confinement.identity)?;
    let landlock = files::restrict(within)?;
    let is_confined = has_namespaces || landlock != RulesetStatus::NotEnforced;
    let sysfs = within.filter(|_| is_confined).map(Path::to_owned);
    Ok(Entered { sysfs, has_namespaces, landlock })
}
