// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a request that failed is answered with, and `LAST_FAILURE`: an errno for the program, sentences for the person.

use std::fmt;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::split;
use crate::request_number::RequestNumber;

/// Longest id in bytes.
const MAX_ID: usize = 63;
/// Longest sentence in bytes. Three of them, an id and the longest header before them fit one body.
const MAX_SENTENCE: usize = 1023;
/// Largest errno of Linux.
const MAX_ERRNO: i32 = 4095;

/// What every reply of the extension begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplyStatus {
    /// 0, and the request's reply follows; or an errno of Linux, and a [`Failure`] follows.
    pub errno: u32,
    /// 0.
    pub reserved: u32,
}

impl ReplyStatus {
    /// The request was done.
    pub const DONE: Self = Self { errno: 0, reserved: 0 };
}

/// What went wrong, in words. On the wire four strings, each ended by NUL: id, what, why, fix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    id: String,
    what: String,
    why: String,
    fix: String,
}

impl Failure {
    /// A failure with the stable name `id` (lower case and hyphens, at most 63 bytes): what happened, why, and what to
    /// do about it, each one sentence of at most 1023 bytes. What is longer is cut, a NUL becomes a space.
    pub fn new(
        id: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            id: bounded(id.into(), MAX_ID),
            what: bounded(what.into(), MAX_SENTENCE),
            why: bounded(why.into(), MAX_SENTENCE),
            fix: bounded(fix.into(), MAX_SENTENCE),
        }
    }

    /// The stable name of this kind of failure.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What happened.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What to do about it.
    pub fn fix(&self) -> &str {
        &self.fix
    }

    /// The body of a reply that refuses with `errno`.
    pub fn refusal(&self, errno: Errno) -> Vec<u8> {
        let mut body = ReplyStatus { errno: wire_errno(errno), reserved: 0 }.as_bytes().to_vec();
        self.encode(&mut body);
        body
    }

    /// Reads the body of a reply that refuses; `None` if it is malformed or does not refuse.
    pub(crate) fn from_refusal(body: &[u8]) -> Option<(Errno, Self)> {
        let (ReplyStatus { errno, .. }, strings) = split(body)?;
        Some((errno_from_wire(errno)?, Self::decode(strings)?))
    }

    fn encode(&self, body: &mut Vec<u8>) {
        for text in [&self.id, &self.what, &self.why, &self.fix] {
            body.extend(text.as_bytes());
            body.push(0);
        }
    }

    fn decode(strings: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(strings.strip_suffix(&[0])?).ok()?;
        let mut strings = text.split('\0');
        let failure = Self::new(strings.next()?, strings.next()?, strings.next()?, strings.next()?);
        strings.next().is_none().then_some(failure)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, what, why, fix } = self;
        write!(formatter, "{what} {why} {fix} ({id})")
    }
}

/// What the reply to `LAST_FAILURE` begins with; the four strings of the [`Failure`] follow, empty if there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LastFailureReply {
    /// The errno of the request that failed last on this connection, 0 if none did.
    pub errno: u32,
    /// That request.
    pub request: RequestNumber,
}

/// The failure of the request that failed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// Which request failed.
    pub request: RequestNumber,
    /// With what.
    pub errno: Errno,
    /// In words.
    pub failure: Failure,
}

impl LastFailure {
    /// Appends the reply's payload to `body`.
    pub(crate) fn encode(last: Option<&Self>, body: &mut Vec<u8>) {
        let Some(Self { request, errno, failure }) = last else {
            body.extend(LastFailureReply { errno: 0, request: RequestNumber::NONE }.as_bytes());
            Failure::default().encode(body);
            return;
        };
        body.extend(LastFailureReply { errno: wire_errno(*errno), request: *request }.as_bytes());
        failure.encode(body);
    }

    /// Reads the reply's payload.
    pub(crate) fn decode(payload: &[u8]) -> Result<Option<Self>, MalformedFailure> {
        let (LastFailureReply { errno, request }, strings) = split(payload).ok_or(MalformedFailure)?;
        let failure = Failure::decode(strings).ok_or(MalformedFailure)?;
        if errno == 0 {
            return Ok(None);
        }
        let errno = errno_from_wire(errno).ok_or(MalformedFailure)?;
        Ok(Some(Self { request, errno, failure }))
    }
}

