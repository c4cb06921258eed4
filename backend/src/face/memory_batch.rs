// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of a client's memory that are carried out together.
//!
//! A VMM takes all of low memory away and gives it back in pieces, several times while firmware runs. One after the other,
//! these changes would unpin the memory and pin it again; together they do not. A client that does not wait for each reply, as
//! QEMU does not, has sent the next command by the time this one is read, or in a moment.

use std::time::{Duration, Instant};

use protocol::vfio_user::{Reply, VfioUserHeader};

use crate::address_space::ViewChange;
use crate::failure::Failure;

/// Most changes that are carried out together.
const MAX_CHANGES: usize = 64;
/// How long more is waited for when memory was taken away that took time to pin.
const LINGER: Duration = Duration::from_millis(1);
/// From which size on it did, in bytes. A guest that uses a virtual IOMMU unmaps pages, and waits for each.
const LARGE: u64 = 2 << 20;

/// Commands in their order.
#[derive(Debug, Default)]
pub struct MemoryBatch {
    changes: Vec<ViewChange>,
    replies: Vec<(VfioUserHeader, Result<Reply, Failure>)>,
    due: Option<Instant>,
    is_closed: bool,
}

impl MemoryBatch {
    /// One more change, that came just now, and its answer if it is done.
    pub fn push(&mut self, header: VfioUserHeader, change: ViewChange, reply: Reply) {
        let waits = match &change {
            ViewChange::Unmap(range) => range.size() >= LARGE,
            ViewChange::Clear => true,
            ViewChange::Map(_) => false,
        };
        self.due = Some(Instant::now() + if waits { LINGER } else { Duration::ZERO });
        self.changes.push(change);
        self.replies.push((header, Ok(reply)));
    }

    /// A command that was refused, and is to be answered in its turn.
    pub fn push_refused(&mut self, header: VfioUserHeader, failure: Failure) {
        self.replies.push((header, Err(failure)));
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Whether there is no room for more.
    pub const fn is_full(&self) -> bool {
        self.replies.len() >= MAX_CHANGES
    }

    /// From when on nothing more is waited for, as long as that is so.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.is_closed)
    }

    /// Nothing more is added.
    pub const fn close(&mut self) {
        self.is_closed = true;
    }

    /// Whether it is to be carried out.
    pub const fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The changes, and what is to be answered. A new batch begins.
    pub fn take(&mut self) -> (Vec<ViewChange>, Answers) {
        let Self { changes, replies, .. } = std::mem::take(self);
        (changes, Answers(replies))
    }
}

/// The answers to the commands of a batch, of which those to changes hold only if these are done.
#[derive(Debug)]
pub struct Answers(Vec<(VfioUserHeader, Result<Reply, Failure>)>);

impl Answers {
    /// What is answered when this has come of the changes.
    pub fn with(
        self,
        outcomes: impl IntoIterator<Item = Result<(), Failure>>,
    ) -> impl Iterator<Item = (VfioUserHeader, Result<Reply, Failure>)> {
        let mut outcomes = outcomes.into_iter();
        self.0.into_iter().map(move |(header, reply)| {
            let reply = reply.and_then(|reply| outcomes.next().unwrap_or(Ok(())).map(|()| reply));
            (header, reply)
        })
    }

    /// What is answered when none of the changes could even be tried.
    pub fn refused(
        self,
        failure: &Failure,
    ) -> impl Iterator<Item = (VfioUserHeader, Result<Reply, Failure>)> + use<> {
        self.with(std::iter::repeat_n(Err(failure.clone()), MAX_CHANGES))
    }
}

#[cfg(test)]
mod tests {
    use protocol::vfio_user::Command;
    use rustix::io::Errno;

    use super::*;
    use crate::memory::{GuestAddress, GuestRange};

    fn header(id: u16) -> VfioUserHeader {
        VfioUserHeader::command(id, Command::DMA_UNMAP)
    }

    fn unmap(size: u64) -> ViewChange {
        ViewChange::Unmap(GuestRange::new(GuestAddress(0), size).unwrap())
    }

    fn errnos(
        answers: impl Iterator<Item = (VfioUserHeader, Result<Reply, Failure>)>,
    ) -> Vec<(u16, Option<Errno>)> {
        answers.map(|(header, reply)| (header.id, reply.err().map(|failure| failure.errno))).collect()
    }

    #[test]
    fn what_was_refused_keeps_its_place_and_takes_no_outcome() {
        let batch = || {
            let mut batch = MemoryBatch::default();
            batch.push(header(1), unmap(4096), Reply::Done);
            batch.push_refused(header(2), Failure::iommufd_missing());
            batch.push(header(3), unmap(4096), Reply::Done);
            batch.take()
        };
        let (changes, answers) = batch();
        assert_eq!(changes.len(), 2);
        let outcomes = vec![Ok(()), Err(Failure::region_unknown(0))];
        let (missing, unknown) = (Some(Errno::NXIO), Some(Errno::NOENT));
        assert_eq!(errnos(answers.with(outcomes)), [(1, None), (2, missing), (3, unknown)]);
        let refused = batch().1.refused(&Failure::region_unknown(0));
        assert_eq!(errnos(refused), [(1, unknown), (2, missing), (3, unknown)]);
    }

    #[test]
    fn more_is_waited_for_where_much_was_taken_away() {
        let is_waiting = |change| {
            let mut batch = MemoryBatch::default();
            batch.push(header(1), change, Reply::Done);
            batch.due().unwrap() > Instant::now()
        };
        assert!(!is_waiting(unmap(4096)), "a page of a guest with a virtual IOMMU");
        // Not that it is: the machine may have been busy.
        let mut batch = MemoryBatch::default();
        let before = Instant::now();
        batch.push(header(1), unmap(1 << 30), Reply::Done);
        assert!(batch.due().unwrap() >= before + LINGER);
    }

    #[test]
    fn a_batch_that_is_closed_is_not_waited_for_and_is_empty_when_taken() {
        let mut batch = MemoryBatch::default();
        batch.push(header(1), ViewChange::Clear, Reply::Done);
        batch.close();
        assert!(batch.due().is_none() && batch.is_closed() && !batch.is_empty());
        drop(batch.take());
        assert!(batch.due().is_none() && !batch.is_closed() && batch.is_empty());
    }

    #[test]
    fn a_batch_is_full_at_some_time() {
        let mut batch = MemoryBatch::default();
        while !batch.is_full() {
            batch.push(header(1), unmap(4096), Reply::Done);
        }
        assert_eq!(batch.take().0.len(), MAX_CHANGES);
    }
}
