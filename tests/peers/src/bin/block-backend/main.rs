// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk image as a virtio block device over vhost-user: rings processed in software, with the crates that others use for it.
//! What the server's rings in hardware are compared with, and a server that frontends are known to accept.

mod buffer;
mod device;
mod image;
mod request;

use std::error::Error;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::{Parser, value_parser};
use device::BlockDevice;
use image::Image;
use signal_hook::consts::{SIGINT, SIGTERM};
use vhost::vhost_user::{Error as SessionError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// How long to wait where a frontend could not be let in, as it is for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves a disk image to one vhost-user frontend after the other, until SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(name = "block-backend", version)]
struct Arguments {
    /// Listen on a new socket at this path; it is removed at the end.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The disk: a file or block device. What is behind its last whole sector is not seen.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// How many rings there are, each with a thread of its own: 1 to 64.
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u16).range(1..=64))]
    queues: u16,
}

/// Serves the next frontend until it goes.
fn serve_next(listener: &mut Listener, images: &Arc<[Mutex<Image>]>) -> Result<(), DaemonError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    // A daemon serves a single session: the next one's owner would be refused.
    let device = Arc::new(BlockDevice::new(Arc::clone(images), memory.clone()));
    let mut daemon = VhostUserDaemon::new("session".into(), device, memory)?;
    if let Err(error) = daemon.start(listener) {
        thread::sleep(PAUSE);
        return Err(error);
    }
    match daemon.wait() {
        Err(DaemonError::HandleRequest(SessionError::Disconnected)) => Ok(()),
        ended => ended,
    }
}

fn serve(listener: UnixListener, images: &Arc<[Mutex<Image>]>) {
    let mut listener = Listener::from(listener);
    loop {
        if let Err(error) = serve_next(&mut listener, images) {
            eprintln!("block-backend: {error}");
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let open = || Image::open(&arguments.image).map(Mutex::new);
    let images = (0..arguments.queues)
        .map(|_| open())
        .collect::<io::Result<Arc<[_]>>>()
        .map_err(|error| format!("cannot open {}: {error}", arguments.image.display()))?;
    let (signal, mut signalled) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, signal.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, signal)?;
    let listener = UnixListener::bind(&arguments.socket)
        .map_err(|error| format!("cannot listen on {}: {error}", arguments.socket.display()))?;
    thread::spawn(move || serve(listener, &images));
    signalled.read_exact(&mut [0])?;
    std::fs::remove_file(&arguments.socket)?;
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("block-backend: {error}");
            ExitCode::FAILURE
        }
    }
}