/// The reply to `LAST_FAILURE` is not what the specification says.
pub(crate) struct MalformedFailure;

/// `errno` as it travels.
pub(crate) fn wire_errno(errno: Errno) -> u32 {
    errno.raw_os_error().unsigned_abs()
}

/// The errno that came, if it is one.
pub(crate) fn errno_from_wire(number: u32) -> Option<Errno> {
    let number = i32::try_from(number).ok()?;
    (1..=MAX_ERRNO).contains(&number).then(|| Errno::from_raw_os_error(number))
}

/// `text` without NUL and cut at a character boundary to at most `limit` bytes.
pub(super) fn bounded(text: String, limit: usize) -> String {
    let mut text = if text.contains('\0') { text.replace('\0', " ") } else { text };
    text.truncate(text.floor_char_boundary(limit));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::Header;
    use crate::header::VhostUserHeader;

    fn failure() -> Failure {
        Failure::new(
            "not-a-vfio-device",
            "It is a file.",
            "Only VFIO devices can be added.",
            "Open /dev/vfio/devices.",
        )
    }

    #[test]
    fn a_refusal_survives_the_wire() {
        let body = failure().refusal(Errno::NODEV);
        assert_eq!(Failure::from_refusal(&body), Some((Errno::NODEV, failure())));
    }

    #[test]
    fn a_failure_reads_as_text() {
        let text = failure().to_string();
        assert_eq!(
            text,
            "It is a file. Only VFIO devices can be added. Open /dev/vfio/devices. (not-a-vfio-device)"
        );
    }

    #[test]
    fn a_refusal_without_an_errno_or_with_more_or_fewer_strings_is_malformed() {
        let good = failure().refusal(Errno::NODEV);
        let mut no_errno = good.clone();
        no_errno[..4].fill(0);
        let mut huge_errno = good.clone();
        huge_errno[..4].fill(0xff);
        let more = [good.as_slice(), b"more\0"].concat();
        let fewer = [&good[..8], b"id\0what\0why\0"].concat();
        let open_end = &good[..good.len() - 1];
        let no_text = [&good[..8], b"id\0\xff\0why\0fix\0"].concat();
        for malformed in [&no_errno, &huge_errno, &more, &fewer, open_end, &no_text, &good[..7], &[]] {
            assert_eq!(Failure::from_refusal(malformed), None);
        }
    }

    #[test]
    fn a_nul_becomes_a_space() {
        assert_eq!(Failure::new("id", "a\0b", "", "").what(), "a b");
    }

    #[test]
    fn the_longest_failure_fits_the_longest_reply() {
        let long = "\u{20ac}".repeat(4096);
        let failure = Failure::new(&long, &long, &long, &long);
        assert_eq!((failure.id().len(), failure.what().len()), (63, 1023));
        let last = LastFailure { request: RequestNumber::RESET, errno: Errno::IO, failure };
        let mut body = ReplyStatus::DONE.as_bytes().to_vec();
        LastFailure::encode(Some(&last), &mut body);
        assert!(body.len() <= VhostUserHeader::MAX_BODY);
    }

    #[test]
    fn the_last_failure_survives_the_wire_and_so_does_its_absence() {
        let last = LastFailure { request: RequestNumber::RESET, errno: Errno::BUSY, failure: failure() };
        for last in [Some(last), None] {
            let mut payload = Vec::new();
            LastFailure::encode(last.as_ref(), &mut payload);
            assert_eq!(LastFailure::decode(&payload).ok(), Some(last));
        }
    }

    proptest! {
        #[test]
        fn any_text_becomes_a_failure_that_survives_the_wire(id: String, what: String, why: String, fix: String) {
            let failure = Failure::new(id, what, why, fix);
            let body = failure.refusal(Errno::INVAL);
            prop_assert_eq!(Failure::from_refusal(&body), Some((Errno::INVAL, failure)));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Failure::from_refusal(&bytes);
            let _ = LastFailure::decode(&bytes).is_ok();
        }
    }
}
