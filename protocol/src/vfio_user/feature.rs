// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `DEVICE_FEATURE`: the reset group of the device, for clients that know of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::command::Command;
use super::error::RequestError;
use crate::extension::{MAX_PAGE_ROWS, ResetGroupPage, ResetGroupReply, ResetGroupRow};

/// `struct vfio_device_feature`: what `DEVICE_FEATURE` and its reply begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceFeature {
    /// Room for the reply, or its size, in bytes.
    pub argsz: u32,
    /// Bits 0-15: which feature. Bit 16: get, bit 17: set, bit 18: only tell whether that can be done.
    pub flags: u32,
}

impl DeviceFeature {
    /// The number of the reset group: one that the kernel does not use.
    pub const RESET_GROUP: u32 = 0x5200;
    /// Bit 16 of the flags.
    pub const GET: u32 = 1 << 16;
    /// Bit 17 of the flags.
    pub const SET: u32 = 1 << 17;
    /// Bit 18 of the flags.
    pub const PROBE: u32 = 1 << 18;

    const INDEX: u32 = 0xffff;
    const SIZE: usize = size_of::<Self>();
}

/// What follows [`DeviceFeature`] in a command that gets the reset group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResetGroupWish {
    /// The first row wanted, from 0.
    pub first_row: u32,
    /// 0.
    pub reserved: u32,
}

/// What `DEVICE_FEATURE` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureRequest {
    /// Whether the reset group can be asked for.
    ProbeResetGroup {
        /// As they came.
        flags: u32,
    },
    /// The reset group.
    GetResetGroup {
        /// The first row wanted.
        first_row: u32,
        /// Most rows for which the client has room.
        max_rows: u32,
    },
}

impl FeatureRequest {
    /// Reads the command's payload. What is wrong with it is what the kernel finds wrong with `VFIO_DEVICE_FEATURE`, in its order.
    pub(super) fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let command = Command::DEVICE_FEATURE;
        let bad_size = |expected| RequestError::Size { command, expected, actual: body.len() };
        let bad_field = |field, value: u32| RequestError::Field { command, field, value: value.into() };
        let (DeviceFeature { argsz, flags }, data) =
            DeviceFeature::read_from_prefix(body).map_err(|_| bad_size(DeviceFeature::SIZE))?;
        let room = usize::try_from(argsz).unwrap_or(usize::MAX);
        if room < DeviceFeature::SIZE {
            return Err(bad_field("argsz", argsz));
        }
        let both = DeviceFeature::GET | DeviceFeature::SET;
        let is_probe = flags & DeviceFeature::PROBE != 0;
        if flags & !(DeviceFeature::INDEX | both | DeviceFeature::PROBE) != 0
            || !is_probe && flags & both == both
        {
            return Err(bad_field("flags", flags));
        }
        let feature = flags & DeviceFeature::INDEX;
        if feature != DeviceFeature::RESET_GROUP {
            return Err(RequestError::Feature { feature });
        }
        if flags & DeviceFeature::SET != 0 || !is_probe && flags & DeviceFeature::GET == 0 {
            return Err(bad_field("flags", flags));
        }
        if is_probe {
            return Ok(Self::ProbeResetGroup { flags });
        }
        let ResetGroupWish { first_row, reserved } = ResetGroupWish::read_from_bytes(data)
            .map_err(|_| bad_size(DeviceFeature::SIZE + size_of::<ResetGroupWish>()))?;
        if reserved != 0 {
            return Err(bad_field("reserved", reserved));
        }
        let fixed = DeviceFeature::SIZE + size_of::<ResetGroupReply>();
        let rows =
            room.checked_sub(fixed).ok_or_else(|| bad_field("argsz", argsz))? / size_of::<ResetGroupRow>();
        Ok(Self::GetResetGroup { first_row, max_rows: u32::try_from(rows.min(MAX_PAGE_ROWS)).unwrap_or(0) })
    }
}

/// The body of the reply to a probe.
pub(super) fn encode_probe(flags: u32) -> Vec<u8> {
    encode(flags, &[])
}

/// The body of the reply that has the reset group.
pub(super) fn encode_reset_group(page: &ResetGroupPage) -> Vec<u8> {
    let mut data = Vec::new();
    page.encode(&mut data);
    encode(DeviceFeature::GET | DeviceFeature::RESET_GROUP, &data)
}

fn encode(flags: u32, data: &[u8]) -> Vec<u8> {
    let argsz = u32::try_from(DeviceFeature::SIZE + data.len()).unwrap_or(u32::MAX);
    [DeviceFeature { argsz, flags }.as_bytes(), data].concat()
}

