// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What travels between a process and the model kernel: one request and one reply for each system call.
//!
//! An open file is one end of a `SOCK_SEQPACKET` pair. A request carries, before the descriptors that the call names, one
//! more on which its reply is awaited: so threads and processes that share an open file do not take each other's replies.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
    socketpair,
};

/// Most descriptors in a message: the kernel's limit (`SCM_MAX_FD`).
pub(crate) const MAX_DESCRIPTORS: usize = 253;
/// Most bytes of data in a message; longer reads and writes take several.
pub(crate) const MAX_DATA: usize = 64 << 10;
const HEADER: usize = 24;
const SEND_SPACE: usize = cmsg_space!(ScmRights(MAX_DESCRIPTORS));
const RECEIVE_SPACE: usize = cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1));

/// A system call on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `fstat`: which character device the file is. Answered with major and minor number, 32 bits each.
    Identify,
    /// `ioctl` with this request; the data is the argument.
    Ioctl(u32),
    /// `pread` of so many bytes at a position.
    Read(u64, u64),
    /// `pwrite` of the data at a position.
    Write(u64),
    /// `mmap` of so many bytes at a position. Answered with a file and, as data, the offset in it.
    Map(u64, u64),
}

impl Call {
    fn header(self) -> [u8; HEADER] {
        let (kind, number, position, length): (u32, _, _, _) = match self {
            Self::Identify => (0, 0, 0, 0),
            Self::Ioctl(number) => (1, number, 0, 0),
            Self::Read(position, length) => (2, 0, position, length),
            Self::Write(position) => (3, 0, position, 0),
            Self::Map(position, length) => (4, 0, position, length),
        };
        let mut bytes = [0; HEADER];
        let fields = [u64::from(kind) | u64::from(number) << 32, position, length];
        bytes
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(fields)
            .for_each(|(bytes, field)| *bytes = field.to_ne_bytes());
        bytes
    }

    fn from_header(bytes: [u8; HEADER]) -> Option<Self> {
        let [first, position, length] = *bytes.as_chunks::<8>().0 else { return None };
        let [first, position, length] = [first, position, length].map(u64::from_ne_bytes);
        let number = u32::try_from(first >> 32).ok()?;
        match first & u64::from(u32::MAX) {
            0 => Some(Self::Identify),
            1 => Some(Self::Ioctl(number)),
            2 => Some(Self::Read(position, length)),
            3 => Some(Self::Write(position)),
            4 => Some(Self::Map(position, length)),
            _ => None,
        }
    }
}

/// Who sent a request, as the socket attests it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// Process id.
    pub(crate) process: i32,
    /// User id.
    pub(crate) user: u32,
}

/// A request as the model receives it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) call: Call,
    pub(crate) data: Vec<u8>,
    /// Those that the call names, in its order.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Where the reply is awaited.
    pub(crate) reply_to: OwnedFd,
    pub(crate) sender: Sender,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Reply {
    /// What the system call returns.
    pub(crate) outcome: Result<u32, Errno>,
    /// What the kernel wrote to the caller's memory.
    pub(crate) data: Vec<u8>,
    pub(crate) descriptor: Option<OwnedFd>,
}

impl Reply {
    /// A system call that failed and wrote nothing.
    pub(crate) const fn failed(errno: Errno) -> Self {
        Self { outcome: Err(errno), data: Vec::new(), descriptor: None }
    }
}

/// Two connected ends, each of which keeps messages apart.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends a request on an open file.
pub(crate) fn send_request(
    file: BorrowedFd<'_>,
    call: Call,
    data: &[u8],
    reply_to: BorrowedFd<'_>,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let descriptors: Vec<_> = [reply_to].into_iter().chain(descriptors.iter().copied()).collect();
    send(file, &call.header(), data, &descriptors, SendFlags::NOSIGNAL)
}

/// The next request on the model's end of a file; `None` when the last copy of the other end is closed.
///
/// # Errors
///
/// `EPROTO` for what is no request; it is gone then.
pub(crate) fn receive_request(file: BorrowedFd<'_>) -> Result<Option<Request>, Errno> {
    let Some(Message { header, data, mut descriptors, sender }) = receive(file, RecvFlags::DONTWAIT)? else {
        return Ok(None);
    };
    let call = Call::from_header(header).ok_or(Errno::PROTO)?;
    let sender = sender.ok_or(Errno::PROTO)?;
    if descriptors.is_empty() {
        return Err(Errno::PROTO);
    }
    let reply_to = descriptors.remove(0);
    Ok(Some(Request { call, data, descriptors, reply_to, sender }))
}

