// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A directory whose files come into being complete. Paths are relative to it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

#[derive(Debug)]
pub(super) struct Tree(pub(super) PathBuf);

impl Tree {
    pub(super) fn make_directory(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.0.join(path))
    }

    /// Writes an attribute; a reader finds the old one or the new one, never a part.
    pub(super) fn write(&self, path: &str, value: impl AsRef<[u8]>) -> io::Result<()> {
        let new = self.aside(path);
        fs::write(&new, value)?;
        fs::rename(new, self.0.join(path))
    }

    /// Links one place of the tree to another.
    pub(super) fn link(&self, path: &str, target: &str) -> io::Result<()> {
        let up = "../".repeat(path.matches('/').count());
        let new = self.aside(path);
        symlink(format!("{up}{target}"), &new)?;
        fs::rename(new, self.0.join(path))
    }

    pub(super) fn unlink(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(path))
    }

    /// Where a thing is made before it gets its name: hidden, beside it.
    fn aside(&self, path: &str) -> PathBuf {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.0.join(directory).join(format!(".{name}"))
    }

    /// Removes a directory and all in it.
    pub(super) fn remove_directory(&self, path: &str) -> io::Result<()> {
        fs::remove_dir_all(self.0.join(path))
    }
}
