// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has the actors carry out sequences, one step at a time, and writes down what each step came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;

use vfio::Sysfs;
use vhost_device_vfio_tests::host::Host;

use crate::actor::{Reply, Request};
use crate::answer::{Answer, Row, RowOwner};
use crate::generator::Plan;
use crate::ledger::Ledger;
use crate::machine;
use crate::name::{ActorName, CdevName, IommufdName};
use crate::operation::{Operation, Step};
use crate::process::Process;
use crate::random::Random;
use crate::transcript::SequenceId;

/// Sequences of one machine.
pub(crate) struct Director<'a> {
    host: &'a Host,
    sysfs: Sysfs,
    ledger: Ledger,
    processes: BTreeMap<ActorName, Process>,
}

/// Writes the transcript of these sequences, and returns the number of steps in it.
///
/// # Errors
///
/// The transcript cannot be written.
pub(crate) fn run(
    host: &Host,
    topology: &str,
    seed: u64,
    sequences: Range<u64>,
    transcript: &mut impl Write,
) -> io::Result<usize> {
    let mut steps = 0;
    for number in sequences {
        let id = SequenceId { topology: topology.to_owned(), seed, number };
        let mut random = Random::of_sequence(seed, number);
        let plan = Plan::draw(&mut random);
        let mut director = Director::new(host, topology, plan.actors);
        writeln!(transcript, "{id}")?;
        for number in 1..=plan.length {
            let step = plan.next_step(&mut random, &director.ledger);
            let result = director.perform(&step);
            writeln!(transcript, "{}.{number:02} {step} -> {result}", id.number)?;
        }
        transcript.flush()?;
        director.end();
        steps += plan.length;
    }
    Ok(steps)
}

impl<'a> Director<'a> {
    /// Actors who have nothing yet, and every function driven by vfio-pci.
    fn new(host: &'a Host, topology: &str, actors: usize) -> Self {
        let sysfs = host.sysfs();
        let functions = machine::functions(topology, &sysfs);
        machine::restore(&functions, host, &sysfs);
        let functions = machine::functions(topology, &sysfs);
        let ledger = Ledger::new(ActorName::ALL[..actors].to_vec(), functions);
        Self { host, sysfs, ledger, processes: BTreeMap::new() }
    }

    /// Everything is closed, and the drivers are as before.
    fn end(mut self) {
        self.processes.clear();
        machine::restore(&self.ledger.functions, self.host, &self.sysfs);
    }

    /// Carries a step out, and tells what it came to in the words of the transcript.
    fn perform(&mut self, step: &Step) -> String {
        let reply = self.carry_out(step);
        // A device that this very step bound is not in any reset set yet, so the order does not matter.
        let result = self.describe(step, &reply);
        self.ledger.record(step, &reply);
        result
    }

    fn carry_out(&mut self, step: &Step) -> Reply {
        match step {
            Step::Act(actor, operation) => {
                self.process(*actor).ask(&Request::Perform(operation.clone()), None).0
            }
            Step::Hand { file, from, to } => {
                let (_, descriptor) = self.process(*from).ask(&Request::Give(*file), None);
                let descriptor = descriptor.expect("a copy of the file");
                self.process(*to).ask(&Request::Take(*file), Some(descriptor.as_fd())).0
            }
            Step::Kill(actor) => {
                self.processes.remove(actor);
                Ok(Answer::Done)
            }
            Step::BindDriver { function, driver } => {
                self.host.bind_driver(*function, driver)?;
                Ok(Answer::Driver(machine::driver(*function, &self.sysfs)))
            }
            Step::UnbindDriver { function } => {
                self.host.unbind_driver(*function)?;
                Ok(Answer::Driver(machine::driver(*function, &self.sysfs)))
            }
        }
    }

    /// A process begins when there is something for it to do.
    fn process(&mut self, actor: ActorName) -> &Process {
        let host = self.host;
        self.processes.entry(actor).or_insert_with(|| Process::start(host))
    }

    fn describe(&self, step: &Step, reply: &Reply) -> String {
        match (step, reply) {
            (Step::Act(_, Operation::HotResetInfo(cdev)), Ok(Answer::ResetSet { all_owned, rows })) => {
                self.describe_reset_set(*cdev, *all_owned, rows)
            }
            (_, Ok(answer)) => answer.to_string(),
            (_, Err(refusal)) => refusal.to_string(),
        }
    }

    /// The functions with their owners, and the devices of the asker's own iommufd by their names.
    fn describe_reset_set(&self, asker: CdevName, all_owned: bool, rows: &[Row]) -> String {
        let binding = self.ledger.cdevs[&asker].binding.as_ref().expect("who asks is bound");
        let mut text = format!("Ok all-owned={all_owned}");
        for row in rows {
            let owner = match &row.owner {
                RowOwner::Bound(id) => self.bound_name(binding.iommufd, id, row),
                RowOwner::Implied => "implied".to_owned(),
                RowOwner::NotOwned => "not-owned".to_owned(),
            };
            write!(text, " {}={owner}", row.function).expect("a string takes everything");
        }
        text
    }

    /// An id that is not the one the function's device has in this iommufd is a wrong answer, and shows as such.
    fn bound_name(&self, iommufd: IommufdName, id: &str, row: &Row) -> String {
        match self.ledger.device(iommufd, id) {
            Some((name, cdev)) if cdev.function == row.function => name.to_string(),
            Some((name, _)) => format!("wrongly-{name}"),
            None => "unknown-id".to_owned(),
        }
    }
}
