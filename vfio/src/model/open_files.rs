// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `/proc` says of open files. A file of the model is a socket there, so below `proc` in its folder is what the kernel
//! would say instead, by the number of the socket.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// `/proc/PID/fd` and `/proc/PID/fdinfo` for whatever process has the file.
#[derive(Debug)]
pub(super) struct OpenFiles {
    folder: PathBuf,
}

impl OpenFiles {
    /// Makes the folder `proc` in a folder.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let folder = folder.join("proc");
        std::fs::create_dir_all(folder.join("fd"))?;
        std::fs::create_dir_all(folder.join("fdinfo"))?;
        Ok(Self { folder })
    }

    /// A file is open: this is where its link leads, and this else is said of it.
    pub(super) fn add(&self, inode: u64, link: &str, details: &str) -> io::Result<()> {
        std::fs::write(self.fdinfo(inode), details)?;
        symlink(link, self.fd(inode))
    }

    /// Its last copy was closed.
    pub(super) fn remove(&self, inode: u64) -> io::Result<()> {
        std::fs::remove_file(self.fd(inode))?;
        std::fs::remove_file(self.fdinfo(inode))
    }

    fn fd(&self, inode: u64) -> PathBuf {
        self.folder.join("fd").join(inode.to_string())
    }

    fn fdinfo(&self, inode: u64) -> PathBuf {
        self.folder.join("fdinfo").join(inode.to_string())
    }
}
