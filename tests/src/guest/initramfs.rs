// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's files: a cpio archive that the kernel unpacks (Linux's Documentation/driver-api/early-userspace/
//! buffer-format.rst).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive being put together.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    folders: BTreeSet<String>,
}

impl Initramfs {
    /// Adds a file that can be executed, by its absolute path in the guest.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        let name = path.trim_start_matches('/');
        for (place, _) in name.match_indices('/') {
            self.folder(&name[..place]);
        }
        self.entry(name, PROGRAM, content);
    }

    /// Adds an empty folder, by its absolute path in the guest.
    pub fn empty_folder(&mut self, path: &str) {
        self.folder(path.trim_start_matches('/'));
    }

    /// Adds a program of this machine below `/bin`, with the libraries it is linked with.
    pub fn program(&mut self, path: &Path) {
        let content =
            |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_name().and_then(|name| name.to_str()).expect("a file name");
        self.file(&format!("/bin/{name}"), &content(path));
        // It fails for a program that is linked with none.
        let listed = Command::new("ldd").arg(path).output().expect("ldd runs");
        let listed = String::from_utf8(listed.stdout).expect("text");
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
        for library in libraries {
            self.file(library, &content(Path::new(library)));
        }
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.archive
    }

    fn folder(&mut self, name: &str) {
        if self.folders.insert(name.into()) {
            self.entry(name, DIRECTORY, &[]);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let size = u32::try_from(content.len()).expect("a small file");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        // Inode, mode, user, group, links, time, size, device and special device as two numbers each, length of the name, check.
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.archive.extend(b"070701");
        for field in fields {
            self.archive.extend(format!("{field:08x}").as_bytes());
        }
        self.archive.extend(name.as_bytes());
        self.archive.push(0);
        self.align();
        self.archive.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}
