// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a message.

use arbitrary::Arbitrary;

use super::descriptor::Descriptor;
use super::peer::Protocol;

/// One thing that is wrong.
#[derive(Arbitrary, Debug)]
pub(crate) enum Flaw {
    /// A byte of the body.
    Byte { at: u8, value: u8 },
    /// The body is cut.
    Shorter(u8),
    /// Something follows the body.
    Longer(Vec<u8>),
    /// Other descriptors come with it.
    Descriptors(Vec<Descriptor>),
    /// An answer is not wanted.
    Unanswered,
    /// The second half comes with the next message.
    Halves(u16),
    /// The header's flags.
    Flags(u32),
    /// The header's size.
    Size(u32),
}

impl Flaw {
    /// A message without any.
    pub(crate) fn message<H: Protocol>(header: H, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).expect("a short body");
        [header.with_body_size(size).as_bytes(), body].concat()
    }

    /// Whether what is sent is one message all the same, perhaps once the rest has come.
    pub(crate) fn leaves_a_message(&self) -> bool {
        !matches!(self, Self::Flags(_) | Self::Size(_))
    }

    /// A message with this flaw.
    pub(crate) fn spoil<H: Protocol>(&self, header: H, mut body: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Byte { at, value } => {
                if let Some(byte) = body.get_mut(usize::from(*at)) {
                    *byte = *value;
                }
            }
            Self::Shorter(by) => body.truncate(body.len().saturating_sub(usize::from(*by) + 1)),
            Self::Longer(more) => body.extend(more.iter().take(H::MAX_BODY - body.len())),
            _ => {}
        }
        let mut message = Self::message(header, &body);
        let mut word = |offset: usize, change: &dyn Fn(u32) -> u32| {
            let bytes = &mut message[offset..offset + 4];
            let changed = change(u32::from_ne_bytes((&*bytes).try_into().expect("4 bytes")));
            bytes.copy_from_slice(&changed.to_ne_bytes());
        };
        match self {
            Self::Unanswered => word(H::FLAGS, &|flags| flags ^ H::ANSWER_WANTED),
            Self::Flags(flags) => word(H::FLAGS, &|_| *flags),
            Self::Size(size) => word(H::SIZE, &|_| *size),
            _ => {}
        }
        message
    }
}
