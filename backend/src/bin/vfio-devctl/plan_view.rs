// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A plan as it is printed.

use serde::Serialize;
use vfio::{OwnReset, PciAddress, ResetScope};
use vhost_device_vfio::reset::plan::{
    Change, DevicePlan, Doubt, FunctionPlan, Obstacle, Owned, Plan, Reason, Verdict, VmPlan, WorkingReset,
};

use crate::drawing::scope_name;
use crate::memory_lock::MemoryLock;
use crate::table::Table;
use crate::view::{View, driver_names, number_or_dash, yes_or_no};

/// Most obstacles of a device that are told to a person.
const MAX_TOLD: usize = 3;
const NOT_KNOWN: &str = "Known only after the handover, from `vfio-devctl reset-group`: who has a function open, and whether \
    Linux knows of a bridge that does not survive a hot reset.\n";

/// A plan.
#[derive(Debug, Serialize)]
pub(crate) struct PlanView {
    verdict: &'static str,
    vms: Vec<VmView>,
    memory_lock: Option<MemoryLock>,
    #[serde(skip)]
    tree: Option<String>,
}

/// The plan for a VM.
#[derive(Debug, Serialize)]
struct VmView {
    name: String,
    verdict: &'static str,
    devices: Vec<DeviceView>,
    functions: Vec<FunctionView>,
    changes: Vec<ChangeView>,
}

