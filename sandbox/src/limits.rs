// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits of what a process can use up.

use rustix::fs::{FileType, fstat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::SandboxError;

/// Sets them; none can be raised again.
pub(crate) fn set(open_files: u64) -> Result<(), SandboxError> {
    if may_pin_everything() {
        let unlimited = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Memlock, unlimited).map_err(SandboxError::step("allow memory to be pinned"))?;
    }
    let least = |resource, value: u64| {
        let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let value = Some(value.min(allowed));
        setrlimit(resource, Rlimit { current: value, maximum: value })
    };
    least(Resource::Nofile, open_files).map_err(SandboxError::step("limit the open files"))?;
    least(Resource::Core, 0).map_err(SandboxError::step("forbid core dumps"))?;
    // A log that is a file shall go on.
    if !logs_to_file() {
        least(Resource::Fsize, 0).map_err(SandboxError::step("forbid files that grow"))?;
    }
    Ok(())
}

/// Whether the process may pin as much as it likes by a capability, and may say so by a limit instead: the capability goes.
fn may_pin_everything() -> bool {
    let needed = CapabilitySet::IPC_LOCK | CapabilitySet::SYS_RESOURCE;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

fn logs_to_file() -> bool {
    fstat(std::io::stderr()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}
