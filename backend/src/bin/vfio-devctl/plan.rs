// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `plan`: whether functions that shall go to VMs can be reset there, from sysfs alone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use vfio::{Hierarchy, PciAddress};
use vhost_device_vfio::host::Host;
use vhost_device_vfio::reset::plan::{Assignment, Owned, Plan, Reason, Verdict};

use crate::Method;
use crate::drawing::{Drawing, Mark};
use crate::memory_lock::{MemoryLock, MemorySize};
use crate::plan_view::PlanView;
use crate::tool_error::ToolError;
use crate::view::View;

/// What the VM without a name is called.
const UNNAMED: &str = "vm";
const EXIT_WORKS_WITH_CHANGES: u8 = 1;
const EXIT_CANNOT: u8 = 2;

/// Tell whether functions can be reset once they are handed to VMs, what it takes, and what never works.
///
/// Nothing is opened and nothing is changed. Exit status: 0 it works; 1 it works with the changes that are listed; 2 it cannot
/// work, or wrong usage (then nothing is printed on standard output); 3 the machine's sysfs cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArguments {
    /// Functions that shall go to one VM, by their PCI addresses.
    #[arg(value_name = "ADDRESS", required_unless_present = "vms")]
    functions: Vec<PciAddress>,
    /// Functions that shall go to the VM of this name. May be repeated.
    #[arg(long = "vm", value_name = "NAME=ADDRESS,…", value_parser = assignment)]
    vms: Vec<Assignment>,
    /// Which reset every device has to have.
    #[arg(long, default_value = "auto")]
    method: Method,
    /// The memory of each VM, like 16G: tells the memory-lock limit.
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Draw the bridges, slots and groups instead of the tables.
    #[arg(long)]
    tree: bool,
    /// Draw the same into an SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A name becomes part of a path in the commands that are printed.
fn assignment(text: &str) -> Result<Assignment, String> {
    let (vm, functions) = text.split_once('=').ok_or("expected NAME=ADDRESS,…")?;
    let is_name_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if vm.is_empty() || !vm.bytes().all(is_name_part) {
        return Err("a VM's name consists of letters, digits, - and _".into());
    }
    let functions = functions.split(',').map(|function| function.parse().map_err(|error| format!("{error}")));
    Ok(Assignment { vm: vm.into(), functions: functions.collect::<Result<_, _>>()? })
}

impl PlanArguments {
    /// A failure is never one of the verdicts.
    pub(crate) fn run(&self, host: &Host, json: bool) -> Result<ExitCode, ToolError> {
        self.print(host, json).map_err(ToolError::without_a_verdict)
    }

    fn print(&self, host: &Host, json: bool) -> Result<ExitCode, ToolError> {
        let hierarchy = read_hierarchy(host)?;
        let plan = Plan::new(&hierarchy, &self.assignments(), self.method.wire());
        let drawing = Drawing::new(&hierarchy, &devices(&plan), |function| mark(&plan, function));
        if let Some(path) = &self.svg {
            drawing.write_svg(path)?;
        }
        let memory_lock = self.memory.map(|size| MemoryLock::new(size, plan.vms.len()));
        let tree = self.tree.then(|| drawing.text());
        PlanView::new(&plan, memory_lock, tree).print(json)?;
        Ok(match plan.verdict() {
            Verdict::Works => ExitCode::SUCCESS,
            Verdict::WorksWithChanges => EXIT_WORKS_WITH_CHANGES.into(),
            Verdict::Cannot => EXIT_CANNOT.into(),
        })
    }

    /// What each VM shall have, a name that is given again being the same VM.
    fn assignments(&self) -> Vec<Assignment> {
        let unnamed = Assignment { vm: UNNAMED.into(), functions: self.functions.clone() };
        let mut assignments: Vec<Assignment> = Vec::new();
        for given in std::iter::once(&unnamed).chain(&self.vms).filter(|given| !given.functions.is_empty()) {
            let place = assignments.iter().position(|assignment| assignment.vm == given.vm);
            let place = place.unwrap_or_else(|| {
                assignments.push(Assignment { vm: given.vm.clone(), functions: Vec::new() });
                assignments.len() - 1
            });
            let functions = assignments.get_mut(place).map(|assignment| &mut assignment.functions);
            if let Some(functions) = functions {
                let new = given.functions.iter().filter(|function| !functions.contains(function));
                functions.extend(new.copied().collect::<Vec<_>>());
            }
        }
        assignments
    }
}

/// The machine's functions.
pub(crate) fn read_hierarchy(host: &Host) -> Result<Hierarchy, ToolError> {
    let read = host.sysfs().and_then(|sysfs| Ok(Hierarchy::read(&sysfs)?));
    read.map_err(|error| ToolError::sysfs(&error))
}

fn devices(plan: &Plan) -> Vec<PciAddress> {
    let devices = plan.vms.iter().flat_map(|vm| &vm.devices).map(|device| device.address);
    devices.collect::<BTreeSet<_>>().into_iter().collect()
}

/// What a drawing says of a function: whose it is to be, and whether it is in the way.
fn mark(plan: &Plan, function: PciAddress) -> Mark {
    let rows = || plan.vms.iter().flat_map(move |vm| vm.functions.iter().map(move |row| (vm, row)));
    let rows = || rows().filter(|(_, row)| row.address == function);
    let owners = rows().filter_map(|(vm, row)| match row.owned {
        Owned::HandedOver(place) => Some(format!("{} ({place})", vm.name)),
        Owned::Implied => Some(format!("{} (implied)", vm.name)),
        Owned::OtherVm(_) | Owned::No => None,
    });
    let reasons: BTreeSet<_> = rows().filter_map(|(_, row)| row.reasons.first()).map(Reason::id).collect();
    let blocks = !reasons.is_empty();
    let reasons: Vec<_> = reasons.into_iter().collect();
    let blocking = blocks.then(|| format!("blocks: {}", reasons.join(", ")));
    let words: Vec<_> = owners.chain(blocking).collect();
    Mark { text: words.join(" "), blocks }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_assignment_names_a_vm_and_its_functions() {
        let expected = [address("0000:01:00.0"), address("0000:01:00.1")];
        let parsed = assignment("a=0000:01:00.0,0000:01:00.1").unwrap();
        assert_eq!((parsed.vm.as_str(), parsed.functions), ("a", expected.to_vec()));
        for text in ["0000:01:00.0", "=0000:01:00.0", "a b=0000:01:00.0", "a=", "a=0000:01:00.0,"] {
            assert!(assignment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_vm_named_twice_is_one_and_has_each_function_once() {
        let first = address("0000:01:00.0");
        let arguments = PlanArguments {
            functions: vec![first],
            vms: vec![
                assignment("a=0000:02:00.0").unwrap(),
                assignment("vm=0000:01:00.0,0000:01:00.1").unwrap(),
            ],
            method: Method::Auto,
            memory: None,
            tree: false,
            svg: None,
        };
        let expected = [
            Assignment { vm: "vm".into(), functions: vec![first, address("0000:01:00.1")] },
            Assignment { vm: "a".into(), functions: vec![address("0000:02:00.0")] },
        ];
        assert_eq!(arguments.assignments(), expected);
    }
}
