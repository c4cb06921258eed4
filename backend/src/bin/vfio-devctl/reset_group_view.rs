// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A reset group as it is printed: answers to the five questions that whoever uses a device has about its reset.

use std::path::Path;

use protocol::extension::{
    DeviceFlags, DeviceInfo, GroupReason, Ownership, ResetGroup, ResetGroupRow, RowFlags,
};
use serde::Serialize;
use vfio::Hierarchy;

use crate::blocker;
use crate::drawing::{Drawing, Mark};
use crate::holder::Holder;
use crate::outlook::{Outlook, is_locked};
use crate::table::Table;
use crate::view::{View, number_or_dash};

/// A reset group, as seen from one of its devices.
#[derive(Debug, Serialize)]
pub(crate) struct ResetGroupView {
    device: String,
    generation: u64,
    /// Whether it can be reset now.
    available: bool,
    reason: &'static str,
    /// Whether that will hold.
    outlook: OutlookView,
    /// The devices of this server that a reset hits.
    devices: Vec<DeviceView>,
    functions: Vec<FunctionView>,
    /// The command that resets the group.
    reset_command: String,
    /// The command that resets the device alone, if it can be.
    function_reset_command: Option<String>,
    /// What is printed instead of the table.
    #[serde(skip)]
    tree: Option<String>,
}

#[derive(Debug, Serialize)]
struct OutlookView {
    id: &'static str,
    depends_on: Vec<String>,
    #[serde(skip)]
    sentence: String,
}

#[derive(Debug, Serialize)]
struct DeviceView {
    cookie: u64,
    address: String,
}

/// A function of a reset group.
#[derive(Debug, Serialize)]
struct FunctionView {
    address: String,
    cookie: Option<u64>,
    iommu_group: Option<u32>,
    /// Name of the cdev, if a VFIO driver has the function.
    vfio_device: String,
    driver: String,
    ownership: &'static str,
    blocks: bool,
    reason: &'static str,
    remedy: String,
    /// Whether the host is taking its driver away.
    unbinding: bool,
    /// Who has it open, of a function that blocks; as far as that could be seen.
    holders: Vec<HolderView>,
}

#[derive(Debug, Serialize)]
struct HolderView {
    process: u32,
    command: String,
}

impl ResetGroupView {
    /// What the server at `socket` said of a device's group. The `holders` are those of its rows, row by row.
    pub(crate) fn new(
        device: &DeviceInfo,
        group: &ResetGroup,
        holders: &[Vec<Holder>],
        socket: &Path,
    ) -> Self {
        let none = Vec::new();
        let holders = holders.iter().chain(std::iter::repeat(&none));
        let command = |method| {
            format!("vfio-devctl reset --socket {} --method {method} {}", socket.display(), device.address)
        };
        let has_own_reset = device.flags.contains(DeviceFlags::FUNCTION_RESET);
        let our_device = |row: &ResetGroupRow| {
            Some(DeviceView { cookie: row.cookie()?.0, address: row.address.to_string() })
        };
        Self {
            device: device.address.to_string(),
            generation: group.generation.0,
            available: group.reason == GroupReason::Available && !is_locked(group),
            reason: match group.reason {
                GroupReason::Available if is_locked(group) => "host-unbind",
                GroupReason::Available => "available",
                GroupReason::Blocked => "blocked",
                GroupReason::NoReset => "no-slot-or-bus-reset",
            },
            outlook: OutlookView::of(group),
            devices: group.rows.iter().filter_map(our_device).collect(),
            functions: group
                .rows
                .iter()
                .zip(holders)
                .map(|(row, holders)| FunctionView::new(row, holders))
                .collect(),
            reset_command: command("hot"),
            function_reset_command: has_own_reset.then(|| command("function")),
            tree: None,
        }
    }

    /// Prints this drawing for the table.
    pub(crate) fn with_tree(self, drawing: &Drawing) -> Self {
        Self { tree: Some(drawing.text()), ..self }
    }

    /// The group among the bridges and slots of the machine.
    pub(crate) fn drawing(&self, hierarchy: &Hierarchy) -> Drawing {
        let focus: Vec<_> = self.device.parse().into_iter().collect();
        Drawing::new(hierarchy, &focus, |function| {
            let address = function.to_string();
            let row = self.functions.iter().find(|row| row.address == address);
            row.map_or(Mark::default(), FunctionView::mark)
        })
    }

