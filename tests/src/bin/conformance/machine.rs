// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A topology of the test VM as the checks know it, and the sets of topologies that checks apply to.

use vfio::HotReset;

use crate::answer::Answer;
use crate::machines::MACHINES;
use crate::part::Part;

/// Every topology in which devices can be bound.
pub(crate) const EVERYWHERE: &[&str] = &[
    "edu-pair",
    "edu-igb",
    "hotplug-slot",
    "igb-pair",
    "virtio-pair",
    "virtio-trio",
    "virtio-rng",
    "virtio-queues",
    "five-devices",
    "nvme",
    "e1000e",
    "bridge",
    "switch",
    "rciep",
    "gen4",
];
/// One of each kind of place: a slot with two functions, a function alone, a bridge's bus, the root bus.
pub(crate) const EACH_PLACE: &[&str] = &["edu-pair", "virtio-trio", "nvme", "bridge", "rciep"];
/// Those whose first functions are devices of every kind that matters.
pub(crate) const EACH_PART: &[&str] = &["edu-pair", "igb-pair", "virtio-pair", "nvme", "e1000e"];
/// Those whose first function is an edu.
pub(crate) const EDU_FIRST: &[&str] = &["edu-pair", "edu-igb", "bridge", "switch", "rciep"];
/// Those whose second function is an igb.
pub(crate) const IGB_SECOND: &[&str] = &["edu-igb", "hotplug-slot", "igb-pair"];
/// Those whose second function is in the first's reset set.
pub(crate) const WITH_SIBLING: &[&str] = &["edu-pair", "edu-igb", "hotplug-slot", "virtio-trio"];
/// Those whose second function is in the first's IOMMU group.
pub(crate) const SHARED_GROUP: &[&str] = &["edu-pair", "virtio-pair", "bridge", "switch"];
/// Those whose second function is in the first's reset set and not in its IOMMU group.
pub(crate) const SEPARATE_GROUPS: &[&str] = &["edu-igb", "hotplug-slot", "igb-pair", "virtio-trio"];
/// Those with two functions in one reset set that have a function level reset.
pub(crate) const FLR_PAIR: &[&str] = &["igb-pair", "virtio-pair"];

/// A topology.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    /// Those bound to vfio-pci, in the order of their addresses.
    pub(crate) functions: &'static [Function],
}

/// A function, and what is said of it.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) address: &'static str,
    pub(crate) part: &'static Part,
    pub(crate) group: u32,
    /// The rest of its IOMMU group.
    pub(crate) group_siblings: &'static [&'static str],
    pub(crate) has_function_reset: bool,
    /// Whose the functions of its reset set are when it alone is bound.
    pub(crate) rows_alone: Answer<&'static str>,
    pub(crate) set: &'static ResetSet,
}

/// What a hot reset hits and comes to.
#[derive(Debug)]
pub(crate) struct ResetSet {
    /// Whose its functions are when every function is bound to one context.
    pub(crate) rows_with_all: Answer<&'static str>,
    /// When the asking function alone is bound.
    pub(crate) outcome_alone: Answer<HotReset>,
    /// When every function is bound to one context.
    pub(crate) outcome_with_all: Answer<HotReset>,
}

/// What is known of a topology.
pub(crate) fn find(name: &str) -> &'static Machine {
    let known = || MACHINES.iter().map(|machine| machine.name).collect::<Vec<_>>().join(" ");
    MACHINES
        .iter()
        .find(|machine| machine.name == name)
        .unwrap_or_else(|| panic!("no topology is called `{name}`: --topology {}", known()))
}