/// The plan for a device.
#[derive(Debug, Serialize)]
struct DeviceView {
    address: String,
    additional: bool,
    verdict: &'static str,
    /// `function`, `hot` or null.
    reset: Option<&'static str>,
    /// The kernel's name for the way in which the function is reset.
    function_reset: Option<&'static str>,
    scope: ScopeView,
    obstacles: Vec<ObstacleView>,
    hot_reset_obstacles: Vec<ObstacleView>,
    doubts: Vec<DoubtView>,
    #[serde(skip)]
    sentence: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ScopeView {
    kind: &'static str,
    slot: Option<String>,
    bridge: Option<String>,
    functions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ObstacleView {
    function: String,
    reason: &'static str,
    text: String,
    advice: String,
}

#[derive(Debug, Serialize)]
struct DoubtView {
    reason: &'static str,
    text: &'static str,
}

/// A row of the table.
#[derive(Debug, Serialize)]
struct FunctionView {
    address: String,
    /// Its place among the VM's devices, from 1.
    place: Option<usize>,
    iommu_group: Option<u32>,
    vfio_device: String,
    driver: String,
    ownership: &'static str,
    owner: Option<String>,
    blocks: bool,
    reasons: Vec<&'static str>,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct ChangeView {
    kind: &'static str,
    function: String,
    text: String,
    command: Option<String>,
}

impl PlanView {
    pub(crate) fn new(plan: &Plan, memory_lock: Option<MemoryLock>, tree: Option<String>) -> Self {
        Self {
            verdict: verdict(plan.verdict()),
            vms: plan.vms.iter().map(VmView::from).collect(),
            memory_lock,
            tree,
        }
    }
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Works => "works",
        Verdict::WorksWithChanges => "works-with-changes",
        Verdict::Cannot => "cannot",
    }
}

impl From<&VmPlan> for VmView {
    fn from(plan: &VmPlan) -> Self {
        Self {
            name: plan.name.clone(),
            verdict: verdict(plan.verdict()),
            devices: plan.devices.iter().map(DeviceView::from).collect(),
            functions: plan.functions.iter().map(FunctionView::from).collect(),
            changes: plan.changes.iter().map(ChangeView::from).collect(),
        }
    }
}

impl From<&DevicePlan> for DeviceView {
    fn from(device: &DevicePlan) -> Self {
        Self {
            address: device.address.to_string(),
            additional: device.is_additional,
            verdict: verdict(device.verdict),
            reset: device.reset.map(|reset| match reset {
                WorkingReset::Function(_) => "function",
                WorkingReset::Hot => "hot",
            }),
            function_reset: device.reset.and_then(|reset| match reset {
                WorkingReset::Function(own) => Some(own.name()),
                WorkingReset::Hot => None,
            }),
            scope: ScopeView::from(&device.scope),
            obstacles: device.obstacles.iter().map(ObstacleView::from).collect(),
            hot_reset_obstacles: device.hot_reset_obstacles.iter().map(ObstacleView::from).collect(),
            doubts: device.doubts.iter().map(DoubtView::from).collect(),
            sentence: sentence(device),
        }
    }
}

impl From<&ResetScope> for ScopeView {
    fn from(scope: &ResetScope) -> Self {
        let (kind, slot) = match scope {
            ResetScope::Missing => ("none", None),
            ResetScope::Slot { name, .. } => ("slot", Some(name.clone())),
            ResetScope::Bus { .. } => ("bus", None),
        };
        let bridge = scope.bridge().map(|bridge| bridge.to_string());
        Self { kind, slot, bridge, functions: scope.affected().iter().map(PciAddress::to_string).collect() }
    }
}

impl From<&Obstacle> for ObstacleView {
    fn from(obstacle: &Obstacle) -> Self {
        Self {
            function: obstacle.function.to_string(),
            reason: obstacle.reason.id(),
            text: obstacle.sentence(),
            advice: obstacle.advice(),
        }
    }
}

impl From<&Doubt> for DoubtView {
    fn from(doubt: &Doubt) -> Self {
        Self { reason: doubt.id(), text: doubt.sentence() }
    }
}

impl From<&FunctionPlan> for FunctionView {
    fn from(function: &FunctionPlan) -> Self {
        let (vfio_device, driver) = driver_names(&function.driver);
        let (ownership, place, owner) = match &function.owned {
            Owned::HandedOver(place) => ("handed-over", Some(*place), None),
            Owned::Implied => ("implied", None, None),
            Owned::OtherVm(vm) => ("other-vm", None, Some(vm.clone())),
            Owned::No => ("no", None, None),
        };
        Self {
            address: function.address.to_string(),
            place,
            iommu_group: function.iommu_group,
            vfio_device: vfio_device.into(),
            driver: driver.into(),
            ownership,
            owner,
            blocks: !function.reasons.is_empty(),
            reasons: function.reasons.iter().map(Reason::id).collect(),
            remedy: remedy(function),
        }
    }
}

/// One sentence about all that has to be done with a function.
fn remedy(function: &FunctionPlan) -> String {
    let mut changes = function.changes.iter();
    let Some(first) = changes.next() else { return function.advice.clone() };
    let first = first.sentence(&function.address.to_string());
    let capital = first.get(..1).unwrap_or_default().to_uppercase() + first.get(1..).unwrap_or_default();
    changes.fold(capital, |text, change| format!("{text}, {}", change.sentence("it")))
}

impl From<&Change> for ChangeView {
    fn from(change: &Change) -> Self {
        Self {
            kind: change.id(),
            function: change.function().to_string(),
            text: change.sentence(&change.function().to_string()),
            command: change.command(),
        }
    }
}

/// What becomes of a device.
fn sentence(device: &DevicePlan) -> String {
    let Some(reset) = device.reset else {
        return format!("cannot be reset: {}", told(&device.obstacles));
    };
    let how = how(device, reset);
    match device.verdict {
        _ if device.is_additional => format!("has to be handed over too; then {how}"),
        Verdict::WorksWithChanges => format!("{how}, once the changes are made: {}", told(&device.obstacles)),
        Verdict::Works | Verdict::Cannot => how,
    }
}

fn how(device: &DevicePlan, reset: WorkingReset) -> String {
    let others: Vec<_> = device
        .scope
        .affected()
        .iter()
        .filter(|other| **other != device.address)
        .map(ToString::to_string)
        .collect();
    match reset {
        WorkingReset::Hot if others.is_empty() => format!("hot reset of {}", scope_name(&device.scope)),
        WorkingReset::Hot => {
            format!("hot reset of {}, which takes {} along", scope_name(&device.scope), others.join(", "))
        }
        WorkingReset::Function(own) => {
            let how = match own {
                OwnReset::PowerManagement => {
                    "function reset, but by power management (pm) only, which leaves more behind than another"
                        .into()
                }
                own => format!("function reset ({})", own.name()),
            };
            let blocker = device.hot_reset_obstacles.first().filter(|_| !others.is_empty());
            blocker.map_or(how.clone(), |blocker| format!("{how}; no hot reset, as {}", blocker.sentence()))
        }
    }
}

fn told(obstacles: &[Obstacle]) -> String {
    let mut told: Vec<_> = obstacles.iter().take(MAX_TOLD).map(Obstacle::sentence).collect();
    if let Some(more) = obstacles.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        told.push(format!("and {more} more reasons"));
    }
    told.join("; ")
}

