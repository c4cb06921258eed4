// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vfio-user message header (QEMU's vfio-user.rst, "Header").

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::command::Command;
use crate::extension::{errno_from_wire, wire_errno};
use crate::frame::{Endpoint, Header, HeaderError};

/// Bits 0-3: what kind of message it is.
const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// Most bytes that one message reads from or writes to a region.
pub const MAX_DATA: usize = 1 << 20;

/// The 16 bytes, in host byte order, that begin every vfio-user message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VfioUserHeader {
    /// Chosen by the sender of the command, repeated in the reply. May repeat.
    pub id: u16,
    /// What is asked, or what is answered.
    pub command: Command,
    /// Size of the message in bytes, with this header.
    pub size: u32,
    /// Bits 0-3: 0 command, 1 reply. Bit 4: no reply wanted. Bit 5: the reply is an error.
    pub flags: u32,
    /// An errno of Linux in an error reply.
    pub errno: u32,
}

/// Size of the header as the header counts it.
const HEADER_SIZE: u32 = 16;

impl VfioUserHeader {
    /// Header of a command.
    pub fn command(id: u16, command: Command) -> Self {
        Self { id, command, size: HEADER_SIZE, flags: TYPE_COMMAND, errno: 0 }
    }

    /// Header of the reply to this command.
    #[must_use]
    pub fn reply(self) -> Self {
        Self { size: HEADER_SIZE, flags: TYPE_REPLY, errno: 0, ..self }
    }

    /// Header of the error reply to this command. Nothing follows it.
    #[must_use]
    pub fn error_reply(self, errno: Errno) -> Self {
        Self { size: HEADER_SIZE, flags: TYPE_REPLY | ERROR, errno: wire_errno(errno), ..self }
    }

    /// Whether the sender of this command waits for no reply, not even an error. None must be sent then.
    pub fn wants_no_reply(&self) -> bool {
        self.flags & NO_REPLY != 0
    }

    /// The errno of this reply if it is an error. One that Linux does not know counts as EIO.
    pub fn error(&self) -> Option<Errno> {
        (self.flags & ERROR != 0).then(|| errno_from_wire(self.errno).unwrap_or(Errno::IO))
    }
}

impl Header for VfioUserHeader {
    /// The data of one region access and what precedes it.
    const MAX_BODY: usize = MAX_DATA + 32;
    const MAX_FDS: usize = 16;

    fn body_size(&self, receiver: Endpoint) -> Result<usize, HeaderError> {
        let kind = self.flags & TYPE_MASK;
        if kind > TYPE_REPLY || self.flags & !(TYPE_MASK | NO_REPLY | ERROR) != 0 {
            return Err(HeaderError::Flags(self.flags));
        }
        let expected = match receiver {
            Endpoint::Server => kind == TYPE_COMMAND && self.flags & ERROR == 0,
            Endpoint::Client => kind == TYPE_REPLY,
        };
        if !expected {
            return Err(HeaderError::Direction(self.flags));
        }
        let size = self.size.checked_sub(HEADER_SIZE).ok_or(HeaderError::TooSmall(self.size))?;
        usize::try_from(size)
            .ok()
            .filter(|size| *size <= Self::MAX_BODY)
            .ok_or(HeaderError::TooLarge { size, limit: Self::MAX_BODY })
    }

    fn with_body_size(self, size: u32) -> Self {
        Self { size: size.saturating_add(HEADER_SIZE), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: u32, receiver: Endpoint) -> Result<usize, HeaderError> {
        VfioUserHeader { flags, ..VfioUserHeader::command(1, Command::DEVICE_RESET) }.body_size(receiver)
    }

    #[test]
    fn a_server_takes_commands_with_and_without_a_reply_wanted() {
        assert_eq!(check(0x00, Endpoint::Server), Ok(0));
        assert_eq!(check(0x10, Endpoint::Server), Ok(0));
    }

    #[test]
    fn a_server_takes_neither_replies_nor_errors() {
        for flags in [0x01, 0x21, 0x20] {
            assert_eq!(check(flags, Endpoint::Server), Err(HeaderError::Direction(flags)));
        }
    }

    #[test]
    fn a_client_takes_replies_and_errors_only() {
        assert_eq!(check(0x01, Endpoint::Client), Ok(0));
        assert_eq!(check(0x21, Endpoint::Client), Ok(0));
        assert_eq!(check(0x00, Endpoint::Client), Err(HeaderError::Direction(0)));
    }

    #[test]
    fn types_and_bits_that_do_not_exist_are_refused() {
        for flags in [0x2, 0xf, 0x40, 0x8000_0000] {
            assert_eq!(check(flags, Endpoint::Server), Err(HeaderError::Flags(flags)));
        }
    }

    #[test]
    fn the_size_counts_the_header() {
        let header = VfioUserHeader::command(1, Command::VERSION);
        assert_eq!(header.with_body_size(24).size, 40);
        assert_eq!(header.with_body_size(24).body_size(Endpoint::Server), Ok(24));
        for size in [0, 15] {
            let outcome = VfioUserHeader { size, ..header }.body_size(Endpoint::Server);
            assert_eq!(outcome, Err(HeaderError::TooSmall(size)));
        }
    }

    #[test]
    fn a_body_of_one_mebibyte_and_what_precedes_it_is_the_largest() {
        let header = VfioUserHeader::command(1, Command::REGION_WRITE);
        assert_eq!(header.with_body_size(1_048_608).body_size(Endpoint::Server), Ok(1_048_608));
        for size in [1_048_609, u32::MAX - 16] {
            let outcome = header.with_body_size(size).body_size(Endpoint::Server);
            assert_eq!(outcome, Err(HeaderError::TooLarge { size, limit: 1_048_608 }));
        }
    }

    #[test]
    fn a_reply_repeats_id_and_command() {
        let command = VfioUserHeader { flags: NO_REPLY, ..VfioUserHeader::command(7, Command::REGION_READ) };
        assert!(command.wants_no_reply());
        let (reply, error) = (command.reply(), command.error_reply(Errno::NODEV));
        assert_eq!((reply.id, reply.command, reply.error()), (7, Command::REGION_READ, None));
        assert_eq!((error.id, error.command, error.error()), (7, Command::REGION_READ, Some(Errno::NODEV)));
    }

    #[test]
    fn an_error_without_a_real_errno_is_an_input_output_error() {
        for errno in [0, 4096, u32::MAX] {
            let reply = VfioUserHeader {
                errno,
                ..VfioUserHeader::command(1, Command::VERSION).error_reply(Errno::IO)
            };
            assert_eq!(reply.error(), Some(Errno::IO));
        }
    }
}
