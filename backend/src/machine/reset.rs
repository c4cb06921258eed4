// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reset groups and resets of the machine's devices: what would be hit, and whether that may be.

use std::sync::Arc;
use std::time::Duration;

use protocol::extension::{
    Cookie, DEFAULT_RESET_DEADLINE, Epoch, Generation, MAX_PAGE_ROWS, ResetGroupPage, ResetGroupRow,
    ResetMethod, ResetReport,
};
use vfio::hot_reset::AffectedFunction;
use vfio::{Device, HotResetInfo, Ownership};

use super::Machine;
use crate::device::FunctionReset;
use crate::failure::Failure;
use crate::reset::group::ResetGroup;
use crate::reset::order::{ResetOrder, ResetResult};
use crate::reset::report;
use crate::worker::Job;

/// For how long a busy kernel is asked again at most, whatever a client wishes: others may be waiting.
const LONGEST_DEADLINE: Duration = Duration::from_mins(10);

/// Who asks for a reset, which decides how far it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetOrigin {
    /// The control socket: every device of ours.
    Control,
    /// A guest, through its device's data face: no device that another face is using.
    DataFace,
}

impl Machine {
    /// The functions that a reset of the device would hit now; of the rows only those asked for.
    pub fn reset_group(
        &self,
        cookie: Cookie,
        first_row: u32,
        max_rows: u32,
    ) -> Result<ResetGroupPage, Failure> {
        let device = &self.device(cookie)?.device;
        let group = ResetGroup::of(device).map_err(Failure::device_call)?;
        let functions = match &group {
            ResetGroup::None => [].as_slice(),
            ResetGroup::Functions(info) => &info.functions,
        };
        let first = usize::try_from(first_row).unwrap_or(usize::MAX);
        let count = usize::try_from(max_rows).unwrap_or(usize::MAX).min(MAX_PAGE_ROWS);
        let wanted = functions.iter().skip(first).take(count);
        Ok(ResetGroupPage {
            generation: Generation(self.generation),
            reason: report::group_reason(&group),
            total_rows: u32::try_from(functions.len()).unwrap_or(u32::MAX),
            rows: wanted.map(|function| self.row(device, function)).collect(),
        })
    }

    /// Whether the device can be reset at all: alone, or with its slot or bus.
    pub fn has_reset(&self, cookie: Cookie) -> Result<bool, Failure> {
        let device = &self.device(cookie)?.device;
        Ok(device.info().has_function_reset
            || ResetGroup::of(device).map_err(Failure::device_call)? != ResetGroup::None)
    }

    /// Decides on a reset. Without a `method` the order is: the function's own reset, its group's, and a mere power
    /// management reset last.
    pub fn reset(
        &mut self,
        cookie: Cookie,
        method: Option<ResetMethod>,
        deadline: Option<Duration>,
        origin: ResetOrigin,
    ) -> Result<Job, Failure> {
        let device = self.device(cookie)?;
        let target = Arc::clone(&device.device);
        let alone = (ResetMethod::Function, vec![cookie]);
        let (method, affected) = match (method, device.function_reset) {
            (Some(ResetMethod::Function), FunctionReset::None) => {
                return Err(Failure::no_function_reset(target.address()));
            }
            (Some(ResetMethod::Function), _) | (None, FunctionReset::Full) => alone,
            (Some(ResetMethod::Hot), _) | (None, FunctionReset::None) => {
                (ResetMethod::Hot, self.hot_reset_members(&target, origin)?)
            }
            (None, FunctionReset::PowerManagement) => {
                let members = self.hot_reset_members(&target, origin);
                members.map_or(alone, |members| (ResetMethod::Hot, members))
            }
        };
        let address = target.address();
        log::info!("event=reset-begun device={address} method={method:?} affected={}", affected.len());
        let quiescer = |cookie: &Cookie| Some((*cookie, self.devices.get(cookie)?.quiescer()));
        let quiescers = affected.iter().filter_map(quiescer).collect();
        self.held = affected;
        let deadline = deadline.unwrap_or(DEFAULT_RESET_DEADLINE).min(LONGEST_DEADLINE);
        Ok(Job::Reset(ResetOrder { target, method, affected: quiescers, deadline }))
    }

    /// Our devices that a hot reset of `target` hits, if it may be done.
    fn hot_reset_members(&self, target: &Device, origin: ResetOrigin) -> Result<Vec<Cookie>, Failure> {
        let address = target.address();
        let info = match ResetGroup::of(target).map_err(Failure::device_call)? {
            ResetGroup::None => return Err(Failure::no_hot_reset(address)),
            ResetGroup::Functions(info) => info,
        };
        if !info.all_owned {
            return Err(self.blocked(target, &info));
        }
        let mut members = Vec::new();
        for function in &info.functions {
            let Ownership::Bound(id) = function.ownership else { continue };
            let Some((cookie, device)) = self.devices.iter().find(|(_, held)| held.device.id() == id) else {
                return Err(Failure::sibling_elsewhere(address, function.address));
            };
            let is_sibling = function.address != address;
            if origin == ResetOrigin::DataFace && is_sibling && device.face.is_connected() {
                return Err(Failure::sibling_in_use(address, function.address));
            }
            members.push(*cookie);
        }
        Ok(members)
    }

    /// Names every function that stands in the way, and what to do about the one that is hardest to move.
    fn blocked(&self, target: &Device, info: &HotResetInfo) -> Failure {
        let blocking = info.functions.iter().filter(|function| function.ownership == Ownership::NotOwned);
        let rows: Vec<_> = blocking.map(|function| self.row(target, function)).collect();
        let names: Vec<_> = rows.iter().map(|row| row.address.to_string()).collect();
        let decisive = rows.iter().max_by_key(|row| report::permanence(row.reason));
        let remedy = decisive.map(report::remedy).unwrap_or_default();
        Failure::reset_blocked(target.address(), &names.join(", "), remedy)
    }

    /// A function of the set as it is reported.
    fn row(&self, target: &Device, function: &AffectedFunction) -> ResetGroupRow {
        let held = self.devices.iter().find(|(_, held)| held.device.address() == function.address);
        report::row(target.address(), function, held.map(|(cookie, _)| *cookie), &self.sysfs)
    }

    pub(super) fn finish_reset(&mut self, result: ResetResult) -> Result<ResetReport, Failure> {
        for cookie in &result.disarmed {
            if let Some(device) = self.devices.get_mut(cookie) {
                device.note_disarmed();
            }
        }
        self.generation += 1;
        let done = result.outcome?;
        self.epoch += 1;
        log::info!(
            "event=reset-done method={:?} outcome={:?} epoch={} attempts={} affected={} duration-us={}",
            done.method,
            done.outcome,
            self.epoch,
            done.attempts,
            result.affected.len(),
            done.duration.as_micros()
        );
        Ok(ResetReport {
            epoch: Epoch(self.epoch),
            duration: done.duration,
            method: done.method,
            outcome: done.outcome,
            attempts: done.attempts,
            affected: result.affected,
        })
    }
}
