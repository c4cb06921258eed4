// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs of numbers: addresses of an address space, pages of some memory.

/// Both ends are included, so that all of 64 bits is a span too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    /// Every number.
    pub(super) const ALL: Self = Self { first: 0, last: u64::MAX };

    /// `None` where `length` is 0 or leads beyond 64 bits.
    pub(super) fn new(first: u64, length: u64) -> Option<Self> {
        Some(Self { first, last: first.checked_add(length.checked_sub(1)?)? })
    }

    /// How many numbers; [`Self::ALL`] is one more than can be said.
    pub(super) const fn length(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether they have a number in common.
    pub(super) const fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether all of `other` is in it.
    pub(super) const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// What of it is in none of `used`, in ascending order.
    pub(super) fn gaps(self, used: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut used: Vec<_> = used.into_iter().filter(|used| self.meets(*used)).collect();
        used.sort_unstable();
        let mut gaps = Vec::new();
        let mut next = Some(self.first);
        for span in used {
            let Some(first) = next.filter(|first| *first <= span.last) else { continue };
            if first < span.first {
                gaps.push(Self { first, last: span.first - 1 });
            }
            next = span.last.checked_add(1);
        }
        gaps.extend(next.filter(|first| *first <= self.last).map(|first| Self { first, last: self.last }));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span { first, last }
    }

    #[test]
    fn nothing_and_what_leads_beyond_64_bits_are_no_spans() {
        assert_eq!(Span::new(0, 0), None);
        assert_eq!(Span::new(1, u64::MAX), Some(span(1, u64::MAX)));
        assert_eq!(Span::new(2, u64::MAX), None);
    }

    #[test]
    fn gaps_are_what_is_left_between_spans_that_may_overlap() {
        let used = [span(30, 40), span(10, 19), span(15, 15), span(20, 24), span(90, 200)];
        assert_eq!(span(0, 100).gaps(used), [span(0, 9), span(25, 29), span(41, 89)]);
    }

    #[test]
    fn what_is_used_up_has_no_gap() {
        assert_eq!(span(10, 20).gaps([span(0, u64::MAX)]), []);
        assert_eq!(Span::ALL.gaps([span(0, 9), span(10, u64::MAX)]), []);
    }

    #[test]
    fn a_span_inside_an_earlier_longer_one_opens_no_gap() {
        assert_eq!(span(0, 50).gaps([span(0, 30), span(5, 6)]), [span(31, 50)]);
    }
}
