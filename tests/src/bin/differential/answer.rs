// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a step came to.

use std::fmt;

use serde::{Deserialize, Serialize};
use vfio::device::{BindError, BindRefusal};
use vfio::hot_reset::{HotResetInfo, Ownership};
use vfio::ioas::IovaRanges;
use vfio::{CallError, Device, Errno, HotReset, PciAddress};

use crate::machine::DrivenBy;
use crate::operation::address;

/// A success, with what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Bound {
        /// The device's id in its iommufd: for comparison, not for the transcript.
        id: String,
        has_function_reset: bool,
        regions: u32,
        irqs: u32,
    },
    Allocated {
        /// The IOAS's id in its iommufd, likewise.
        id: u32,
    },
    /// An iommufd is closed, but these of its objects could not be destroyed.
    ClosedWithout(Vec<(String, Refusal)>),
    Ranges {
        usable: Vec<(u64, u64)>,
        alignment: u64,
    },
    ResetSet {
        all_owned: bool,
        rows: Vec<Row>,
    },
    HotReset {
        link_confirmed: bool,
    },
    Register(u16),
    /// Who drives the function now.
    Driver(DrivenBy),
}

/// A row of the reset set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    #[serde(with = "address")]
    pub(crate) function: PciAddress,
    pub(crate) owner: RowOwner,
}

/// Whose a row of the reset set is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RowOwner {
    /// The device with this id in the asking device's iommufd.
    Bound(String),
    Implied,
    NotOwned,
}

impl Answer {
    pub(crate) fn bound(device: &Device) -> Self {
        let info = device.info();
        Self::Bound {
            id: format!("{:?}", device.id()),
            has_function_reset: info.has_function_reset,
            regions: info.regions,
            irqs: info.irqs,
        }
    }

    pub(crate) fn reset_set(info: &HotResetInfo) -> Self {
        let rows = info.functions.iter().map(|function| Row {
            function: function.address,
            owner: match function.ownership {
                Ownership::Bound(id) => RowOwner::Bound(format!("{id:?}")),
                Ownership::Implied => RowOwner::Implied,
                Ownership::NotOwned => RowOwner::NotOwned,
            },
        });
        Self::ResetSet { all_owned: info.all_owned, rows: rows.collect() }
    }

    pub(crate) fn ranges(ranges: &IovaRanges) -> Self {
        let usable = ranges.usable.iter().map(|range| (range.start.0, range.last.0)).collect();
        Self::Ranges { usable, alignment: ranges.alignment }
    }

    pub(crate) fn hot_reset(outcome: HotReset) -> Self {
        Self::HotReset { link_confirmed: outcome == HotReset::Done }
    }
}

impl fmt::Display for Answer {
    /// Without ids. Rows that are bound are the business of whoever knows by which name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ok")?;
        match self {
            Self::Done | Self::Allocated { .. } | Self::HotReset { link_confirmed: true } => Ok(()),
            Self::Bound { has_function_reset, regions, irqs, .. } => {
                write!(f, " function-reset={has_function_reset} regions={regions} irqs={irqs}")
            }
            Self::ClosedWithout(kept) => {
                kept.iter().try_for_each(|(object, refusal)| write!(f, " {object}={refusal}"))
            }
            Self::Ranges { usable, alignment } => {
                usable.iter().try_for_each(|(start, last)| write!(f, " {start:#x}-{last:#x}"))?;
                write!(f, " alignment={alignment:#x}")
            }
            Self::ResetSet { all_owned, rows } => {
                write!(f, " all-owned={all_owned}")?;
                rows.iter().try_for_each(|row| write!(f, " {}={:?}", row.function, row.owner))
            }
            Self::HotReset { link_confirmed: false } => write!(f, " link-unconfirmed"),
            Self::Register(value) => write!(f, " {value:#06x}"),
            Self::Driver(driver) => write!(f, " {driver}"),
        }
    }
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    errno: i32,
    /// What the `vfio` crate makes of a refused bind.
    reason: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno: errno.raw_os_error(), reason: None }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        error.errno.into()
    }
}

impl From<BindError> for Refusal {
    fn from(error: BindError) -> Self {
        let reason = match error.refusal {
            BindRefusal::SiblingDriver { sibling, driver } => format!("SiblingDriver {sibling} {driver}"),
            other => format!("{other:?}"),
        };
        Self { reason: Some(reason), ..error.call.errno.into() }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        // A function without a cdev is an error without an errno.
        Errno::from_io_error(&error).unwrap_or(Errno::NOENT).into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(errno, _)| errno.raw_os_error() == self.errno) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "E{}", self.errno)?,
        }
        self.reason.iter().try_for_each(|reason| write!(f, " {reason}"))
    }
}

/// The errnos of facts that a sequence may meet.
const NAMES: [(Errno, &str); 25] = [
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::INTR, "EINTR"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::TOOBIG, "E2BIG"),
    (Errno::BADF, "EBADF"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::FAULT, "EFAULT"),
    (Errno::BUSY, "EBUSY"),
    (Errno::EXIST, "EEXIST"),
    (Errno::NODEV, "ENODEV"),
    (Errno::INVAL, "EINVAL"),
    (Errno::NOTTY, "ENOTTY"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::RANGE, "ERANGE"),
    (Errno::DEADLK, "EDEADLK"),
    (Errno::PROTO, "EPROTO"),
    (Errno::OVERFLOW, "EOVERFLOW"),
    (Errno::BADFD, "EBADFD"),
    (Errno::MSGSIZE, "EMSGSIZE"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::ADDRINUSE, "EADDRINUSE"),
];