    fn is_available(&self) -> &'static str {
        match self.reason {
            "available" => "can be hot reset now",
            "host-unbind" => {
                "cannot be hot reset: the host is taking a function of its group away, which locks it (EAGAIN)"
            }
            "blocked" => "cannot be hot reset: a function in its group blocks",
            _ => "cannot be hot reset: neither its slot nor its bus has a reset",
        }
    }

    fn our_devices(&self) -> String {
        let devices = self.devices.iter().map(|device| format!("{} ({})", device.cookie, device.address));
        let devices: Vec<_> = devices.collect();
        if devices.is_empty() { "none by a hot reset".into() } else { devices.join(", ") }
    }

    fn commands(&self) -> String {
        let alone = self.function_reset_command.as_ref();
        match (self.available, alone) {
            (true, None) => self.reset_command.clone(),
            (true, Some(alone)) => format!("{}; of the device alone: {alone}", self.reset_command),
            (false, None) => format!("{}, once it is available", self.reset_command),
            (false, Some(alone)) => format!("of the device alone: {alone}"),
        }
    }

    fn table(&self) -> String {
        let mut table = Table::of_functions();
        for function in &self.functions {
            table.row(&[
                function.address.clone(),
                function.cookie.map_or("-".into(), |cookie| cookie.to_string()),
                number_or_dash(function.iommu_group),
                Table::vfio_driver(&function.driver, &function.vfio_device),
                Table::kernel_driver(&function.driver, &function.vfio_device),
                function.owned().into(),
                function.blocks(),
                function.remedy.clone(),
            ]);
        }
        table.text()
    }
}

impl OutlookView {
    fn of(group: &ResetGroup) -> Self {
        let outlook = Outlook::of(group);
        let depends_on = outlook.conditions(group);
        let sentence = format!("{} {}", outlook.introduction(), depends_on.join("; "));
        Self { id: outlook.id(), depends_on, sentence }
    }
}

impl FunctionView {
    fn new(row: &ResetGroupRow, holders: &[Holder]) -> Self {
        let mut shown: Vec<_> = holders
            .iter()
            .map(|holder| HolderView { process: holder.process, command: holder.command.clone() })
            .collect();
        shown.dedup_by_key(|holder| holder.process);
        Self {
            address: row.address.to_string(),
            cookie: row.cookie().map(|cookie| cookie.0),
            iommu_group: row.iommu_group.number(),
            vfio_device: row.vfio_device.as_str().into(),
            driver: row.driver.as_str().into(),
            ownership: match row.ownership {
                Ownership::Ours => "ours",
                Ownership::Implied => "implied",
                Ownership::Blocking => "blocking",
            },
            blocks: row.ownership == Ownership::Blocking,
            reason: blocker::reason_id(row, holders),
            remedy: blocker::remedy(row, holders),
            unbinding: row.flags.contains(RowFlags::UNBINDING),
            holders: shown,
        }
    }

    fn owned(&self) -> &'static str {
        match (self.ownership, self.cookie) {
            ("ours", None) => "by another process on this iommufd",
            ("blocking", _) => "no",
            (ownership, _) => ownership,
        }
    }

    /// With the reason's name, by which docs/operations.md explains it.
    fn blocks(&self) -> String {
        if self.blocks { format!("yes: {}", self.reason) } else { "no".into() }
    }

    fn mark(&self) -> Mark {
        let text = match (self.cookie, self.blocks) {
            (Some(cookie), _) => format!("{} ({cookie})", self.ownership),
            (None, true) => format!("blocks: {}", self.reason),
            (None, false) => self.ownership.into(),
        };
        Mark { text, blocks: self.blocks }
    }
}

impl View for ResetGroupView {
    fn text(&self) -> String {
        let functions = self.tree.clone().unwrap_or_else(|| self.table());
        format!(
            "{} {} (generation {}).\nLater: {}.\nDevices of ours: {}.\nCommand: {}\n\n{functions}",
            self.device,
            self.is_available(),
            self.generation,
            self.outlook.sentence,
            self.our_devices(),
            self.commands(),
        )
    }
}
