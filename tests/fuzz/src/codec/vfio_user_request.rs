// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the vfio-user face, as a server parses them.

use protocol::extension::{ResetGroupReply, ResetGroupRow};
use protocol::vfio_user::{
    Capabilities, Command, DeviceFeature, DeviceInfo, DmaMap, DmaMapPayload, DmaUnmap, FeatureRequest,
    IrqAction, IrqData, IrqInfo, IrqSet, MAX_IRQS, MAX_WRITES, Proposal, RegionInfo, RegionIoFds, Request,
    SetIrqs, VfioUserHeader,
};
use protocol::{Frame, Header};
use zerocopy::{FromBytes, IntoBytes};

const OURS: Capabilities = Capabilities {
    max_msg_fds: Some(16),
    max_data_xfer_size: Some(1 << 20),
    pgsizes: Some(4096),
    max_dma_maps: Some(u64::MAX),
};

/// The header of a command: every one that there is, and two that there are not.
pub(super) fn header(place: u8, count: u16) -> VfioUserHeader {
    VfioUserHeader::command(count, Command(u16::from(place) % 20))
}

/// What can be parsed is what its payload says.
pub(super) fn parse(frame: Frame<VfioUserHeader>) {
    let body = frame.body.clone();
    let request = match Request::parse(frame) {
        Ok(request) => request,
        Err(error) => return assert!(error.errno().raw_os_error() > 0, "{error}"),
    };
    match &request {
        Request::Version(proposal) => check_proposal(proposal, body.len()),
        Request::DmaMap(map) => check_map(map, &body),
        Request::DmaUnmap(unmap, echo) => {
            assert_eq!(echo.as_bytes(), body);
            let (address, size) = match *unmap {
                DmaUnmap::Range { address, size } => (address, size),
                DmaUnmap::All => (0, 0),
            };
            assert_eq!((echo.address, echo.size), (address, size));
            assert!(address.checked_add(size).is_some() && (*unmap == DmaUnmap::All || size > 0));
        }
        // Of these the server reads no more than what it parses.
        Request::GetInfo => {
            assert!(DeviceInfo::read_from_bytes(&body).is_ok_and(|info| info.argsz >= DeviceInfo::SIZE));
        }
        Request::GetRegionInfo { index, argsz } => {
            let info = RegionInfo::read_from_bytes(&body).expect("a region info");
            assert_eq!((info.index, info.argsz), (*index, *argsz));
        }
        Request::GetRegionIoFds { index } => {
            let info = RegionIoFds::read_from_bytes(&body).expect("a region");
            assert_eq!((info.index, info.flags, info.count), (*index, 0, 0));
        }
        Request::GetIrqInfo { index } => {
            assert!(IrqInfo::read_from_bytes(&body).is_ok_and(|info| info.index == *index));
        }
        Request::SetIrqs(set) => check_interrupts(set, &body),
        Request::RegionRead(access) => assert_eq!(access.as_bytes(), body),
        Request::RegionWrite { access, data } => {
            assert_eq!([access.as_bytes(), data].concat(), body);
            assert_eq!(usize::try_from(access.count), Ok(data.len()));
        }
        Request::RegionWriteMulti(writes) => {
            assert!((1..=MAX_WRITES).contains(&writes.len()));
            let count = u64::try_from(writes.len()).expect("a short command");
            assert_eq!([count.as_bytes(), writes.as_bytes()].concat(), body);
            for write in writes {
                assert_eq!(usize::try_from(write.count), Ok(write.bytes().len()));
                assert!(write.offset.checked_add(write.count.into()).is_some());
            }
        }
        Request::DeviceReset => assert!(body.is_empty()),
        Request::DeviceFeature(feature) => check_feature(*feature, &body),
    }
}

/// A proposal is what it would be if it came from us, and its sender has room for the reply.
pub(super) fn check_proposal(proposal: &Proposal, size: usize) {
    let Proposal { minor, capabilities, .. } = *proposal;
    let again = Proposal::parse(&capabilities.encode(minor)).expect("our own words");
    assert_eq!((again.minor, again.capabilities), (minor, capabilities));
    let reply = proposal.reply(&OURS);
    assert!(reply.len() <= size, "a reply of {} bytes to a proposal of {size}", reply.len());
    let answered = Proposal::parse(&reply).expect("our own words");
    assert!(answered.minor <= minor);
}

fn check_map(map: &DmaMap, body: &[u8]) {
    let came = DmaMapPayload::read_from_bytes(body).expect("as it was parsed");
    assert_eq!((came.address, came.size, came.offset), (map.address, map.size, map.offset));
    assert!(map.size > 0 && map.address.checked_add(map.size).is_some(), "{map:?}");
    assert_eq!(came.flags, if map.is_writable { 3 } else { 1 });
}

fn check_feature(feature: FeatureRequest, body: &[u8]) {
    let (came, _) = DeviceFeature::read_from_prefix(body).expect("as it was parsed");
    match feature {
        FeatureRequest::ProbeResetGroup { flags } => assert_eq!(came.flags, flags),
        FeatureRequest::GetResetGroup { max_rows, .. } => {
            let reply = 8 + size_of::<ResetGroupReply>() + max_rows as usize * size_of::<ResetGroupRow>();
            assert!(
                reply <= came.argsz as usize && reply <= VfioUserHeader::MAX_BODY,
                "{feature:?} {came:?}"
            );
        }
    }
}

fn check_interrupts(set: &SetIrqs, body: &[u8]) {
    let SetIrqs { index, start, count, action, data } = set;
    let (came, bytes) = IrqSet::read_from_prefix(body).expect("as it was parsed");
    assert_eq!((came.index, came.start, came.count), (*index, *start, *count));
    assert!(start.checked_add(*count).is_some_and(|end| end <= MAX_IRQS), "{set:?}");
    let action = match action {
        IrqAction::Mask => 1 << 3,
        IrqAction::Unmask => 1 << 4,
        IrqAction::Trigger => 1 << 5,
    };
    let length = usize::try_from(*count).expect("as it was parsed");
    let data = match data {
        IrqData::None => 1,
        IrqData::Bools(bools) => {
            assert_eq!(bools, &bytes.iter().map(|byte| *byte != 0).collect::<Vec<_>>());
            assert_eq!(bools.len(), length);
            1 << 1
        }
        IrqData::Eventfds(eventfds) => {
            assert!(eventfds.is_empty() || eventfds.len() == length, "{set:?}");
            1 << 2
        }
    };
    assert_eq!(came.flags, data | action);
}
