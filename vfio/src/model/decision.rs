// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules about hot resets, one by one: how an affected function relates to the context that asks, what that makes of its
//! row, and what keeps a reset from being done. As rules they can be broken one by one, which the tests must notice.

use rustix::io::Errno;

/// How an affected function relates to the context that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Situation {
    /// It is not in the asked device's set: driven by no VFIO driver, a bridge, behind another bus, a virtual function.
    OutsideSet,
    /// It is bound to the context, as this object; by its cdev or over its group.
    Bound(u32),
    /// It is not bound to the context, but a device of its group is, so that nobody else can have it.
    GroupBound,
    /// It is bound to nothing, and its group has no device in the context.
    ForeignGroup,
    /// It is bound to another context.
    OtherContext,
    /// It is open over a legacy container.
    Contained,
    /// There is no IOMMU for it, and it is not bound to the context.
    NoGroup,
}

/// What a row says in the place of an object's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DevId {
    Bound(u32),
    /// `VFIO_PCI_DEVID_OWNED`.
    Owned,
    /// `VFIO_PCI_DEVID_NOT_OWNED`: it blocks.
    NotOwned,
}

impl DevId {
    /// The kernel's number.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Bound(id) => id,
            Self::Owned => 0,
            Self::NotOwned => u32::MAX,
        }
    }
}

/// What keeps a hot reset from being done, or from being confirmed; in the order of the kernel's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Flags, too short an argument, or a list of groups where there must be none or the other way round.
    Argument,
    /// Neither slot nor bus can be reset.
    NoReset,
    /// An affected function is not in the set.
    SetIncomplete,
    /// A member of the set is not the caller's.
    NotOwned,
    /// Somebody is accessing a member.
    MemoryInUse,
    /// Somebody holds an affected function's lock.
    DeviceLocked,
    /// The reset was done, but the link did not come back in the kernel's view.
    LinkUnconfirmed,
}

/// The rules. Tests break one at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    #[cfg(test)]
    pub(super) broken: Option<Broken>,
}

/// A rule that does not hold.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A row that says the opposite about blocking.
    Row(Situation),
    /// An obstacle that is overlooked.
    Check(Obstacle),
    /// A member of a set that is not the caller's and is no obstacle where a group owns it.
    OwnedFlag,
}

// Only a rule that may be broken depends on anything but what it is asked.
#[cfg_attr(not(test), allow(clippy::unused_self))]
impl Rules {
    /// The decision table of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    pub(super) fn row(self, situation: Situation) -> DevId {
        let row = match situation {
            Situation::Bound(id) => DevId::Bound(id),
            Situation::GroupBound => DevId::Owned,
            Situation::OutsideSet
            | Situation::ForeignGroup
            | Situation::OtherContext
            | Situation::Contained
            | Situation::NoGroup => DevId::NotOwned,
        };
        #[cfg(test)]
        if let Some(Broken::Row(broken)) = self.broken
            && std::mem::discriminant(&broken) == std::mem::discriminant(&situation)
        {
            return if row == DevId::NotOwned { DevId::Owned } else { DevId::NotOwned };
        }
        row
    }

    /// Whether a reset that needs all rows owned is available.
    pub(super) fn is_available(self, rows: impl IntoIterator<Item = DevId>) -> bool {
        #[cfg(test)]
        if self.broken == Some(Broken::OwnedFlag) {
            return true;
        }
        rows.into_iter().all(|row| row != DevId::NotOwned)
    }

    /// The result table of `VFIO_DEVICE_PCI_HOT_RESET`: what an obstacle is answered with, where it is in the way.
    pub(super) fn check(self, obstacle: Obstacle, is_in_the_way: bool) -> Result<(), Errno> {
        #[cfg(test)]
        if self.broken == Some(Broken::Check(obstacle)) {
            return Ok(());
        }
        let errno = match obstacle {
            Obstacle::Argument | Obstacle::SetIncomplete | Obstacle::NotOwned => Errno::INVAL,
            Obstacle::NoReset => Errno::NODEV,
            Obstacle::MemoryInUse => Errno::BUSY,
            Obstacle::DeviceLocked => Errno::AGAIN,
            Obstacle::LinkUnconfirmed => Errno::NOTTY,
        };
        if is_in_the_way { Err(errno) } else { Ok(()) }
    }
}
