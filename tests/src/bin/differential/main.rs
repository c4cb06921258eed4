// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of what processes do with devices, carried out on whatever kernel there is, the real one or the model,
//! with a transcript that must be the same on both. With `DIFFERENTIAL_MODEL` in the environment it is the model, of the kernel
//! that `TESTVM_KERNEL` names.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

mod actor;
mod answer;
mod candidate;
mod channel;
mod comparison;
mod director;
mod generator;
mod ledger;
mod machine;
mod mapping;
mod name;
mod operation;
mod process;
mod random;
mod transcript;
mod undestroyed;

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use comparison::Comparison;
use vhost_device_vfio_tests::host::{Host, ModelledMachine};

const USAGE: &str = "\
usage: differential --topology NAME --seed NUMBER --count NUMBER   write the transcript of so many sequences
       differential --topology NAME --seed NUMBER --only NUMBER    the same of one of them
       differential --compare TRANSCRIPT TRANSCRIPT                show where they differ
       differential --coverage TRANSCRIPT…                         how often each operation had each result";

/// Options in any order, each with a value.
fn parse(mut arguments: &[String]) -> Option<(&str, u64, Range<u64>)> {
    let (mut topology, mut seed, mut sequences) = (None, None, None);
    while let [name, value, rest @ ..] = arguments {
        match name.as_str() {
            "--topology" => topology = Some(value.as_str()),
            "--seed" => seed = Some(value.parse().ok()?),
            "--count" => sequences = Some(0..value.parse().ok()?),
            "--only" => sequences = value.parse().ok().map(|number: u64| number..number + 1),
            _ => return None,
        }
        arguments = rest;
    }
    arguments.is_empty().then_some((topology?, seed?, sequences?))
}

fn run(topology: &str, seed: u64, sequences: Range<u64>) -> Result<bool, String> {
    let machine = std::env::var_os("DIFFERENTIAL_MODEL").map(|_| ModelledMachine::of_lane(topology));
    let host = machine.as_ref().map_or_else(Host::this, ModelledMachine::host);
    let count = sequences.end - sequences.start;
    let start = Instant::now();
    let steps = director::run(&host, topology, seed, sequences, &mut std::io::stdout().lock());
    let steps = steps.map_err(|error| format!("the transcript: {error}"))?;
    let time = start.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) * 60.0 / time;
    eprintln!(
        "differential: {topology}, seed {seed}: {count} sequences, {steps} steps in {time:.0} s, {rate:.0} a minute"
    );
    Ok(true)
}

fn compare(first: &str, second: &str) -> Result<bool, String> {
    let comparison = Comparison::new(&transcript::read(first)?, &transcript::read(second)?);
    println!("{comparison}");
    Ok(comparison.is_equal())
}

fn print_coverage(paths: &[String]) -> Result<bool, String> {
    let mut all = transcript::Transcript::new();
    for path in paths {
        all.extend(transcript::read(path)?);
    }
    for ((operation, result), count) in transcript::coverage(&all) {
        println!("{operation:<16} {result:<12} {count:>7}");
    }
    Ok(true)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some((process::ARGUMENT, [root])) => {
            actor::run(Host::at(root));
            Ok(true)
        }
        Some(("--compare", [first, second])) => compare(first, second),
        Some(("--coverage", paths)) => print_coverage(paths),
        _ => match parse(&arguments) {
            Some((topology, seed, sequences)) => run(topology, seed, sequences),
            None => Err(USAGE.to_owned()),
        },
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("differential: {message}");
            ExitCode::from(2)
        }
    }
}
