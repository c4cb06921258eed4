// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes wrong, told to a person: a stable id, what happened, why, and what to do.
//!
//! Each failure is built by one function, so that its texts stand side by side. docs/operations.md explains every id; a
//! test compares the two.

mod channel;
mod handover;
mod memory;
mod message;
mod reset;
mod virtio;

pub use self::memory::MemoryShortage;
use protocol::ControlReply;
use protocol::extension::Failure as Sentences;
use rustix::io::Errno;
use vfio::CallError;

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentences}")]
pub struct Failure {
    /// For a peer that wants no more than a number.
    pub errno: Errno,
    /// For everybody else.
    pub sentences: Sentences,
}

impl Failure {
    /// Stable, for programs and for the index of docs/operations.md.
    pub fn id(&self) -> &str {
        self.sentences.id()
    }
}

impl From<Failure> for ControlReply {
    fn from(Failure { errno, sentences }: Failure) -> Self {
        Self::Refused { errno, failure: sentences }
    }
}

fn failure(
    id: &str,
    errno: Errno,
    what: impl AsRef<str>,
    why: impl AsRef<str>,
    fix: impl AsRef<str>,
) -> Failure {
    let sentences =
        Sentences::new(id, sentence(what.as_ref()), sentence(why.as_ref()), sentence(fix.as_ref()));
    Failure { errno, sentences }
}

/// A clause with a capital letter and a full stop.
fn sentence(clause: &str) -> String {
    let mut characters = clause.chars();
    let capital = characters.next().into_iter().flat_map(char::to_uppercase);
    capital.chain(characters).chain(['.']).collect()
}

/// A failed call and its errno in words.
fn in_words(error: CallError) -> String {
    let CallError { call, object, errno } = error;
    format!("{call} on {object} failed: {}", std::io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clauses_become_sentences() {
        let failure = Failure::not_an_iommufd();
        assert_eq!(
            failure.to_string(),
            "The descriptor was refused. It is not an open /dev/iommu. \
             Open /dev/iommu and hand that descriptor over. (not-an-iommufd)"
        );
    }
}
