// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A transcript as text: a head line for each sequence, then one line for each step:
//! `SEQUENCE.STEP ACTOR OPERATION ARGUMENT… -> RESULT`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What a sequence can be replayed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SequenceId {
    pub(crate) topology: String,
    pub(crate) seed: u64,
    pub(crate) number: u64,
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {} topology {} seed {}", self.number, self.topology, self.seed)
    }
}

impl SequenceId {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let ["sequence", number, "topology", topology, "seed", seed] = words[..] else { return None };
        let (number, seed) = (number.parse().ok()?, seed.parse().ok()?);
        Some(Self { topology: topology.to_owned(), seed, number })
    }

    /// The command that repeats the sequence.
    pub(crate) fn replay(&self) -> String {
        format!("differential --topology {} --seed {} --only {}", self.topology, self.seed, self.number)
    }
}

/// Sequences with the lines of their steps.
pub(crate) type Transcript = BTreeMap<SequenceId, Vec<String>>;

/// Reads a transcript.
///
/// # Errors
///
/// What is wrong with the file, in words.
pub(crate) fn read(path: &str) -> Result<Transcript, String> {
    let text = std::fs::read_to_string(Path::new(path)).map_err(|error| format!("{path}: {error}"))?;
    parse(&text).map_err(|line| format!("{path}: a transcript has no such line: {line}"))
}

fn parse(text: &str) -> Result<Transcript, String> {
    let mut transcript = Transcript::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(id) = SequenceId::parse(line) {
            current = Some(transcript.entry(id).or_default());
        } else if let Some(steps) = &mut current
            && line.contains(" -> ")
        {
            steps.push(line.to_owned());
        } else {
            return Err(line.to_owned());
        }
    }
    Ok(transcript)
}

/// The operation of a step's line, and its result: `Ok` or an errno.
pub(crate) fn outline(line: &str) -> (String, String) {
    let operation = line.split(' ').nth(2).unwrap_or_default();
    let result = line.split_once(" -> ").and_then(|(_, result)| result.split(' ').next());
    (operation.to_owned(), result.unwrap_or_default().to_owned())
}

/// How often each operation had each result.
pub(crate) fn coverage(transcript: &Transcript) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for line in transcript.values().flatten() {
        *counts.entry(outline(line)).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "sequence 3 topology edu-pair seed 9\n\
        3.01 A open-iommufd iommufd1 -> Ok\n\
        3.02 A bind cdev2 iommufd1 -> EINVAL AlreadyBound\n\
        sequence 4 topology edu-pair seed 9\n\
        4.01 B open-iommufd iommufd1 -> Ok\n";

    #[test]
    fn a_head_line_reads_as_it_is_written() {
        let id = SequenceId { topology: "edu-pair".into(), seed: 9, number: 3 };
        assert_eq!(SequenceId::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn lines_belong_to_the_sequence_above_them() {
        let lengths: Vec<_> = parse(TEXT).unwrap().values().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1]);
    }

    #[test]
    fn a_line_of_something_else_is_refused() {
        assert_eq!(
            parse("3.01 A open-iommufd iommufd1 -> Ok"),
            Err("3.01 A open-iommufd iommufd1 -> Ok".into())
        );
        assert!(parse(&format!("{TEXT}thread main panicked")).is_err());
    }

    #[test]
    fn results_are_counted_without_what_they_say() {
        let counts = coverage(&parse(TEXT).unwrap());
        assert_eq!(counts[&("open-iommufd".into(), "Ok".into())], 2);
        assert_eq!(counts[&("bind".into(), "EINVAL".into())], 1);
    }
}
