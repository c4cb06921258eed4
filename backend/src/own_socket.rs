// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A listening socket at a path that this process made, and removes again.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The path of a socket of ours. It is removed when this is dropped, unless somebody else has put something there.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    identity: FileIdentity,
}

/// Device and inode.
type FileIdentity = (u64, u64);

impl OwnSocket {
    /// Listens at `path`, where nothing may be yet but a socket of ours at which nobody listens any more.
    pub fn bind(path: &Path) -> io::Result<(Self, UnixListener)> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }?;
        Ok((Self { path: path.to_owned(), identity: identity(path)? }, listener))
    }

    /// Leaves the path where it is: who cannot remove anything leaves it to whoever listens there next.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

/// Whether a server of ours has left that behind.
fn is_left_over(path: &Path) -> bool {
    let is_ours = fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.file_type().is_socket() && metadata.uid() == rustix::process::geteuid().as_raw()
    });
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_ours && UnixStream::connect(path).is_err_and(refused)
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        let path = self.path.as_path();
        let removed = identity(path)
            .and_then(|present| if present == self.identity { fs::remove_file(path) } else { Ok(()) });
        if let Err(error) = removed {
            log::warn!("event=socket-not-removed path={} reason=\"{error}\"", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_ours_is_removed_in_the_end() {
        let path = std::env::temp_dir().join(format!("own-socket-{}", std::process::id()));
        let (own, _listener) = OwnSocket::bind(&path).unwrap();
        assert!(path.exists());
        drop(own);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_at_which_nobody_listens_any_more_is_replaced() {
        let path = std::env::temp_dir().join(format!("left-socket-{}", std::process::id()));
        let (own, listener) = OwnSocket::bind(&path).unwrap();
        assert_eq!(OwnSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse, "somebody listens");
        own.leave();
        drop(listener);
        let (again, _listener) = OwnSocket::bind(&path).unwrap();
        drop(again);
        assert!(!path.exists());
    }

    #[test]
    fn what_somebody_else_has_put_there_stays() {
        let path = std::env::temp_dir().join(format!("replaced-socket-{}", std::process::id()));
        let (own, _listener) = OwnSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(own);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
        fs::remove_file(&path).unwrap();
    }
}
