// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What waits for servers when a VM starts, and so is done beside the launcher's loop: a server that hangs keeps nobody from
//! ending the launcher, and one that sanitizes a device may need the broker for that.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

use protocol::ControlClient;
use protocol::extension::{Cookie, IoasChoice};

use super::member::Faces;
use crate::tool_error::ToolError;

/// A thread with something to do, which ends with that.
#[derive(Debug)]
pub(crate) struct Task<T> {
    thread: JoinHandle<Result<T, ToolError>>,
    end: UnixStream,
}

impl<T: Send + 'static> Task<T> {
    pub(crate) fn start(work: impl FnOnce() -> Result<T, ToolError> + Send + 'static) -> io::Result<Self> {
        let (end, far_end) = UnixStream::pair()?;
        let thread = thread::Builder::new().name("handover".into()).spawn(move || {
            let outcome = work();
            drop(far_end);
            outcome
        })?;
        Ok(Self { thread, end })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for what comes of it.
    pub(crate) fn outcome(self) -> Result<T, ToolError> {
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl<T> AsFd for Task<T> {
    /// Readable when the task is as good as done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// What one server is to get.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) server: String,
    /// A session that will own it.
    pub(crate) owner: ControlClient,
    /// A session for the broker.
    pub(crate) broker: ControlClient,
    pub(crate) iommufd: File,
    pub(crate) ioas: IoasChoice,
    pub(crate) devices: Vec<(Cookie, File)>,
    pub(crate) faces: Faces,
}

/// Hands the devices over.
pub(crate) fn hand_over(mut parcels: Vec<Parcel>) -> Result<Vec<Parcel>, ToolError> {
    for Parcel { server, owner, broker, iommufd, ioas, devices, .. } in &mut parcels {
        let mut give = || {
            owner.negotiate()?;
            broker.negotiate()?;
            owner.set_iommufd(&*iommufd, *ioas)?;
            for (cookie, device) in devices.drain(..) {
                owner.add_device(cookie, device)?;
            }
            Ok(())
        };
        give().map_err(|error| ToolError::of_server(server, error))?;
    }
    Ok(parcels)
}

/// Gives the devices their faces. A server may have to reset a device before.
pub(crate) fn serve(sessions: Vec<(String, ControlClient, Faces)>) -> Result<Vec<ControlClient>, ToolError> {
    let serve = |(server, mut owner, faces): (String, ControlClient, Faces)| {
        for (cookie, face, listener) in faces {
            owner.serve(cookie, face, listener).map_err(|error| ToolError::of_server(&server, error))?;
        }
        Ok(owner)
    };
    sessions.into_iter().map(serve).collect()
}
