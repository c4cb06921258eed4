// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reset groups and resets of the machine's devices: what would be hit, what is asked for, and what is answered.

use std::time::{Duration, Instant, SystemTime};

use protocol::extension::{
    Cookie, DEFAULT_RESET_DEADLINE, Face, Generation, LONGEST_ATTEMPT, MAX_PAGE_ROWS, ResetGroupPage,
    ResetGroupRow, ResetPolicy, ResetReport, ResetWish,
};
use vfio::hot_reset::AffectedFunction;
use vfio::{Ownership, PciAddress};

use super::Machine;
use crate::device::{FunctionReset, HeldDevice};
use crate::failure::Failure;
use crate::reset::engine::{
    Deadline, Demand, Event, Occasion, Reason, Refusal, Report, Request, RequestId, Sanitization, decisive,
};
use crate::reset::group::ResetGroup;
use crate::reset::report;

/// For how long a busy kernel is asked again at most, whatever a client wishes: others may be waiting.
const LONGEST_DEADLINE: Duration = Duration::from_mins(10);
/// When a data face is answered at the latest: a stock QEMU waits 5 s.
const FACE_PATIENCE: Duration = Duration::from_secs(4);

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
            rows: wanted.map(|function| self.row(device.address(), function)).collect(),
        })
    }

    /// Whether the device can be reset at all: alone, or with its slot or bus.
    pub fn has_reset(&self, cookie: Cookie) -> Result<bool, Failure> {
        let device = &self.device(cookie)?.device;
        Ok(device.info().has_function_reset
            || ResetGroup::of(device).map_err(Failure::device_call)? != ResetGroup::None)
    }

    /// Whether the server may serve the device on such a face, as it was told at its start.
    ///
    /// # Errors
    ///
    /// The device's rings cannot be driven for a vhost-user frontend. Or the server shall serve only what can be reset, and this can't: neither alone, but for its power management, nor with its group.
    pub fn may_serve(&self, cookie: Cookie, face: Face) -> Result<(), Failure> {
        if face == Face::VhostUser {
            self.may_drive(cookie)?;
        }
        let HeldDevice { device, function_reset, .. } = self.device(cookie)?;
        if !self.policies.requires_reset || *function_reset == FunctionReset::Full {
            return Ok(());
        }
        let address = device.address();
        let refusal = match ResetGroup::of(device).map_err(Failure::device_call)? {
            ResetGroup::None => Failure::no_hot_reset(address),
            ResetGroup::Functions(info) if info.all_owned => return Ok(()),
            ResetGroup::Functions(info) => {
                let blocking = info.functions.iter().filter(|row| row.ownership == Ownership::NotOwned);
                self.blocked(address, blocking.map(|row| row.address))
            }
        };
        Err(Failure::reset_required(address, &refusal))
    }

    /// A client of the control socket asks for a reset. The answer comes as an effect.
    pub fn reset(&mut self, cookie: Cookie, wish: ResetWish) -> Result<RequestId, Failure> {
        let tries = wish.deadline.unwrap_or(DEFAULT_RESET_DEADLINE).min(LONGEST_DEADLINE);
        let request = Request {
            id: self.new_request(cookie)?,
            device: cookie,
            method: wish.method,
            demand: Demand::Reset,
            policy: wish.policy.unwrap_or(self.policies.reach),
            vm: None,
            deadline: Deadline::outlasting(Instant::now() + tries, LONGEST_ATTEMPT),
        };
        Ok(self.ask(request))
    }

    /// The client of the device's data face wants a clean device. The answer comes as an effect.
    pub fn reset_for_client(&mut self, cookie: Cookie) -> Result<RequestId, Failure> {
        let request = Request {
            id: self.new_request(cookie)?,
            device: cookie,
            method: None,
            demand: Demand::Clean,
            policy: self.policies.reach,
            vm: self.device(cookie)?.client,
            deadline: Deadline::at(Instant::now() + FACE_PATIENCE),
        };
        Ok(self.ask(request))
    }

    fn ask(&mut self, request: Request) -> RequestId {
        let id = request.id;
        self.drive(Event::Asked(request));
        id
    }

    /// The device is to be reset before `who` gets it, or after they had it. What comes of it comes as an effect.
    pub fn sanitize(
        &mut self,
        cookie: Cookie,
        occasion: Occasion,
        who: String,
        is_waited_for: bool,
    ) -> Result<RequestId, Failure> {
        let now = Instant::now();
        let deadline = if is_waited_for {
            Deadline::at(now + FACE_PATIENCE)
        } else {
            Deadline::outlasting(now + DEFAULT_RESET_DEADLINE, LONGEST_ATTEMPT)
        };
        let id = self.new_request(cookie)?;
        if self.device(cookie)?.is_exposed {
            // Whether somebody has done something to it since its last reset, nobody here has seen.
            self.drive(Event::Touched(cookie));
        }
        let (policy, when) = (self.policies.sanitizing, SystemTime::now());
        self.drive(Event::Sanitize(Sanitization {
            id,
            device: cookie,
            policy,
            // Nobody has asked for the siblings.
            reach: self.policies.reach.min(ResetPolicy::Group),
            occasion,
            who,
            when,
            deadline,
        }));
        Ok(id)
    }

    fn new_request(&mut self, cookie: Cookie) -> Result<RequestId, Failure> {
        let address = self.device(cookie)?.device.address();
        self.last_request.0 += 1;
        self.requests.insert(self.last_request, address);
        Ok(self.last_request)
    }

    /// What a client is told of the end of its request.
    pub(super) fn answer(
        &mut self,
        id: RequestId,
        result: Result<Report, Refusal>,
    ) -> Result<ResetReport, Failure> {
        let address = self.requests.remove(&id).unwrap_or(PciAddress::from_devfn(0, 0, 0));
        match result {
            Ok(Report { reset, passed, .. }) => {
                for step in passed {
                    log::info!("event=reset-passed-over device={address} reason=\"{step}\"");
                }
                Ok(reset)
            }
            Err(refusal) => Err(self.explain(address, refusal)),
        }
    }

    /// A refusal in words, with what can be done about it.
    pub(super) fn explain(&self, address: PciAddress, refusal: Refusal) -> Failure {
        let passed = match refusal {
            Refusal::NoMeansLeft { passed } => passed,
            refusal => return Failure::reset_refusal(address, &refusal),
        };
        match decisive(&passed) {
            Some(step) => match &step.reason {
                Reason::Blocked(blocking) if !blocking.is_empty() => {
                    self.blocked(address, blocking.iter().copied().map(report::local_address))
                }
                _ => Failure::reset_step(address, step),
            },
            None => Failure::no_function_reset(address),
        }
    }

    /// Names every function that stands in the way, and what to do about the one that is hardest to move.
    fn blocked(&self, target: PciAddress, blocking: impl Iterator<Item = PciAddress>) -> Failure {
        let row = |address| self.row(target, &AffectedFunction { address, ownership: Ownership::NotOwned });
        let rows: Vec<_> = blocking.map(row).collect();
        let names: Vec<_> = rows.iter().map(|row| row.address.to_string()).collect();
        let hardest = rows.iter().max_by_key(|row| report::permanence(row.reason));
        Failure::reset_blocked(target, &names.join(", "), hardest.map(report::remedy).unwrap_or_default())
    }

    /// A function of the set as it is reported.
    fn row(&self, target: PciAddress, function: &AffectedFunction) -> ResetGroupRow {
        let held = self.devices.iter().find(|(_, held)| held.device.address() == function.address);
        report::row(target, function, held.map(|(cookie, _)| *cookie), &self.sysfs)
    }
}
