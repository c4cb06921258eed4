// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite: what the kernel does with VFIO devices and iommufds, as far as this project relies on it, seen through
//! the public interface of crate `vfio`. The same checks run on a real kernel, in the test VM, and on the model kernel; each
//! writes what it saw to a transcript on stdout, and the transcripts must be equal.
//!
//! `conformance [--topology NAME] [--kernel LANE] [--root FOLDER | --modelled] [--list] [FILTER…]`; topology and lane are otherwise those
//! that the test VM puts into the environment.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing)]

mod answer;
mod attach;
mod bind;
mod check;
mod config_space;
mod device_file;
mod dma;
mod drivers;
mod five_devices;
mod function_reset;
mod groups;
mod holder;
mod hot_reset;
mod hot_reset_info;
mod hwpt;
mod ioas;
mod irqs;
mod machine;
mod machines;
mod mapper;
mod part;
mod regions;
mod registers;
mod release;
mod scene;
mod topology;

use std::io;
use std::process::ExitCode;

use vhost_device_vfio_tests::host::{Host, ModelledMachine};

use check::Check;
use scene::{Kernel, Scene};

/// Every check, in the order they run.
const SUBJECTS: &[&[Check]] = &[
    topology::CHECKS,
    device_file::CHECKS,
    bind::CHECKS,
    regions::CHECKS,
    config_space::CHECKS,
    irqs::CHECKS,
    ioas::CHECKS,
    attach::CHECKS,
    hwpt::CHECKS,
    mapper::CHECKS,
    dma::CHECKS,
    function_reset::CHECKS,
    hot_reset_info::CHECKS,
    hot_reset::CHECKS,
    release::CHECKS,
    drivers::CHECKS,
    groups::CHECKS,
    five_devices::CHECKS,
];

/// The command line.
struct Arguments {
    topology: String,
    kernel: String,
    host: Host,
    /// Whether a machine is to be modelled for the checks.
    is_modelled: bool,
    lists: bool,
    filters: Vec<String>,
}

impl Arguments {
    fn parse() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let mut parsed = Self {
            topology: variable("TESTVM_TOPOLOGY"),
            kernel: variable("TESTVM_KERNEL"),
            host: Host::this(),
            is_modelled: false,
            lists: false,
            filters: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            match argument.as_str() {
                "--topology" => parsed.topology = value(),
                "--kernel" => parsed.kernel = value(),
                "--root" => parsed.host = Host::at(value()),
                "--modelled" => parsed.is_modelled = true,
                "--list" => parsed.lists = true,
                _ => parsed.filters.push(argument),
            }
        }
        parsed
    }

    fn wants(&self, check: &Check) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| check.name().contains(filter))
    }
}

fn main() -> ExitCode {
    if let Some(holder) = holder::requested() {
        holder.hold();
    }
    if let Some(request) = mapper::requested() {
        request.serve();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let machine = machine::find(&arguments.topology);
    let kernel = Kernel::of_lane(&arguments.kernel);
    let checks = SUBJECTS.iter().copied().flatten().filter(|check| check.applies_to(machine));
    let chosen: Vec<&Check> = checks.filter(|check| arguments.wants(check)).collect();
    if arguments.lists {
        for check in &chosen {
            println!("{}", check.name());
        }
        return ExitCode::SUCCESS;
    }
    let modelled = arguments.is_modelled.then(|| ModelledMachine::of_kernel(machine.name, &arguments.kernel));
    let host = modelled.as_ref().map_or_else(|| arguments.host.clone(), ModelledMachine::host);
    println!("{} {kernel:?}", machine.name);
    // What failed is told where the transcript is not.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let scene = |check| Scene::new(&host, machine, kernel, check, io::stdout());
    let failed = chosen.iter().filter(|check| !check.passes(&scene(check.name()))).count();
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    let passed = chosen.len() - failed;
    eprintln!("test result: {outcome}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::machines::MACHINES;

    #[test]
    fn every_topology_of_the_test_vm_is_known() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/qemu/testvm/topologies");
        let files = std::fs::read_dir(folder).unwrap();
        let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let known: BTreeSet<_> = MACHINES.iter().map(|machine| machine.name.to_owned()).collect();
        assert_eq!(files, known);
    }

    #[test]
    fn every_check_is_of_topologies_that_there_are() {
        for check in SUBJECTS.iter().copied().flatten() {
            assert!(!check.topologies.is_empty(), "{}", check.name());
            for topology in check.topologies {
                assert_eq!(&machine::find(topology).name, topology);
            }
        }
    }

    #[test]
    fn a_check_has_a_name_of_its_own() {
        let mut names: Vec<_> = SUBJECTS.iter().copied().flatten().map(Check::name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
