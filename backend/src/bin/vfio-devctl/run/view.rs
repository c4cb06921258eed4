// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a launcher prints: what it has set up, and in the end what happened.

use serde::Serialize;

use super::member::{End, Member};
use super::vm::{Coordinations, Vm};
use crate::table::Table;
use crate::view::View;

/// What was set up.
#[derive(Debug, Serialize)]
pub(crate) struct SetUpView {
    vm: String,
    servers: Vec<ServerView>,
}

#[derive(Debug, Serialize)]
struct ServerView {
    name: String,
    pid: u32,
    control: String,
    /// Whether guest memory goes to this one; if it is shared, for the devices of all.
    takes_memory: bool,
    devices: Vec<PlacementView>,
}

#[derive(Debug, Serialize)]
struct PlacementView {
    cookie: u64,
    address: String,
    socket: String,
}

impl SetUpView {
    pub(crate) fn new(vm: &str, members: &[Member], is_memory_shared: bool) -> Self {
        let server = |(place, member): (usize, &Member)| {
            let placements = member.assignment.devices.iter().map(|device| PlacementView {
                cookie: device.cookie.0,
                address: device.address.to_string(),
                socket: device.socket.display().to_string(),
            });
            ServerView {
                name: member.assignment.name.clone(),
                pid: member.pid(),
                control: member.assignment.control.display().to_string(),
                takes_memory: place == 0 || !is_memory_shared,
                devices: placements.collect(),
            }
        };
        Self { vm: vm.into(), servers: members.iter().enumerate().map(server).collect() }
    }

    /// In one sentence.
    pub(crate) fn status(&self) -> String {
        let devices: usize = self.servers.iter().map(|server| server.devices.len()).sum();
        format!("The VM {} is served: devices {devices}, servers {}.", self.vm, self.servers.len())
    }
}

impl View for SetUpView {
    fn text(&self) -> String {
        let mut table = Table::new(&["server", "pid", "device", "cookie", "vfio-user socket"]);
        for server in &self.servers {
            for device in &server.devices {
                table.row(&[
                    server.name.clone(),
                    server.pid.to_string(),
                    device.address.clone(),
                    device.cookie.to_string(),
                    device.socket.clone(),
                ]);
            }
        }
        let mut controls = Table::new(&["server", "guest memory", "control socket"]);
        for server in &self.servers {
            let memory = if server.takes_memory { "here" } else { "shared" };
            controls.row(&[server.name.clone(), memory.into(), server.control.clone()]);
        }
        format!("{}\n{}\n{}", self.status(), table.text(), controls.text())
    }
}

/// What happened.
#[derive(Debug, Serialize)]
pub(crate) struct SummaryView {
    vm: String,
    ended: &'static str,
    coordinated_resets: CoordinationsView,
    servers: Vec<EndView>,
}

#[derive(Debug, Serialize)]
struct CoordinationsView {
    done: u64,
    failed: u64,
    declined: u64,
}

#[derive(Debug, Serialize)]
struct EndView {
    name: String,
    devices: Vec<String>,
    /// As the kernel tells it.
    end: String,
    ended_well: bool,
    resets_done: u64,
    resets_failed: u64,
    device_errors: u64,
}

impl SummaryView {
    pub(crate) fn new(name: &str, vm: &Vm) -> Self {
        let Coordinations { done, failed, declined } = vm.coordinations;
        Self {
            vm: name.into(),
            ended: if vm.is_asked_to_end() { "asked to end" } else { "no server is left" },
            coordinated_resets: CoordinationsView { done, failed, declined },
            servers: vm.members().iter().map(EndView::from).collect(),
        }
    }

    /// Whether every server ended as it was told.
    pub(crate) fn is_good(&self) -> bool {
        self.servers.iter().all(|server| server.ended_well)
    }
}

impl From<&Member> for EndView {
    fn from(member: &Member) -> Self {
        let (end, ended_well) = match member.end {
            None => ("running".into(), false),
            Some(End { status, is_asked: true }) => (status.to_string(), status.success()),
            Some(End { status, is_asked: false }) => (format!("{status}, unasked"), false),
        };
        Self {
            name: member.assignment.name.clone(),
            devices: member.addresses(),
            end,
            ended_well,
            resets_done: member.tally.resets_done,
            resets_failed: member.tally.resets_failed,
            device_errors: member.tally.device_errors,
        }
    }
}

impl View for SummaryView {
    fn text(&self) -> String {
        let titles = ["server", "devices", "resets done", "resets failed", "device errors", "how it ended"];
        let mut table = Table::new(&titles);
        for server in &self.servers {
            table.row(&[
                server.name.clone(),
                server.devices.join(","),
                server.resets_done.to_string(),
                server.resets_failed.to_string(),
                server.device_errors.to_string(),
                server.end.clone(),
            ]);
        }
        let CoordinationsView { done, failed, declined } = self.coordinated_resets;
        format!(
            "The VM {} has ended: {}. Resets across servers: {done} done, {failed} failed, {declined} not begun.\n{}",
            self.vm,
            self.ended,
            table.text()
        )
    }
}
