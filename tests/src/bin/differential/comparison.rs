// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two transcripts next to each other.

use std::collections::BTreeSet;
use std::fmt;
use std::iter::zip;

use crate::transcript::{SequenceId, Transcript, outline};

/// Lines shown before the one that differs.
const CONTEXT: usize = 6;
const NO_LINE: &str = "(the sequence has ended)";

/// How two transcripts compare.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    equal: usize,
    steps: usize,
    differences: Vec<Difference>,
    /// Sequences that only one of them has.
    only_first: usize,
    only_second: usize,
}

/// Where a sequence takes two ways. What follows is the consequence, since each step is drawn from the results before it.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    sequence: SequenceId,
    before: Vec<String>,
    first: String,
    second: String,
}

impl Difference {
    /// The operation and its two results, by which differences with one cause are found.
    fn kind(&self) -> String {
        let (operation, first) = outline(&self.first);
        let (other, second) = outline(&self.second);
        if operation == other {
            format!("{operation}: {first} and {second}")
        } else {
            format!("{operation}: {first}, and {other}: {second}")
        }
    }
}

impl Comparison {
    pub(crate) fn new(first: &Transcript, second: &Transcript) -> Self {
        let mut comparison = Self::default();
        for (id, steps) in first {
            match second.get(id).map(|others| difference(id, steps, others)) {
                None => comparison.only_first += 1,
                Some(Some(difference)) => comparison.differences.push(difference),
                Some(None) => {
                    comparison.equal += 1;
                    comparison.steps += steps.len();
                }
            }
        }
        comparison.only_second = second.keys().filter(|id| !first.contains_key(id)).count();
        comparison
    }

    /// Whether both say the same of the same sequences.
    pub(crate) fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.only_first + self.only_second == 0
    }
}

fn difference(id: &SequenceId, first: &[String], second: &[String]) -> Option<Difference> {
    let same = zip(first, second).take_while(|(first, second)| first == second).count();
    let line = |lines: &[String]| lines.get(same).map_or_else(|| NO_LINE.to_owned(), String::clone);
    (same < first.len().max(second.len())).then(|| Difference {
        sequence: id.clone(),
        before: first[same.saturating_sub(CONTEXT)..same].to_vec(),
        first: line(first),
        second: line(second),
    })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Difference { sequence, before, first, second } in &self.differences {
            writeln!(f, "{sequence}")?;
            before.iter().try_for_each(|line| writeln!(f, "      {line}"))?;
            writeln!(f, "  1:  {first}\n  2:  {second}\n  replay: {}\n", sequence.replay())?;
        }
        let kinds: BTreeSet<_> = self.differences.iter().map(Difference::kind).collect();
        for kind in &kinds {
            let count = self.differences.iter().filter(|difference| difference.kind() == *kind).count();
            writeln!(f, "{count:>5} times {kind}")?;
        }
        write!(
            f,
            "{} sequences equal ({} steps), {} differ, {} only in the first, {} only in the second",
            self.equal,
            self.steps,
            self.differences.len(),
            self.only_first,
            self.only_second
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(sequences: &[(u64, &[&str])]) -> Transcript {
        let sequences = sequences.iter().map(|(number, lines)| {
            let id = SequenceId { topology: "edu-pair".into(), seed: 1, number: *number };
            (id, lines.iter().map(|line| (*line).to_owned()).collect())
        });
        sequences.collect()
    }

    #[test]
    fn a_sequence_differs_from_the_first_line_that_does() {
        let first = transcript(&[(0, &["a", "b", "c", "d"])]);
        let second = transcript(&[(0, &["a", "b", "x", "y"])]);
        let comparison = Comparison::new(&first, &second);
        assert!(!comparison.is_equal());
        let [difference] = &comparison.differences[..] else { panic!("{comparison}") };
        assert_eq!(difference.before, ["a", "b"]);
        assert_eq!((&*difference.first, &*difference.second), ("c", "x"));
        assert!(comparison.to_string().contains("differential --topology edu-pair --seed 1 --only 0"));
    }

    #[test]
    fn a_sequence_that_ends_early_differs() {
        let comparison = Comparison::new(&transcript(&[(0, &["a"])]), &transcript(&[(0, &["a", "b"])]));
        assert_eq!(comparison.differences[0].first, NO_LINE);
    }

    #[test]
    fn a_sequence_that_one_side_lacks_is_no_equality() {
        let comparison = Comparison::new(&transcript(&[(0, &["a"])]), &transcript(&[(1, &["a"])]));
        assert_eq!((comparison.only_first, comparison.only_second), (1, 1));
        assert!(!comparison.is_equal());
    }

    #[test]
    fn equal_transcripts_are_equal() {
        let first = transcript(&[(0, &["a"]), (1, &["b"])]);
        assert!(Comparison::new(&first, &first.clone()).is_equal());
    }
}
