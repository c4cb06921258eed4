// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A listening socket at a path that this process made, and removes again.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, chmod, chownat, fchmod, flock, fstat, openat,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Gid, geteuid};

/// Most clients that wait to be let in; the kernel allows no more.
const BACKLOG: i32 = 4096;

/// The path of a socket of ours. It is removed when this is dropped, unless somebody else has put something there.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    identity: FileIdentity,
}

/// Device and inode.
type FileIdentity = (u64, u64);

impl OwnSocket {
    /// Listens at `path`, where nothing may be yet but a socket of ours at which nobody listens any more. This user may
    /// connect, and the group if one is named; nobody else at any moment.
    pub fn bind(path: &Path, group: Option<u32>) -> io::Result<(Self, UnixListener)> {
        let _alone = lock_folder(path)?;
        let listener = match create(path, group) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                fs::remove_file(path)?;
                create(path, group)
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

/// Keeps other servers from making or removing sockets in the folder of `path` until this is dropped: what one takes for left
/// over another may just have made.
fn lock_folder(path: &Path) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")))?;
    flock(&folder, FlockOperation::LockExclusive)?;
    Ok(folder)
}

/// Makes the socket, for nobody but this user from the start, and then for the group.
fn create(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // What is made at the path gets its mode from the socket.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let shared = group.map_or(Ok(()), |group| share(path, Gid::from_raw(group)));
    shared.and_then(|()| Ok(listen(&socket, BACKLOG)?)).inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok(socket.into())
}

/// Lets a group connect. What is at the path is opened once, so that nothing else can take its place meanwhile.
fn share(path: &Path, group: Gid) -> io::Result<()> {
    let socket = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&socket)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket || found.st_uid != geteuid().as_raw() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    chownat(&socket, "", None, Some(group), AtFlags::EMPTY_PATH)?;
    let by_number = format!("/proc/self/fd/{}", socket.as_raw_fd());
    Ok(chmod(by_number, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?)
}

/// Whether a server of ours has left that behind.
fn is_left_over(path: &Path) -> bool {
    let is_ours = fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_socket() && metadata.uid() == geteuid().as_raw());
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
        let (own, _listener) = OwnSocket::bind(&path, None).unwrap();
        assert!(path.exists());
        drop(own);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_at_which_nobody_listens_any_more_is_replaced() {
        let path = std::env::temp_dir().join(format!("left-socket-{}", std::process::id()));
        let (own, listener) = OwnSocket::bind(&path, None).unwrap();
        assert_eq!(
            OwnSocket::bind(&path, None).unwrap_err().kind(),
            io::ErrorKind::AddrInUse,
            "somebody listens"
        );
        own.leave();
        drop(listener);
        let (again, _listener) = OwnSocket::bind(&path, None).unwrap();
        drop(again);
        assert!(!path.exists());
    }

    /// In threads, as in processes: each opens the folder for itself.
    #[test]
    fn of_servers_that_start_at_once_where_one_was_left_over_one_gets_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        for _ in 0..50 {
            let (left, listener) = OwnSocket::bind(&path, None).unwrap();
            left.leave();
            drop(listener);
            let servers: Vec<_> = std::thread::scope(|scope| {
                let servers: Vec<_> = (0..8).map(|_| scope.spawn(|| OwnSocket::bind(&path, None))).collect();
                servers.into_iter().filter_map(|server| server.join().unwrap().ok()).collect()
            });
            let [(own, listener)] = <[_; 1]>::try_from(servers).unwrap();
            let client = UnixStream::connect(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener.accept().expect("the path is that server's");
            drop((own, client));
            assert!(!path.exists());
        }
    }

    fn mode_and_group(path: &Path) -> (u32, u32) {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.gid())
    }

    #[test]
    fn only_this_user_may_connect_or_the_named_group_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let (own, _listener) = OwnSocket::bind(&path, None).unwrap();
        assert_eq!(mode_and_group(&path).0, 0o600);
        drop(own);
        // Root may name any group, others one of their own.
        let group = if geteuid().is_root() { 23456 } else { rustix::process::getgid().as_raw() };
        let (_own, _listener) = OwnSocket::bind(&path, Some(group)).unwrap();
        assert_eq!(mode_and_group(&path), (0o660, group));
    }

    #[test]
    fn what_somebody_else_has_put_there_stays() {
        let path = std::env::temp_dir().join(format!("replaced-socket-{}", std::process::id()));
        let (own, _listener) = OwnSocket::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(own);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
        fs::remove_file(&path).unwrap();
    }
}
