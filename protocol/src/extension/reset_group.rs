// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `GET_RESET_GROUP`: which functions a hot reset of a device resets, and what stands in its way.

use std::ops::BitOr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::{Cookie, IommuGroup, Name, PciAddress, read_all, split};
use crate::frame::Header;
use crate::header::VhostUserHeader;

/// Changes when a device comes, goes or is reset. Rows of different generations do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Generation(pub u64);

/// Most rows of one reply.
pub const MAX_PAGE_ROWS: usize =
    (VhostUserHeader::MAX_BODY - size_of::<super::ReplyStatus>() - size_of::<ResetGroupReply>())
        / size_of::<ResetGroupRow>();

/// Most rows of one group.
pub const MAX_GROUP_ROWS: usize = 4096;

/// Payload of the `GET_RESET_GROUP` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetGroupRequest {
    /// Which device's group.
    pub cookie: Cookie,
    /// The first row wanted, from 0.
    pub first_row: u32,
    /// Most rows wanted; 0 asks only whether the group can be reset.
    pub max_rows: u32,
}

/// Whether a group can be reset now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum GroupReason {
    /// It can.
    Available = 0,
    /// A row blocks it.
    Blocked = 1,
    /// Neither a slot nor a bus reset exists for the device.
    NoReset = 2,
}

/// What the reply to `GET_RESET_GROUP` begins with; `rows` rows follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetGroupReply {
    /// Of which state of the group this tells.
    pub generation: Generation,
    /// 1 if the group can be reset now, else 0.
    pub available: u32,
    /// Why, or why not.
    pub reason: GroupReason,
    /// Number of rows of the group.
    pub total_rows: u32,
    /// Number of rows in this reply.
    pub rows: u32,
}

/// Whose a function of the group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum Ownership {
    /// Bound to our iommufd.
    Ours = 0,
    /// Not bound, but of an IOMMU group of which another function is ours: nobody else can have it.
    Implied = 1,
    /// Neither: the group cannot be reset.
    Blocking = 2,
}

/// Why a row blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum RowReason {
    /// It does not.
    None = 0,
    /// No driver is bound to the function; VFIO wants one of its own.
    NoDriver = 1,
    /// A driver of the kernel uses the function.
    KernelDriver = 2,
    /// A VFIO driver has the function, nobody uses it, and nothing of its IOMMU group is ours.
    Unopened = 3,
    /// A bridge, which VFIO cannot hold.
    Bridge = 4,
    /// The function is reset with another scope.
    OtherScope = 5,
    /// A virtual function, which is in a reset set of its own.
    VirtualFunction = 6,
    /// A VFIO driver has the function, and somebody else uses it: over another iommufd, or by way of its group.
    InUse = 7,
    /// A VFIO driver has the function and nobody uses it, but somebody else uses a function of its IOMMU group.
    GroupInUse = 8,
    /// As `Unopened`, and no IOMMU stands behind the function: it is owned only if it itself is.
    NoIommu = 9,
    /// The host takes the function from its driver, and waits until whoever uses it lets go.
    HostUnbind = 10,
    /// The server cannot tell: the function has just gone, or sysfs does not describe it.
    Unknown = 255,
}
super::numbered!(GroupReason, Ownership, RowReason);

/// What is so about a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct RowFlags(pub u32);

impl RowFlags {
    /// Bit 0: the function is a device of this server, and the row's cookie its name.
    pub const HAS_COOKIE: Self = Self(1);
    /// Bit 1: the host takes the function from its driver, and waits until whoever uses it lets go. The kernel resets nothing that
    /// the function is part of meanwhile (`EAGAIN`).
    pub const UNBINDING: Self = Self(2);
    /// Bit 2: no IOMMU stands behind the function.
    pub const NO_IOMMU: Self = Self(4);
}

impl RowFlags {
    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for RowFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One function of a reset group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetGroupRow {
    /// Where the function is.
    pub address: PciAddress,
    /// Whose it is.
    pub ownership: Ownership,
    /// Its name; counts only with [`RowFlags::HAS_COOKIE`].
    pub cookie: Cookie,
    /// What is so about the row.
    pub flags: RowFlags,
    /// The IOMMU group.
    pub iommu_group: IommuGroup,
    /// Why it blocks.
    pub reason: RowReason,
    /// PCI header type without the multi-function bit: 0 endpoint, 1 bridge, 2 `CardBus` bridge; 255 unknown.
    pub header_type: u32,
    /// Name of the VFIO character device, empty if it has none.
    pub vfio_device: Name<16>,
    /// Name of the kernel driver, also of one that is about to lose the function; empty if none is bound.
    pub driver: Name<32>,
}

impl ResetGroupRow {
    /// The function's name, if it is a device of this server.
    pub fn cookie(&self) -> Option<Cookie> {
        self.flags.contains(RowFlags::HAS_COOKIE).then_some(self.cookie)
    }
}

/// A whole reset group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetGroup {
    /// Of which state of the group this tells.
    pub generation: Generation,
    /// Whether it can be reset now.
    pub reason: GroupReason,
    /// Its functions.
    pub rows: Vec<ResetGroupRow>,
}

