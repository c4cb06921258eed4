// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Benchmarks of the server process, each next to the least that would do for the same. docs/benchmarks.md explains them;
//! `tests/bench` builds and runs them. A figure never fails anything.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

mod comparison;
mod contest;
mod coordinated_reset;
mod echo;
mod exchange;
mod guest_disk;
mod guest_rings;
mod load;
mod memory_table;
mod modelled_slot;
mod pinned_memory;
mod processor;
mod reset_engine;
mod reset_set;
mod resident_memory;
mod round_trip;
mod served_vm;
mod start_up;

use std::process::ExitCode;

use comparison::{Comparison, print_heading};

/// Two functions of one IOMMU group.
const EDU_PAIR: &str = "edu-pair";
/// Two functions of one reset set in two groups, each with a reset of its own.
const IGB_PAIR: &str = "igb-pair";
/// A disk.
const NVME: &str = "nvme";
/// A virtio disk, and a network card in its IOMMU group.
const VIRTIO_PAIR: &str = "virtio-pair";
/// The first two functions of each topology.
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

/// Where a benchmark can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Anywhere; so on the processor that there is, not on one that is emulated.
    Host,
    /// A test machine of this topology: where the devices are.
    Machine(&'static str),
    /// On both the host and this test machine: what is measured in one of them can be compared with it.
    Both(&'static str),
}

/// What can be asked for.
struct Benchmark {
    name: &'static str,
    place: Place,
    run: fn() -> Vec<Comparison>,
}

const BENCHMARKS: [Benchmark; 11] = [
    Benchmark { name: "start-up", place: Place::Host, run: start_up::start_up },
    Benchmark { name: "resident-memory", place: Place::Host, run: resident_memory::resident_memory },
    Benchmark { name: "features", place: Place::Both(EDU_PAIR), run: round_trip::features },
    Benchmark { name: "reset-group", place: Place::Machine(EDU_PAIR), run: round_trip::reset_group },
    Benchmark { name: "region-read", place: Place::Machine(EDU_PAIR), run: round_trip::region_read },
    Benchmark { name: "memory-table", place: Place::Machine(EDU_PAIR), run: memory_table::memory_table },
    Benchmark { name: "reset-engine", place: Place::Host, run: reset_engine::reset_engine },
    Benchmark {
        name: "coordinated-reset",
        place: Place::Machine(IGB_PAIR),
        run: coordinated_reset::coordinated_reset,
    },
    Benchmark { name: "pinned-memory", place: Place::Machine(IGB_PAIR), run: pinned_memory::pinned_memory },
    Benchmark { name: "guest-disk", place: Place::Machine(NVME), run: guest_disk::guest_disk },
    Benchmark { name: "guest-rings", place: Place::Machine(VIRTIO_PAIR), run: guest_rings::guest_rings },
];

/// The benchmarks of these names, all without any.
fn select(names: &[String]) -> Result<Vec<&'static Benchmark>, String> {
    let all = || BENCHMARKS.iter();
    if names.is_empty() {
        return Ok(all().collect());
    }
    let find = |name: &String| {
        all().find(|benchmark| benchmark.name == name).ok_or_else(|| {
            let known: Vec<_> = all().map(|benchmark| benchmark.name).collect();
            format!("there is no benchmark `{name}`, but {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// Prints which of `names` are for the place: `host`, or the topology of a test machine.
fn list(place: &str, names: &[String]) -> Result<(), String> {
    for benchmark in select(names)? {
        let places = match benchmark.place {
            Place::Host => [Some("host"), None],
            Place::Machine(topology) => [None, Some(topology)],
            Place::Both(topology) => [Some("host"), Some(topology)],
        };
        if places.contains(&Some(place)) {
            println!("{}", benchmark.name);
        }
    }
    Ok(())
}

fn run(names: &[String]) -> Result<(), String> {
    let benchmarks = select(names)?;
    print_heading(if std::env::var_os("TESTVM_TOPOLOGY").is_some() { "test machine" } else { "host" });
    for benchmark in benchmarks {
        for comparison in (benchmark.run)() {
            println!("{:<16} {comparison}", benchmark.name);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some((echo::ARGUMENT, rest)) => {
            echo::serve(rest);
            Ok(())
        }
        Some(("--list", [place, names @ ..])) => list(place, names),
        _ => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::from(2)
        }
    }
}
