// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits of what a process can use up.

use rustix::fs::{FileType, fstat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::SandboxError;

/// Sets them; none can be raised again.
pub(crate) fn set(open_files: u64) -> Result<(), SandboxError> {
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

fn logs_to_file() -> bool {
    fstat(std::io::stderr())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}
