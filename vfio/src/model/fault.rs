// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults on demand: which call shall meet with what, and when. A run can be repeated, because chance comes from a seed.

use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::ioctl;
use crate::model::order::DriverOrder;
use crate::model::wire::Call;
use crate::pci_address::PciAddress;

/// A rule of a fault script: when it strikes, and then what happens to the call, in the order of the last five.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fault {
    /// Which call: an ioctl by its name in the uapi headers, or `open`, `pread`, `pwrite`, `mmap`.
    pub call: String,
    /// On which function; any, and what is no function's, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<PciAddress>,
    /// So many such calls pass before it strikes.
    #[serde(default)]
    pub skip: u32,
    /// How often it strikes; 0 for ever.
    #[serde(default = "once")]
    pub times: u32,
    /// How likely it strikes when it could.
    #[serde(default = "certain")]
    pub percent: u8,
    /// The process that issued the call is killed.
    #[serde(default)]
    pub kill: bool,
    /// A function disappears as soon as nobody has it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<PciAddress>,
    /// A function gets another driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<DriverOrder>,
    /// The call lasts so many milliseconds, at most a minute.
    #[serde(default)]
    pub delay: u32,
    /// The call fails with this errno, by its name, and has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<ErrnoName>,
}

impl Fault {
    /// Longest delay.
    const LONGEST: Duration = Duration::from_mins(1);

    /// How long the call lasts.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_millis(self.delay.into()).min(Self::LONGEST)
    }
}

const fn once() -> u32 {
    1
}

const fn certain() -> u8 {
    100
}

/// An errno as `<errno.h>` names it.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(try_from = "String", into = "String")]
pub struct ErrnoName(pub Errno);

/// Those that the calls of the model give.
const NAMES: [(&str, Errno); 29] = [
    ("E2BIG", Errno::TOOBIG),
    ("EACCES", Errno::ACCESS),
    ("EADDRINUSE", Errno::ADDRINUSE),
    ("EAGAIN", Errno::AGAIN),
    ("EBADF", Errno::BADF),
    ("EBADFD", Errno::BADFD),
    ("EBUSY", Errno::BUSY),
    ("EDEADLK", Errno::DEADLK),
    ("EEXIST", Errno::EXIST),
    ("EFAULT", Errno::FAULT),
    ("EINTR", Errno::INTR),
    ("EINVAL", Errno::INVAL),
    ("EIO", Errno::IO),
    ("EMFILE", Errno::MFILE),
    ("EMSGSIZE", Errno::MSGSIZE),
    ("ENFILE", Errno::NFILE),
    ("ENODEV", Errno::NODEV),
    ("ENOENT", Errno::NOENT),
    ("ENOMEM", Errno::NOMEM),
    ("ENOSPC", Errno::NOSPC),
    ("ENOTTY", Errno::NOTTY),
    ("ENXIO", Errno::NXIO),
    ("EOPNOTSUPP", Errno::OPNOTSUPP),
    ("EOVERFLOW", Errno::OVERFLOW),
    ("EPERM", Errno::PERM),
    ("ERANGE", Errno::RANGE),
    ("ESPIPE", Errno::SPIPE),
    ("ESRCH", Errno::SRCH),
    ("ETIMEDOUT", Errno::TIMEDOUT),
];

impl TryFrom<String> for ErrnoName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, errno)| Self(*errno)).ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(known, _)| *known).collect();
            format!("`{name}` is not one of {}", known.join(", "))
        })
    }
}

impl From<ErrnoName> for String {
    fn from(ErrnoName(errno): ErrnoName) -> Self {
        let found = NAMES.iter().find(|(_, known)| *known == errno);
        found.map_or_else(|| errno.raw_os_error().to_string(), |(name, _)| (*name).to_owned())
    }
}

/// The name by which a fault script knows a call.
pub(crate) fn name(call: Call) -> &'static str {
    match call {
        Call::Identify => "fstat",
        Call::Ioctl(number) => {
            ioctl::ALL.iter().find(|ioctl| ioctl.number == number).map_or("ioctl", |ioctl| ioctl.name)
        }
        Call::Read(..) => "pread",
        Call::Write(_) => "pwrite",
        Call::Map(..) => "mmap",
    }
}

/// The rules in force, and chance.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    chance: Chance,
}

#[derive(Debug)]
struct Rule {
    fault: Fault,
    /// Calls that it could have struck.
    seen: u32,
    struck: u32,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), chance: Chance(seed) }
    }

    pub(crate) fn add(&mut self, fault: Fault) {
        self.rules.push(Rule { fault, seen: 0, struck: 0 });
    }

    /// What a call meets with: the first rule that strikes.
    pub(crate) fn strike(&mut self, call: &str, function: Option<PciAddress>) -> Option<Fault> {
        self.rules.iter_mut().find_map(|rule| {
            let Fault { call: meant, function: on, skip, times, percent, .. } = &rule.fault;
            if meant != call || on.is_some() && *on != function {
                return None;
            }
            rule.seen += 1;
            let is_due = rule.seen > *skip && (*times == 0 || rule.struck < *times);
            if !is_due || self.chance.below(100) >= u64::from(*percent) {
                return None;
            }
            rule.struck += 1;
            Some(rule.fault.clone())
        })
    }
}

/// A sequence of numbers that looks like chance and is the same for the same seed: `SplitMix64`.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        toml::from_str(text).unwrap()
    }

    fn strikes(faults: &mut Faults, calls: u32) -> Vec<bool> {
        (0..calls).map(|_| faults.strike("pread", None).is_some()).collect()
    }

    #[test]
    fn a_rule_strikes_once_unless_it_says_otherwise() {
        let mut faults = Faults::new(0);
        faults.add(fault("call = 'pread'\nerrno = 'EIO'"));
        assert_eq!(strikes(&mut faults, 3), [true, false, false]);
    }

    #[test]
    fn a_rule_lets_calls_pass_before_it_strikes() {
        let mut faults = Faults::new(0);
        faults.add(fault("call = 'pread'\nskip = 2\ntimes = 2\nerrno = 'EIO'"));
        assert_eq!(strikes(&mut faults, 5), [false, false, true, true, false]);
    }

    #[test]
    fn a_rule_for_one_function_spares_the_others() {
        let mut faults = Faults::new(0);
        faults.add(fault("call = 'pread'\nfunction = '0000:01:00.0'\nerrno = 'EIO'"));
        let (first, second) = ("0000:01:00.0".parse().ok(), "0000:01:00.1".parse().ok());
        assert!(faults.strike("pread", second).is_none());
        assert!(faults.strike("pread", None).is_none());
        assert!(faults.strike("pread", first).is_some());
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let run = |seed| {
            let mut faults = Faults::new(seed);
            faults.add(fault("call = 'pread'\ntimes = 0\npercent = 50\nerrno = 'EIO'"));
            strikes(&mut faults, 64)
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let hits = run(7).into_iter().filter(|struck| *struck).count();
        assert!((16..48).contains(&hits), "{hits} of 64 at 50 percent");
    }

    #[test]
    fn an_unknown_errno_is_refused_with_the_known_ones() {
        let refused = toml::from_str::<Fault>("call = 'pread'\nerrno = 'EWHAT'").unwrap_err().to_string();
        assert!(refused.contains("`EWHAT` is not one of E2BIG"), "{refused}");
    }

    #[test]
    fn a_delay_ends_after_a_minute() {
        let fault = fault("call = 'pread'\ndelay = 4000000");
        assert_eq!(fault.duration(), Duration::from_mins(1));
    }
}
