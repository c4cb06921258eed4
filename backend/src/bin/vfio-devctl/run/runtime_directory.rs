// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The folder with a VM's sockets.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::tool_error::ToolError;

/// The folder. One that was made for the VM goes with it, if nothing else is in it.
#[derive(Debug)]
pub(crate) struct RuntimeDirectory {
    path: PathBuf,
    is_ours: bool,
}

impl RuntimeDirectory {
    /// Uses the folder named, or that of the VM's name below /run; makes it, for our user only, if it is not there.
    pub(crate) fn make(named: Option<PathBuf>, vm: &str) -> Result<Self, ToolError> {
        let path = named.unwrap_or_else(|| Path::new("/run").join(format!("vfio-{vm}")));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path, is_ours: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Self { path, is_ours: false }),
            Err(error) => Err(ToolError::directory(&path, &error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RuntimeDirectory {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = std::fs::remove_dir(&self.path)
        {
            log::warn!("event=directory-not-removed path={} reason=\"{error}\"", self.path.display());
        }
    }
}