/// Sends the reply to a request. A requester that is gone does not matter.
pub(crate) fn send_reply(to: BorrowedFd<'_>, reply: &Reply) {
    let outcome = match reply.outcome {
        Ok(value) => i64::from(value),
        Err(errno) => -i64::from(errno.raw_os_error()),
    };
    let mut header = [0; HEADER];
    if let Some(first) = header.first_chunk_mut() {
        *first = outcome.to_ne_bytes();
    }
    let descriptor = reply.descriptor.as_ref().map(AsFd::as_fd);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    // It never has to wait: it is the only message on a socket of its own.
    let _ = send(to, &header, &reply.data, &descriptors, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Waits for the reply to a request. A model that has ended answers nothing any more, as a machine that stopped: `EIO`.
pub(crate) fn receive_reply(from: BorrowedFd<'_>) -> Result<Reply, Errno> {
    let Message { header, data, mut descriptors, .. } =
        receive(from, RecvFlags::empty())?.ok_or(Errno::IO)?;
    let outcome = header.first_chunk().copied().map_or(0, i64::from_ne_bytes);
    let outcome = match u32::try_from(outcome) {
        Ok(value) => Ok(value),
        Err(_) => Err(i32::try_from(outcome.saturating_neg()).map_or(Errno::PROTO, errno)),
    };
    Ok(Reply { outcome, data, descriptor: descriptors.pop() })
}

/// What a peer says is an errno.
pub(crate) fn errno(number: i32) -> Errno {
    const LARGEST: i32 = 4095;
    if (1..=LARGEST).contains(&number) { Errno::from_raw_os_error(number) } else { Errno::PROTO }
}

fn send(
    to: BorrowedFd<'_>,
    header: &[u8; HEADER],
    data: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    if data.len() > MAX_DATA || descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::TOOBIG);
    }
    let mut space = [MaybeUninit::uninit(); SEND_SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        match sendmsg(to, &[IoSlice::new(header), IoSlice::new(data)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

struct Message {
    header: [u8; HEADER],
    data: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    sender: Option<Sender>,
}

thread_local! {
    /// Room for the data of the longest message: most are short, and zeroing it anew would take longer than the rest.
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_DATA].into());
}

fn receive(from: BorrowedFd<'_>, flags: RecvFlags) -> Result<Option<Message>, Errno> {
    ROOM.with_borrow_mut(|room| receive_into(room, from, flags))
}

fn receive_into(room: &mut [u8], from: BorrowedFd<'_>, flags: RecvFlags) -> Result<Option<Message>, Errno> {
    let mut space = [MaybeUninit::uninit(); RECEIVE_SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut header = [0; HEADER];
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut header), IoSliceMut::new(room)];
        match recvmsg(from, &mut buffers, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let RecvMsg { bytes, flags, .. } = received;
    let mut descriptors = Vec::new();
    let mut sender = None;
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(fds) => descriptors.extend(fds),
            RecvAncillaryMessage::ScmCredentials(credentials) => {
                let process = credentials.pid.as_raw_nonzero().get();
                sender = Some(Sender { process, user: credentials.uid.as_raw() });
            }
            _ => {}
        }
    }
    if bytes == 0 {
        return Ok(None);
    }
    if bytes < HEADER || flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::PROTO);
    }
    let data = room.get(..bytes - HEADER).ok_or(Errno::PROTO)?.to_vec();
    Ok(Some(Message { header, data, descriptors, sender }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_the_same_behind_its_header() {
        let calls = [
            Call::Identify,
            Call::Ioctl(0x3b71),
            Call::Read(7 << 40, 4),
            Call::Write(u64::MAX),
            Call::Map(1 << 40, 4096),
        ];
        for call in calls {
            assert_eq!(Call::from_header(call.header()), Some(call));
        }
    }

    #[test]
    fn a_reply_reaches_whoever_asked() {
        let (near, far) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let reply = Reply { outcome: Err(Errno::NOSPC), data: vec![1, 2, 3], descriptor: Some(file.into()) };
        send_reply(far.as_fd(), &reply);
        let received = receive_reply(near.as_fd()).unwrap();
        assert_eq!((received.outcome, received.data), (Err(Errno::NOSPC), vec![1, 2, 3]));
        assert!(received.descriptor.is_some());
    }

    #[test]
    fn a_model_that_is_gone_is_an_input_output_error() {
        let (near, far) = pair().unwrap();
        drop(far);
        assert_eq!(receive_reply(near.as_fd()).unwrap_err(), Errno::IO);
    }

    #[test]
    fn an_errno_that_is_none_is_a_protocol_error() {
        for number in [0, -1, 4096, i32::MAX, i32::MIN] {
            assert_eq!(errno(number), Errno::PROTO);
        }
        assert_eq!(errno(16), Errno::BUSY);
    }

    proptest! {
        #[test]
        fn any_header_decodes_without_a_panic(bytes in any::<[u8; HEADER]>()) {
            let _ = Call::from_header(bytes);
        }
    }
}