/// What a server that knows the whole group answers.
#[cfg(test)]
impl ResetGroup {
    /// The reply to a request for at most `max_rows` rows from `first_row` on, fewer if they do not fit.
    pub(crate) fn page(&self, first_row: u32, max_rows: u32) -> ResetGroupPage {
        let first_row = usize::try_from(first_row).unwrap_or(usize::MAX);
        let max_rows = usize::try_from(max_rows).unwrap_or(usize::MAX).min(MAX_PAGE_ROWS);
        ResetGroupPage {
            generation: self.generation,
            reason: self.reason,
            total_rows: u32::try_from(self.rows.len()).unwrap_or(u32::MAX),
            rows: self.rows.iter().skip(first_row).take(max_rows).copied().collect(),
        }
    }
}

/// A part of a reset group: one reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetGroupPage {
    /// Of which state of the group this tells.
    pub generation: Generation,
    /// Whether it can be reset now.
    pub reason: GroupReason,
    /// Number of rows of the group.
    pub total_rows: u32,
    /// The rows of this part, at most [`MAX_PAGE_ROWS`]; more would not be encoded.
    pub rows: Vec<ResetGroupRow>,
}

impl ResetGroupPage {
    /// Whether the group can be reset now.
    pub fn is_available(&self) -> bool {
        self.reason == GroupReason::Available
    }

    /// Appends the reply's payload to `body`.
    pub(crate) fn encode(&self, body: &mut Vec<u8>) {
        let rows = self.rows.get(..MAX_PAGE_ROWS).unwrap_or(&self.rows);
        let reply = ResetGroupReply {
            generation: self.generation,
            available: u32::from(self.is_available()),
            reason: self.reason,
            total_rows: self.total_rows,
            rows: u32::try_from(rows.len()).unwrap_or(u32::MAX),
        };
        body.extend(reply.as_bytes());
        body.extend(rows.as_bytes());
    }

    /// Reads the reply's payload; `None` if it is malformed.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (ResetGroupReply { generation, available, reason, total_rows, rows: count }, rest) =
            split(payload)?;
        let rows = read_all(rest)?;
        let page = Self { generation, reason, total_rows, rows };
        let consistent = available == u32::from(page.is_available())
            && usize::try_from(count) == Ok(page.rows.len())
            && count <= total_rows;
        consistent.then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(devfn: u8) -> ResetGroupRow {
        ResetGroupRow {
            address: PciAddress { segment: 0, bus: 1, devfn },
            ownership: Ownership::Blocking,
            cookie: Cookie(0),
            flags: RowFlags::default(),
            iommu_group: IommuGroup(4),
            reason: RowReason::KernelDriver,
            header_type: 0,
            vfio_device: Name::new(""),
            driver: Name::new("snd_hda_intel"),
        }
    }

    fn group(rows: u8) -> ResetGroup {
        ResetGroup {
            generation: Generation(5),
            reason: GroupReason::Blocked,
            rows: (0..rows).map(row).collect(),
        }
    }

    fn encode(page: &ResetGroupPage) -> Vec<u8> {
        let mut payload = Vec::new();
        page.encode(&mut payload);
        payload
    }

    #[test]
    fn a_page_survives_the_wire() {
        let page = group(3).page(0, 10);
        assert_eq!(page.rows.len(), 3);
        assert_eq!(ResetGroupPage::decode(&encode(&page)), Some(page));
    }

    #[test]
    fn a_page_without_rows_still_tells_whether_the_group_is_available() {
        let page = ResetGroupPage::decode(&encode(&group(3).page(0, 0))).unwrap();
        assert!(!page.is_available());
        assert_eq!((page.total_rows, page.rows.len()), (3, 0));
    }

    #[test]
    fn pages_are_as_long_as_a_reply_allows_and_cover_the_group() {
        let group = group(120);
        let sizes: Vec<_> =
            [0, 50, 100, 120, u32::MAX].map(|first| group.page(first, u32::MAX).rows.len()).into();
        assert_eq!(sizes, [50, 50, 20, 0, 0]);
        assert_eq!(group.page(100, 7).rows, group.rows[100..107]);
    }

    #[test]
    fn the_longest_page_fits_a_reply() {
        let size = size_of::<super::super::ReplyStatus>() + encode(&group(120).page(0, u32::MAX)).len();
        assert!(size <= VhostUserHeader::MAX_BODY);
        assert!(size + size_of::<ResetGroupRow>() > VhostUserHeader::MAX_BODY);
    }

    #[test]
    fn a_page_that_contradicts_itself_is_malformed() {
        let payload = encode(&group(2).page(0, 2));
        let broken = |offset: usize, byte: u8| {
            let mut payload = payload.clone();
            payload[offset] = byte;
            ResetGroupPage::decode(&payload)
        };
        assert_eq!(broken(8, 1), None, "available, yet for a reason");
        assert_eq!(broken(12, 3), None, "a reason that is none");
        assert_eq!(broken(16, 1), None, "more rows than there are");
        assert_eq!(broken(20, 1), None, "more rows than counted");
        assert_eq!(broken(28, 9), None, "an ownership that is none");
        assert_eq!(ResetGroupPage::decode(&payload[..payload.len() - 1]), None);
    }

    #[test]
    fn a_cookie_counts_only_with_its_flag() {
        assert_eq!(row(0).cookie(), None);
        let ours = ResetGroupRow { flags: RowFlags::HAS_COOKIE, cookie: Cookie(8), ..row(0) };
        assert_eq!(ours.cookie(), Some(Cookie(8)));
    }

    #[test]
    fn reasons_have_their_numbers() {
        for number in (0..=10).chain([255]) {
            assert_eq!(RowReason::try_from(number).map(u32::from), Ok(number));
        }
        assert!(RowReason::try_from(11).is_err());
        assert_eq!(GroupReason::try_from(2), Ok(GroupReason::NoReset));
    }
}