/// The body of the command that gets the reset group from `first_row` on, and at most `max_rows` of its rows.
pub(super) fn encode_wish(first_row: u32, max_rows: u32) -> Vec<u8> {
    let rows = usize::try_from(max_rows).unwrap_or(usize::MAX).min(MAX_PAGE_ROWS);
    let room = DeviceFeature::SIZE + size_of::<ResetGroupReply>() + rows * size_of::<ResetGroupRow>();
    let argsz = u32::try_from(room).unwrap_or(u32::MAX);
    let feature = DeviceFeature { argsz, flags: DeviceFeature::GET | DeviceFeature::RESET_GROUP };
    [feature.as_bytes(), ResetGroupWish { first_row, reserved: 0 }.as_bytes()].concat()
}

/// Reads the body of the reply that has the reset group; `None` if it is malformed.
pub(super) fn decode_reset_group(body: &[u8]) -> Option<ResetGroupPage> {
    let (DeviceFeature { argsz, .. }, data) = DeviceFeature::read_from_prefix(body).ok()?;
    if usize::try_from(argsz) == Ok(body.len()) { ResetGroupPage::decode(data) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::io::Errno;

    use super::*;
    use crate::extension::{Generation, GroupReason};

    const GET_GROUP: u32 = DeviceFeature::GET | DeviceFeature::RESET_GROUP;

    fn parse(argsz: u32, flags: u32, data: &[u32]) -> Result<FeatureRequest, Errno> {
        let body = [DeviceFeature { argsz, flags }.as_bytes(), data.as_bytes()].concat();
        FeatureRequest::parse(&body).map_err(|error| error.errno())
    }

    #[test]
    fn features_of_the_kernel_are_not_there() {
        for feature in (0..16).chain([0x51ff, 0x5201, 0xffff]) {
            for operation in [DeviceFeature::GET, DeviceFeature::SET, DeviceFeature::PROBE, 0] {
                assert_eq!(parse(64, operation | feature, &[0; 4]), Err(Errno::NOTTY), "{feature:#x}");
            }
        }
    }

    #[test]
    fn the_reset_group_can_be_probed_and_got_but_not_set() {
        for operation in [0, DeviceFeature::GET] {
            let flags = DeviceFeature::PROBE | operation | DeviceFeature::RESET_GROUP;
            assert_eq!(parse(8, flags, &[]), Ok(FeatureRequest::ProbeResetGroup { flags }));
        }
        for operation in [
            0,
            DeviceFeature::SET,
            DeviceFeature::SET | DeviceFeature::GET,
            DeviceFeature::SET | DeviceFeature::PROBE,
            DeviceFeature::GET | 1 << 19,
        ] {
            assert_eq!(parse(64, operation | DeviceFeature::RESET_GROUP, &[0, 0]), Err(Errno::INVAL));
        }
    }

    #[test]
    fn the_room_of_the_client_bounds_the_rows() {
        for (argsz, rows) in [(32, 0), (111, 0), (112, 1), (192, 2), (u32::MAX, 50)] {
            let expected = FeatureRequest::GetResetGroup { first_row: 7, max_rows: rows };
            assert_eq!(parse(argsz, GET_GROUP, &[7, 0]), Ok(expected), "{argsz} bytes");
        }
        for argsz in [0, 7, 8, 31] {
            assert_eq!(parse(argsz, GET_GROUP, &[7, 0]), Err(Errno::INVAL), "{argsz} bytes");
        }
    }

    #[test]
    fn a_wish_has_its_size_and_nothing_reserved() {
        for data in [&[][..], &[0], &[0, 1], &[0, 0, 0]] {
            assert_eq!(parse(64, GET_GROUP, data), Err(Errno::INVAL), "{data:?}");
        }
    }

    #[test]
    fn a_wish_and_its_answer_survive_the_wire() {
        let expected = FeatureRequest::GetResetGroup { first_row: 3, max_rows: 50 };
        assert_eq!(FeatureRequest::parse(&encode_wish(3, u32::MAX)), Ok(expected));
        let page = ResetGroupPage {
            generation: Generation(4),
            reason: GroupReason::NoReset,
            total_rows: 0,
            rows: Vec::new(),
        };
        let body = encode_reset_group(&page);
        assert_eq!(decode_reset_group(&body), Some(page));
        assert_eq!(decode_reset_group(&body[..31]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = FeatureRequest::parse(&body);
            let _ = decode_reset_group(&body);
            let _ = FeatureRequest::parse(&[&[64, 0, 0, 0, 0, 0x52, 1, 0], body.as_slice()].concat());
        }
    }
}
