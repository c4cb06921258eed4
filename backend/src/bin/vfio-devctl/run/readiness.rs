// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tells whoever started us when everything is served: systemd by its notification socket, others by a descriptor.

use std::cell::RefCell;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sandbox::InheritedFds;

use crate::tool_error::ToolError;

/// Who is to be told.
#[derive(Debug)]
pub(crate) struct Readiness {
    /// Told once.
    descriptor: RefCell<Option<File>>,
    socket: Option<SocketAddr>,
}

impl Readiness {
    /// Takes the descriptor over, and looks for systemd's socket (`sd_notify(3)`).
    pub(crate) fn new(descriptor: Option<RawFd>) -> Result<Self, ToolError> {
        let take = |number| InheritedFds::default().take(number).map_err(|error| ToolError::ready_fd(&error));
        let descriptor = descriptor.map(take).transpose()?.map(File::from);
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| match address(&name) {
            Ok(address) => Some(address),
            Err(error) => {
                log::warn!("event=not-notified socket={} reason=\"{error}\"", name.display());
                None
            }
        });
        Ok(Self { descriptor: RefCell::new(descriptor), socket })
    }

    /// Everything is served.
    pub(crate) fn tell(&self, status: &str) {
        self.notify(&format!("READY=1\nSTATUS={status}"));
        if let Some(mut descriptor) = self.descriptor.take()
            && let Err(error) = descriptor.write_all(b"ready\n")
        {
            log::warn!("event=not-notified reason=\"{error}\"");
        }
    }

    /// Something has changed.
    pub(crate) fn tell_status(&self, status: &str) {
        self.notify(&format!("STATUS={status}"));
    }

    /// It comes to an end.
    pub(crate) fn tell_end(&self) {
        self.notify("STOPPING=1");
    }

    /// Nobody waits for us, and we wait for nobody.
    fn notify(&self, state: &str) {
        let Some(address) = &self.socket else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(state.as_bytes(), address)
        });
        if let Err(error) = sent {
            log::warn!("event=not-notified reason=\"{error}\"");
        }
    }
}

/// The socket of this name: a path, or after an `@` a name without a file.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        Some((b'/', _)) => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "it is not a Unix socket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut room = [0; 256];
        let length = socket.recv(&mut room).unwrap();
        String::from_utf8(room[..length].to_vec()).unwrap()
    }

    fn told_at(address: SocketAddr) -> Readiness {
        Readiness { descriptor: RefCell::new(None), socket: Some(address) }
    }

    #[test]
    fn a_socket_without_a_file_is_told() {
        let name = format!("@readiness-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&address(OsStr::new(&name)).unwrap()).unwrap();
        let readiness = told_at(address(OsStr::new(&name)).unwrap());
        readiness.tell("all is well");
        readiness.tell_status("a server has gone");
        readiness.tell_end();
        assert_eq!(receive(&socket), "READY=1\nSTATUS=all is well");
        assert_eq!(receive(&socket), "STATUS=a server has gone");
        assert_eq!(receive(&socket), "STOPPING=1");
    }

    #[test]
    fn a_socket_with_a_path_is_told() {
        let path = env::temp_dir().join(format!("readiness-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        told_at(address(path.as_os_str()).unwrap()).tell_status("here");
        assert_eq!(receive(&socket), "STATUS=here");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_unix_socket_is_none() {
        assert!(address(OsStr::new("vsock:2:1234")).is_err());
        assert!(address(OsStr::new("")).is_err());
    }

    #[test]
    fn a_descriptor_is_told_and_closed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let descriptor = RefCell::new(Some(File::from(std::os::fd::OwnedFd::from(writer))));
        Readiness { descriptor, socket: None }.tell("");
        let mut told = String::new();
        io::Read::read_to_string(&mut reader, &mut told).unwrap();
        assert_eq!(told, "ready\n");
    }
}
