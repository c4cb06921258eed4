// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which memory is pinned, and who is charged for it.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::PAGE;
use super::pages::{Pages, PagesId};
use super::span::Span;

/// Who is charged for pinned memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Account {
    /// All processes of a user together (`user_struct::locked_vm`).
    User(u32),
    /// One process (`mm_struct::locked_vm`).
    Process(i32),
}

/// The pinned memory of a machine, whichever context pinned it.
#[derive(Debug, Default)]
pub(crate) struct LockedMemory {
    /// In pages, without zeros.
    charges: BTreeMap<Account, u64>,
    pinned: BTreeMap<PagesId, Pinned>,
    next_id: u64,
}

/// Some memory that is pinned.
#[derive(Debug)]
struct Pinned {
    /// Who mapped it.
    process: i32,
    /// For each mapping that a page table holds, the pages it leads to. Mappings of the same memory may share some.
    parts: Vec<Span>,
}

impl LockedMemory {
    /// A name for memory that is about to be mapped.
    pub(super) fn new_id(&mut self) -> PagesId {
        self.next_id += 1;
        PagesId(self.next_id)
    }

    /// Pins a part of some memory for a mapping. What another mapping pinned already is neither looked at nor charged.
    ///
    /// # Errors
    ///
    /// Those of [`Pages::get`]; `ENOMEM` over the limit of whoever mapped it.
    pub(super) fn pin(&mut self, pages: &Pages, part: Span) -> Result<(), Errno> {
        let fresh =
            part.gaps(self.pinned.get(&pages.id).into_iter().flat_map(|pinned| pinned.parts.iter().copied()));
        for gap in &fresh {
            pages.get(*gap)?;
        }
        let count: u64 = fresh.iter().map(|gap| gap.length()).sum();
        if let Some((account, limit)) = pages.account {
            let charge = self.charges.get(&account).copied().unwrap_or(0).saturating_add(count);
            // A limit stops only who wants more.
            if count > 0 && charge > limit / PAGE {
                return Err(Errno::NOMEM);
            }
            self.set_charge(account, charge);
        }
        let pinned = || Pinned { process: pages.process, parts: Vec::new() };
        self.pinned.entry(pages.id).or_insert_with(pinned).parts.push(part);
        Ok(())
    }

    /// Undoes one [`Self::pin`]. What another mapping still needs stays pinned and charged.
    pub(super) fn unpin(&mut self, pages: &Pages, part: Span) {
        let Some(Pinned { parts: pinned, .. }) = self.pinned.get_mut(&pages.id) else { return };
        if let Some(position) = pinned.iter().position(|pinned| *pinned == part) {
            pinned.swap_remove(position);
        }
        let count: u64 = part.gaps(pinned.iter().copied()).into_iter().map(Span::length).sum();
        if pinned.is_empty() {
            self.pinned.remove(&pages.id);
        }
        if let Some((account, _)) = pages.account {
            let charge = self.charges.get(&account).copied().unwrap_or(0).saturating_sub(count);
            self.set_charge(account, charge);
        }
    }

    /// What is pinned of what each process mapped, in bytes. Memory that was mapped twice, not copied, counts twice.
    pub(crate) fn bytes_of_processes(&self) -> BTreeMap<i32, u64> {
        let mut bytes = BTreeMap::new();
        for Pinned { process, parts } in self.pinned.values() {
            let pinned: &mut u64 = bytes.entry(*process).or_default();
            *pinned = pinned.saturating_add(pages_in(parts).saturating_mul(PAGE));
        }
        bytes
    }

    /// What a user is charged for, in bytes.
    #[cfg(test)]
    pub(super) fn bytes_of_user(&self, user: u32) -> u64 {
        self.bytes_of(Account::User(user))
    }

    /// Whether nothing is pinned.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.pinned.is_empty() && self.charges.is_empty()
    }

    #[cfg(test)]
    pub(super) fn bytes_of(&self, account: Account) -> u64 {
        self.charges.get(&account).copied().unwrap_or(0).saturating_mul(PAGE)
    }

    fn set_charge(&mut self, account: Account, pages: u64) {
        if pages == 0 {
            self.charges.remove(&account);
        } else {
            self.charges.insert(account, pages);
        }
    }
}

/// How many pages some parts of one memory cover together.
fn pages_in(parts: &[Span]) -> u64 {
    let uncovered = |(place, part): (usize, &Span)| {
        let before = parts.iter().take(place).copied();
        part.gaps(before).into_iter().map(Span::length).sum::<u64>()
    };
    parts.iter().enumerate().map(uncovered).sum()
}
