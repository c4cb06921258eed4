// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that mappings lead to (`struct iopt_pages`): what one `IOMMU_IOAS_MAP` or `IOMMU_IOAS_MAP_FILE` named.
//! Copies of a mapping share it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{FsWord, OFlags};
use rustix::io::Errno;

use super::PAGE;
use super::locked_memory::Account;
use super::span::Span;

/// Tells memory that was mapped once from all other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PagesId(pub(super) u64);

/// Where the kernel takes the pages from when they are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From a file, whoever is still alive.
    File,
    /// From the address space of the process that mapped.
    Process(i32),
}

/// Whole pages; the first and the last may be used in part only.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) id: PagesId,
    pub(super) source: Source,
    /// Where the first page begins in the source, which automatic IOVAs are congruent to.
    pub(super) address: u64,
    /// Where the contents are: a file, and where in it the first page begins. `None` for an address behind which the
    /// model knows no file.
    pub(super) file: Option<(Arc<File>, u64)>,
    pub(super) writable: bool,
    /// Whose memory they are pinned as, limited or not.
    pub(super) process: i32,
    /// Who is charged, up to how many bytes; `None` for who may pin without limit.
    pub(super) account: Option<(Account, u64)>,
}

impl Pages {
    /// The file behind the pages and where in it byte `offset` of them is.
    pub(super) fn file_at(&self, offset: u64) -> Result<(Arc<File>, u64), Errno> {
        let (file, start) = self.file.as_ref().ok_or(Errno::FAULT)?;
        Ok((Arc::clone(file), start.checked_add(offset).ok_or(Errno::FAULT)?))
    }

    /// Gets hold of some of the pages, which is where the kernel first looks at what was mapped.
    ///
    /// # Errors
    ///
    /// For a file `EINVAL`: not in memory, or shorter. For an address `EFAULT`: its process is gone, or nothing that
    /// can be pinned is there.
    pub(super) fn get(&self, part: Span) -> Result<(), Errno> {
        let (file, first) = self.file_at(part.first.saturating_mul(PAGE))?;
        let end = first.saturating_add(part.length().saturating_mul(PAGE));
        let size = file.metadata().map_err(|error| errno_of(&error))?.len();
        let in_memory = is_in_memory(&file)?;
        match self.source {
            Source::File if !in_memory || end > size => Err(Errno::INVAL),
            Source::File => Ok(()),
            Source::Process(id) => {
                // A page that the file ends in can be touched, one behind it cannot.
                let beyond = end > size.next_multiple_of(PAGE);
                let needs_dirty_tracking = self.writable && !in_memory;
                if is_gone(id) || beyond || needs_dirty_tracking { Err(Errno::FAULT) } else { Ok(()) }
            }
        }
    }
}

/// The kernel pins a file's pages and does not ask how the file was opened: a device writes even where the descriptor
/// can only read. So does the model, where it can.
pub(super) fn writable_by_a_device(file: Arc<File>) -> Arc<File> {
    let read_only = rustix::fs::fcntl_getfl(&file).is_ok_and(|flags| !flags.intersects(OFlags::RDWR));
    if !read_only {
        return file;
    }
    let again = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    again.map_or(file, Arc::new)
}

/// Whether the file's pages are the file: tmpfs, a memfd, or huge pages.
fn is_in_memory(file: &File) -> Result<bool, Errno> {
    const TMPFS_MAGIC: FsWord = 0x0102_1994;
    const HUGETLBFS_MAGIC: FsWord = 0x9584_58f6;
    let magic = rustix::fs::fstatfs(file)?.f_type;
    Ok(magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC)
}

/// A process that ended has no address space any more, even before its parent has waited for it.
fn is_gone(process: i32) -> bool {
    let executable = std::fs::read_link(format!("/proc/{process}/exe"));
    executable.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