impl View for PlanView {
    fn text(&self) -> String {
        let mut parts = vec![self.vms.iter().flat_map(VmView::verdict_lines).collect::<String>()];
        match &self.tree {
            Some(tree) => parts.push(tree.clone()),
            None => parts.extend(self.vms.iter().map(|vm| vm.table(self.vms.len() > 1))),
        }
        parts.extend(self.vms.iter().filter(|vm| !vm.changes.is_empty()).map(VmView::to_do));
        parts.extend(self.memory_lock.as_ref().map(MemoryLock::text));
        if self.vms.iter().flat_map(|vm| &vm.devices).any(|device| device.reset == Some("hot")) {
            parts.push(NOT_KNOWN.into());
        }
        parts.join("\n")
    }
}

impl VmView {
    fn verdict_lines(&self) -> Vec<String> {
        let verdict = match self.verdict {
            "works" => "works",
            "works-with-changes" => "works with the changes below",
            _ => "cannot work",
        };
        let title = format!("VM `{}`: {verdict}.\n", self.name);
        std::iter::once(title).chain(self.devices.iter().flat_map(DeviceView::lines)).collect()
    }

    fn table(&self, is_named: bool) -> String {
        let mut table = Table::of_functions();
        for function in &self.functions {
            let owned = match (&function.owner, function.ownership) {
                (Some(vm), _) => format!("by VM `{vm}`"),
                (None, ownership) => ownership.replace('-', " "),
            };
            table.row(&[
                function.address.clone(),
                function.place.map_or("-".into(), |place| place.to_string()),
                number_or_dash(function.iommu_group),
                Table::vfio_driver(&function.driver, &function.vfio_device),
                Table::kernel_driver(&function.driver, &function.vfio_device),
                owned,
                yes_or_no(function.blocks),
                function.remedy.clone(),
            ]);
        }
        let title = if is_named { format!("VM `{}`\n", self.name) } else { String::new() };
        title + &table.text()
    }

    /// What can be pasted into a root shell.
    fn to_do(&self) -> String {
        let title = format!("# To do for VM `{}`, as root:", self.name);
        let commands = self.changes.iter().filter_map(|change| change.command.clone());
        let devices = self.devices.iter().map(|device| format!("--device {}", device.address));
        let launch = ["vfio-devctl launch --socket /run/".to_owned() + &self.name + "/control"];
        let launch: Vec<_> = launch.into_iter().chain(devices).collect();
        let launch = self.devices.iter().any(|device| device.additional).then(|| launch.join(" "));
        let lines: Vec<_> = std::iter::once(title).chain(commands).chain(launch).collect();
        lines.join("\n") + "\n"
    }
}

impl DeviceView {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("  {}: {}.\n", self.address, self.sentence)];
        lines.extend(self.doubts.iter().map(|doubt| format!("    in doubt: {}.\n", doubt.text)));
        if self.verdict == "cannot" {
            let mut advice: Vec<_> =
                self.obstacles.iter().map(|obstacle| format!("    fix: {}.\n", obstacle.advice)).collect();
            advice.dedup();
            lines.extend(advice.into_iter().take(MAX_TOLD));
        }
        lines
    }
}
