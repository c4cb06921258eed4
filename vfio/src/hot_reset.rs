// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PCI hot reset: which functions a reset of the slot or bus hits, whether the kernel would do it, and doing it.

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_DEVID_OWNED, VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
};

use crate::device_id::DeviceId;
use crate::pci_address::PciAddress;
use crate::sys::{self, Array, DeviceFd};

/// `struct vfio_pci_hot_reset_info` without its rows, in bytes.
const HEADER: usize = 12;
/// `struct vfio_pci_dependent_device`, in bytes.
const ROW: usize = 8;
/// `VFIO_PCI_DEVID_NOT_OWNED`, -1 in the kernel's union.
const DEVID_NOT_OWNED: u32 = u32::MAX;
/// Rows there is room for at the first try: more than most slots hold, so that one call suffices.
const FIRST_ROOM: u32 = 32;
/// A PCI segment has no more functions than this.
const MAX_ROWS: u32 = 1 << 16;
/// How often a set that changes between two calls is asked about again.
const TRIES: u32 = 16;

/// How a function of the reset set relates to our iommufd context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Bound to our context, as this device.
    Bound(DeviceId),
    /// Not bound, but in an IOMMU group that has a device of ours: it does not block (`VFIO_PCI_DEVID_OWNED`).
    Implied,
    /// Not ours: it blocks (`VFIO_PCI_DEVID_NOT_OWNED`). The kernel does not say why.
    NotOwned,
}

/// A function that a hot reset hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffectedFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Whose it is.
    pub ownership: Ownership,
}

/// The answer of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` for a device bound to an iommufd; true at the moment it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotResetInfo {
    /// Whether every affected function is ours, so that the reset is available.
    pub all_owned: bool,
    /// Every affected function, the asked device among them.
    pub functions: Vec<AffectedFunction>,
}

/// What a hot reset came to, as far as the hardware was touched at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotReset {
    /// Done.
    Done,
    /// The kernel said `ENOTTY`: the reset was fired, but a link or device did not come back in its view in time.
    DoneLinkUnconfirmed,
}

/// Asks for the reset set.
///
/// # Errors
///
/// `ENODEV` neither the slot nor the bus can be reset; `EAGAIN` the set kept changing; `EPROTO` an answer without device
/// ids, as a group-opened device gives.
pub(crate) fn info(fd: &DeviceFd) -> Result<HotResetInfo, Errno> {
    let mut room = FIRST_ROOM;
    for _ in 0..TRIES {
        let mut buffer = vec![0; HEADER + ROW * usize::try_from(room).map_err(|_| Errno::OVERFLOW)?];
        match sys::call_with_array(fd, Array::HotResetInfo, &mut buffer) {
            Ok(_) => return decode(&buffer).ok_or(Errno::PROTO),
            Err(Errno::NOSPC) => room = needed_room(&buffer, room).ok_or(Errno::PROTO)?,
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::AGAIN)
}

/// Resets the set of the device. Uninterruptible, and may take a minute.
///
/// # Errors
///
/// `EINVAL` an affected function is not ours; `ENODEV` no such reset; `EBUSY` somebody is accessing a member; `EAGAIN`
/// somebody holds a member's device lock: nothing was reset in these cases.
pub(crate) fn execute(fd: &DeviceFd) -> Result<HotReset, Errno> {
    let mut argument = [0; HEADER];
    match sys::call_with_array(fd, Array::HotReset, &mut argument) {
        Ok(_) => Ok(HotReset::Done),
        Err(Errno::NOTTY) => Ok(HotReset::DoneLinkUnconfirmed),
        Err(errno) => Err(errno),
    }
}

/// The count in the header of an answer that did not fit; the flags there say nothing.
fn needed_room(buffer: &[u8], room: u32) -> Option<u32> {
    word(buffer, 8).filter(|count| (room + 1..=MAX_ROWS).contains(count))
}

fn decode(buffer: &[u8]) -> Option<HotResetInfo> {
    let flags = word(buffer, 4)?;
    if flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID == 0 {
        // Without the flag the first word of a row is a group number.
        return None;
    }
    let count = usize::try_from(word(buffer, 8)?).ok()?;
    let rows = buffer.get(HEADER..)?.get(..count.checked_mul(ROW)?)?;
    let functions = rows.chunks_exact(ROW).map(decode_row).collect::<Option<_>>()?;
    Some(HotResetInfo { all_owned: flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED != 0, functions })
}

fn decode_row(row: &[u8]) -> Option<AffectedFunction> {
    let ownership = match word(row, 0)? {
        VFIO_PCI_DEVID_OWNED => Ownership::Implied,
        DEVID_NOT_OWNED => Ownership::NotOwned,
        id => Ownership::Bound(DeviceId(id)),
    };
    let [segment_low, segment_high, bus, devfn] = *row.get(4..)?.first_chunk()?;
    let segment = u16::from_ne_bytes([segment_low, segment_high]);
    Some(AffectedFunction { address: PciAddress::from_devfn(segment, bus, devfn), ownership })
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEV_ID: u32 = VFIO_PCI_HOT_RESET_FLAG_DEV_ID;
    const OWNED: u32 = VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;

    fn answer(flags: u32, count: u32, rows: &[(u32, u8)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [0, flags, count].into_iter().flat_map(u32::to_ne_bytes).collect();
        for (devid, devfn) in rows {
            bytes.extend(devid.to_ne_bytes());
            bytes.extend(2_u16.to_ne_bytes());
            bytes.extend([1, *devfn]);
        }
        bytes
    }

    #[test]
    fn each_kind_of_ownership_is_told_apart() {
        let info = decode(&answer(DEV_ID, 3, &[(7, 0), (0, 1), (u32::MAX, 2)])).unwrap();
        let ownership: Vec<_> = info.functions.iter().map(|function| function.ownership).collect();
        assert_eq!(ownership, [Ownership::Bound(DeviceId(7)), Ownership::Implied, Ownership::NotOwned]);
        assert_eq!(info.functions[2].address, PciAddress::from_devfn(2, 1, 2));
        assert!(!info.all_owned);
    }

    #[test]
    fn the_owned_flag_alone_says_that_the_reset_is_available() {
        assert!(decode(&answer(DEV_ID | OWNED, 1, &[(7, 0)])).unwrap().all_owned);
    }

    #[test]
    fn an_answer_with_group_numbers_is_not_taken_for_device_ids() {
        assert_eq!(decode(&answer(0, 1, &[(7, 0)])), None);
    }

    #[test]
    fn a_count_beyond_the_answer_is_malformed() {
        assert_eq!(decode(&answer(DEV_ID, 2, &[(7, 0)])), None);
    }

    #[test]
    fn room_grows_to_what_the_kernel_asks_for_and_only_then() {
        assert_eq!(needed_room(&answer(0, 40, &[]), 32), Some(40));
        assert_eq!(needed_room(&answer(0, 32, &[]), 32), None);
        assert_eq!(needed_room(&answer(0, MAX_ROWS + 1, &[]), 32), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode(&bytes);
        }
    }
}
