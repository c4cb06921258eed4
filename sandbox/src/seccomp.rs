// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The policy as filters of system calls, one for each kind of thread.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::policy::{Argument, CALLS, Entry, REQUESTS, Request, SYSFS_CALLS, Thread};

/// What becomes of a thread that makes a call that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The process is killed.
    Kill,
    /// The call fails with EPERM.
    Refuse,
    /// The call is made, and stands in the audit log.
    Log,
}

/// A filter cannot be made or installed.
#[derive(Debug, thiserror::Error)]
#[error("the system-call filter of the {thread} thread cannot be {step}")]
pub struct FilterError {
    thread: &'static str,
    step: &'static str,
    #[source]
    source: seccompiler::Error,
}

/// The filters of all threads.
#[derive(Clone, Debug)]
pub struct Filters {
    programs: BTreeMap<Thread, BpfProgram>,
}

/// What the policy depends on.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Whether sysfs is read.
    pub sysfs: bool,
    /// Whether devices may be taken in.
    pub new_devices: bool,
    /// What becomes of a violation.
    pub violation: Violation,
}

impl Filters {
    /// Turns the policy into filters.
    pub fn compile(scope: Scope) -> Result<Self, FilterError> {
        // What the kernel is asked for once and by a call that the policy has not, it is asked for now.
        let _ = rustix::param::page_size();
        let compile = |thread: Thread| Ok((thread, compile(thread, scope)?));
        Ok(Self { programs: Thread::ALL.into_iter().map(compile).collect::<Result<_, _>>()? })
    }

    /// Installs the filter on the calling thread, which is one of that kind. There is no way back.
    pub fn install(&self, thread: Thread) -> Result<(), FilterError> {
        let Some(program) = self.programs.get(&thread) else { return Ok(()) };
        seccompiler::apply_filter(program).map_err(|source| FilterError {
            thread: thread.name(),
            step: "installed",
            source,
        })
    }
}

fn compile(thread: Thread, scope: Scope) -> Result<BpfProgram, FilterError> {
    let failed = |source: seccompiler::BackendError| FilterError {
        thread: thread.name(),
        step: "made",
        source: source.into(),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let is_allowed =
        |name: &str, threads: &[Thread]| threads.contains(&thread) && !is_taken_away(name, thread);
    for entry in entries(scope).filter(|entry| is_allowed(entry.name, entry.threads)) {
        let rules = rules.entry(entry.call.number).or_default();
        if !entry.arguments.is_empty() {
            let conditions = entry.arguments.iter().map(condition).collect::<Result<_, _>>();
            rules.push(SeccompRule::new(conditions.map_err(failed)?).map_err(failed)?);
        }
    }
    for request in requests(scope).filter(|request| is_allowed(request.ioctl.name, request.threads)) {
        // The kernel looks at the low 32 bits only.
        let condition = equal(1, request.ioctl.number).map_err(failed)?;
        // For a thread without any there must be no entry: one without rules allows every request.
        let rule = SeccompRule::new(vec![condition]).map_err(failed)?;
        rules.entry(libc::SYS_ioctl).or_default().push(rule);
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    let violation = match scope.violation {
        Violation::Kill => SeccompAction::KillProcess,
        Violation::Refuse => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        Violation::Log => SeccompAction::Log,
    };
    let filter = SeccompFilter::new(rules, violation, SeccompAction::Allow, architecture).map_err(failed)?;
    filter.try_into().map_err(failed)
}

fn entries(scope: Scope) -> impl Iterator<Item = &'static Entry> {
    let sysfs = if scope.sysfs { SYSFS_CALLS } else { &[] };
    #[cfg(feature = "model")]
    let more = if is_named("model") { &[] } else { crate::policy::MODEL_CALLS };
    #[cfg(not(feature = "model"))]
    let more: &[Entry] = &[];
    CALLS.iter().chain(sysfs).chain(more)
}

fn requests(scope: Scope) -> impl Iterator<Item = &'static Request> {
    REQUESTS.iter().filter(move |request| scope.new_devices || !request.is_for_new_devices)
}

/// Whether a test wants to see what needs this entry: it names it, or `NAME/THREAD` for one kind of thread. By `model` it takes
/// away what no server without the model has.
#[cfg(feature = "model")]
fn is_taken_away(name: &str, thread: Thread) -> bool {
    is_named(name) || is_named(&format!("{name}/{}", thread.name()))
}

#[cfg(feature = "model")]
fn is_named(name: &str) -> bool {
    std::env::var("VHOST_DEVICE_VFIO_WITHOUT").is_ok_and(|taken| taken == name)
}

#[cfg(not(feature = "model"))]
const fn is_taken_away(_: &str, _: Thread) -> bool {
    false
}

fn condition(argument: &Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    let operation = match (argument.mask, argument.is_other) {
        (_, true) => SeccompCmpOp::Ne,
        (u32::MAX, false) => SeccompCmpOp::Eq,
        (mask, false) => SeccompCmpOp::MaskedEq(mask.into()),
    };
    SeccompCondition::new(argument.place, SeccompCmpArgLen::Dword, operation, argument.value.into())
}

fn equal(place: u8, value: u32) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(place, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
}
